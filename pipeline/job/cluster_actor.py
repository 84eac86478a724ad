"""What runs on the machines of a Ray cluster: it checks that all is there that is here, then reads, scores and writes."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import BundleError, InputError
from pipeline.job.folder import STATE, code_version
from pipeline.job.outputs import Wanted
from pipeline.job.scorer import Done, Scorer
from pipeline.model.bundle import load_bundle
from pipeline.score.predictor import Predictor
from pipeline.store.types import Claim

UNGUARDED = (
    "The Ray cluster must ask for a token, since whoever reaches it can run programs on it. Start it and octray with "
    "RAY_AUTH_MODE=token and RAY_AUTH_TOKEN set."
)


@dataclass(frozen=True, slots=True)
class Place:
    """What an actor needs to know; the paths must lead to the same folders on every machine.

    Parameters
    ----------
    bundle, bundle_id
        Folder of the bundle, and which bundle it is.
    code
        The versions here, as `code_version` gives them.
    base, folder, wanted
        As in `Scorer`.
    """

    bundle: Path
    bundle_id: str
    code: Mapping[str, str]
    base: Path
    folder: Path
    wanted: Wanted


class Actor:
    """Scores on one CPU of one machine, once it is ready."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self._scorer: Scorer | None = None

    def ready(self) -> None:
        """Load the bundle: not in the constructor, since of what that raises only the text of a traceback arrives.

        Raises
        ------
        OctrayError
            Where the cluster asks for no token, or this machine lacks something, or has another than the one octray runs on.
        """
        if not asks_for_token():
            raise InputError(UNGUARDED)
        _check_code(self._place.code)
        for folder in (self._place.bundle, self._place.base, self._place.folder / STATE):
            _check_folder(folder)
        bundle = load_bundle(self._place.bundle)
        if bundle.manifest.bundle_id != self._place.bundle_id:
            name = self._place.bundle.name
            raise BundleError(f"A machine of the Ray cluster has another bundle as {name}. Copy the one there that is here.")
        self._scorer = Scorer(Predictor(bundle, threads=1), self._place.base, self._place.folder, self._place.wanted)

    def score(self, claims: list[Claim]) -> list[Done]:
        """Score studies in the order of their claims; call `ready` first."""
        assert self._scorer is not None  # noqa: S101 - for mypy
        return list(self._scorer.outcomes(claims))


def asks_for_token() -> bool:
    """Say whether this process asks whoever connects for a token; the processes of a node do all or none."""
    return os.environ.get("RAY_AUTH_MODE", "").lower() == "token"


def _check_code(code: Mapping[str, str]) -> None:
    there = code_version()
    if others := ", ".join(sorted(name for name in code.keys() | there.keys() if code.get(name) != there.get(name))):
        raise InputError(f"A machine of the Ray cluster has another version of {others}. Install the same there as here.")


def _check_folder(folder: Path) -> None:
    """Raise where a folder is missing, or empty as one is into which nothing could be mounted."""
    name = folder.parent.name if folder.name == STATE else folder.name
    try:
        is_filled = any(folder.iterdir())
    except OSError:
        is_filled = False
    if not is_filled:
        raise InputError(
            f"A machine of the Ray cluster does not see the folder {name}, or sees it empty. Share it with all machines, "
            "under the same path."
        )
