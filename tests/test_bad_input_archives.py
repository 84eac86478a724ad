"""Archives and directories of discs that ask for much: they are looked through in time and in bounds."""

import io
import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from pipeline.errors import Reason
from pipeline.imaging.files import discovery
from pipeline.imaging.sources import discover
from tests.builders import make_dicom, make_dicomdir, make_zip
from tests.fuzz.bombs import SMALL

MEASURED = """
import re, sys
from pathlib import Path
from pipeline.cli.main import main
code = main(["inspect", sys.argv[1], "--json"])
peak = re.search(r"VmHWM:\\s+([0-9]+) kB", Path("/proc/self/status").read_text())
sys.stderr.write(f"{int(peak[1]) * 1024}")
sys.exit(code)
"""
"""Inspects a folder and says the peak of its memory; `getrusage` would count that of the process that started it, too."""


def zip_of(zeros: int) -> bytes:
    return make_zip({"zeros.dcm": bytes(zeros)})


def nested(depth: int) -> bytes:
    """An archive in an archive in an archive ..., with a file in the innermost."""
    content = make_zip({"a.dcm": make_dicom(SMALL)})
    for _ in range(depth):
        content = make_zip({"inner.zip": content})
    return content


def like_42(width: int, zeros: int) -> bytes:
    """Archives of archives of archives, all of the same bomb."""
    content = zip_of(zeros)
    for _ in range(2):
        content = make_zip({f"{number}.zip": content for number in range(width)})
    return content


def of_many_members(count: int) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for number in range(count):
            archive.writestr(f"{number}", b"")
    return buffer.getvalue()


def inspect(folder: Path) -> tuple[list[dict[str, object]], int]:
    """Run `octray inspect` as a process; returns its lines, and the most memory of the process that looks for files."""
    ended = subprocess.run(
        [sys.executable, "-c", MEASURED, str(folder)],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=Path(__file__).parents[1],
        check=False,
    )
    assert "Traceback" not in ended.stderr, ended.stderr
    return [json.loads(line) for line in ended.stdout.splitlines()], int(ended.stderr.split()[-1])


def test_archives_that_ask_for_much_are_refused_and_the_files_beside_them_read(tmp_path: Path) -> None:
    contents = {
        "ratio.zip": zip_of(2**28),
        "nested.zip": nested(5),
        "like42.zip": like_42(4, 2**25),
        "good.dcm": make_dicom(SMALL),
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    lines, peak = inspect(tmp_path)
    reasons: dict[str, set[object]] = {}
    for line in lines:
        reasons.setdefault(str(line["source"]).partition("/")[0], set()).add(line.get("reason", ""))
    assert reasons == {
        "ratio.zip": {Reason.RESOURCE_LIMIT.value},
        "nested.zip": {Reason.RESOURCE_LIMIT.value},
        "like42.zip": {Reason.RESOURCE_LIMIT.value},
        "good.dcm": {""},
    }
    assert peak < 2**30


@pytest.mark.slow
def test_an_archive_of_a_hundred_thousand_members_is_listed_in_bounds(tmp_path: Path) -> None:
    (tmp_path / "many.zip").write_bytes(of_many_members(100_000))
    lines, peak = inspect(tmp_path)
    assert len(lines) == 100_000
    assert {line["reason"] for line in lines} == {Reason.NOT_AN_IMAGE.value}
    assert peak < 2**30


def test_a_dicomdir_that_takes_too_long_is_refused_and_its_folder_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(discovery, "_DICOMDIR_SECONDS", 1.0)
    endless = b"\x09\x00\x10\x10SQ\0\0\xff\xff\xff\xff" + b"\xfe\xff\x00\xe0\xff\xff\xff\xff" * 100_000
    (tmp_path / "DICOMDIR").write_bytes(make_dicomdir(("A",)) + endless)
    (tmp_path / "A").write_bytes(make_dicom(SMALL))
    (alone,) = discover(tmp_path / "DICOMDIR")
    assert alone.refusal is not None
    assert alone.refusal.reason is Reason.TIME_LIMIT
    assert [file.source for file in discover(tmp_path)] == ["A"]
