"""`octray evaluate`: the same figures as the bundle's own, and every reason why there are none."""

import csv
import json
from pathlib import Path

import pytest
from PIL import Image

from pipeline.cli.main import main
from pipeline.frames import Split
from pipeline.ingest.index import load_index
from pipeline.model.bundle import METRICS, load_bundle
from pipeline.settings import Limits
from tests.builders import make_bundle, make_pixels
from tests.conftest import Trained


def test_the_test_split_gives_the_figures_of_the_bundle(trained: Trained, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", str(trained.bundle), "--index", str(trained.index), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found == json.loads(load_bundle(trained.bundle).read(METRICS))["evaluation"]


@pytest.mark.parametrize("split", list(Split))
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


def test_a_split_without_frames_is_said(trained: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--labels", str(trained.studies.parent / "labels.csv"), "--split", "40/30/30/0", "--out", str(tmp_path / "index")]
    assert main(["ingest", str(trained.studies), *words]) == 0
    capsys.readouterr()
    assert main(["evaluate", str(trained.bundle), "--index", str(tmp_path / "index")]) == 2
    assert capsys.readouterr().err == "octray: The index has no frame in the split test. Choose another --split.\n"


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
