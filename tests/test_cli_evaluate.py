"""`octray evaluate`: the same figures as the bundle's own, and every reason why there are none."""

import csv
import json
from pathlib import Path

import pytest
from PIL import Image

from pipeline.cli.main import main
from pipeline.frames import TRAINING_SPLITS, Split
from pipeline.ingest.index import load_index
from pipeline.model.bundle import METRICS, load_bundle
from pipeline.settings import Limits
from tests.builders import make_bundle, make_pixels
from tests.conftest import Trained


def test_the_test_split_gives_the_figures_of_the_bundle(trained: Trained, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", str(trained.bundle), "--index", str(trained.index), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found == json.loads(load_bundle(trained.bundle).read(METRICS))["evaluation"]


@pytest.mark.parametrize("split", TRAINING_SPLITS)
def test_every_split_can_be_measured_and_is_shown_as_a_table(
    split: Split, trained: Trained, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", str(trained.bundle), "--index", str(trained.index), "--split", split]) == 0
    said, warned = capsys.readouterr()
    assert ("only figures of test are fair" in warned) == (split is not Split.TEST)
    records = load_index(trained.index).of(split)
    assert f"{len(records)} frames of {len({record.patient_key for record in records})} patients;" in said
    assert [line.split()[0] for line in said.splitlines()[2:5]] == ["NORMAL", "PNEUMONIA", "mean"]


def test_the_calibration_split_gives_the_operating_points_of_the_bundle(
    trained: Trained, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", str(trained.bundle), "--index", str(trained.index), "--split", "calibration", "--json"]) == 0
    labels = json.loads(capsys.readouterr().out)["labels"]
    for point in load_bundle(trained.bundle).manifest.operating_points:
        metrics = labels[point.label]["metrics"]
        found = metrics["sensitivity"]["value"], metrics["specificity"]["value"]
        assert found == pytest.approx((point.sensitivity, point.specificity))


def test_labels_that_the_index_lacks_are_named(trained: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_bundle(tmp_path / "other", labels=("NORMAL", "DRUSEN", "DME"))
    assert main(["evaluate", str(tmp_path / "other"), "--index", str(trained.index)]) == 2
    assert capsys.readouterr() == (
        "",
        "octray: The index has no label DRUSEN, DME. Ingest it with the bundle's labels.\n",
    )


def test_a_split_without_frames_is_said(trained: Trained, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", str(trained.bundle), "--index", str(trained.index), "--split", "promotion"]) == 2
    assert capsys.readouterr().err == "octray: The index has no frame in the split promotion. Choose another --split.\n"


def test_what_is_no_bundle_and_no_index_is_said(trained: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", str(tmp_path), "--index", str(trained.index)]) == 2
    assert capsys.readouterr().err.startswith(f"octray: {tmp_path.name} is not a bundle: it has no readable manifest.json.")
    assert main(["evaluate", str(trained.bundle), "--index", str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith(f"octray: {tmp_path.name} is not an index: it has no readable index.json.")


def test_another_index_of_the_same_patients_is_refused(
    trained: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    labels = trained.studies.parent / "labels.csv"
    words = ["--labels", str(labels), "--split", "40/15/15/30", "--seed", "5", "--out", str(tmp_path / "other")]
    main(["ingest", str(trained.studies), *words])
    assert main(["evaluate", str(trained.bundle), "--index", str(tmp_path / "other")]) == 2
    assert "The index other has no patient that is new to the bundle" in capsys.readouterr().err


def test_evaluate_and_score_use_the_limits_of_the_bundle(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The index was made with octray's own limits, by which every file can be read."""
    rows = ["file,label,split"]
    (tmp_path / "studies").mkdir()
    for number in range(4):
        Image.fromarray((make_pixels(70, 70, number) * 255).astype("u1")).save(tmp_path / "studies" / f"{number}.png")
        rows.append(f"{number}.png,{('NORMAL', 'DRUSEN')[number % 2]},test")
    (tmp_path / "labels.csv").write_text("\n".join(rows))
    words = ["--labels", str(tmp_path / "labels.csv"), "--out", str(tmp_path / "index")]
    assert main(["ingest", str(tmp_path / "studies"), *words]) == 0
    index, studies = str(tmp_path / "index"), str(tmp_path / "studies")
    for name, pixels, code in (("wide", 70 * 70, 0), ("narrow", 70 * 70 - 1, 2)):
        made = make_bundle(tmp_path / name, labels=("NORMAL", "DRUSEN"), limits=Limits(frame_pixels=pixels))
        capsys.readouterr()
        assert main(["evaluate", str(made.path), "--index", index]) == code
        said = capsys.readouterr().err
        assert ("could be read when it was ingested: The image has 70 x 70 pixels" in said) == bool(code), said
        assert main(["score", studies, "--bundle", str(made.path), "--out", str(tmp_path / f"results-{name}")]) == code
    with (tmp_path / "results-narrow" / "failures.csv").open() as file:
        assert {row["reason"] for row in csv.DictReader(file)} == {"resource_limit"}


def test_predictive_values_at_a_local_prevalence(trained: Trained, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["evaluate", str(trained.bundle), "--index", str(trained.index)]
    assert main([*words, "--prevalence", "PNEUMONIA=0.02"]) == 0
    assert "If PNEUMONIA has a prevalence of 0.02: PPV " in capsys.readouterr().out
    for wrong in ("PNEUMONIA", "PNEUMONIA=2", "CNV=0.1", "PNEUMONIA=often"):
        assert main([*words, "--prevalence", wrong]) == 2
        assert "give it as LABEL=0.02, with a label among NORMAL, PNEUMONIA" in capsys.readouterr().err


def test_groups_by_a_column_of_the_index_and_of_a_table(
    trained: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["evaluate", str(trained.bundle), "--index", str(trained.index), "--split", "train"]
    records = load_index(trained.index).of(Split.TRAIN)
    table = tmp_path / "sex.csv"
    patients = sorted({record.patient_key for record in records})
    rows = "".join(f"{patient},{'FM'[number % 2]}\n" for number, patient in enumerate(patients))
    table.write_text(f"patient_key,sex\n{rows}")
    assert main([*words, "--by", "sex", "--table", str(table), "--json"]) == 0
    groups = json.loads(capsys.readouterr().out)
    assert [group["value"] for group in groups] == ["F", "M"]
    assert sum(group["frames"] for group in groups) == len(records)
    assert sum(group["patients"] for group in groups) == len(patients)
    assert main([*words, "--by", "label.NORMAL"]) == 0
    shown = capsys.readouterr().out
    assert shown.splitlines()[0].split()[:3] == ["label.NORMAL", "frames", "patients"]
    assert "NORMAL few patients" in shown
    for more, message in (
        (["--by", "sex"], "The index has no column sex to group frames by. It has modality,"),
        (["--by", "age", "--table", str(table)], "sex.csv has no column age. It has patient_key, sex."),
        (["--table", str(table)], "--table needs --by"),
        (["--by", "sex", "--prevalence", "NORMAL=0.5"], "Leave --prevalence out, or --by."),
    ):
        assert main([*words, *more]) == 2
        assert message in capsys.readouterr().err


def test_tables_that_contradict_themselves_or_name_nobody_are_refused(
    trained: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["evaluate", str(trained.bundle), "--index", str(trained.index), "--by", "sex", "--table"]
    table = tmp_path / "sex.csv"
    for rows, message in (
        ("patient_key,sex\np,F\np,M\n", "sex.csv has both 'F' and 'M' as sex of p. Keep one of the rows."),
        ("patient_key,sex\nnobody,F\n", "No patient_key of sex.csv is one of the index."),
        ("name,sex\np,F\n", "sex.csv has no column patient_key, study_instance_uid or file. It has name, sex."),
    ):
        table.write_text(rows)
        assert main([*words, str(table)]) == 2
        assert message in capsys.readouterr().err


def test_compare_shows_differences_with_intervals(trained: Trained, capsys: pytest.CaptureFixture[str]) -> None:
    same = ["compare", str(trained.bundle), str(trained.bundle), "--index", str(trained.index), "--resamples", "100"]
    assert main([*same, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    for label in ("NORMAL", "PNEUMONIA"):
        one = found["labels"][label]["auroc"]
        assert (one["value"], one["low"], one["high"]) == (0, 0, 0)
        assert one["first"] == one["second"]
    assert main(same) == 0
    said, warned = capsys.readouterr()
    assert said.splitlines()[0].split() == ["figure", "A", "B", "B", "-", "A"]
    assert "+0.000 (+0.000 to +0.000)" in said
    assert "neither bundle was made with" not in warned
    assert main([*same, "--split", "train"]) == 0
    assert "patients whom neither bundle was made with" in capsys.readouterr().err


@pytest.mark.parametrize("resamples", ["-1", "0", "99"])
def test_compare_refuses_too_few_resamples(trained: Trained, resamples: str, capsys: pytest.CaptureFixture[str]) -> None:
    same = ["compare", str(trained.bundle), str(trained.bundle), "--index", str(trained.index), "--resamples", resamples]
    assert main(same) == 2
    assert f"needs at least 100 resamples of patients. Got {resamples} instead." in capsys.readouterr().err


def test_compare_refuses_bundles_for_other_questions(
    trained: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_bundle(tmp_path / "other", labels=("PNEUMONIA", "NORMAL"))
    assert main(["compare", str(trained.bundle), str(tmp_path / "other"), "--index", str(trained.index)]) == 2
    assert "The bundles answer different questions" in capsys.readouterr().err
