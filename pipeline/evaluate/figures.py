"""Plots of an evaluation as PNG, in colours for colour-blind readers."""

import io
import textwrap
from collections.abc import Sequence
from itertools import cycle, product
from typing import TYPE_CHECKING, Literal

import numpy as np

from pipeline.evaluate.calibration import BINS, expected_calibration_error, reliability
from pipeline.evaluate.metrics import (
    Choice,
    LabelColumn,
    Sample,
    auroc,
    average_precision,
    confusion_counts,
    curve,
    net_benefit,
    prevalence,
    sensitivity,
    specificity,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
LINES = ("-", "--", "-.", ":")
INK, GUIDE, NOTE = "#333333", "#9A9A9A", "#6B6B6B"
FIRM = 10
DOTS_PER_INCH = 144

_ACTING = np.arange(1, 100) / 100

LegendPlace = Literal["lower right", "lower left", "upper left", "upper right"]


def plots(sample: Sample) -> dict[str, bytes]:
    """Draw `roc.png`, `pr.png`, `reliability.png`, `decision_curve.png`, `confusion.png`, and `most_probable.png` unless labels
    are independent.

    A label has no curve if it is not defined.
    """
    columns, choice = sample.columns, sample.choice
    drawn = {
        "roc.png": _roc(columns),
        "pr.png": _precision_recall(columns),
        "reliability.png": _reliability(columns),
        "decision_curve.png": _decision_curve(columns),
        "confusion.png": _confusion(columns),
    }
    return drawn | ({"most_probable.png": _most_probable(columns, choice)} if choice else {})


def _roc(columns: Sequence[LabelColumn]) -> bytes:
    """Draw sensitivity against 1 - specificity, with a dot for the states of each label."""
    figure, axes = _square("Receiver operating characteristic", "1 - specificity", "Sensitivity")
    axes.plot([0, 1], [0, 1], color=GUIDE, linewidth=1, linestyle=(0, (4, 4)))
    for (colour, line), column in zip(_styles(), columns, strict=False):
        ones = np.ones(len(column.rows))
        points = curve(column.probabilities, column.targets, ones)
        counts = confusion_counts(column.states, column.targets, ones)
        area = float(auroc(points))
        if np.isnan(area):
            continue
        across = np.append(0, points.false_positives / points.false_positives[-1])
        up = np.append(0, points.true_positives / points.true_positives[-1])
        axes.plot(across, up, color=colour, linestyle=line, linewidth=1.8, label=_named(column, f"AUROC {area:.3f}"))
        _dot(axes, 1 - float(specificity(counts)), float(sensitivity(counts)), colour)
    return _finish(figure, axes, "lower right", "Dots: the states; uncertain frames count as errors")


def _precision_recall(columns: Sequence[LabelColumn]) -> bytes:
    """Draw precision against sensitivity, with each label's prevalence, the precision of chance, as a thin line."""
    figure, axes = _square("Precision and sensitivity", "Sensitivity", "Precision (positive predictive value)")
    for (colour, line), column in zip(_styles(), columns, strict=False):
        ones = np.ones(len(column.rows))
        points = curve(column.probabilities, column.targets, ones)
        counts = confusion_counts(column.states, column.targets, ones)
        mean = float(average_precision(points))
        if np.isnan(mean):
            continue
        called = points.true_positives + points.false_positives
        across, up = points.true_positives / points.true_positives[-1], points.true_positives / called
        name = _named(column, f"AP {mean:.3f}")
        axes.step(np.append(0, across), np.append(up[0], up), color=colour, linestyle=line, linewidth=1.8, label=name)
        axes.axhline(float(prevalence(counts)), color=colour, linewidth=0.8, alpha=0.45, zorder=1)
        if (decided := counts.true_positives + counts.false_positives) > 0:
            _dot(axes, float(sensitivity(counts)), float(counts.true_positives / decided), colour)
    return _finish(figure, axes, "lower left", "AP: average precision; dots: the states; thin lines: prevalence")


def _reliability(columns: Sequence[LabelColumn]) -> bytes:
    """Draw the observed frequency against the predicted probability in bins of equal width, dots by number of frames."""
    figure, axes = _square("Reliability", "Calibrated probability (mean of bin)", "Observed frequency")
    axes.plot([0, 1], [0, 1], color=GUIDE, linewidth=1, linestyle=(0, (4, 4)))
    for (colour, line), column in zip(_styles(), columns, strict=False):
        if not len(column.rows):
            continue
        sums = reliability(column.probabilities, column.targets)
        filled = sums.frames > 0
        frames = sums.frames[filled]
        across, up = sums.probability[filled] / frames, sums.positive[filled] / frames
        name = _named(column, f"ECE {expected_calibration_error(column.probabilities, column.targets):.3f}")
        firm = frames >= FIRM
        axes.plot(across[firm], up[firm], color=colour, linestyle=line, linewidth=1.5, label=name)
        axes.scatter(across[~firm], up[~firm], s=9, color=colour, alpha=0.45, linewidths=0, zorder=3)
        sizes = 20 + 160 * frames[firm] / len(column.rows)
        axes.scatter(across[firm], up[firm], s=sizes, color=colour, alpha=0.85, linewidths=0, zorder=3, clip_on=False)
    return _finish(
        figure, axes, "upper left", f"{BINS} bins of equal width; size: number of frames; small pale dots: fewer than {FIRM}"
    )


def _decision_curve(columns: Sequence[LabelColumn]) -> bytes:
    """Draw the net benefit of acting on the probability of each label, and of acting on all frames as a thin line."""
    figure, axes = _square("Decision curve", "Threshold: probability from which one acts", "Net benefit")
    axes.set_aspect("auto")
    axes.axhline(0, color=GUIDE, linewidth=1, linestyle=(0, (4, 4)))
    least = most = 0.0
    for (colour, line), column in zip(_styles(), columns, strict=False):
        if not len(column.rows):
            continue
        benefit, of_all = net_benefit(column.probabilities, column.targets, _ACTING)
        axes.plot(_ACTING, benefit, color=colour, linestyle=line, linewidth=1.8, label=_named(column, "acting on it"))
        axes.plot(_ACTING, of_all, color=colour, linewidth=0.8, alpha=0.45, zorder=1)
        least, most = min(least, float(benefit.min())), max(most, float(benefit.max()), float(of_all.max()))
    axes.set_ylim(max(least, -most) - 0.03, most + 0.03)
    return _finish(figure, axes, "upper right", "Thin lines: acting on all frames; dashed: on none (Vickers and Elkin 2006)")


def _most_probable(columns: Sequence[LabelColumn], choice: Choice) -> bytes:
    """Draw the table of true and most probable labels."""
    side = 2.6 + 0.75 * len(columns)
    figure = _figure(side + 0.4, side)
    axes = figure.add_subplot()
    names = [textwrap.fill(column.label, 14) for column in columns]
    _table(axes, np.array(choice.confusion()), names, names)
    axes.set_title("Most probable label", loc="left", color=INK, fontsize=12, fontweight="bold", pad=12)
    axes.set_xlabel("Most probable label", color=INK)
    axes.set_ylabel("True label", color=INK)
    figure.supxlabel("Frames, and their part of the true label", fontsize=8, color=NOTE, x=0.99, ha="right")
    return _png(figure)


def _confusion(columns: Sequence[LabelColumn]) -> bytes:
    """Draw one table for each label: the truth against the states."""
    across = min(len(columns), 4)
    down = -(-len(columns) // across)
    figure = _figure(0.8 + 3.4 * across, 0.9 + 2.5 * down)
    for position, column in enumerate(columns, start=1):
        counts = confusion_counts(column.states, column.targets, np.ones(len(column.rows)))
        cells = [
            [counts.true_negatives, counts.uncertain_negatives, counts.false_positives],
            [counts.false_negatives, counts.uncertain_positives, counts.true_positives],
        ]
        axes = figure.add_subplot(down, across, position)
        _table(axes, np.array(cells).astype(int), ["absent", "present"], ["negative", "uncertain", "positive"])
        axes.set_title(textwrap.fill(column.label, 22), color=INK, fontsize=10)
    figure.suptitle("States of frames with and without the label", color=INK, fontsize=12, fontweight="bold", x=0.02, ha="left")
    figure.supxlabel("State", color=INK, fontsize=10)
    figure.supylabel("Truth", color=INK, fontsize=10)
    return _png(figure)


def _table(axes: "Axes", cells: "np.ndarray[tuple[int, ...], np.dtype[np.int64]]", rows: list[str], columns: list[str]) -> None:
    parts = cells / np.maximum(cells.sum(axis=1, keepdims=True), 1)
    axes.imshow(parts, cmap="Blues", vmin=0, vmax=1)
    for row, column in product(range(cells.shape[0]), range(cells.shape[1])):
        part = parts[row, column]
        shade = "white" if part > 0.55 else INK
        text = f"{cells[row, column]:,}\n{part:.0%}" if cells[row].sum() else "0"
        axes.text(column, row, text, ha="center", va="center", color=shade, fontsize=9, linespacing=1.4)
    axes.set_xticks(range(len(columns)), columns, fontsize=9, rotation=0 if max(map(len, columns)) <= 9 else 30)
    axes.set_yticks(range(len(rows)), rows, fontsize=9)
    axes.tick_params(length=0, labelcolor=INK)
    axes.spines[:].set_visible(False)


def _styles() -> "cycle[tuple[str, str]]":
    return cycle([(colour, line) for line, colour in product(LINES, COLOURS)])


def _named(column: LabelColumn, figure: str) -> str:
    return f"{textwrap.shorten(column.label, 30, placeholder='...')}: {figure}"


def _dot(axes: "Axes", across: float, up: float, colour: str) -> None:
    axes.plot(across, up, marker="o", markersize=7, color=colour, markeredgecolor="white", clip_on=False, zorder=4)


def _figure(width: float, height: float) -> "Figure":
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # a third of a second that tables do not need
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=DOTS_PER_INCH, facecolor="white")
    figure.set_layout_engine("constrained", w_pad=0.1, h_pad=0.1)
    FigureCanvasAgg(figure)
    return figure


def _square(title: str, across: str, up: str) -> "tuple[Figure, Axes]":
    from matplotlib.ticker import PercentFormatter

    figure = _figure(5.6, 5.9)
    axes = figure.add_subplot()
    axes.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01), aspect="equal")
    axes.set_title(title, loc="left", color=INK, fontsize=12, fontweight="bold", pad=12)
    axes.set_xlabel(across, color=INK)
    axes.set_ylabel(up, color=INK)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(PercentFormatter(xmax=1, decimals=0))
    axes.tick_params(colors=INK, labelsize=9)
    axes.grid(color="#E6E6E6", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(GUIDE)
    return figure, axes


def _finish(figure: "Figure", axes: "Axes", place: LegendPlace, note: str) -> bytes:
    labels = axes.get_legend_handles_labels()[1]
    if len(labels) > 6:
        figure.set_figheight(figure.get_figheight() + 0.19 * ((len(labels) + 1) // 2))
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=2, frameon=False, fontsize=8, labelcolor=INK)
    elif labels:
        axes.legend(loc=place, frameon=True, framealpha=0.9, edgecolor="none", fontsize=9, labelcolor=INK)
    figure.supxlabel(note, fontsize=8, color=NOTE, x=0.99, ha="right")
    return _png(figure)


def _png(figure: "Figure") -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()
