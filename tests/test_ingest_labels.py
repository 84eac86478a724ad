"""What tables of labels mean: columns, forms of labels, what is not known, and every way in which they can be wrong."""

import re
import shlex
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import InputError
from pipeline.frames import LabelLevel, Split
from pipeline.ingest.labels import (
    Empty,
    FileFacts,
    JoinKey,
    LabelTable,
    SeveralRows,
    Uncertain,
    parse_columns,
    read_labels,
    unite,
)


def write(folder: Path, text: str, encoding: str = "utf-8") -> Path:
    path = folder / "labels.csv"
    path.write_text(text, encoding=encoding)
    return path


def facts_of(table: LabelTable) -> dict[object, list[FileFacts]]:
    """What a table says, row by row, of each name in it."""
    facts: dict[object, list[FileFacts]] = {}
    for name, said in table.rows:
        facts.setdefault(name, []).append(said)
    return facts


def labels_of(table: LabelTable) -> dict[object, set[str]]:
    return {name: set().union(*(one.labels for one in said)) for name, said in facts_of(table).items()}


def one_row(header: str, row: str, tmp_path: Path, **options: object) -> FileFacts:
    ((_, facts),) = read_labels(write(tmp_path, f"{header}\n{row}\n"), **options).rows  # type: ignore[arg-type]
    return facts


def test_labels_patients_and_splits_are_read_and_other_columns_ignored(tmp_path: Path) -> None:
    table = read_labels(write(tmp_path, "file,age,label,patient_key,split\n./a/1.png, 4,X ,p1,train\na\\2.png,5,Y,p2,TEST\n\n"))
    assert dict(table.rows) == {
        "a/1.png": FileFacts(frozenset({"X"}), "p1", Split.TRAIN),
        "a/2.png": FileFacts(frozenset({"Y"}), "p2", Split.TEST),
    }


def test_a_file_in_several_rows_has_several_labels(tmp_path: Path) -> None:
    table = read_labels(write(tmp_path, "file,label\n1.png,X\n1.png,Y\n1.png,X\n"))
    assert labels_of(table) == {"1.png": {"X", "Y"}}


def test_another_column_can_hold_the_patients(tmp_path: Path) -> None:
    path = write(tmp_path, "file,label,patient_key,mrn\n1.png,X,p,m\n")
    assert read_labels(path, {"patient_key": "MRN"}).rows[0][1].patient_key == "m"
    assert read_labels(path).rows[0][1].patient_key == "p"
    assert read_labels(path, with_patients=False).rows[0][1].patient_key is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has no rows"),
        ("file,label\n", "has no rows"),
        ("name;note\n1.png;X\n", "has no column file and label; its columns are name, note\\. Say which columns are which"),
        (
            "file,finding\n1.png,X\n",
            "has no column label; its columns are file, finding\\. .*--columns file=file,label=finding",
        ),
        ("1.png,X\n2.png,Y\n", "The first line of labels.csv holds data, not the names of columns. .* such as file,label\\."),
        ("file,label\na/1.png,\na/2.png,X\na/3.png,\n", "an empty label, or nan or the like, in lines 2, 4\\."),
        ("file,label\n,X\n", "an empty file in line 2"),
        ("file,label,patient_key\n1.png,X,\n", "an empty patient_key in line 2"),
        ("file,label,split\n1.png,X,train\n2.png,X,\n", "an empty split in line 3"),
        (
            "file,label,split\n1.png,X,fold1\n",
            "has the split fold1 in line 2. It must be one of train, tune, calibration, test, promotion; validation, too, is "
            "divided between tune and calibration. To let octray divide the patients, give the column another name.",
        ),
        (
            "file,label,split\n1.png,X,val\n2.png,X,tune\n",
            "has the split val and also tune. octray chooses on tune, and fits thresholds on calibration: call each patient",
        ),
        ('file,label\n0.png,X\n"1.png,X\n2.png,X\n', "told apart from line 3 on. A quotation mark is missing there"),
        ('file,label\n"1.png"e,X\n', "told apart from line 2 on. A quotation mark is missing there, or there is one too many"),
        ('file,"label\n1.png,X\n', "told apart from line 1 on"),
        ("file,label,note,patient_key\n1.png,X,see, p1,p1\n2.png,X,,p2\n", "has 4 columns, and more cells than that in line 2"),
        ("file,age,label\n" + "1.png,61,5,X\n" * 7, "more cells than that in lines 2, 3, 4, 5, 6 and 2 more"),
        ('file,label,note\n1.png,X,"two\nlines"\n\n2.png,X,a,b\n', "more cells than that in line 5"),
        ("file,label\n1.png,X,\n", "has 2 columns, and more cells than that in line 2"),
        ("file,label,,\n1.png,Effusion, left,\n", "has 2 columns, and more cells than that in line 2"),
        ("file,note,label,age\n1.png,X,61\n", "has 4 columns, and fewer cells than that in line 2"),
        ("file,label\n1.png\n", "has 2 columns, and fewer cells than that in line 2"),
        ("file,label,label\n1.png,X,Y\n", "more than one column label"),
        ("file,label,patient_key,patient_key\n1.png,X,p,q\n", "more than one column patient_key"),
        ("file,label, Label\n1.png,X,Y\n", "more than one column label"),
        ("file,label,\ufefflabel\n1.png,X,Y\n", "more than one column label"),
        ("file,label,\u00c4rztin,A\u0308rztin\n1.png,X,a,b\n", "more than one column \u00e4rztin"),
        (
            'file,label,note\n1.png,X,"a\n2.png,X,b\n3.png,Y,"\n',
            "cell that holds whole rows in line 2: a quotation mark is missing",
        ),
        ('file,label,note\n1.png,X,"a\r\n"" 2.png"",""X"",b"\n', "cell that holds whole rows in line 2"),
        ("file,label\n1.png,nan\n2.png,X\n", "an empty label, or nan or the like, in line 2"),
        ("file,label,patient_key\na/1.png,X,NaN\n2.png,X,<NA>\n", "nan or the like as patient_key in lines 2, 3"),
        ('file,label\n1.png,"X\n2.png,Y"\n', "line break inside a cell of the column label in line 2"),
    ],
)
def test_a_wrong_table_is_explained(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        read_labels(write(tmp_path, text))
    assert "labels.csv" in str(caught.value)
    assert str(tmp_path) not in str(caught.value)


@pytest.mark.parametrize("name", ["val", "Valid", "validate", "VALIDATION", "dev"])
def test_the_split_that_public_tables_call_validation_is_understood(tmp_path: Path, name: str) -> None:
    path = write(tmp_path, f"file,label,split\n1.png,X,Training\n2.png,X,{name}\n3.png,X,testing\n")

    table = read_labels(path)

    assert [facts.split for _, facts in table.rows] == [Split.TRAIN, Split.TUNE, Split.TEST]
    assert table.has_validation
    assert f"The patients of the split {name.lower()} of labels.csv were divided between tune" in table.notes[0]
    assert not read_labels(write(tmp_path, "file,label,split\n1.png,X,train\n")).has_validation


def test_another_column_of_splits_is_left_out_of_columns(tmp_path: Path) -> None:
    path = write(tmp_path, "file,label,part\n1.png,X,fold1\n")
    with pytest.raises(InputError, match="To let octray divide the patients, leave split out of --columns"):
        read_labels(path, {"split": "part"})


def test_an_empty_split_column_is_no_split(tmp_path: Path) -> None:
    assert one_row("file,label,split", "1.png,X,", tmp_path).split is None


def test_blanks_marks_and_case_in_the_header_make_no_difference(tmp_path: Path) -> None:
    table = read_labels(write(tmp_path, "\ufeff File ,LABEL\u00a0,Patient_Key,Split,Age,,\n1.png,X,p,test,3,,\n", "utf-8-sig"))
    assert dict(table.rows) == {"1.png": FileFacts(frozenset({"X"}), "p", Split.TEST)}


def test_columns_without_a_name_are_ignored(tmp_path: Path) -> None:
    table = read_labels(write(tmp_path, ",file,label,,note\n0,1.png,X,y,z\n1,2.png,,y,z\n".replace(",,y", ",W,y")))
    assert labels_of(table) == {"1.png": {"X"}, "2.png": {"W"}}


def test_labels_and_patients_in_two_forms_of_unicode_are_one(tmp_path: Path) -> None:
    composed, decomposed = "\u00d6dem", "O\u0308dem"
    table = read_labels(
        write(tmp_path, f"file,label,patient_key\n1.png,{composed},{composed}\n1.png,{decomposed} ,{decomposed}\n")
    )
    assert set(table.rows) == {("1.png", FileFacts(frozenset({composed}), composed))}


def test_lines_of_a_comment_are_no_rows(tmp_path: Path) -> None:
    table = read_labels(
        write(tmp_path, 'file,label,note\n1.png,X,"seen before, no change\nclear, X, no change\n2.png, Z"\n2.png,Y,X\n')
    )
    assert labels_of(table)["1.png"] == {"X"}


# Columns


def test_columns_are_mapped_whatever_their_case(tmp_path: Path) -> None:
    path = write(tmp_path, "Image Index;Finding, main;pid\n1.png;X;p\n")
    columns = parse_columns(["file=image index,label=Finding, main", "patient_key=pid"])
    assert columns == {"file": "image index", "label": "Finding, main", "patient_key": "pid"}
    assert read_labels(path, columns).rows == (("1.png", FileFacts(frozenset({"X"}), "p")),)


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["file"], "must be like file=image,label=finding. Got file instead"),
        (["file="], "must be like file=image,label=finding"),
        (["lable=x"], "--columns: lable is nothing that a column can say. Did you mean label"),
        (["zzz=x"], "It can say file, label, labels"),
        (["file=a", "file=b"], "names file twice"),
        (["label=a,labels=b+c"], "names both label, a column that holds labels, and labels"),
    ],
)
def test_what_a_column_cannot_say_is_refused(texts: list[str], message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        parse_columns(texts)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"file": "imgae"}, "has no column imgae; its columns are image, a, b, dx, pid. Did you mean image?"),
        ({"file": "image", "label": "zzz"}, "has no column zzz; .* Correct --columns"),
        ({"file": "image", "labels": "a..zzz"}, "has no column zzz"),
        ({"file": "{zzz}.png", "label": "dx"}, "has no column zzz"),
        ({"file": "image", "label": "dx", "patient_key": "a+b"}, "patient_key must be one column"),
        ({"file": "image", "label": "a+b"}, "several columns for label need as many columns for file"),
        ({"file": "image", "labels": "dx+a"}, "has DME in the column dx in line 2. A column that is a label holds 1, 0, -1"),
        ({"patient_key": "pid", "label": "dx"}, "has a column image, which may name files, but --columns names none for file"),
    ],
)
def test_columns_that_do_not_fit_are_explained(tmp_path: Path, columns: dict[str, str], message: str) -> None:
    path = write(tmp_path, "image,a,b,dx,pid\n1.png,1,0,DME,p\n")
    with pytest.raises(InputError, match=message):
        read_labels(path, columns)


# Forms of labels


@pytest.mark.parametrize(
    ("cell", "labels"),
    [
        ("Effusion|Mass", {"Effusion", "Mass"}),
        ("No Finding", {"No Finding"}),
        (" Mass | ", {"Mass"}),
        ("\"['pneumonia', ' effusion']\"", {"pneumonia", "effusion"}),
    ],
)
def test_one_cell_can_hold_several_labels(tmp_path: Path, cell: str, labels: set[str]) -> None:
    assert one_row("file,label", f"1.png,{cell}", tmp_path).labels == labels


def test_a_list_that_is_none_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"a list that cannot be read as label in line 3. It must be like"):
        read_labels(write(tmp_path, "file,label\n1.png,['a']\n2.png,[a b]\n"))


CELLS = {"1": True, "1.0": True, "yes": True, "x": True, "TRUE": True, "0": False, "0.0": False, '"0,0"': False, "no": False}


@pytest.mark.parametrize(("cell", "holds"), CELLS.items())
def test_columns_can_each_be_a_label(tmp_path: Path, cell: str, holds: bool) -> None:
    facts = one_row("file,Edema,Mass", f"1.png,{cell},1", tmp_path, columns={"labels": "Edema+Mass"})
    assert ("Edema" in facts.labels) is holds
    assert (facts.unknown, "Mass" in facts.labels) == (frozenset(), True)


@pytest.mark.parametrize(
    ("options", "present", "unknown"),
    [
        ({}, {"A"}, {"C", "D"}),
        ({"uncertain": Uncertain.ZEROS}, {"A"}, {"D"}),
        ({"uncertain": Uncertain.ONES}, {"A", "C"}, {"D"}),
        ({"empty": Empty.ABSENT}, {"A"}, {"C"}),
        ({"empty": Empty.UNKNOWN, "uncertain": Uncertain.IGNORE}, {"A"}, {"C", "D"}),
    ],
)
def test_what_is_uncertain_or_empty_is_unknown_unless_something_else_is_said(
    tmp_path: Path, options: dict[str, object], present: set[str], unknown: set[str]
) -> None:
    facts = one_row("file,A,B,C,D", "1.png,1.0,0.0,-1.0,", tmp_path, columns={"labels": "A..D"}, **options)
    assert (facts.labels, facts.unknown) == (present, unknown)


def test_the_number_of_unknown_cells_is_told(tmp_path: Path) -> None:
    notes = read_labels(write(tmp_path, "file,A,B\n1.png,1,-1\n2.png,,0\n3.png,nan,1\n"), {"labels": "*"}).notes
    assert notes[0] == "The columns that are labels: A, B."
    assert notes[1].startswith("The column A has no 0. Its empty cells count as unknown")
    assert notes[2].startswith("1 cells are -1 (uncertain) and count as unknown")
    assert notes[3].startswith("2 cells are empty and count as unknown")


def test_all_columns_of_zeros_and_ones_that_say_nothing_else_are_labels(tmp_path: Path) -> None:
    path = write(tmp_path, "file,patient_key,age,A,empty,none,B\n1.png,1,61,1,,0,-1\n2.png,0,5,0,,0,1\n")
    assert read_labels(path, {"labels": "*"}).labels == ("A", "B")
    with pytest.raises(InputError, match="No column of labels.csv holds only 1, 0, -1 or nothing"):
        read_labels(write(tmp_path, "file,age\n1.png,61\n"), {"labels": "*"})


def test_rows_without_a_label_are_left_out_or_have_none_if_that_is_said(tmp_path: Path) -> None:
    path = write(tmp_path, "file,label\n1.png,X\n2.png,\n3.png,nan\n")
    table = read_labels(path, empty=Empty.UNKNOWN)
    assert labels_of(table) == {"1.png": {"X"}}
    assert table.notes == ("2 rows of labels.csv have no label and were left out.",)
    assert labels_of(read_labels(path, empty=Empty.ABSENT)) == {"1.png": {"X"}, "2.png": set(), "3.png": set()}
    with pytest.raises(InputError, match=r"an empty label, or nan or the like, in lines 3, 4\. .* --empty unknown"):
        read_labels(path)
    with pytest.raises(InputError, match="No row of labels.csv has a label"):
        read_labels(write(tmp_path, "file,label\n1.png,\n"), empty=Empty.UNKNOWN)


# What rows mean


def test_the_name_of_a_file_can_be_made_of_several_columns(tmp_path: Path) -> None:
    path = write(tmp_path, "subject_id,study_id,label\n10,55,X\n")
    assert labels_of(read_labels(path, {"file": "p{subject_id}/s{study_id}"})) == {"p10/s55": {"X"}}


def test_a_row_can_name_both_eyes_with_one_label_or_one_each(tmp_path: Path) -> None:
    path = write(tmp_path, "ID,left,right,dx left,dx right,D\n7,7_left.jpg,7_right.jpg,DR,N,1\n8,8_left.jpg,,N,,0\n")
    files = "left+right"
    shared = read_labels(path, {"file": files, "labels": "D", "patient_key": "ID"})
    assert labels_of(shared) == {"7_left.jpg": {"D"}, "7_right.jpg": {"D"}, "8_left.jpg": set()}
    assert {facts.level for _, facts in shared.rows} == {LabelLevel.PATIENT}
    own = read_labels(path, {"file": files, "label": "dx left+dx right"}, empty=Empty.UNKNOWN)
    assert labels_of(own) == {"7_left.jpg": {"DR"}, "7_right.jpg": {"N"}, "8_left.jpg": {"N"}}
    assert {facts.level for _, facts in own.rows} == {LabelLevel.FRAME}


@pytest.mark.parametrize(
    ("columns", "key", "level"),
    [
        ({"study_instance_uid": "uid"}, JoinKey(study_instance_uid="1.2"), LabelLevel.STUDY),
        ({"study_instance_uid": "uid", "patient_key": "pid"}, JoinKey(study_instance_uid="1.2"), LabelLevel.STUDY),
        ({"series_instance_uid": "uid"}, JoinKey(series_instance_uid="1.2"), LabelLevel.STUDY),
        ({"sop_instance_uid": "uid"}, JoinKey(sop_instance_uid="1.2"), LabelLevel.INSTANCE),
        ({"patient_key": "pid"}, JoinKey(patient_key="007"), LabelLevel.PATIENT),
        ({"patient_key": "pid", "laterality": "eye"}, JoinKey(laterality="R", patient_key="007"), LabelLevel.EYE),
        ({"study_instance_uid": "uid", "laterality": "eye"}, JoinKey("1.2", laterality="R"), LabelLevel.EYE),
    ],
)
def test_rows_can_mean_studies_instances_eyes_and_patients(
    tmp_path: Path, columns: dict[str, str], key: JoinKey, level: LabelLevel
) -> None:
    path = write(tmp_path, "uid,pid,eye,label\n1.2,007,OD,X\n")
    ((found, facts),) = read_labels(path, columns).rows
    assert (found, facts.labels, facts.level) == (key, {"X"}, level)
    assert facts.patient_key == ("007" if columns.keys() == {"study_instance_uid", "patient_key"} else None)


def test_an_eye_must_be_one(tmp_path: Path) -> None:
    path = write(tmp_path, "pid,eye,label\n1,OD,X\n2,upper,X\n")
    with pytest.raises(InputError, match="has the laterality upper in line 3. It must be R or L"):
        read_labels(path, {"patient_key": "pid", "laterality": "eye"})


# Rows for the same files

STATES = st.dictionaries(st.sampled_from("ABC"), st.sampled_from([True, False, None]), min_size=3, max_size=3)


def together(facts: list[FileFacts], several: SeveralRows) -> tuple[FileFacts, str]:
    return unite(facts, states_absence=True, several_rows=several)


def stated(states: dict[str, bool | None]) -> FileFacts:
    present = frozenset(label for label, holds in states.items() if holds)
    return FileFacts(present, unknown=frozenset(label for label, holds in states.items() if holds is None))


@given(st.lists(STATES, min_size=1, max_size=6), st.sampled_from(list(SeveralRows)), st.randoms(use_true_random=False))
@settings(deadline=None)
def test_rows_together_say_what_their_votes_say_in_any_order(
    rows: list[dict[str, bool | None]], several: SeveralRows, random: object
) -> None:
    facts, clash = together(list(map(stated, rows)), several)
    shuffled = list(rows)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert together(list(map(stated, shuffled)), several)[1] == clash
    votes = {label: [row[label] for row in rows if row[label] is not None] for label in "ABC"}
    if clash:
        assert several is SeveralRows.REFUSE
        assert any(len(set(one)) > 1 for one in votes.values())
        return
    for label, known in votes.items():
        yes, no = known.count(True), known.count(False)
        expected = {
            SeveralRows.REFUSE: None if not known else bool(yes),
            SeveralRows.UNKNOWN: None if not known or (yes and no) else bool(yes),
            SeveralRows.ANY: None if not known else bool(yes),
            SeveralRows.MAJORITY: None if yes == no else yes > no,
        }[several]
        assert (None if label in facts.unknown else label in facts.labels) is expected


# The advice works


def write_shape(folder: Path, header: str, *rows: str) -> Path:
    return write(folder, "\n".join([header, *rows]) + "\n")


SHAPES = {
    "NIH ChestX-ray14": (
        "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,View Position,OriginalImage[Width,Height],",
        ["00000001_000.png,Cardiomegaly,0,1,58,PA,2682,2749,", "00000002_000.png,No Finding,0,2,81,PA,2500,2048,"],
        {"00000001_000.png": {"Cardiomegaly"}, "00000002_000.png": {"No Finding"}},
    ),
    "CheXpert": (
        "Path,Sex,Age,Frontal/Lateral,AP/PA,No Finding,Cardiomegaly,Lung Opacity,Edema,Support Devices",
        [
            "CheXpert-v1.0/train/patient00001/study1/view1_frontal.jpg,Female,68,Frontal,AP,1.0,0.0,,0.0,1.0",
            "CheXpert-v1.0/train/patient00002/study2/view1_frontal.jpg,Male,87,Frontal,AP,,1.0,1.0,1.0,",
        ],
        {
            "CheXpert-v1.0/train/patient00001/study1/view1_frontal.jpg": {"No Finding", "Support Devices"},
            "CheXpert-v1.0/train/patient00002/study2/view1_frontal.jpg": {"Cardiomegaly", "Lung Opacity", "Edema"},
        },
    ),
    "RSNA pneumonia": (
        "patientId,x,y,width,height,Target",
        ["0004cfab-14fd,264.0,152.0,213.0,379.0,1", "0004cfab-14fd,562.0,152.0,256.0,453.0,1", "000924cf-0f8d,,,,,0"],
        {"0004cfab-14fd": {"1"}, "000924cf-0f8d": {"0"}},
    ),
    "PadChest": (
        ",ImageID,ImageDir,StudyID,PatientID,Projection,Labels",
        ["0,1_a.png,0,s1,p1,PA,\"['pneumonia', 'pleural effusion']\"", "1,2_b.png,0,s2,p2,PA,['normal']"],
        {"1_a.png": {"pneumonia", "pleural effusion"}, "2_b.png": {"normal"}},
    ),
    "VinDr, boxes of several readers": (
        "image_id,class_name,class_id,rad_id,x_min,y_min,x_max,y_max",
        ["50a418,No finding,14,R11,,,,", "21a10b,Aortic enlargement,0,R8,691,1,2,3", "21a10b,Cardiomegaly,3,R9,1,2,3,4"],
        {"50a418": {"No finding"}, "21a10b": {"Aortic enlargement", "Cardiomegaly"}},
    ),
    "OCTDL": (
        "file_name,disease,subcategory,condition,patient_id,eye,sex,year,image_width,image_height",
        ["amd_1047099_1,AMD,late,MNV,1047099,OD,M,,1010,1000", "no_2,NO,,,3,OS,M,,1010,1000"],
        {"amd_1047099_1": {"AMD"}, "no_2": {"NO"}},
    ),
    "RFMiD": (
        "ID,Disease_Risk,DR,ARMD,MH",
        ["1,1,1,0,0", "2,1,0,1,1", "3,0,0,0,0"],
        {"1": {"Disease_Risk", "DR"}, "2": {"Disease_Risk", "ARMD", "MH"}, "3": set()},
    ),
    "APTOS": ("id_code;diagnosis;image", ["a;2;a.png", "b;0;b.png"], {"a.png": {"2"}, "b.png": {"0"}}),
}
"""Tables in the forms of public data sets: their headers, rows and what the proposed columns make of them."""


@pytest.mark.parametrize("shape", SHAPES)
def test_the_proposed_columns_read_the_table(tmp_path: Path, shape: str) -> None:
    header, rows, expected = SHAPES[shape]
    path = write_shape(tmp_path, header, *rows)
    with pytest.raises(InputError, match="For this table it may be: --columns") as caught:
        read_labels(path)
    (proposed,) = shlex.split(str(caught.value).partition("--columns ")[2])
    assert labels_of(read_labels(path, parse_columns([proposed]))) == expected


def test_tables_of_other_shapes_are_read_by_other_columns(tmp_path: Path) -> None:
    mimic = write_shape(tmp_path, "subject_id,study_id,Atelectasis,Edema", "10000032,50414267,1.0,-1.0", "1,2,,0.0")
    table = read_labels(
        mimic, parse_columns(["file=p{subject_id}/s{study_id},labels=Atelectasis+Edema,patient_key=subject_id"])
    )
    assert dict(table.rows)["p10000032/s50414267"] == FileFacts(
        frozenset({"Atelectasis"}), "10000032", None, frozenset({"Edema"})
    )
    vindr = write_shape(tmp_path, "image_id,rad_id,Edema,Mass", "a,R1,1,0", "a,R2,0,0", "a,R3,1,0")
    rows = [facts for _, facts in read_labels(vindr, parse_columns(["file=image_id,labels=Edema..Mass"])).rows]
    assert together(rows, SeveralRows.MAJORITY)[0].labels == {"Edema"}
    assert together(rows, SeveralRows.REFUSE)[1] == "labels"
    medmnist = write_shape(tmp_path, "TRAIN,pneumoniamnist_train_0.png,1", "TEST,pneumoniamnist_test_0.png,0")
    with pytest.raises(InputError, match="holds data, not the names of columns"):
        read_labels(medmnist)


# Round trips

NAMES = st.text("abcäÖß é-_", min_size=1).map(str.strip).filter(bool)


@settings(deadline=None)
@given(
    st.dictionaries(st.from_regex(r"[a-zä]{1,6}\.png", fullmatch=True), st.sets(NAMES, min_size=1, max_size=3), min_size=1),
    st.sampled_from([",", ";", "\t"]),
    st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "cp1252"]),
    st.booleans(),
)
def test_what_is_written_in_any_form_is_read_again(
    tmp_path_factory: pytest.TempPathFactory, truth: dict[str, set[str]], delimiter: str, encoding: str, columns: bool
) -> None:
    from hypothesis import assume

    text = "\n".join(delimiter.join((file, "|".join(sorted(labels)))) for file, labels in truth.items())
    path = tmp_path_factory.mktemp("table") / "labels.csv"
    if encoding == "cp1252":  # words that look like another encoding are refused
        assume(not re.search("[äÖßé]{2}|[a-zäßé]Ö[a-zäßé]", text))
    header = delimiter.join(("Bild", "Befund") if columns else ("file", "label"))
    path.write_bytes(f"{header}\n{text}\n".encode(encoding))
    asked = parse_columns(["file=Bild,label=befund"]) if columns else None
    assert labels_of(read_labels(path, asked)) == truth
