import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.evaluate.figures import markdown_table, plots, text_table
from pipeline.evaluate.metrics import evaluate
from pipeline.predictions import Activation
from tests.builders import make_sample

ROOT = Path(__file__).parents[1]
NAMES = ["roc.png", "pr.png", "reliability.png", "confusion.png", "most_probable.png"]


def without_positives(**overrides):
    targets = make_sample().targets.copy()
    targets[targets[:, 2] == 1] = [1, 0, 0]
    return make_sample(targets=targets, **overrides)


def ink(content):
    """The part of a picture that is not white."""
    return np.mean(np.asarray(Image.open(io.BytesIO(content)).convert("L")) < 250)


@pytest.mark.parametrize("activation", Activation)
def test_plots_are_pictures_with_something_on_them(activation):
    found = plots(make_sample(activation=activation))
    assert list(found) == (NAMES if activation is Activation.SOFTMAX else NAMES[:-1])
    for name, content in found.items():
        picture = Image.open(io.BytesIO(content))
        assert picture.format == "PNG"
        assert min(picture.size) >= 400, name
        assert 0.01 < ink(content) < 0.8, name


def test_many_labels_and_undefined_curves_are_drawn():
    labels = tuple(f"Label number {number}" for number in range(14))
    targets = make_sample(labels=labels).targets.copy()
    targets[:, 13], targets[:, 12] = 0, np.nan
    found = plots(make_sample(labels=labels, targets=targets, activation=Activation.SIGMOID))
    assert all(ink(content) > 0.01 for content in found.values())


def test_the_plots_show_the_sample():
    one, other = (plots(make_sample(seed=seed)) for seed in (0, 1))
    assert all(one[name] != other[name] for name in NAMES)


def test_plots_leave_matplotlibs_global_state_alone():
    code = (
        "import sys; from tests.builders import make_sample; from pipeline.evaluate.figures import plots; "
        "assert 'matplotlib' not in sys.modules; plots(make_sample()); print('matplotlib.pyplot' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "False"


def test_text_table_holds_each_label_with_figures_and_intervals():
    evaluation = evaluate(make_sample(labels=("NORMAL", "PNEUMONIA")), 50)
    lines = text_table(evaluation).splitlines()
    estimate = evaluation.labels[1].metrics["auroc"]
    assert lines[0].split()[:3] == ["label", "positive/negative", "AUROC"]
    row = next(line for line in lines if line.startswith("PNEUMONIA"))
    assert row.split()[1:3] == ["60/60", f"{estimate.value:.3f}"]
    assert f"({estimate.low:.3f} to {estimate.high:.3f})" in row
    assert lines[4].startswith("mean of labels")
    assert "120 frames of 60 patients; temperature 1.200." in lines
    unsure = evaluation.uncertain.value
    assert any(line.startswith(f"At least one label is uncertain in {unsure:.3f}") for line in lines)
    assert "In brackets: 95 % intervals from 50 resamples of patients." in lines
    balanced = evaluation.argmax["balanced_accuracy"].value
    assert any(line.startswith(f"Most probable of 2 labels: balanced accuracy {balanced:.3f} (") for line in lines)
    assert max(map(len, lines)) <= 140


def test_columns_are_aligned():
    header, rule, *rows = text_table(evaluate(make_sample(), 50)).split("\n\n")[0].splitlines()
    starts = [header.index(title) for title in ("AUROC", "average precision", "sensitivity", "specificity")]
    assert set(rule) == {"-"}
    assert all(row[start].isdigit() and row[start - 1] == " " for row in rows for start in starts)


def test_markdown_table_is_a_table():
    lines = markdown_table(evaluate(make_sample(labels=("A|B", "C")), 50)).splitlines()
    table = lines[: lines.index("")]
    assert len(table) == 5
    assert {line.replace(r"\|", "").count("|") for line in table} == {13}
    assert lines[-1].startswith("- In brackets")


@pytest.mark.parametrize("table", [text_table, markdown_table])
def test_what_is_not_defined_is_said(table):
    text = table(evaluate(without_positives(), 50))
    assert "Figures marked - are not defined: no positive or no negative frame here of C." in text
    assert "nan" not in text


def test_left_out_resamples_are_said():
    targets = np.zeros((120, 2))
    targets[:3, 0] = 1
    targets[:, 1] = 1 - targets[:, 0]
    text = text_table(evaluate(make_sample(labels=("RARE", "NORMAL"), targets=targets), 200))
    assert "of 200 resamples were left out where a figure is not defined." in text


def test_a_single_label_has_no_mean_and_a_single_patient_no_interval():
    sample = make_sample(labels=("A", "B"))
    one = make_sample(
        labels=("A",),
        logits=sample.logits[:, :1],
        targets=sample.targets[:, :1],
        groups=("p",) * 120,
        activation=Activation.SIGMOID,
    )
    text = text_table(evaluate(one, 50))
    assert "mean of labels" not in text
    assert "In brackets" not in text
    assert "(" not in text
