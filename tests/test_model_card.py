"""The model card against the files that it speaks of, its excerpt in reports, and the table of a terminal."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from pipeline.evaluate.metrics import Evaluation, evaluate
from pipeline.ingest.index import LABEL, Index, load_index
from pipeline.model.bundle import METRICS, MODEL_CARD, Bundle, Manifest, StartingWeights, load_bundle
from pipeline.model.card import card_excerpt, model_card, text_table
from pipeline.predictions import Task
from tests.builders import make_bundle, make_sample, make_support
from tests.conftest import Trained


@pytest.fixture(scope="module")
def bundle(trained: Trained) -> Bundle:
    return load_bundle(trained.bundle)


@pytest.fixture(scope="module")
def card(bundle: Bundle) -> str:
    return bundle.read(MODEL_CARD).decode()


@pytest.fixture(scope="module")
def index(trained: Trained) -> Index:
    return load_index(trained.index)


def cells(card: str, first: str) -> list[str]:
    """The cells of the only row whose first cell is `first` within a section."""
    (row,) = [line for line in card.splitlines() if line.startswith(f"| {first} |")]
    return [cell.strip() for cell in row.strip("|").split("|")]


def section(card: str, title: str) -> str:
    return card.partition(f"## {title}\n")[2].partition("\n## ")[0]


def test_sections_stand_in_the_order_of_the_paper(card: str) -> None:
    titles = [line.removeprefix("## ") for line in card.splitlines() if line.startswith("## ")]
    paper = ["Model", "Intended use", "Data", "Figures", "Studies, eyes and patients", "Operating points"]
    assert titles == [*paper, "When it does not answer", "Heatmaps", "Origin"]
    assert card.startswith("# tiny: NORMAL, PNEUMONIA\n\n**Not a medical device.**")


def test_it_counts_what_the_index_counts(card: str, index: Index) -> None:
    for split, counts in index.counts().items():
        expected = [split, *(str(counts[name]) for name in ("frames", "patients", LABEL + "NORMAL", LABEL + "PNEUMONIA"))]
        assert cells(section(card, "Data"), split) == expected
    assert f"Index `{index.name}`, sha256 `{index.sha256}`." in card


def test_its_figures_are_those_of_the_metrics(card: str, bundle: Bundle) -> None:
    evaluation = json.loads(bundle.read(METRICS))["evaluation"]
    for label, found in evaluation["labels"].items():
        auroc = found["metrics"]["auroc"]
        written = cells(section(card, "Figures"), label)
        assert written[1] == f"{found['n_positive']}/{found['n_negative']}"
        assert written[2] == f"{auroc['value']:.3f} ({auroc['low']:.3f} to {auroc['high']:.3f})"


def test_its_operating_points_and_origin_are_those_of_the_manifest(card: str, bundle: Bundle) -> None:
    for point in bundle.manifest.operating_points:
        written = cells(section(card, "Operating points"), point.label)
        assert written[1:5] == [f"{point.threshold:.4f}", "youden", f"{point.sensitivity:.3f}", f"{point.specificity:.3f}"]
        expected = point.expected_sensitivity
        assert written[5] == f"{expected.value:.3f} ({expected.low:.3f} to {expected.high:.3f})"
    origin = bundle.manifest.provenance
    for value in (origin.created, origin.mlflow_run_id, origin.git_commit or "not known", f"torch {origin.versions['torch']}"):
        assert value in section(card, "Origin")


def test_it_says_which_weights_training_started_from(bundle: Bundle, card: str) -> None:
    assert "- architecture: test_resnet, started from random weights\n" in section(card, "Model")
    mine = StartingWeights(name="mine.pth", sha256="f00d", unused=("projector.weight", "op_threshs"))
    (member,) = bundle.manifest.members
    changed = bundle.manifest.model_copy(update={"members": (member.model_copy(update={"started_from": mine}),)})
    unused = "it did not use projector.weight, op_threshs of that file"
    line = f"- architecture: test_resnet, started from mine.pth (sha256 f00d); {unused}"
    assert line in rendered(changed).splitlines()


def rendered(manifest: Manifest, **metrics: object) -> str:
    return model_card(manifest, metrics, ranked_patients=99)


def test_what_is_missing_is_said(bundle: Bundle) -> None:
    manifest = bundle.manifest
    untested = manifest.model_copy(
        update={
            "normal_label": None,
            "heatmap": manifest.heatmap.model_copy(update={"exact": False, "computed": "gradient", "checks": ()}),
            "conformal": manifest.conformal.model_copy(update={"measured": None}),
            "outliers": manifest.outliers.model_copy(update={"measured": None}),
            "provenance": manifest.provenance.model_copy(update={"git_commit": "", "mlflow_run_id": ""}),
        }
    )
    card = rendered(untested, frames_without_patient=3)
    for sentence in (
        "heatmaps: grad-cam by gradient: its closed form does not hold for this network",
        "3 frames name no patient. Each of their studies counts as a patient of its own",
        "Not measured: the index has no test split.",
        'How often this bundle says "uncertain" was not measured: the index has no test split.',
        "False alarms: not measured on a test split.",
        "Not checked.",
        "label that means no finding: none",
        "modalities: any",
        "commit: not known",
        "MLflow run: not tracked",
    ):
        assert sentence in card


def test_a_label_cannot_break_its_tables(tmp_path: Path) -> None:
    labels = ("A|B", "PNEUMONIA")
    band = {"present_from": 0.4, "absent_below": 0.6, "present_patients": 3, "absent_patients": 300}
    conformal = {"alpha": 0.1, "bands": [{"label": label} | band for label in labels], "measured": None}
    manifest = make_bundle(tmp_path, labels, conformal=conformal).manifest
    evaluation = evaluate(make_sample(labels=labels), 50).to_json()
    splits = {"train": {"frames": 5, "patients": 3, "labels": {"A|B": 2, "PNEUMONIA": 3}}}
    card = rendered(manifest, evaluation=evaluation, splits=splits)
    for title in ("Data", "Figures", "Operating points", "When it does not answer"):
        table = [line.replace(r"\|", "") for line in section(card, title).splitlines() if line.startswith("|")]
        assert len(table) >= 3
        assert len({line.count("|") for line in table}) == 1
    assert r"A\|B" in section(card, "Data")
    assert "**For A|B, PNEUMONIA no error rate is promised**: that needs 9 patients" in card


def test_a_paragraph_of_markdown_is_one_line(card: str) -> None:
    for block in card.split("\n\n"):
        lines = block.strip().splitlines()
        assert len(lines) == 1 or all(line.startswith(("- ", "| ", "|-")) for line in lines)


def test_an_excerpt_speaks_of_use_and_figures(bundle: Bundle) -> None:
    metrics = json.loads(bundle.read(METRICS))
    text = card_excerpt(bundle.manifest, metrics, ranked_patients=99)
    titles = ["Intended use", "Data", "Figures", "Studies, eyes and patients", "When it does not answer", "Heatmaps"]
    assert [line for line in text.splitlines() if line.startswith("<h3>")] == [f"<h3>{title}</h3>" for title in titles]
    frames = metrics["splits"]["test"]["frames"]
    assert f"<tr><td>test</td><td>{frames}</td>" in text
    auroc = metrics["evaluation"]["labels"]["PNEUMONIA"]["metrics"]["auroc"]
    assert f"<td>{auroc['value']:.3f} ({auroc['low']:.3f} to {auroc['high']:.3f})</td>" in text
    assert bundle.manifest.architecture not in text
    assert "**" not in text


def test_nothing_in_an_excerpt_becomes_markup(tmp_path: Path) -> None:
    evil = "<script>\"'&|**{{ 7 * 7 }}"
    heatmap = make_support("iou")
    manifest = make_bundle(tmp_path, (evil, "B"), urgency=(evil,), normal_label=evil, heatmap=heatmap).manifest
    evaluation = evaluate(make_sample(labels=(evil, "B")), 50).to_json()
    splits = {evil: {"frames": 5, "patients": 3, "labels": {evil: 2, "B": 3}}}
    text = card_excerpt(manifest, {"evaluation": evaluation, "splits": splits}, ranked_patients=99)
    assert "<script" not in text
    assert "&lt;script&gt;&#34;&#39;&amp;|**{{ 7 * 7 }}" in text
    assert "<td>no</td>" in text


def test_no_path_of_this_machine_is_in_it(card: str, trained: Trained) -> None:
    assert str(Path.home()) not in card
    assert str(trained.studies.parent) not in card


def table_of(evaluation: Evaluation) -> str:
    return text_table(evaluation.to_json())


def without_positives() -> Evaluation:
    targets = make_sample().targets.copy()
    targets[targets[:, 2] == 1] = [1, 0, 0]
    return evaluate(make_sample(targets=targets), 50)


def test_text_table_holds_each_label_with_figures_and_intervals() -> None:
    evaluation = evaluate(make_sample(labels=("NORMAL", "PNEUMONIA")), 50)
    lines = table_of(evaluation).splitlines()
    estimate = evaluation.labels[1].metrics["auroc"]
    assert lines[0].split()[:3] == ["label", "positive/negative", "AUROC"]
    row = next(line for line in lines if line.startswith("PNEUMONIA"))
    assert row.split()[1:3] == ["60/60", f"{estimate.value:.3f}"]
    assert f"({estimate.low:.3f} to {estimate.high:.3f})" in row
    assert lines[4].startswith("mean of labels")
    assert "120 frames of 60 patients; temperature 1.200." in lines
    unsure = evaluation.uncertain.value
    assert any(line.startswith(f"At least one label is uncertain in {unsure:.3f}") for line in lines)
    brackets = "In brackets: 95 % intervals by patient (proportions, AUROC: closed form; others: 50 resamples of patients)."
    assert brackets in lines
    balanced = evaluation.argmax["balanced_accuracy"].value
    assert any(line.startswith(f"Most probable of 2 labels: balanced accuracy {balanced:.3f} (") for line in lines)
    assert max(map(len, lines)) <= 140


def test_columns_are_aligned() -> None:
    header, rule, *rows = table_of(evaluate(make_sample(), 50)).split("\n\n")[0].splitlines()
    starts = [header.index(title) for title in ("AUROC", "average precision", "sensitivity", "specificity")]
    assert set(rule) == {"-"}
    assert all(row[start].isdigit() and row[start - 1] == " " for row in rows for start in starts)


def test_what_is_not_defined_is_said() -> None:
    text = table_of(without_positives())
    assert "Figures marked - are not defined: no positive or no negative frame here of C." in text
    assert "nan" not in text


def test_left_out_resamples_are_said() -> None:
    targets = np.zeros((120, 2))
    targets[:3, 0] = 1
    targets[:, 1] = 1 - targets[:, 0]
    text = table_of(evaluate(make_sample(labels=("RARE", "NORMAL"), targets=targets), 200))
    assert "of 200 resamples were left out because a figure is not defined there." in text


def test_a_single_label_has_no_mean_and_a_single_patient_no_interval() -> None:
    sample = make_sample(labels=("A", "B"))
    one = make_sample(
        labels=("A",),
        logits=sample.logits[:, :1],
        targets=sample.targets[:, :1],
        groups=("p",) * 120,
        task=Task.MULTILABEL,
    )
    text = table_of(evaluate(one, 50))
    assert "mean of labels" not in text
    assert "In brackets" not in text
    assert "Fewer than 20 patients, so figures say little and intervals are wide: A (1 with it, 1 without)." in text
    assert not re.search(r"\d \(0", text)
