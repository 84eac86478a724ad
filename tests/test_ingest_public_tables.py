"""Small stand-ins for the tables of public data sets, read with the options that the documentation gives for each of them."""

import argparse
import re
import shlex
from pathlib import Path

import pytest

from pipeline.cli import ingest
from pipeline.errors import InputError
from pipeline.frames import LabelLevel, Split
from pipeline.ingest.labels import Empty, SeveralRows, Uncertain, parse_columns, read_labels
from pipeline.ingest.matching import match_files
from pipeline.ingest.path_names import folder_labels, names_from_paths

PAGE = Path(__file__).parents[1] / "docs" / "data-scientists.md"
CHEXPERT = "No Finding,Cardiomegaly,Lung Opacity,Edema,Support Devices"
A_FILE = "CheXpert-v1.0/train/patient00001/study1/view1_frontal.jpg"
VINDR = "Aortic enlargement,Atelectasis,Other disease,No finding"

Expected = dict[str, tuple[set[str], set[str], str | None]]
"""For each file the labels that are present, those that are unknown, and the patient."""

TABLES: dict[str, tuple[str, list[str], Expected]] = {
    "NIH ChestX-ray14": (
        "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position,"
        "OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y],\n"
        "00000001_000.png,Cardiomegaly|Emphysema,0,1,58,M,PA,2682,2749,0.143,0.143,\n"
        "00000002_000.png,No Finding,0,2,81,M,PA,2500,2048,0.171,0.171,\n",
        ["images_001/images/00000001_000.png", "images_002/images/00000002_000.png"],
        {
            "images_001/images/00000001_000.png": ({"Cardiomegaly", "Emphysema"}, set(), "1"),
            "images_002/images/00000002_000.png": ({"No Finding"}, set(), "2"),
        },
    ),
    "CheXpert": (
        f"Path,Sex,Age,Frontal/Lateral,AP/PA,{CHEXPERT}\n"
        f"{A_FILE},Female,68,Frontal,AP,1.0,0.0,,-1.0,1.0\n"
        f"{A_FILE.replace('00001', '00002')},Male,87,Frontal,AP,,1.0,,,\n",
        ["train/patient00001/study1/view1_frontal.jpg", "train/patient00002/study1/view1_frontal.jpg"],
        {
            "train/patient00001/study1/view1_frontal.jpg": (
                {"No Finding", "Support Devices"},
                {"Lung Opacity", "Edema"},
                "patient00001",
            ),
            "train/patient00002/study1/view1_frontal.jpg": (
                {"Cardiomegaly"},
                {"No Finding", "Lung Opacity", "Edema", "Support Devices"},
                "patient00002",
            ),
        },
    ),
    "MIMIC-CXR": (
        "subject_id,study_id,Atelectasis,Edema,Support Devices\n10000032,50414267,1.0,-1.0,\n10000032,53189527,,0.0,1.0\n",
        [
            "files/p10/p10000032/s50414267/02aa804e.jpg",
            "files/p10/p10000032/s50414267/174413ec.jpg",
            "files/p10/p10000032/s53189527/2a2277a9.jpg",
        ],
        {
            "files/p10/p10000032/s50414267/02aa804e.jpg": ({"Atelectasis"}, {"Edema", "Support Devices"}, "10000032"),
            "files/p10/p10000032/s50414267/174413ec.jpg": ({"Atelectasis"}, {"Edema", "Support Devices"}, "10000032"),
            "files/p10/p10000032/s53189527/2a2277a9.jpg": ({"Support Devices"}, {"Atelectasis"}, "10000032"),
        },
    ),
    "RSNA pneumonia": (
        "patientId,x,y,width,height,Target\n"
        "0004cfab,264.0,152.0,213.0,379.0,1\n0004cfab,562.0,152.0,256.0,453.0,1\n000924cf,,,,,0\n",
        ["0004cfab.dcm", "000924cf.dcm"],
        {"0004cfab.dcm": ({"1"}, set(), None), "000924cf.dcm": ({"0"}, set(), None)},
    ),
    "PadChest": (
        ",ImageID,ImageDir,StudyDate_DICOM,StudyID,PatientID,Projection,Labels\n"
        "0,1_a.png,0,20140915,s1,p1,PA,\"['pneumonia', 'pleural effusion', 'pneumonia']\"\n"
        "1,2_b.png,1,20150607,s2,p2,PA,['normal']\n2,3_c.png,1,20150607,s3,p3,PA,\n3,4_d.png,1,20150607,s4,p4,PA,['']\n",
        ["0/1_a.png", "1/2_b.png", "1/3_c.png", "1/4_d.png"],
        {"0/1_a.png": ({"pneumonia", "pleural effusion"}, set(), "p1"), "1/2_b.png": ({"normal"}, set(), "p2")},
    ),
    "VinDr-CXR `train.csv`": (
        "image_id,class_name,class_id,rad_id,x_min,y_min,x_max,y_max\n"
        "50a418,No finding,14,R11,,,,\n21a10b,Aortic enlargement,0,R8,691,1,2,3\n21a10b,Cardiomegaly,3,R9,1,2,3,4\n",
        ["50a418.dicom", "21a10b.dicom"],
        {"50a418.dicom": ({"No finding"}, set(), None), "21a10b.dicom": ({"Aortic enlargement", "Cardiomegaly"}, set(), None)},
    ),
    "VinDr-CXR `image_labels_train.csv`": (
        f"image_id,rad_id,{VINDR}\na,R1,1.0,0.0,0.0,0.0\na,R2,1.0,1.0,0.0,0.0\na,R3,0.0,0.0,0.0,0.0\n",
        ["a.dicom"],
        {"a.dicom": ({"Aortic enlargement"}, set(), None)},
    ),
    "OCTDL": (
        "file_name,disease,subcategory,condition,patient_id,eye,sex,year,image_width,image_height\n"
        "amd_1047099_1,AMD,late,MNV,1047099,OD,M,,1010,1000\nno_2,NO,,,3,OS,M,,1010,1000\n",
        ["AMD/amd_1047099_1.jpg", "NO/no_2.jpg"],
        {"AMD/amd_1047099_1.jpg": ({"AMD"}, set(), "1047099"), "NO/no_2.jpg": ({"NO"}, set(), "3")},
    ),
    "RFMiD": (
        "ID,Disease_Risk,DR,ARMD,MH\n1,1,1,0,0\n2,0,0,1,1\n",
        ["1.png", "2.png"],
        {"1.png": ({"Disease_Risk", "DR"}, set(), None), "2.png": ({"ARMD", "MH"}, set(), None)},
    ),
    "ODIR-5K": (
        "ID,Patient Age,Patient Sex,Left-Fundus,Right-Fundus,Left-Diagnostic Keywords,Right-Diagnostic "
        "Keywords,N,D,G,C,A,H,M,O\n0,69,Female,0_left.jpg,0_right.jpg,cataract,normal fundus,0,0,0,1,0,0,0,0\n",
        ["0_left.jpg", "0_right.jpg"],
        {"0_left.jpg": ({"C"}, set(), "0"), "0_right.jpg": ({"C"}, set(), "0")},
    ),
}


def documented() -> dict[str, argparse.Namespace]:
    """The options of each row of the page's table, as `octray ingest` understands them."""
    page = PAGE.read_text(encoding="utf-8").partition("\n| table | options |\n")[2].partition("\n\n")[0]
    parser = argparse.ArgumentParser()
    ingest.add_arguments(parser)
    rows = {}
    for line in page.splitlines()[1:]:
        name, options = (cell.strip() for cell in line.strip("|").split("|", 1))
        command = re.search("`(--[^`]+)`", options)
        rows[name] = parser.parse_args(["studies", "--out", "index", *shlex.split(command[1] if command else "")])
    return rows


def test_every_row_of_the_page_has_a_stand_in() -> None:
    others = {"Kermany folders", "MedMNIST"}
    assert [name for name in documented() if name not in others and not any(map(name.startswith, TABLES))] == []
    assert len(documented()) == len(TABLES) + len(others)


@pytest.mark.parametrize("name", TABLES)
def test_a_table_is_read_with_the_options_of_the_page(tmp_path: Path, name: str) -> None:
    text, files, expected = TABLES[name]
    (options,) = (options for row, options in documented().items() if row.startswith(name))
    (tmp_path / "table.csv").write_text(text, encoding="utf-8")
    table = read_labels(
        tmp_path / "table.csv",
        parse_columns(options.columns),
        uncertain=Uncertain(options.uncertain),
        empty=Empty(options.empty) if options.empty else None,
        with_patients=not options.patient_from,
    )
    found = [(0, file) for file in files]
    facts, _ = match_files(table, [tmp_path / "studies"], found, SeveralRows(options.several_rows))
    by_path = names_from_paths(options.patient_from, "--patient-from", [tmp_path], found) if options.patient_from else {}
    assert {
        file_id[1]: (set(one.labels), set(one.unknown), by_path.get(file_id, one.patient_key)) for file_id, one in facts.items()
    } == expected


def test_the_folders_of_kermany_are_read_with_the_options_of_the_page(tmp_path: Path) -> None:
    options = documented()["Kermany folders"]
    files = [(0, "CNV/CNV-1016042-1.jpeg"), (0, "NORMAL/NORMAL-12-3.jpeg")]
    facts = folder_labels(options.label_from, [tmp_path], files)
    assert [set(facts[file].labels) for file in files] == [{"CNV"}, {"NORMAL"}]
    assert list(names_from_paths(options.patient_from, "--patient-from", [tmp_path], files).values()) == ["1016042", "12"]


def test_tables_that_need_another_step_say_which(tmp_path: Path) -> None:
    path = tmp_path / "labels.csv"
    path.write_text("TRAIN,pneumoniamnist_train_0.png,1\nTEST,pneumoniamnist_test_0.png,0\n")
    with pytest.raises(InputError, match="The first line of labels.csv holds data, not the names of columns. Put a line"):
        read_labels(path)
    path.write_text("split,file,label\nTRAIN,pneumoniamnist_train_0.png,1\nTEST,pneumoniamnist_test_0.png,0\n")
    assert len(read_labels(path).rows) == 2
    path.write_text("dicom_id,study_id,subject_id,split\n02aa804e,50414267,10000032,validate\n")
    with pytest.raises(InputError, match="has no column label|has no column file and label"):
        read_labels(path)


def test_labels_and_splits_of_mimic_are_joined(tmp_path: Path) -> None:
    (tmp_path / "chexpert.csv").write_text(
        "subject_id,study_id,Edema,No Finding\n10000032,50414267,,1.0\n10000032,53189527,-1.0,\n10000764,57375967,1.0,0.0\n"
    )
    (tmp_path / "split.csv").write_text(
        "dicom_id,study_id,subject_id,split\n02aa804e,50414267,10000032,train\n174413ec,50414267,10000032,train\n"
        "096052b7,57375967,10000764,validate\nffffffff,1,1,test\n"
    )
    columns = parse_columns(["file=p{subject_id}/s{study_id}/{dicom_id}.jpg,labels=Edema..No Finding,patient_key=subject_id"])

    for tables in (["chexpert.csv", "split.csv"], ["split.csv", "chexpert.csv"]):
        table = read_labels([tmp_path / one for one in tables], columns)

        assert [name for name, _ in table.rows] == [
            *("p10000032/s50414267/02aa804e.jpg", "p10000032/s50414267/174413ec.jpg"),
            "p10000764/s57375967/096052b7.jpg",
        ]
        first, _, last = (facts for _, facts in table.rows)
        assert (first.labels, first.unknown, first.split) == ({"No Finding"}, {"Edema"}, Split.TRAIN)
        assert (last.labels, last.patient_key, last.split) == ({"Edema"}, "10000764", Split.TUNE)
        assert {facts.level for _, facts in table.rows} == {LabelLevel.STUDY}
        assert table.has_validation
        assert "Rows of split.csv without a partner in chexpert.csv that were left out: 1." in table.notes[0]
        assert "Rows of chexpert.csv without a partner in split.csv that were left out: 1." in table.notes[0]


@pytest.mark.parametrize(
    ("second", "message"),
    [
        ("dicom,split\na,train\n", "have no column in common to be joined by"),
        ("Study_ID,split\n9,train\n", "No row of labels.csv has the same study_id as a row of split.csv"),
        ("study_id,split\n1,train\n1,test\n", "In both, the same cells occur in several rows"),
    ],
)
def test_tables_that_cannot_be_joined_are_refused(tmp_path: Path, second: str, message: str) -> None:
    (tmp_path / "labels.csv").write_text("study_id,image,label\n1,a.png,A\n1,b.png,B\n2,c.png,A\n")
    (tmp_path / "split.csv").write_text(second)

    with pytest.raises(InputError, match=message):
        read_labels([tmp_path / "labels.csv", tmp_path / "split.csv"], {"file": "image"})


def test_labels_of_patients_that_were_repeated_are_those_of_patients(tmp_path: Path) -> None:
    (tmp_path / "images.csv").write_text("image,pid\na.png,1\nb.png,1\n")
    (tmp_path / "labels.csv").write_text("PID,label,image_quality\n1,A,good\n")

    table = read_labels([tmp_path / "images.csv", tmp_path / "labels.csv"], {"file": "image", "patient_key": "pid"})

    assert [(name, facts.level) for name, facts in table.rows] == [("a.png", LabelLevel.PATIENT), ("b.png", LabelLevel.PATIENT)]
