"""Runs that write DICOM objects and are killed again and again: at the end their folders are those of runs that were not."""

import io
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from pydicom import dcmread

from pipeline.cli.main import main
from pipeline.model.bundle import Bundle
from tests.test_cli_score import contents
from tests.test_job_job import arguments, scattered, start

STUDIES, DEADLINE_SECONDS = 8, 120.0


@pytest.fixture
def studies(tmp_path: Path) -> Path:
    return scattered(tmp_path / "studies", STUDIES)


def is_killed(given: list[str], objects: Path, count: int) -> bool:
    """Run octray, and kill it as soon as there are so many objects; return whether it was alive until then."""
    deadline = time.monotonic() + DEADLINE_SECONDS
    with start(*given) as process:
        while process.poll() is None and len(list(objects.glob("*.dcm"))) < count:
            assert time.monotonic() < deadline
            time.sleep(0.005)
        os.kill(process.pid, signal.SIGKILL)
    return process.returncode == -signal.SIGKILL


def timeless(folder: Path) -> dict[str, Any]:
    """What a folder of results holds, its DICOM objects without the time of scoring and the UIDs that are made with it."""
    return {name: _without_time(content) if name.endswith(".dcm") else content for name, content in contents(folder).items()}


def _without_time(content: bytes) -> dict[str, Any]:
    dataset = dcmread(io.BytesIO(content))
    del dataset.ContentDate, dataset.ContentTime
    for element in dataset.iterall():
        if element.VR == "UI" and str(element.value).startswith("2.25."):  # derived; those of the studies begin otherwise
            element.value = "2.25.0"
    return dict(dataset.to_json_dict())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("more", "objects_a_file"), [(("--dicom", "sr,pm,sc"), 3), (("--dicom", "sc", "--no-heatmaps"), 1)], ids=["all", "sc"]
)
def test_a_run_with_objects_that_is_killed_ends_as_one_that_was_not(
    more: tuple[str, ...], objects_a_file: int, studies: Path, bundle: Bundle, tmp_path: Path
) -> None:
    total = 2 * STUDIES * objects_a_file
    assert main(arguments(studies, bundle, tmp_path / "whole", *more)) == 1
    whole = timeless(tmp_path / "whole")
    assert sum(name.startswith("dicom/") for name in whole) == total
    given = arguments(studies, bundle, tmp_path / "killed", *more)
    for count in (1, total // 2, 3 * total // 4):
        assert is_killed(given, tmp_path / "killed" / "dicom", count)
    assert main(given) == 1
    assert timeless(tmp_path / "killed") == whole
    ended = contents(tmp_path / "killed")
    assert main(given) == 1
    assert contents(tmp_path / "killed") == ended
