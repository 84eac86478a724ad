"""De-identifies folders of studies into another folder, file by file, each of them verified before it takes its name."""

import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.deidentify.job import Job
from pipeline.deidentify.run import Made, Refused, Run
from pipeline.errors import InputError
from pipeline.imaging.sources import StudyFile, discover
from pipeline.progress import Progress
from pipeline.settings import DEFAULT_READING, Reading


@dataclass(frozen=True, slots=True)
class Summary:
    """What became of some files.

    Parameters
    ----------
    names
        The new files below the output folder, with forward slashes, in the order of their originals.
    patients
        How many patients they are from.
    refused
        The originals that were not written.
    """

    names: tuple[str, ...]
    patients: int
    refused: tuple[Refused, ...]


def deidentify_tree(
    sources: Sequence[Path],
    job: Job,
    progress: Progress,
    reading: Reading = DEFAULT_READING,
    workers: int = 0,
    skipped: Counter[str] | None = None,
) -> Summary:
    """De-identify every file below some folders into one output folder.

    Parameters
    ----------
    sources
        Files and folders.
    job
        Where the new files go, with which key, and what is kept.
    progress
        Shows how far it is.
    reading
        Its limits say what one file may demand.
    workers
        How many files are cleaned at the same time, each in a process of its own; 0 takes one for each core.
    skipped
        As in `discover`.

    Raises
    ------
    InputError
        Where a source is missing or holds no file, the output folder or the key lies where it must not, or the key is none.
    ConfigError
        Where text is to be found and the extra for it is not installed.
    """
    job.check(sources)
    with Run(job, reading, workers) as run:
        files = list(_studies(sources, job, run.knows, skipped))
        if not files:
            raise InputError("There is no file in what was given.")
        outcomes = run.deidentify(files, progress)
    names = tuple(one.name for one in outcomes if isinstance(one, Made))
    refused = tuple(one for one in outcomes if isinstance(one, Refused))
    return Summary(names, len({name.partition("/")[0] for name in names}), refused)


def _studies(
    sources: Sequence[Path], job: Job, is_known: Callable[[StudyFile], bool], skipped: Counter[str] | None
) -> Iterator[StudyFile]:
    """Yield every file once, and not the key."""
    seen: set[tuple[str, tuple[int, ...]]] = {(os.path.realpath(path), ()) for path in job.own_files}
    for source in sources:
        for file in discover(source, is_known, skipped):
            place = file.place()
            if file.refusal or place not in seen:
                seen.add(place)
                yield file
