"""What an independent reader, `dcmdump` of DCMTK, sees in de-identified files; skipped where it is not installed."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from pipeline.deidentify.crosswalk import read_key
from pipeline.deidentify.deidentifier import Plan, deidentify_folder
from pipeline.deidentify.profile import Keep, Options
from pipeline.progress import silent
from tests.identified import SECRETS, make_identified

pytestmark = pytest.mark.skipif(shutil.which("dcmdump") is None, reason="dcmdump of DCMTK is not installed")
EVERYTHING = Options(frozenset({Keep.DATES, Keep.PATIENT, Keep.DESCRIPTORS}))


def dump(path: Path) -> tuple[str, str]:
    """Return every element with its whole value, and what there was to complain of."""
    done = subprocess.run(["dcmdump", "+L", str(path)], capture_output=True, check=False)
    return done.stdout.decode("iso-8859-1"), done.stderr.decode("iso-8859-1")


def deidentified(source: Path, out: Path, options: Options = Options()) -> tuple[Path, ...]:  # noqa: B008
    summary = deidentify_folder([source], Plan(out, out.parent / "my.key", options), silent)
    return tuple(out / name for name in summary.names)


@pytest.mark.parametrize("options", [Options(), EVERYTHING], ids=["basic", "more kept"])
def test_an_independent_reader_finds_nobody(options: Options, tmp_path: Path) -> None:
    (tmp_path / "a.dcm").write_bytes(make_identified())
    before, _ = dump(tmp_path / "a.dcm")
    assert {text for text in SECRETS if text not in before} == {"Smuggled"}
    (made,) = deidentified(tmp_path / "a.dcm", tmp_path / "out", options)
    after, complaints = dump(made)
    assert complaints == ""
    assert [text for text in SECRETS if text.lower() in after.lower()] == []
    pseudonym = read_key(tmp_path / "my.key").pseudonym("MRN-778812")
    assert re.search(rf"^\(0010,0020\) LO \[{pseudonym} *\]", after, re.MULTILINE)
    assert re.search(r"^\(0012,0062\) CS \[YES\]", after, re.MULTILINE)
    assert re.findall(r"^ *\([0-9a-f]{3}[13579bdf],[0-9a-f]{4}\)", after, re.MULTILINE) == []


def test_an_independent_reader_reads_what_is_made_of_public_samples(shared_data: Path, tmp_path: Path) -> None:
    made = deidentified(shared_data / "dicom-samples" / "files", tmp_path / "out")
    assert len(made) >= 50
    assert {path.name: complaints for path in made if (complaints := dump(path)[1])} == {}
