"""`octray ingest --deidentify`: labels, patients and splits survive the new names, and nothing of the old ones is left."""

import csv
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pyarrow import parquet
from pydicom import dcmread

from pipeline.cli.main import main
from pipeline.deidentify import crosswalk
from pipeline.frames import TRAINING_SPLITS
from pipeline.imaging.quality import ocr
from pipeline.ingest.index import Index, load_index
from pipeline.ingest.network_input import prepared_frames
from pipeline.settings import Preprocessing
from tests.conftest import TINY
from tests.identified import SECRETS, STUDY, item, make_identified, make_radiograph, write_key

FAMILY_NAMES = (
    "Abernathy", "Birtwistle", "Cholmondeley", "Drinkwater", "Entwistle", "Featherstone", "Gathercole", "Higginbottom",
    "Inglethorpe", "Jellicoe", "Kingscote", "Lillywhite", "Micklethwait", "Nethercott", "Ollerenshaw", "Pettigrew",
)  # fmt: skip
BURNED, PICTURE, UNLABELLED = "Quartermaine", "Rumbelow", "Satterthwaite"


def patient_id(name: str) -> str:
    return f"MRN-{name[::-1].upper()}"


def write_study(path: Path, number: int, name: str, **overrides: object) -> None:
    pixels = np.random.default_rng(number).integers(0, 4000, (2, 8, 6), dtype=np.uint16)
    uid = f"{STUDY}.{number}"
    identity = {"PatientName": f"{name}^Ann", "PatientID": patient_id(name), "StudyInstanceUID": uid}
    uids = {"SeriesInstanceUID": f"{uid}.1", "SOPInstanceUID": f"{uid}.1.1", "PixelData": pixels.tobytes()}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(make_identified(**(identity | uids | overrides)))


def label_of(name: str) -> str:
    return "DRUSEN" if FAMILY_NAMES.index(name) % 2 else "NORMAL"


@pytest.fixture
def studies(tmp_path: Path) -> Path:
    """A study for each of 16 patients below the folder of its label, in files that bear the patient's name."""
    write_key(tmp_path / "keys" / "my.key")
    folder = tmp_path / "Müller Jörg"
    for number, name in enumerate(FAMILY_NAMES):
        write_study(folder / label_of(name) / f"{name}.dcm", number, name)
    return folder


def write_table(studies: Path) -> Path:
    """Write a table beside the studies in which every patient stands under the real identifier, with a split."""
    splits = ("train", "train", "tune", "tune", "calibration", "calibration", "test", "test")
    table = studies.parent / "labels.csv"
    with table.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["file", "label", "patient_key", "split"])
        for number, name in enumerate(FAMILY_NAMES):
            rows.writerow([f"{label_of(name)}/{name}.dcm", label_of(name), patient_id(name), splits[number % 8]])
    return table


def ingest(studies: Path, *options: str) -> int:
    root = studies.parent
    folders = ["--out", str(root / "index"), "--deidentify", str(root / "shared"), "--key", str(root / "keys" / "my.key")]
    return main(["ingest", str(studies), *folders, *options])


def index_of(studies: Path) -> Index:
    return load_index(studies.parent / "index")


def originals(studies: Path) -> dict[str, crosswalk.Entry]:
    """What the crosswalk says of every name that is used now."""
    key = studies.parent / "keys" / "my.key"
    entries = crosswalk.read_crosswalk(crosswalk.crosswalk_path(key), crosswalk.read_key(key))
    return {entry.get("name") or entry["alias"]: entry for entry in entries}


def name_of(entry: crosswalk.Entry) -> str:
    return Path(entry["source"]).stem


def all_that_is_written(folder: Path) -> Iterator[bytes]:
    """The names and bytes of all files, those of Parquet as they are and as rows."""
    for path in folder.rglob("*"):
        yield os.fsencode(path.relative_to(folder))
        if path.is_file():
            yield path.read_bytes()
        if path.suffix == ".parquet":
            yield json.dumps(parquet.read_table(path).to_pylist()).encode()


def what_is_left(*folders: Path) -> set[str]:
    """The names, identifiers and UIDs of the originals that are found again."""
    people = (*FAMILY_NAMES, BURNED, PICTURE, UNLABELLED)
    texts = {*SECRETS, *people, *map(patient_id, people)}
    written = [content for folder in folders for content in all_that_is_written(folder)]
    encoded = {(text, text.encode(codec)) for text in texts for codec in ("utf-8", "iso-8859-1", "utf-16-le")}
    return {text for text, sought in encoded for content in written if sought.lower() in content.lower()}


def test_labels_patients_and_splits_of_the_table_hold_under_new_names(
    studies: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = write_table(studies)
    assert ingest(studies, "--labels", str(table)) == 0
    index, known = index_of(studies), originals(studies)
    assert len(index.records) == 32
    expected = {row["patient_key"]: row["split"] for row in csv.DictReader(table.read_text().splitlines())}
    key = crosswalk.read_key(studies.parent / "keys" / "my.key")
    for record in index.records:
        entry = known[record.source]
        assert {label for label, holds in record.labels.items() if holds} == {label_of(name_of(entry))}
        assert record.patient_key == key.pseudonym(patient_id(name_of(entry))) == record.source.split("/")[0]
        assert record.split == expected[patient_id(name_of(entry))]
    said = capsys.readouterr()
    assert "16 files named by their path below a source" in said.err
    assert "octray deidentify --show-crosswalk" in " ".join(said.err.split())
    assert not [text for text in FAMILY_NAMES if text in said.err + said.out]


def test_nothing_of_the_identity_is_written(studies: Path) -> None:
    assert what_is_left(studies) >= {*FAMILY_NAMES, "19610317", "Whitfield"}
    write_study(studies / "DRUSEN" / f"{BURNED}.dcm", 50, BURNED, BurnedInAnnotation="YES")
    (studies / "DRUSEN" / f"{PICTURE}.png").write_bytes(b"\x89PNG\r\n\x1a\n" + PICTURE.encode())
    assert ingest(studies, "--label-from", "folder", "--keep", "dates", "--keep", "patient") == 1
    index = index_of(studies)
    assert index.labels == ("DRUSEN", "NORMAL")
    assert {record.split for record in index.records} == set(TRAINING_SPLITS)
    assert what_is_left(studies.parent / "index", studies.parent / "shared") == set()
    assert dcmread(studies.parent / "shared" / index.records[0].source).PatientSex == "M"


def test_files_that_are_refused_or_have_no_label_stand_under_aliases(studies: Path) -> None:
    table = write_table(studies)
    write_study(studies / "NORMAL" / f"{BURNED}.dcm", 50, BURNED, BurnedInAnnotation="YES")
    (studies / "NORMAL" / f"{PICTURE}.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(600))
    with table.open("a") as file:
        file.write(f"NORMAL/{BURNED}.dcm,NORMAL,b,train\nNORMAL/{PICTURE}.png,NORMAL,p,train\n")
    write_study(studies / f"{UNLABELLED}.dcm", 51, UNLABELLED)
    assert ingest(studies, "--labels", str(table)) == 1
    quarantine, known = index_of(studies).quarantine, originals(studies)
    assert [row.source[0] + str(len(row.source)) for row in quarantine] == ["F16"] * 3
    assert {name_of(known[row.source]): row.reason for row in quarantine} == {
        BURNED: "burned_in",
        PICTURE: "not_dicom",
        UNLABELLED: "no_label",
    }
    assert all(known[row.source]["message"] == row.message for row in quarantine)
    assert what_is_left(studies.parent / "index", studies.parent / "shared") == set()


@pytest.mark.parametrize("by", ["patient_key", "study_instance_uid"])
def test_labels_of_patients_and_studies_hold_under_new_names(studies: Path, by: str) -> None:
    table = studies.parent / "labels.csv"
    keys = {name: patient_id(name) if by == "patient_key" else f"{STUDY}.{number}" for number, name in enumerate(FAMILY_NAMES)}
    table.write_text("key,dx\n" + "".join(f"{key},{label_of(name)}\n" for name, key in keys.items()))
    assert ingest(studies, "--labels", str(table), "--columns", f"{by}=key,label=dx") == 0
    known = originals(studies)
    for record in index_of(studies).records:
        assert {label for label, holds in record.labels.items() if holds} == {label_of(name_of(known[record.source]))}
    assert what_is_left(studies.parent / "index", studies.parent / "shared") == set()


def test_files_without_a_label_are_not_even_de_identified(studies: Path) -> None:
    table = write_table(studies)
    write_study(studies / f"{UNLABELLED}.dcm", 51, UNLABELLED)
    assert ingest(studies, "--labels", str(table)) == 0
    assert len(list((studies.parent / "shared").rglob("*.dcm"))) == 16


@pytest.mark.parametrize("options", [[], ["--patient-from", "([^/]+)[.]dcm$"]], ids=["Patient ID", "path"])
def test_a_patient_stays_together_and_nameless(studies: Path, options: list[str]) -> None:
    for number, name in enumerate(FAMILY_NAMES):
        write_study(studies / "again" / label_of(name) / f"{name}.dcm", 100 + number, name)
    assert ingest(studies, "--label-from", "folder:-1", *options) == 0
    known = originals(studies)
    by_patient: dict[str, set[str]] = {}
    for record in index_of(studies).records:
        by_patient.setdefault(record.patient_key, set()).add(name_of(known[record.source]))
    assert sorted(name for (name,) in by_patient.values()) == sorted(FAMILY_NAMES)
    assert what_is_left(studies.parent / "index") == set()


def test_a_file_without_a_patient_is_not_said_to_have_one(studies: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number, name in enumerate(FAMILY_NAMES[:2]):
        write_study(studies / label_of(name) / f"{name}.dcm", number, name, PatientID=None, PatientName=None)
    assert ingest(studies, "--label-from", "folder") == 0
    assert index_of(studies).unknown_patients() == 4
    assert "4 frames name no patient" in " ".join(capsys.readouterr().err.split())


def test_what_was_written_can_be_read_for_training(studies: Path) -> None:
    assert ingest(studies, "--label-from", "folder") == 0
    index = index_of(studies)
    assert index.sources == ((studies.parent / "shared").resolve(),)
    shapes = {frame.shape for frame in prepared_frames(index.records, index.sources, Preprocessing(16))}
    assert shapes == {(1, 16, 16)}


@pytest.mark.slow
def test_a_network_learns_from_it(studies: Path) -> None:
    root = studies.parent
    assert ingest(studies, "--labels", str(write_table(studies))) == 0
    (root / "tiny.yaml").write_text(TINY)
    folders = ["--index", str(root / "index"), "--out", str(root / "bundle"), f"tracking.uri=sqlite:///{root}/mlflow.db"]
    assert main(["train", str(root / "tiny.yaml"), *folders]) == 0
    assert (root / "bundle" / "manifest.json").is_file()
    assert what_is_left(root / "bundle") == set()


def test_only_what_these_sources_hold_is_in_the_index(studies: Path) -> None:
    assert ingest(studies, "--label-from", "folder") == 0
    (studies / "DRUSEN" / f"{FAMILY_NAMES[1]}.dcm").unlink()
    assert ingest(studies, "--label-from", "folder") == 0
    assert len(index_of(studies).records) == 30
    assert len(list((studies.parent / "shared").rglob("*.dcm"))) == 16


def test_copies_with_other_labels_are_said(studies: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = (studies / "NORMAL" / f"{FAMILY_NAMES[0]}.dcm").read_bytes()
    (studies / "NORMAL" / "copy.dcm").write_bytes(content)
    assert ingest(studies, "--label-from", "folder") == 0
    assert len(index_of(studies).records) == 32
    (studies / "DRUSEN" / "other.dcm").write_bytes(content)
    assert ingest(studies, "--label-from", "folder") == 2
    said = capsys.readouterr().err
    assert "1 files are there several times, each time with another label" in said
    assert FAMILY_NAMES[0] not in said


def test_the_key_may_not_lie_in_the_index(studies: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = studies.parent
    folders = ["--out", str(root / "index"), "--deidentify", str(root / "shared"), "--key", str(root / "index" / "my.key")]
    assert main(["ingest", str(studies), *folders]) == 2
    assert "The key my.key lies inside the index" in capsys.readouterr().err
    assert not (root / "index").exists()


@pytest.mark.parametrize("options", [["--keep", "dates"], ["--key", "my.key"], ["--clean-pixels"], ["--blank", "0,0,1,1"]])
def test_options_that_would_do_nothing_are_refused(
    studies: Path, options: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["ingest", str(studies), "--out", str(studies.parent / "index"), *options]) == 2
    assert "belong to --deidentify DIR" in capsys.readouterr().err


def test_the_key_and_the_crosswalk_are_no_studies(studies: Path) -> None:
    root, key = studies.parent, studies / "my.key"
    folders = ["--out", str(root / "index"), "--deidentify", str(root / "shared"), "--key", str(key)]
    assert main(["ingest", str(studies), *folders]) == 0
    assert main(["ingest", str(studies), *folders]) == 0
    assert load_index(root / "index").quarantine == ()


# Files that repeat an identifier, by every command that de-identifies


REPEATING: dict[str, dict[str, Any]] = {
    "name": {"Manufacturer": "Quillfeather CT"},
    "lo": {"representations": {"PatientName": ("LO", "Quillfeather^Zebedee")}, "SoftwareVersions": "Zebedee"},
    "date": {"representations": {"PatientBirthDate": ("SH", "23.08.1947")}, "SoftwareVersions": "AUG 23, 1947"},
    "digits": {"AcquisitionNumber": "4471230", "KVP": "4471230.0"},
    "class": {"ReferencedImageSequence": [item(ReferencedSOPClassUID="1.2.840.10008.5.1.4.1.1.4471230")]},
    "rows": {"rows": 1024, "PatientID": "1024"},
    "graphics": {"GraphicAnnotationSequence": [item(GraphicObjectSequence=[item(GraphicData=[4471230.0, 1.0])])]},
    "window": {"PatientID": "1500", "WindowCenter": "-600", "WindowWidth": "1500"},
}
TRACES = ("quillfeather", "zebedee", "4471230", "19470823", "23.08.1947", "aug 23")


@pytest.fixture
def repeating(tmp_path: Path) -> Path:
    """One file for each kind of repetition, among those of twelve patients, with a table of labels."""
    write_key(tmp_path / "keys" / "my.key")
    folder = tmp_path / "Quillfeather"
    folder.mkdir()
    others = {f"other{number}": {"PatientID": f"OTHER-{number}", "rows": 9 + number} for number in range(12)}
    for number, (name, values) in enumerate((REPEATING | others).items()):
        uid = {"StudyInstanceUID": f"1.2.999.{number}", "SOPInstanceUID": f"1.2.999.{number}.1"}
        (folder / f"{name}_4471230.dcm").write_bytes(make_radiograph(**(uid | values)))
    splits = dict(zip(others, ("train", "tune", "calibration", "test") * 3, strict=True))
    rows = [f"{name}_4471230.dcm,NORMAL,{splits.get(name, 'train')}" for name in REPEATING | others]
    (tmp_path / "labels.csv").write_text("\n".join(["file,label,split", *rows]))
    return folder


def traces(*folders: Path) -> set[str]:
    written = [content.lower() for folder in folders for content in all_that_is_written(folder)]
    encoded = {(text, text.encode(codec)) for text in TRACES for codec in ("utf-8", "utf-16-le")}
    strokes = np.float32(4471230).tobytes()
    return {text for text, sought in encoded for content in written if sought in content} | {
        "strokes" for content in written if strokes in content
    }


def test_an_index_and_a_folder_get_the_same_files_and_nothing_is_left(repeating: Path) -> None:
    root = repeating.parent
    assert ingest(repeating, "--labels", str(root / "labels.csv")) == 1
    key, folder = str(root / "keys" / "other.key"), root / "folder"
    write_key(Path(key))
    assert main(["deidentify", str(repeating), "--out", str(folder), "--key", key]) == 1
    made = {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*.dcm")}
    assert made == {path.relative_to(root / "shared"): path.read_bytes() for path in (root / "shared").rglob("*.dcm")}
    assert len(made) == len(REPEATING) + 12 - 1
    (refused,) = [row for row in index_of(repeating).quarantine if row.reason == "identity_left"]
    assert originals(repeating)[refused.source]["source"] == "window_4471230.dcm"
    assert traces(folder, root / "shared", root / "index") == set()


def test_a_file_that_was_looked_at_gets_into_the_index(repeating: Path) -> None:
    content = (repeating / "window_4471230.dcm").read_bytes()
    allow = f"{hashlib.sha256(content).hexdigest()}:WindowWidth"
    table = str(repeating.parent / "labels.csv")
    assert ingest(repeating, "--labels", table, "--allow", allow) == 0
    allowed = [entry["source"] for entry in originals(repeating).values() if entry["allowed"] == ["WindowWidth"]]
    assert allowed == ["window_4471230.dcm"]


def test_allow_belongs_to_deidentify(repeating: Path, capsys: pytest.CaptureFixture[str]) -> None:
    allow = f"{'0' * 64}:WindowWidth"
    assert main(["ingest", str(repeating), "--out", str(repeating.parent / "index"), "--allow", allow]) == 2
    assert "belong to --deidentify DIR" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.skipif(not ocr.is_installed(), reason="the extra ocr is not installed")
def test_cleaning_pixels_changes_nothing_but_pixels(repeating: Path) -> None:
    root = repeating.parent
    for path in repeating.glob("other*"):
        path.unlink()
    for name, options in (("plain", []), ("cleaned", ["--clean-pixels"])):
        key = root / "keys" / f"{name}.key"
        write_key(key)
        assert main(["deidentify", str(repeating), "--out", str(root / name), "--key", str(key), *options]) == 1
    plain, cleaned = (
        {path.relative_to(root / name): path for path in (root / name).rglob("*.dcm")} for name in ("plain", "cleaned")
    )
    assert plain.keys() == cleaned.keys()
    assert len(plain) == len(REPEATING) - 1
    for name in plain:
        before, after = dcmread(plain[name]), dcmread(cleaned[name])
        assert np.array_equal(before.pixel_array, after.pixel_array)
        for dataset in (before, after):
            for keyword in ("DeidentificationMethod", "DeidentificationMethodCodeSequence", "BurnedInAnnotation"):
                del dataset[keyword]
        assert before == after
    assert traces(root / "cleaned") == set()
