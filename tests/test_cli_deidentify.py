"""`octray deidentify` as a user starts it: what it writes and says, what it never says, and its exit codes."""

import hashlib
import json
from pathlib import Path

import pytest

from pipeline.cli.main import main
from pipeline.deidentify.profile import Keep, RefusalReason
from pipeline.imaging.quality import ocr
from tests.builders import make_dicom
from tests.identified import SECRETS, make_identified

PAGE = Path(__file__).parents[1] / "docs" / "deidentify.md"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "Müller"
    folder.mkdir()
    (folder / "Jörg.dcm").write_bytes(make_identified())
    return folder


def run(source: Path, *options: str) -> int:
    key = source.parent / "keys" / "my.key"
    return main(["deidentify", str(source), "--out", str(source.parent / "out"), "--key", str(key), *options])


def written(source: Path) -> list[Path]:
    return [path for path in (source.parent / "out").rglob("*") if path.is_file()]


def test_files_are_written_and_counted(source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(source, "--profile", "basic", "--keep", "dates", "--keep", "patient") == 0
    said = capsys.readouterr()
    assert said.out == ""
    assert "De-identified and verified: 1 file of 1 patient." in said.err
    assert "my.key" in said.err
    assert len(written(source)) == 1


def test_what_systems_leave_behind_is_skipped_and_counted(source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (source / "@eaDir").mkdir()
    for name in ("Thumbs.db", "@eaDir/Doe^Jane.jpg", "._Doe^Jane.dcm"):
        (source / name).write_bytes(b"x")
    assert run(source) == 0
    said = " ".join(capsys.readouterr().err.split())
    assert "Skipped what operating systems and network drives leave behind: 1 @eaDir, 1 AppleDouble (._*), 1 Thumbs.db." in said
    assert "Doe" not in said


def test_refused_files_are_counted_and_never_named(source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (source / "Okonkwo.dcm").write_bytes(make_dicom(BurnedInAnnotation="YES", PatientName="Okonkwo"))
    assert run(source) == 1
    said = capsys.readouterr().err
    assert "1 refused: burned_in: " in said
    assert "--show-crosswalk" in said
    assert [text for text in SECRETS if text in said] == []


def test_nothing_written_is_exit_code_2(source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (source / "Jörg.dcm").write_bytes(b"no DICOM")
    assert run(source) == 2
    assert "No file was de-identified." in capsys.readouterr().err


def test_rectangles_are_blanked(source: Path) -> None:
    (source / "Jörg.dcm").write_bytes(make_dicom(BurnedInAnnotation="YES"))
    assert run(source, "--blank", "0,0,40,10", "--blank", "0,40,40,8") == 0


@pytest.mark.parametrize("text", ["0,0,40", "a,0,4,4", "0,0,0,4", "-1,0,4,4", "0,0,4,4,4", ""])
def test_what_is_no_rectangle_is_refused(source: Path, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(source, f"--blank={text}") == 2
    assert "must be LEFT,TOP,WIDTH,HEIGHT" in capsys.readouterr().err
    assert written(source) == []


def test_text_cannot_be_found_without_the_extra(
    source: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(ocr, "is_installed", lambda: False)
    assert run(source, "--clean-pixels") == 2
    assert "pip install 'octray[ocr]'" in capsys.readouterr().err


def test_the_crosswalk_is_shown_to_whoever_has_the_key(source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(source)
    key = str(source.parent / "keys" / "my.key")
    capsys.readouterr()
    assert main(["deidentify", "--show-crosswalk", "--key", key]) == 0
    (entry,) = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert (entry["patient_id"], entry["source"]) == ("MRN-778812", "Jörg.dcm")
    assert main(["deidentify", "--show-crosswalk", "--key", f"{key}.other"]) == 2
    assert "There is no key my.key.other" in capsys.readouterr().err


def test_the_default_key_lies_among_the_settings(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(source.parent / "settings"))
    assert main(["deidentify", str(source), "--out", str(source.parent / "out")]) == 0
    assert (source.parent / "settings" / "octray" / "deidentify.key").is_file()


@pytest.mark.parametrize("arguments", [[], ["--out", "out"], ["studies"]])
def test_what_is_missing_is_said(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["deidentify", *arguments]) == 2
    assert "Name the files or folders to de-identify" in capsys.readouterr().err


def test_a_file_that_was_looked_at_is_passed_alone_and_recorded(source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in (1, 2):
        window = {
            "WindowCenter": "-600",
            "WindowWidth": "1500",
            "InstanceNumber": number,
            "SOPInstanceUID": f"1.2.999.5.{number}",
        }
        (source / f"window{number}.dcm").write_bytes(make_dicom(PatientID="1500", **window))
    content = (source / "window1.dcm").read_bytes()
    allow = ("--allow", f"{hashlib.sha256(content).hexdigest().upper()}:WindowWidth")
    assert run(source) == 1
    said = capsys.readouterr().err
    assert "2 refused: identity_left: A value in (0028,1051)" in said
    assert run(source, *allow) == 1
    assert len(written(source)) == 2
    assert run(source, *allow) == 1
    assert "2 files of 2 patients" in capsys.readouterr().err
    main(["deidentify", "--show-crosswalk", "--key", str(source.parent / "keys" / "my.key")])
    entries = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {entry["source"]: entry["allowed"] for entry in entries if "name" in entry} == {
        "Jörg.dcm": [],
        "window1.dcm": ["WindowWidth"],
    }
    assert {entry["sha256"] for entry in entries if entry.get("reason") == "identity_left"} == {
        hashlib.sha256((source / f"window{number}.dcm").read_bytes()).hexdigest() for number in (1, 2)
    }
    assert run(source) == 1
    assert "2 refused: identity_left" in capsys.readouterr().err


@pytest.mark.parametrize(
    "text",
    ["folder:WindowWidth", "0" * 64, f"{'0' * 64}:", f"{'0' * 64}:Window", f"{'0' * 63}:Rows", f"{'0' * 64}:0029,1010", "*:*"],
)
def test_only_one_file_and_one_attribute_can_be_passed(source: Path, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(source, "--allow", text) == 2
    assert "must be SHA256:ATTRIBUTE" in capsys.readouterr().err
    assert written(source) == []


@pytest.mark.parametrize("attribute", ["0028,1051", "(0028,1051)", "WindowWidth"])
def test_an_attribute_is_named_by_keyword_or_number(source: Path, attribute: str) -> None:
    content = make_dicom(PatientID="1500", WindowCenter="-600", WindowWidth="1500")
    (source / "Jörg.dcm").write_bytes(content)
    assert run(source, "--allow", f"{hashlib.sha256(content).hexdigest()}:{attribute}") == 0


def test_every_option_and_every_refusal_is_explained() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert [one.value for one in RefusalReason if f"| `{one.value}` |" not in text] == []
    assert [one for one in Keep if f"| `--keep {one.name.lower()}` |" not in text or one.code not in text] == []
