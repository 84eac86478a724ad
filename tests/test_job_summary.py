"""The report of a job: whose studies these are, only if it was asked for; when they were scored, and what is new."""

import re
import sqlite3
import struct
import zlib
from collections.abc import Iterator
from datetime import date
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.cli.main import main
from pipeline.imaging.files.discovery import discover
from pipeline.job.study_files import Grouping, files_to_json
from pipeline.job.summary import patient_of
from pipeline.model.bundle import Bundle
from pipeline.results.patient import Detail, Patient, read_patient
from tests.builders import make_dicom, make_zip
from tests.test_cli_score import contents
from tests.test_job_watch import QUIET_SECONDS, Listener, watch

IDENTITY = {
    "PatientName": "Quillfeather^Ottoline^^Dr",
    "PatientID": "MRN-77120",
    "IssuerOfPatientID": "HOSP",
    "PatientBirthDate": "19560307",
    "AccessionNumber": "ACC-4711",
    "StudyDate": "20261129",
    "Manufacturer": "Heidelberg Engineering",
    "ManufacturerModelName": "Spectralis",
    "StationName": "OCT-2",
}
SHOWN = {
    Detail.NAME: "Quillfeather, Ottoline, Dr",
    Detail.ID: "MRN-77120 / HOSP",
    Detail.BIRTH_DATE: "1956-03-07",
    Detail.ACCESSION_NUMBER: "ACC-4711",
    Detail.STUDY_DATE: "2026-11-29",
    Detail.DEVICE: "Heidelberg Engineering, Spectralis, OCT-2",
}


def make_study(number: int = 1, **more: object) -> bytes:
    pixels = np.random.default_rng(number).integers(0, 4000, (40, 50), np.uint16)
    uids = {"StudyInstanceUID": f"1.2.{number}", "SOPInstanceUID": f"1.2.{number}.1"}
    return make_dicom(pixels, **(uids | IDENTITY | more))


@pytest.fixture
def studies(tmp_path: Path) -> Path:
    """A study that names its patient, one in an archive, one that names none, one that cannot be read to its end, a picture."""
    folder = tmp_path / "studies"
    folder.mkdir()
    (folder / "a.dcm").write_bytes(make_study(1))
    (folder / "b.zip").write_bytes(make_zip({"in/b.dcm": make_study(2, PatientName="Archer^Zip")}))
    nobody = dict.fromkeys((*IDENTITY, "PatientID"), "")
    (folder / "c.dcm").write_bytes(make_study(3, **nobody))
    (folder / "d.dcm").write_bytes(make_study(4, PatientName="Cutoff^Clara")[:-500])
    Image.fromarray(np.arange(2500, dtype=np.uint8).reshape(50, 50)).save(folder / "e.png")
    return folder


def score(studies: Path, bundle: Bundle, out: Path, *more: str) -> str:
    main(["score", str(studies), "--bundle", str(bundle.path), "--out", str(out), *more])
    return (out / "report.html").read_text(encoding="utf-8")


def everything(folder: Path) -> Iterator[tuple[str, bytes]]:
    """Every file below a folder with its bytes; of the ledger also what its rows hold, files_from_json."""
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        yield path.relative_to(folder).as_posix(), path.read_bytes()
        if path.suffix == ".sqlite":
            with sqlite3.connect(path) as database:
                for record, work in database.execute("SELECT record, work FROM octray_units"):
                    yield path.name, zlib.decompress(record) + work
            database.close()


def test_identity_stands_in_the_report_alone_and_only_if_it_was_asked_for(
    studies: Path, bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "results"
    secrets = ("Quillfeather", "MRN-77120", "1956-03-07", "19560307", "ACC-4711", "Archer", "Cutoff", "Spectralis", "OCT-2")
    plain = score(studies, bundle, out)
    assert not any(secret in plain for secret in secrets)
    assert "No patient is named here." in plain
    named = score(studies, bundle, out, "--identity", "all", "--json", "--dicom", "")
    for text in SHOWN.values():
        assert text in named
    for words in ("Archer, Zip", "Cutoff, Clara", "This page shows patient details (name, patient ID", "names no patient"):
        assert words in named
    told = capsys.readouterr()
    files = list(everything(out))
    for secret in secrets:
        assert {name for name, content in files if secret.encode() in content} <= {"report.html"}
        assert secret not in told.out + told.err
        assert not [name for name, _ in files if secret in name]
    some = score(studies, bundle, out, "--identity", "id,study_date")
    assert "MRN-77120" in some
    assert "2026-11-29" in some
    assert "Quillfeather" not in some
    assert not any(secret in score(studies, bundle, out) for secret in secrets)


def test_asking_for_identity_scores_nothing_again(
    studies: Path, bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "results"
    score(studies, bundle, out)
    before = contents(out)
    capsys.readouterr()
    score(studies, bundle, out, "--identity", "name")
    assert "processed in this run: 0.\n" in capsys.readouterr().err
    score(studies, bundle, out)
    assert contents(out) == before


def test_a_report_written_after_its_sources_are_gone_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inbox, out = tmp_path / "inbox", tmp_path / "results"
    inbox.mkdir()

    def steps(listener: Listener) -> Iterator[float]:
        (inbox / "a.dcm").write_bytes(make_study(1))
        yield (inbox / "a.dcm").stat().st_ctime + QUIET_SECONDS + 1
        assert "Quillfeather" in (out / "report.html").read_text()
        (inbox / "a.dcm").unlink()
        (inbox / "b.dcm").write_bytes(make_study(2, PatientName="Next^Nora"))
        yield (inbox / "b.dcm").stat().st_ctime + QUIET_SECONDS + 1

    watch(inbox, out, tmp_path / "bundle", steps, monkeypatch, details=frozenset(Detail))
    report = (out / "report.html").read_text()
    assert "Next, Nora" in report
    assert "Quillfeather" not in report
    assert "No longer known: the file is gone" in report
    assert len(re.findall(r'<tr id="row-', report)) == 2


def asked(folder: Path, name: str) -> tuple[str, str, bytes, Path]:
    (study,) = Grouping().studies([file for file in discover(folder) if file.source == name])
    return name, study.key.removeprefix("study:"), files_to_json(study, folder), folder


def test_a_file_that_was_replaced_gives_its_patient_to_nobody(studies: Path) -> None:
    question = asked(studies, "a.dcm")
    assert next(patient_of(question)) == Patient(SHOWN)
    (studies / "new.dcm").write_bytes(make_study(9, PatientName="Other^Olga"))
    (studies / "new.dcm").replace(studies / "a.dcm")
    assert next(patient_of(question)) == Patient(why_unknown="No longer known: the file was replaced")
    (studies / "a.dcm").unlink()
    assert next(patient_of(question)) == Patient(why_unknown="No longer known: the file is gone")
    (file,) = (file for file in discover(studies) if file.source == "c.dcm")
    assert next(read_patient(file, "1.2.99")) == Patient(why_unknown="No longer known: the file was replaced")


@pytest.mark.parametrize(
    ("character_set", "name", "shown"),
    [
        ("ISO_IR 192", "Müller^Anna", "Müller, Anna"),
        ("ISO_IR 100", "Åström^Åsa", "Åström, Åsa"),
        (["", "ISO 2022 IR 87"], "Yamada^Tarou=山田^太郎=やまだ^たろう", "Yamada, Tarou (山田 太郎)"),
        ("ISO_IR 192", "Hong^Gildong=洪^吉洞", "Hong, Gildong (洪 吉洞)"),
        ("ISO_IR 192", "=洪^吉洞", "洪 吉洞"),
        ("ISO_IR 192", "Single", "Single"),
        ("ISO_IR 192", "^^^^", ""),
    ],
)
def test_names_are_shown_as_people_write_them(studies: Path, character_set: str | list[str], name: str, shown: str) -> None:
    (studies / "a.dcm").write_bytes(make_study(1, SpecificCharacterSet=character_set, PatientName=name))
    patient = next(patient_of(asked(studies, "a.dcm")))
    assert patient.details.get(Detail.NAME, "") == shown


def test_a_vol_file_says_what_it_knows(studies: Path, shared_data: Path) -> None:
    real = next((shared_data / "oct-spectralis-vol").rglob("*scrubbed.vol")).read_bytes()
    (studies / "real.vol").write_bytes(real)
    visit = {Detail.STUDY_DATE: "2000-01-01"}
    assert next(patient_of(asked(studies, "real.vol"))) == Patient(visit)
    born = struct.pack("<d", (date(1956, 3, 7) - date(1899, 12, 30)).days)
    (studies / "named.vol").write_bytes(real[:140] + b"MRN-77120".ljust(24, b"\0") + born + real[172:])
    known = {Detail.ID: "MRN-77120", Detail.BIRTH_DATE: "1956-03-07"}
    assert next(patient_of(asked(studies, "named.vol"))) == Patient(known | visit)
    (studies / "odd.vol").write_bytes(real[:164] + struct.pack("<d", float("nan")) + real[172:200] + bytes(8) + real[208:])
    assert next(patient_of(asked(studies, "odd.vol"))) == Patient(why_unknown="The file names no patient")
    assert next(patient_of(asked(studies, "e.png"))) == Patient(why_unknown="Not known: read from DICOM and .vol files only")


def test_what_lies_behind_a_long_header_is_found(studies: Path) -> None:
    (studies / "a.dcm").write_bytes(make_study(1, LongCodeValue="x" * 70_000))
    assert next(patient_of(asked(studies, "a.dcm"))) == Patient(SHOWN)


def test_what_is_new_since_the_last_report_is_marked(studies: Path, bundle: Bundle, tmp_path: Path) -> None:
    out = tmp_path / "results"
    first = score(studies, bundle, out)
    assert "new since" not in first
    assert "Folder <b>studies</b>" in first
    times = re.findall(r'<td class="of-scored"><span class="when">(.*?)</span>', first)
    assert len(times) == 5
    (studies / "f.dcm").write_bytes(make_study(6))
    second = score(studies, bundle, out)
    assert "1 study new since the report of <time" in second
    marked = re.findall(r'<tr id="row-.*?</tr>', second, re.DOTALL)
    assert ["f.dcm" in row for row in marked if "<b>new</b>" in row] == [True]
    assert set(times) <= set(re.findall(r'<td class="of-scored"><span class="when">(.*?)(?: <b>new</b>)?</span>', second))
    assert "nothing new since the report of" in score(studies, bundle, out)


def test_a_study_that_is_scored_again_keeps_the_time_of_the_first(studies: Path, bundle: Bundle, tmp_path: Path) -> None:
    out = tmp_path / "results"
    scored = re.compile(r'<td class="of-scored"><span class="when">(<time.*?</time>)')
    first = scored.findall(score(studies, bundle, out))
    with sqlite3.connect(out / ".octray" / "ledger.sqlite") as database:
        database.execute("UPDATE octray_units SET scored_at = scored_at - 86400")
    database.close()
    before = scored.findall(score(studies, bundle, out))
    assert not set(before) & set(first)
    for picture in (out / "heatmaps").iterdir():
        picture.unlink()
    assert scored.findall(score(studies, bundle, out)) == before
