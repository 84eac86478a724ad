"""Reports an evaluation to people: plots as PNG, a table in Markdown and one in plain text for a terminal."""

import math
from collections.abc import Iterable, Mapping, Sequence

from pipeline.evaluate.bootstrap import Estimate
from pipeline.evaluate.metrics import Evaluation, Sample

TITLES = {
    "auroc": "AUROC",
    "average_precision": "average precision",
    "sensitivity": "sensitivity",
    "specificity": "specificity",
    "balanced_accuracy": "balanced accuracy",
    "f1": "F1",
    "mcc": "MCC",
    "uncertain": "uncertain",
    "brier": "Brier score",
    "ece": "ECE",
}
BLOCKS = (
    ("auroc", "average_precision", "sensitivity", "specificity"),
    ("balanced_accuracy", "uncertain", "f1", "mcc"),
    ("brier", "ece"),
)
UNDEFINED = "-"


def plots(sample: Sample) -> dict[str, bytes]:
    """Draw `roc.png`, `pr.png`, `reliability.png`, `confusion.png`, and `most_probable.png` unless labels are independent.

    A label whose curve is not defined has none.
    """
    from pipeline.evaluate import figures

    columns, choice = sample.columns, sample.choice
    drawn = {
        "roc.png": figures.roc(columns),
        "pr.png": figures.precision_recall(columns),
        "reliability.png": figures.calibration(columns),
        "confusion.png": figures.confusion(columns),
    }
    return drawn | ({"most_probable.png": figures.most_probable(columns, choice)} if choice else {})


def text_table(evaluation: Evaluation) -> str:
    """Return the figures as lines for a terminal: one row a label, up to four metrics side by side, notes below."""
    blocks = [_aligned(_table(evaluation, names)) for names in BLOCKS]
    return "\n\n".join([*blocks, "\n".join(_notes(evaluation))])


def markdown_table(evaluation: Evaluation) -> str:
    """Return the figures as a Markdown table: one row a label, all metrics side by side, notes below."""
    header, *rows = _table(evaluation, tuple(TITLES))
    rule = ["---"] + ["---:"] * (len(header) - 1)
    lines = ["| " + " | ".join(cell.replace("|", r"\|") for cell in row) + " |" for row in (header, rule, *rows)]
    return "\n".join([*lines, "", *(f"- {note}" for note in _notes(evaluation))])


def _table(evaluation: Evaluation, names: Sequence[str]) -> list[list[str]]:
    """Return header and rows; the mean over the labels comes last where there are several."""
    rows = [["label", "positive/negative", *(TITLES[name] for name in names)]]
    rows += [
        [label.label, f"{label.n_positive}/{label.n_negative}", *_cells(label.metrics, names)] for label in evaluation.labels
    ]
    if len(evaluation.labels) > 1:
        rows.append(["mean of labels", "", *_cells(evaluation.macro, names)])
    return rows


def _cells(metrics: Mapping[str, Estimate], names: Iterable[str]) -> list[str]:
    return [_cell(metrics[name]) for name in names]


def _cell(estimate: Estimate) -> str:
    if math.isnan(estimate.value):
        return UNDEFINED
    interval = "" if math.isnan(estimate.low) else f" ({estimate.low:.3f} to {estimate.high:.3f})"
    return f"{estimate.value:.3f}{interval}"


def _aligned(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([lines[0], "-" * (sum(widths) + 2 * (len(widths) - 1)), *lines[1:]])


FEW_PATIENTS = 30
"""Below this the tables warn of their intervals: a rule of thumb, not a limit of the method."""


def _notes(evaluation: Evaluation) -> list[str]:
    notes = [f"{evaluation.frames} frames of {evaluation.patients} patients; temperature {evaluation.temperature:.3f}."]
    notes.append(f"At least one label is uncertain in {_cell(evaluation.uncertain)} of the frames.")
    notes.append("In sensitivity, specificity and what follows from them, an uncertain frame counts as an error.")
    if evaluation.argmax:
        accuracy, balanced = _cells(evaluation.argmax, ("accuracy", "balanced_accuracy"))
        count = len(evaluation.labels)
        notes.append(f"Most probable of {count} labels: balanced accuracy {balanced}, accuracy {accuracy}.")
    if evaluation.patients > 1 and evaluation.resamples:
        notes.append(f"In brackets: 95 % intervals from {evaluation.resamples} resamples of patients.")
        if evaluation.patients < FEW_PATIENTS:
            notes.append(
                f"Fewer than {FEW_PATIENTS} patients: intervals come out too narrow, and one without width says nothing."
            )
    if most := max((estimate.left_out for estimate in _defined(evaluation)), default=0):
        notes.append(f"Up to {most} of {evaluation.resamples} resamples were left out where a figure is not defined.")
    if lacking := [label.label for label in evaluation.labels if not (label.n_positive and label.n_negative)]:
        names = ", ".join(lacking)
        notes.append(f"Figures marked {UNDEFINED} are not defined: no positive or no negative frame here of {names}.")
    return notes


def _defined(evaluation: Evaluation) -> Iterable[Estimate]:
    """Yield the estimates that have a value."""
    for metrics in (*(label.metrics for label in evaluation.labels), evaluation.macro, evaluation.argmax):
        yield from (estimate for estimate in metrics.values() if not math.isnan(estimate.value))
