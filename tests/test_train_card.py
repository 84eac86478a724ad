"""The model card against the files that it speaks of."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.config import load_config
from pipeline.evaluate.outliers import load_reference
from pipeline.ingest.index import LABEL, Index, load_index
from pipeline.model.bundle import METRICS, MODEL_CARD, REFERENCE, Bundle, load_bundle
from pipeline.train.card import model_card
from pipeline.train.judge import Verdict
from pipeline.train.material import Material, gather
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


@pytest.fixture(scope="module")
def material(trained: Trained, index: Index) -> Material:
    return gather(load_config(trained.config), index)


def cells(card: str, first: str) -> list[str]:
    """The cells of the only row whose first cell is `first` within a section."""
    (row,) = [line for line in card.splitlines() if line.startswith(f"| {first} |")]
    return [cell.strip() for cell in row.strip("|").split("|")]


def section(card: str, title: str) -> str:
    return card.partition(f"## {title}\n")[2].partition("\n## ")[0]


def verdict_of(bundle: Bundle) -> Verdict:
    """What a run without a test split would have said."""
    manifest = bundle.manifest
    assert manifest.outliers is not None
    reference = load_reference(bundle.read(REFERENCE), manifest.outliers.neighbours, manifest.outliers.threshold)
    return Verdict(manifest.temperature, manifest.operating_points, (), reference)


def test_sections_stand_in_the_order_of_the_paper(card: str) -> None:
    titles = [line.removeprefix("## ") for line in card.splitlines() if line.startswith("## ")]
    paper = ["Model", "Intended use", "Data", "Figures", "Operating points"]
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
        assert written[1:] == [f"{point.threshold:.4f}", "youden", f"{point.sensitivity:.3f}", f"{point.specificity:.3f}"]
    origin = bundle.manifest.provenance
    for value in (origin.created, origin.mlflow_run_id, origin.git_commit or "not known", f"torch {origin.versions['torch']}"):
        assert value in section(card, "Origin")


def test_what_is_missing_is_said(material: Material, bundle: Bundle, trained: Trained) -> None:
    manifest = bundle.manifest
    heatmap = manifest.heatmap.model_copy(update={"exact": False, "computed": "gradient", "max_difference": None})
    origin = manifest.provenance.model_copy(update={"git_commit": "", "mlflow_run_id": ""})
    config = load_config(trained.config, ["data.normal_label=null"])
    card = model_card(config, material, verdict_of(bundle), heatmap, origin)
    for sentence in (
        "heatmaps: grad-cam by gradient: its closed form does not hold for this network",
        "Not measured: the index has no test split.",
        "How often it does was not measured: the index has no test split.",
        "False alarms: not measured on a test split.",
        "label that means no finding: none",
        "modalities: any",
        "commit: not known",
        "MLflow run: not tracked",
    ):
        assert sentence in card


def test_a_label_cannot_break_its_tables(material: Material, bundle: Bundle, trained: Trained) -> None:
    manifest = bundle.manifest
    strange = replace(material, labels=("A|B", "PNEUMONIA"))
    points = (replace(manifest.operating_points[0], label="A|B"), manifest.operating_points[1])
    verdict = replace(verdict_of(bundle), points=points)
    card = model_card(load_config(trained.config), strange, verdict, manifest.heatmap, manifest.provenance)
    for title in ("Data", "Operating points", "When it does not answer"):
        table = [line.replace(r"\|", "") for line in section(card, title).splitlines() if line.startswith("|")]
        assert len({line.count("|") for line in table}) == 1
    assert r"A\|B" in section(card, "Data")


def test_no_path_of_this_machine_is_in_it(card: str, trained: Trained) -> None:
    assert str(Path.home()) not in card
    assert str(trained.studies.parent) not in card
