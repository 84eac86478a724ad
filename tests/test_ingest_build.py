"""From folders to an index: labels, patients, duplicates and quarantine, on real files written for the purpose."""

import csv
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pydicom.uid import BasicTextSRStorage

from pipeline.config import Config
from pipeline.errors import InputError, Reason
from pipeline.frames import TRAINING_SPLITS, LabelLevel
from pipeline.imaging.sources import StudyFile, discover
from pipeline.ingest.build import build_index
from pipeline.ingest.file_reader import NO_LABEL, UID_CLASH
from pipeline.ingest.index import FILES, Index, load_index
from pipeline.ingest.journal import JOURNAL
from pipeline.ingest.network_input import prepared_frames
from pipeline.phantoms.studies import write_phantom
from pipeline.settings import Check, Preprocessing
from tests.builders import make_dicom

ALL_TRAIN = (98, 1, 1, 0)


def write_picture(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (12, 10), dtype=np.uint8)).save(path)


def write_set(folder: Path, patients: int = 12) -> Path:
    """Two folders named after labels, one picture a patient; returns the table of labels beside them."""
    rows = [["file", "label", "patient_key"]]
    for label in ("SICK", "WELL"):
        for number in range(patients):
            write_picture(folder / label / f"{number}.png", number + 1000 * (label == "SICK"))
            rows.append([f"{label}/{number}.png", label, f"{label}{number}"])
    with (folder / "labels.csv").open("w", newline="") as table:
        csv.writer(table).writerows(rows)
    return folder / "labels.csv"


def build(folder: Path, **rules: object) -> Index:
    return build_index([folder], **rules)[0]  # type: ignore[arg-type]


def test_a_labelled_folder_becomes_an_index(tmp_path: Path) -> None:
    index, notes = build_index([tmp_path], labels=write_set(tmp_path), seed=3)
    assert notes[0] == "Labels: 24 files named by their path below a source."
    assert notes[1].startswith("The label SICK occurs in only 12 patients: 9 in train, 1 in tune, 1 in calibration, 1 in test.")
    assert index.labels == ("SICK", "WELL")
    assert index.sources == (tmp_path.resolve(),)
    assert (index.quarantine, index.seed, index.percent) == ((), 3, (70, 10, 10, 10))
    for record in index.records:
        label = record.source.split("/")[0]
        assert record.labels == {"SICK": label == "SICK", "WELL": label == "WELL"}
        assert record.patient_key == label + Path(record.source).stem
        assert (record.rows, record.columns) == (12, 10)
    assert {record.split for record in index.records} == set(TRAINING_SPLITS)


def test_the_name_of_the_folder_can_be_the_label(tmp_path: Path) -> None:
    (write_set(tmp_path)).unlink()
    index = build(tmp_path, label_from="folder")
    assert Counter(label for record in index.records for label, holds in record.labels.items() if holds) == {
        "SICK": 12,
        "WELL": 12,
    }


def test_every_source_counts(tmp_path: Path) -> None:
    write_set(tmp_path)
    index, _ = build_index([tmp_path / "SICK", tmp_path / "WELL" / "0.png"], percent=ALL_TRAIN)
    assert [record.root for record in index.records] == [0] * 12 + [1]
    for record in index.records:
        assert (index.sources[record.root] / record.source).is_file()


def test_a_file_that_two_sources_reach_is_read_once(tmp_path: Path) -> None:
    write_set(tmp_path)
    assert len(build_index([tmp_path / "SICK", tmp_path / "SICK" / "0.png"])[0].records) == 12


def test_several_labels_for_one_file_are_kept(tmp_path: Path) -> None:
    table = write_set(tmp_path)
    with table.open("a") as file:
        file.writelines(f"SICK/{number}.png,OLD,SICK{number}\n" for number in range(6))
    index = build(tmp_path, labels=table)
    labels = {record.source: {name for name, holds in record.labels.items() if holds} for record in index.records}
    assert labels["SICK/0.png"] == {"SICK", "OLD"}
    assert labels["SICK/11.png"] == {"SICK"}
    assert all(value is not None for record in index.records for value in record.labels.values())


def write_volumes(folder: Path, patients: int = 8) -> None:
    """An OCT volume of two frames for each eye of each patient."""
    folder.mkdir()
    for number in range(2 * patients):
        pixels = np.random.default_rng(number).integers(0, 99, (2, 4, 4), np.uint16)
        patient, eye = f"{number // 2:04d}", "RL"[number % 2]
        (folder / f"{number}.dcm").write_bytes(
            make_dicom(pixels, PatientID=patient, StudyInstanceUID=f"1.2.{number // 2}", Laterality=eye, NumberOfFrames=2)
        )


def test_what_is_unknown_is_neither_present_nor_absent(tmp_path: Path) -> None:
    for number in range(24):
        write_picture(tmp_path / "s" / f"{number}.png", number)
    states = {0: "1,0", 1: "0,1", 2: ",1", 3: "-1,0", 4: ","}
    rows = "".join(f"{number}.png,{states[number % 5]}\n" for number in range(24))
    (tmp_path / "labels.csv").write_text("file,Edema,Mass\n" + rows)
    index, notes = build_index([tmp_path / "s"], labels=tmp_path / "labels.csv", columns=["labels=*"], percent=(40, 20, 20, 20))
    expected = {0: (1, 0), 1: (0, 1), 2: (np.nan, 1), 3: (np.nan, 0)}
    for record, target in zip(index.records, index.targets(index.records, index.labels), strict=True):
        np.testing.assert_array_equal(target, expected[int(Path(record.source).stem) % 5])
    assert {row.source: row.reason for row in index.quarantine} == {f"{number}.png": NO_LABEL for number in (4, 9, 14, 19)}
    assert "Nothing is known of the labels of this file" in index.quarantine[0].message
    for split in TRAINING_SPLITS:  # each has an example and a counter-example that are known
        known = index.targets(index.of(split), ("Edema",))
        assert {0.0, 1.0} <= set(known.ravel().tolist())
    assert any("cells are -1" in note for note in notes)


def test_a_label_that_is_never_known_is_none(tmp_path: Path) -> None:
    for number in range(8):
        write_picture(tmp_path / "s" / f"{number}.png", number)
    rows = "".join(f"{number}.png,1,,0\n" for number in range(8))
    (tmp_path / "labels.csv").write_text("file,A,B,C\n" + rows)
    index, _ = build_index([tmp_path / "s"], labels=tmp_path / "labels.csv", columns=["labels=A+B+C"])
    assert index.labels == ("A", "C")


@pytest.mark.parametrize(
    ("columns", "rows", "level"),
    [
        (["patient_key=pid"], [f"{number:04d},,{'AB'[number % 2]}" for number in range(8)], LabelLevel.PATIENT),
        (
            ["patient_key=pid,laterality=eye"],
            [f"{number:04d},{eye},{'AB'[number % 2]}" for number in range(8) for eye in ("OD", "OS")],
            LabelLevel.EYE,
        ),
        (["study_instance_uid=pid"], [f"1.2.{number},,{'AB'[number % 2]}" for number in range(8)], LabelLevel.STUDY),
    ],
)
def test_labels_of_patients_eyes_and_studies_apply_to_all_their_frames(
    tmp_path: Path, columns: list[str], rows: list[str], level: LabelLevel
) -> None:
    write_volumes(tmp_path / "s")
    (tmp_path / "labels.csv").write_text("\n".join(["pid;eye;label".replace(";", ","), *rows]))
    index, notes = build_index([tmp_path / "s"], labels=tmp_path / "labels.csv", columns=columns, percent=(40, 20, 20, 20))
    assert len(index.records) == 32
    for record in index.records:
        number = int(Path(record.source).stem) // 2
        assert record.labels == {"A": number % 2 == 0, "B": number % 2 == 1}
        assert record.label_level is level
        assert record.patient_key.startswith("patient-")
    assert notes[0].startswith("Labels: 32 frames joined by")


def test_only_the_eye_with_a_label_is_used(tmp_path: Path) -> None:
    write_volumes(tmp_path / "s")
    rows = [f"{number:04d},R,{'AB'[number % 2]}" for number in range(8)]
    (tmp_path / "labels.csv").write_text("\n".join(["pid,eye,label", *rows]))
    index = build(
        tmp_path / "s", labels=tmp_path / "labels.csv", columns=["patient_key=pid,laterality=eye"], percent=(40, 20, 20, 20)
    )
    assert {record.laterality for record in index.records} == {"R"}
    assert {(row.reason, row.frame_number) for row in index.quarantine} == {(NO_LABEL, None)}
    assert len(index.quarantine) == 8


def test_labels_of_patients_are_joined_with_patients_in_paths(tmp_path: Path) -> None:
    for number in range(16):
        write_picture(tmp_path / "s" / f"p{number // 2}_{number}.png", number)
    (tmp_path / "labels.csv").write_text("pid,dx\n" + "".join(f"p{number},{'AB'[number % 2]}\n" for number in range(8)))
    index = build(
        tmp_path / "s",
        labels=tmp_path / "labels.csv",
        columns=["patient_key=pid,label=dx"],
        patient_from="^(p[0-9]+)_",
        percent=(40, 20, 20, 20),
    )
    assert {record.patient_key for record in index.records} == {f"p{number}" for number in range(8)}
    assert {record.label_level for record in index.records} == {LabelLevel.PATIENT}


def test_the_level_of_a_label_is_that_of_its_file(tmp_path: Path) -> None:
    write_volumes(tmp_path / "s", 2)
    write_picture(tmp_path / "s" / "9.png", 9)
    (tmp_path / "s" / "p").mkdir()
    for number in range(2):
        write_picture(tmp_path / "s" / "p" / f"{number}.png", number)
    with zipfile.ZipFile(tmp_path / "s" / "z.zip", "w") as archive:
        write_picture(tmp_path / "x.png", 77)
        archive.write(tmp_path / "x.png", "deep/x.png")
    rows = [*(f"{number}.dcm,A" for number in range(4)), "9.png,A", "p,B", "z.zip,B"]
    (tmp_path / "labels.csv").write_text("\n".join(["file,label", *rows]))
    with pytest.raises(InputError, match="has no example in the split"):
        build(tmp_path / "s", labels=tmp_path / "labels.csv")
    (tmp_path / "labels.csv").write_text("\n".join(["file,label,split", *(f"{row},train" for row in rows)]))
    index = build(tmp_path / "s", labels=tmp_path / "labels.csv")
    levels = {record.source: record.label_level for record in index.records}
    assert levels["0.dcm"] is LabelLevel.INSTANCE
    assert levels["9.png"] is LabelLevel.FRAME
    assert levels["p/0.png"] is levels["z.zip/deep/x.png"] is LabelLevel.STUDY
    assert {record.labels["B"] for record in index.records if "/" in record.source} == {True}


def test_a_label_can_be_left_out(tmp_path: Path) -> None:
    table = write_set(tmp_path)
    with table.open("a") as file:
        file.write("SICK/0.png,RARE,SICK0\n")
    write_picture(tmp_path / "rare.png", 5)
    with table.open("a") as file:
        file.write("rare.png,RARE,r\n")
    with pytest.raises(InputError, match="label RARE has no example .* occurs in 2 patients. .* --leave-out RARE"):
        build(tmp_path, labels=table)
    index = build(tmp_path, labels=table, leave_out=["RARE"])
    assert index.labels == ("SICK", "WELL")
    assert [(row.source, row.message) for row in index.quarantine] == [
        ("rare.png", "All labels of this are left out by --leave-out.")
    ]
    with pytest.raises(InputError, match="--leave-out names OTHER, but the labels are RARE, SICK, WELL"):
        build(tmp_path, labels=table, leave_out=["OTHER"])


@pytest.mark.parametrize("from_folders", [True, False])
def test_spellings_of_a_label_are_merged_if_that_is_asked_for(tmp_path: Path, from_folders: bool) -> None:
    rows = ["file,label"]
    for number in range(36):
        label = ("SICK", "Sick", "WELL")[number % 3] if number > 3 else "si\u00adck"
        write_picture(tmp_path / "s" / label / f"{number}.png", number)
        rows.append(f"{label}/{number}.png,{label}")
    (tmp_path / "labels.csv").write_text("\n".join(rows), encoding="utf-8")
    options: dict[str, object] = {"label_from": "folder"} if from_folders else {"labels": tmp_path / "labels.csv"}
    _, notes = build_index([tmp_path / "s"], **options)  # type: ignore[arg-type]
    assert any(r"The labels SICK (10 frames), Sick (11 frames), si\u00adck (4 frames) differ only" in note for note in notes)
    index, notes = build_index([tmp_path / "s"], merge_spellings=True, **options)  # type: ignore[arg-type]
    assert index.labels == ("Sick", "WELL")
    assert any("Spellings that were merged, with their rows: SICK (10), si" in note for note in notes)


def test_columns_without_a_table_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--columns says what the columns of a table of labels mean, but --labels gives none"):
        build(tmp_path, columns=["file=a"])


def test_unreadable_and_unlabelled_files_are_quarantined_with_their_reason(tmp_path: Path) -> None:
    table = write_set(tmp_path)
    (tmp_path / "SICK" / "0.png").write_text("not a picture")
    (tmp_path / "SICK" / "1.png").write_bytes((tmp_path / "SICK" / "1.png").read_bytes()[:60])
    (tmp_path / "SICK" / "2.png").write_bytes(make_dicom(PixelData=None))
    (tmp_path / "SICK" / "3.png").write_bytes(make_dicom(PixelData=None, SOPClassUID=BasicTextSRStorage))
    (tmp_path / "notes.txt").write_text("no study")
    write_picture(tmp_path / "WELL" / "extra.png", 77)
    index = build(tmp_path, labels=table)
    assert {row.source: row.reason for row in index.quarantine} == {
        "SICK/0.png": "not_an_image",
        "SICK/1.png": "truncated",
        "SICK/2.png": "no_pixels",
        "SICK/3.png": "no_image",
        "notes.txt": NO_LABEL,
        "WELL/extra.png": NO_LABEL,
    }
    assert all(row.message for row in index.quarantine)
    assert len(index.records) + len(index.quarantine) == 26


def test_unusable_files_of_several_sources_are_told_apart(tmp_path: Path) -> None:
    for source in ("first", "second"):
        write_picture(tmp_path / source / "good.png", len(source))
        (tmp_path / source / "bad.png").write_bytes(b"")
        (tmp_path / source / "extra.png").write_bytes(b"x")
    sources = [tmp_path / "first", tmp_path / "second"]
    every = {(source, name) for source in ("first", "second") for name in ("bad.png", "extra.png")}
    index, _ = build_index(sources)
    assert {(index.sources[row.root].name, row.source) for row in index.quarantine} == every
    rows = [f"{at}/{name}.png,A,train\n" for at in ("first", "second") for name in ("good", "bad")]
    (tmp_path / "labels.csv").write_text("file,label,split\n" + "".join(rows))
    index, _ = build_index(sources, labels=tmp_path / "labels.csv")
    assert {(index.sources[row.root].name, row.source) for row in index.quarantine} == every


def test_copies_stay_in_one_split_and_are_counted(tmp_path: Path) -> None:
    table = write_set(tmp_path)
    with table.open("a") as file:
        for number in range(5):
            shutil.copy(tmp_path / "SICK" / "0.png", tmp_path / "WELL" / f"copy{number}.png")
            file.write(f"WELL/copy{number}.png,WELL,WELL{number}\n")
    index = build(tmp_path, labels=table)
    copied = [record for record in index.records if "copy" in record.source or record.source == "SICK/0.png"]
    assert len({record.split for record in copied}) == 1
    assert (index.duplicates(), index.contradictions()) == (5, 1)


def test_a_pattern_finds_the_patient_in_the_path(tmp_path: Path) -> None:
    table = write_set(tmp_path)
    index = build(tmp_path, labels=table, patient_from=r"/(\d+)\.png$")
    assert {record.patient_key for record in index.records} == {str(number) for number in range(12)}
    with pytest.raises(InputError, match=r"finds no patient in the path of 24 files: 0\.png"):
        build(tmp_path, labels=table, patient_from="^(never)/")


def test_patients_of_dicom_files_are_joined_under_a_pseudonym(tmp_path: Path) -> None:
    for number in range(6):
        pixels = np.full((4, 4), number, np.uint16)
        pixels[0, 0] = 99
        (tmp_path / f"{number}.dcm").write_bytes(make_dicom(pixels, PatientID=f"MRN-{number // 2}"))
    (tmp_path / "anonymous.dcm").write_bytes(make_dicom(PatientID=None, StudyInstanceUID="1.2.3"))
    index = build(tmp_path)
    keys = {record.source: record.patient_key for record in index.records}
    assert [keys[f"{number}.dcm"] for number in range(6)] == [f"patient-{1 + number // 2:05d}" for number in range(6)]
    assert keys["anonymous.dcm"] == "1.2.3"
    assert index.records[0].labels == {}


def test_a_study_stays_together_where_some_of_its_files_name_no_patient(tmp_path: Path) -> None:
    for number in range(24):
        pixels = np.random.default_rng(number).integers(0, 99, (4, 4), np.uint16)
        patient, study = f"MRN-{number // 2}" if number % 2 else None, f"1.2.{number // 2}"
        (tmp_path / f"{number}.dcm").write_bytes(make_dicom(pixels, PatientID=patient, StudyInstanceUID=study))
    index = build(tmp_path, percent=(40, 20, 20, 20))
    assert len({(record.key.study_instance_uid, record.split) for record in index.records}) == 12
    assert index.unknown_patients() == 12
    names = "".join(f"{number}.dcm,{'train' if number % 2 else 'test'}\n" for number in range(24))
    (tmp_path / "labels.csv").write_text("file,split,label\n" + names.replace("train", "train,A").replace("test", "test,A"))
    with pytest.raises(InputError, match="12 studies occur in more than one"):
        build(tmp_path, labels=tmp_path / "labels.csv")


def test_a_validation_split_is_divided_between_tune_and_calibration(tmp_path: Path) -> None:
    rows = ["file,label,patient_key,split"]
    for number in range(32):
        write_picture(tmp_path / "studies" / f"{number}.png", number)
        split = ("train", "val", "val", "test")[number // 2 % 4]
        rows.append(f"{number}.png,{'A' if number // 2 % 8 < 4 else 'B'},p{number // 2},{split}")
    (tmp_path / "labels.csv").write_text("\n".join(rows))

    index, notes = build_index([tmp_path / "studies"], labels=tmp_path / "labels.csv")

    patients = {split: {record.patient_key for record in index.of(split)} for split in TRAINING_SPLITS}
    assert {split: len(keys) for split, keys in patients.items()} == dict.fromkeys(TRAINING_SPLITS, 4)
    assert sum(map(len, patients.values())) == len(set().union(*patients.values()))
    for split in TRAINING_SPLITS:
        assert {label for record in index.of(split) for label, holds in record.labels.items() if holds} == {"A", "B"}
    assert any("were divided between tune" in note for note in notes)
    again, _ = build_index([tmp_path / "studies"], labels=str(tmp_path / "labels.csv"))
    assert [record.split for record in again.records] == [record.split for record in index.records]


def test_frames_of_a_volume_share_label_patient_and_split(tmp_path: Path) -> None:
    write_phantom(tmp_path, "oct", 12, seed=1)
    index = build(tmp_path / "studies", labels=tmp_path / "labels.csv", percent=(60, 20, 20, 0))
    files = {(record.source, record.patient_key, record.split, tuple(record.labels.items())) for record in index.records}
    assert len(files) == 12
    assert {record.key.frame_number for record in index.records} >= {1, 2, 3}
    assert {record.modality for record in index.records} == {"OPT"}
    assert {record.laterality for record in index.records} == {"L", "R"}


def test_given_splits_are_respected(tmp_path: Path) -> None:
    write_set(tmp_path, 4)
    names = TRAINING_SPLITS
    rows = [f"{label}/{number}.png,{label},{names[number]}\n" for label in ("SICK", "WELL") for number in range(4)]
    (tmp_path / "labels.csv").write_text("file,label,split\n" + "".join(rows))
    index = build(tmp_path, labels=tmp_path / "labels.csv")
    assert all(record.split == names[int(Path(record.source).stem)] for record in index.records)
    assert index.percent is None
    (tmp_path / "labels.csv").write_text("file,label,split\n" + "".join(rows[:-1]))
    with pytest.raises(InputError, match="label WELL has no example in the split test"):
        build(tmp_path, labels=tmp_path / "labels.csv")


def test_a_duplicate_that_crosses_given_splits_is_refused(tmp_path: Path) -> None:
    write_set(tmp_path, 1)
    shutil.copy(tmp_path / "SICK" / "0.png", tmp_path / "WELL" / "0.png")
    (tmp_path / "labels.csv").write_text("file,label,patient_key,split\nSICK/0.png,A,p,train\nWELL/0.png,A,q,test\n")
    with pytest.raises(InputError, match="1 images occur with the same pixels in more than one"):
        build(tmp_path, labels=tmp_path / "labels.csv")


def test_a_label_whose_files_are_all_broken_is_not_lost_in_silence(tmp_path: Path) -> None:
    table = write_set(tmp_path, 8)
    for path in (tmp_path / "SICK").iterdir():
        path.write_bytes(b"")
    with pytest.raises(InputError, match="None of the files with the label SICK can be read"):
        build(tmp_path, labels=table)


def test_nothing_readable_is_said_with_the_reasons(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    with pytest.raises(InputError, match="There is no file in set"):
        build(tmp_path / "set")
    (tmp_path / "set" / "a.dcm").write_text("hello")
    (tmp_path / "set" / "b.dcm").write_text("hello")
    with pytest.raises(InputError, match=r"no readable study in set: of 2 files none can be used \(not_an_image 2\)"):
        build(tmp_path / "set")
    with pytest.raises(InputError, match="There is no file or folder missing"):
        build(tmp_path / "missing")


def blank_unseen(out: Path, studies: Path, sources: Iterable[str]) -> None:
    """Take the content of files away, and let the journal think that they looked so when it was there."""
    with closing(sqlite3.connect(out / JOURNAL)) as database:
        for source in sources:
            path = studies / source
            path.write_bytes(bytes(path.stat().st_size))
            looks = " ".join(map(str, StudyFile(path, source).stat()))
            unit = "substr(key, instr(key, char(10)) + 1) = ? AND fingerprint <> ''"
            database.execute(f"UPDATE octray_units SET fingerprint = ? WHERE {unit}", (looks, source))  # noqa: S608
        database.commit()


def grow_old(studies: Path) -> None:
    for file in discover(studies):
        os.utime(file.path, (1.6e9, 1.6e9))


def content(out: Path) -> dict[str, bytes]:
    return {name: (out / name).read_bytes() for name in FILES}


def test_a_second_run_opens_no_file_and_gives_the_same_index(tmp_path: Path) -> None:
    studies, out = tmp_path / "studies", tmp_path / "index"
    table = write_set(studies)
    (studies / "volume.dcm").write_bytes(make_dicom(PatientID="MRN-1"))
    (studies / "letter.txt").write_text("a letter")
    (studies / "cut.png").write_bytes((studies / "SICK" / "0.png").read_bytes()[:60])
    grow_old(studies)
    build_index([studies], out, percent=ALL_TRAIN)
    first = content(out)
    blank_unseen(out, studies, [file.source for file in discover(studies)])
    build_index([studies], out, percent=ALL_TRAIN)
    assert content(out) == first
    with closing(sqlite3.connect(out / JOURNAL)) as database:
        kept = [zlib.decompress(record) for (record,) in database.execute("SELECT record FROM octray_units")]
    assert kept
    assert not [record for record in kept if b"MRN-1" in record]
    assert len(load_index(out).records) == 25
    os.utime(table.parent / "SICK" / "0.png")
    assert len(build_index([studies], out, percent=ALL_TRAIN)[0].records) == 24


def test_a_file_that_was_just_written_is_read_once_more(tmp_path: Path) -> None:
    studies, out = tmp_path / "studies", tmp_path / "index"
    write_set(studies).unlink()
    grow_old(studies)
    os.utime(studies / "SICK" / "0.png")
    build_index([studies], out, percent=ALL_TRAIN)
    blank_unseen(out, studies, [file.source for file in discover(studies)])
    index, _ = build_index([studies], out, percent=ALL_TRAIN)
    assert {row.source for row in index.quarantine} == {"SICK/0.png"}


def test_an_index_among_its_studies_is_no_study(tmp_path: Path) -> None:
    write_set(tmp_path).unlink()
    for _ in range(2):
        index, _ = build_index([tmp_path], tmp_path)
        assert (len(index.records), index.quarantine) == (24, ())


KILLED = """
import os, signal, sys, time
from pathlib import Path
from pipeline.ingest.build import build_index

def progress(items, description, total=None):
    for number, item in enumerate(items):
        yield item
        if number == 60:
            time.sleep(1.1)  # the journal is written once a second
        if number == 120:
            os.kill(os.getpid(), signal.SIGKILL)

build_index([Path(sys.argv[1])], Path(sys.argv[2]), progress=progress)
"""


def test_a_killed_run_goes_on_where_it_was(tmp_path: Path) -> None:
    studies, out = tmp_path / "studies", tmp_path / "index"
    write_set(studies, 80).unlink()
    grow_old(studies)
    run = subprocess.run([sys.executable, "-c", KILLED, str(studies), str(out)], cwd=Path(__file__).parents[1], check=False)
    assert run.returncode == -signal.SIGKILL
    database = sqlite3.connect(out / JOURNAL)
    read = [key.partition("\n")[2] for (key,) in database.execute("SELECT key FROM octray_units")]
    database.close()
    assert 60 <= len(read) <= 121
    blank_unseen(out, studies, read)
    index, _ = build_index([studies], out)
    assert (len(index.records), index.quarantine) == (160, ())


def test_rows_stand_in_the_order_of_the_body(tmp_path: Path) -> None:
    for number, place in enumerate((3, 1, 2)):
        pixels = np.random.default_rng(number).integers(0, 99, (4, 4), np.uint16)
        position = {"ImagePositionPatient": [0, 0, place], "ImageOrientationPatient": [1, 0, 0, 0, 1, 0]}
        uids = {"StudyInstanceUID": "1.2.3", "SeriesInstanceUID": "1.2.3.4"}
        (tmp_path / f"{number}.dcm").write_bytes(make_dicom(pixels, **uids, **position))
    write_picture(tmp_path / "0a.png", 5)
    assert [record.source for record in build(tmp_path).records] == ["1.dcm", "2.dcm", "0.dcm", "0a.png"]


def test_one_uid_for_two_pictures_quarantines_both_and_names_them(tmp_path: Path) -> None:
    for name, seed in (("first", 0), ("second", 1), ("copy", 0), ("other", 2)):
        pixels = np.random.default_rng(seed).integers(0, 99, (4, 4), np.uint16)
        uid = "1.2.4" if name == "other" else "1.2.3"
        (tmp_path / f"{name}.dcm").write_bytes(make_dicom(pixels, SOPInstanceUID=uid))
    index = build(tmp_path)
    assert [record.source for record in index.records] == ["other.dcm"]
    named = {row.source: row.message.split(" has the same SOP Instance UID")[0] for row in index.quarantine}
    assert named == {
        "copy.dcm": "The file second.dcm",
        "first.dcm": "The file second.dcm",
        "second.dcm": "The file copy.dcm",
    }
    assert {row.reason for row in index.quarantine} == {UID_CLASH}


def test_the_same_file_twice_stays_twice(tmp_path: Path) -> None:
    for name in ("a.dcm", "b.dcm"):
        (tmp_path / name).write_bytes(make_dicom(SOPInstanceUID="1.2.3", StudyInstanceUID="1.2", SeriesInstanceUID="1.2.1"))
    index = build(tmp_path)
    assert [record.source for record in index.records] == ["a.dcm", "b.dcm"]
    assert (index.duplicates(), index.quarantine) == (1, ())


def test_a_reason_that_holds_for_every_frame_of_a_file_is_one_row(tmp_path: Path) -> None:
    write_picture(tmp_path / "in" / "good.png", 1)
    (tmp_path / "in" / "us.dcm").write_bytes(make_dicom(np.zeros((9, 70, 70), np.uint8), Modality="US"))
    config = Config.model_validate({"name": "x", "quality": {"too_small": "flag"}, "data": {"modalities": ["DX"]}})
    index, _ = build_index([tmp_path / "in"], config=config)
    assert [(row.source, row.reason, row.frame_number) for row in index.quarantine] == [("us.dcm", "wrong_modality", None)]


def test_the_gate_takes_frames_out_one_by_one(tmp_path: Path) -> None:
    volume = np.random.default_rng(0).integers(0, 4000, (3, 80, 90), np.uint16)
    volume[1] = 5
    (tmp_path / "volume.dcm").write_bytes(make_dicom(volume))
    config = Config.model_validate({"name": "x", "quality": {"blank": "reject"}})
    index, _ = build_index([tmp_path], config=config)
    assert [record.key.frame_number for record in index.records] == [1, 3]
    assert [(row.source, row.reason, row.frame_number) for row in index.quarantine] == [("volume.dcm", "blank", 2)]
    index, _ = build_index([tmp_path])
    assert [Check.BLANK in record.flags for record in index.records] == [False, True, False]


def test_members_of_archives_are_read_and_found_again(tmp_path: Path) -> None:
    studies = tmp_path / "studies"
    studies.mkdir()
    with zipfile.ZipFile(studies / "study.zip", "w") as archive:
        for number in range(3):
            archive.writestr(f"a/{number}.dcm", make_dicom(np.random.default_rng(number).integers(0, 99, (40, 40), np.uint16)))
    index = build(studies)
    assert [record.source for record in index.records] == [f"study.zip/a/{number}.dcm" for number in range(3)]
    assert len(list(prepared_frames(index.records, index.sources, Preprocessing(size=32)))) == 3


def test_every_malformed_file_is_read_or_has_a_reason(shared_data: Path) -> None:
    files = {file.source for file in discover(shared_data / "dicom-malformed")}
    index = build(shared_data / "dicom-malformed", percent=ALL_TRAIN)
    assert files == {record.source for record in index.records} | {row.source for row in index.quarantine}
    assert {row.reason for row in index.quarantine} <= {*Reason, UID_CLASH} - {Reason.DECODER_CRASH, Reason.RESOURCE_LIMIT}
    assert all(row.message.endswith(".") for row in index.quarantine)


def test_real_scans_keep_patients_together_even_under_two_labels(shared_data: Path, tmp_path: Path) -> None:
    with (shared_data / "oct-kermany" / "labels.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if int(row["patient_key"]) % 4 == 0]
    for row in rows:
        (tmp_path / row["file"]).parent.mkdir(exist_ok=True)
        shutil.copy(shared_data / "oct-kermany" / row["file"], tmp_path / row["file"])
    with (tmp_path / "labels.csv").open("w", newline="") as file:
        table = csv.DictWriter(file, list(rows[0]))
        table.writeheader()
        table.writerows(rows)
    index = build(tmp_path, labels=tmp_path / "labels.csv")
    assert len(index.records) == len(rows) > 100
    splits = {(record.patient_key, record.split) for record in index.records}
    assert len(splits) == len({row["patient_key"] for row in rows})
    assert index.labels == ("CNV", "DME", "DRUSEN", "NORMAL")


def test_duplicates_of_real_radiographs_are_those_of_the_files_hashes(shared_data: Path, tmp_path: Path) -> None:
    with (shared_data / "cxr-pediatric" / "labels.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    repeated = {value for value, count in Counter(row["sha256"] for row in rows).items() if count > 1}
    copies = [row for row in rows if row["sha256"] in repeated]
    for row in copies:
        shutil.copy(shared_data / "cxr-pediatric" / row["file"], tmp_path)
    index = build(tmp_path, percent=ALL_TRAIN)
    assert index.duplicates() == len(copies) - len(repeated) > 20
