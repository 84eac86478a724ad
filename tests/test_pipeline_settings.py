"""Settings: limits of worker processes from the environment, and the policies of the quality gate."""

import subprocess
import sys
from dataclasses import fields

import pytest

from pipeline.errors import InputError
from pipeline.settings import FRAME_SECONDS, WORKER_BYTES, Check, Policy, Quality, WorkerLimits, worker_limits


def test_limits_of_worker_processes_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    assert worker_limits() == WorkerLimits()
    monkeypatch.setenv(FRAME_SECONDS, "2.5")
    monkeypatch.setenv(WORKER_BYTES, "1073741824")
    assert worker_limits() == WorkerLimits(2.5, 2**30)
    assert worker_limits().wall_seconds == 90.0


@pytest.mark.parametrize(
    ("name", "value"),
    [(FRAME_SECONDS, "0"), (FRAME_SECONDS, "soon"), (FRAME_SECONDS, "nan"), (WORKER_BYTES, "2 GiB"), (WORKER_BYTES, "9")],
)
def test_a_limit_that_cannot_be_used_is_named(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match=rf"^{name} must be .* Got {value} instead\.$"):
        worker_limits()


def test_every_check_has_a_policy() -> None:
    assert {field.name for field in fields(Quality)} == {*map(str, Check), "smallest_side"}
    assert Quality(blank=Policy.IGNORE).policy(Check.BLANK) is Policy.IGNORE


def test_worker_processes_that_only_read_files_import_no_pydantic() -> None:
    check = "import sys; import pipeline.imaging.sources, pipeline.settings; sys.exit('pydantic' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0
