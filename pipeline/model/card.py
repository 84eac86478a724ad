"""What people read of a bundle: its model card, the excerpt of it in reports, and the table that `octray evaluate` prints.

All of it is made from data: the manifest and `metrics.json` of the bundle. The text is in `templates/model_card.jinja`.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from pipeline.model.bundle import Manifest
from pipeline.predictions import FEW_PATIENTS, Calibration, Interval, patients_needed

_TITLES = {
    "auroc": "AUROC",
    "average_precision": "average precision",
    "sensitivity_at_specificity_95": "sens. at spec. 0.95",
    "specificity_at_sensitivity_95": "spec. at sens. 0.95",
    "sensitivity": "sensitivity",
    "specificity": "specificity",
    "ppv": "PPV",
    "npv": "NPV",
    "balanced_accuracy": "balanced accuracy",
    "f1": "F1",
    "mcc": "MCC",
    "uncertain": "uncertain",
    "brier": "Brier score",
    "ece": "ECE",
    "adaptive_ece": "adaptive ECE",
    "adaptive_ece_uncalibrated": "before calibration",
}
_TERMINAL_BLOCKS = (
    ("auroc", "average_precision", "sensitivity", "specificity"),
    ("balanced_accuracy", "uncertain", "ppv", "npv"),
    ("sensitivity_at_specificity_95", "specificity_at_sensitivity_95", "f1", "mcc"),
    ("brier", "ece", "adaptive_ece", "adaptive_ece_uncalibrated"),
)
_SINGULAR = {"frames": "frame", "studies": "study", "eyes": "eye", "patients": "patient"}
_LEVEL_FIGURES = ("auroc", "sensitivity", "specificity", "uncertain", "brier", "ece")
UNDEFINED = "-"


def model_card(manifest: Manifest, metrics: Mapping[str, Any], *, ranked_patients: int) -> str:
    """Return the model card as Markdown: what a reader must know before trusting a bundle.

    Parameters
    ----------
    manifest
        Of the bundle; its identity and the hashes of its files are not used.
    metrics
        What `metrics.json` holds.
    ranked_patients
        With fewer calibration patients than this, the threshold of refusals rests on a distribution, not on ranks.
    """
    networks = _networks(manifest, metrics.get("networks", ()))
    return _render(manifest, metrics, format="markdown", is_whole=True, networks=networks, ranked_patients=ranked_patients)


def card_excerpt(manifest: Manifest, metrics: Mapping[str, Any], *, ranked_patients: int) -> str:
    """Return what reports show of the card as HTML: intended use, data, figures, limits of its answers, and heatmaps.

    Whatever comes from the bundle is escaped. Parameters are those of `model_card`.
    """
    return _render(manifest, metrics, format="html", is_whole=False, ranked_patients=ranked_patients)


def text_table(evaluation: Mapping[str, Any]) -> str:
    """Return the figures of `Evaluation.to_json` as lines for a terminal: up to four metrics side by side, notes below.

    Those of studies, eyes and patients follow those of frames, each under a heading.
    """
    levels = evaluation.get("levels", {})
    parts = [_text_table(evaluation)]
    parts += [f"{_units(found).capitalize()}\n{'=' * len(_units(found))}\n\n{_text_table(found)}" for found in levels.values()]
    return "\n\n\n".join(parts)


def _text_table(evaluation: Mapping[str, Any]) -> str:
    blocks = []
    for names in _TERMINAL_BLOCKS:
        rows = _figures(evaluation, names)
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
        blocks.append("\n".join([lines[0], "-" * (sum(widths) + 2 * (len(widths) - 1)), *lines[1:]]))
    return "\n\n".join([*blocks, "\n".join(_notes(evaluation))])


def _render(manifest: Manifest, metrics: Mapping[str, Any], format: str, **more: object) -> str:
    from jinja2 import Environment, PackageLoader, StrictUndefined  # late: importing it takes longer than many commands

    environment = Environment(
        loader=PackageLoader("pipeline.model"),
        autoescape=format == "html",  # noqa: S701, as Markdown needs no escapes
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"interval": _interval, "digits": "{:.3f}".format, "figure": _figure}
    figures, out_of_fold = (_block(metrics.get(name)) for name in ("evaluation", "out_of_fold"))
    evaluation = metrics.get("evaluation")
    levels = [_level(name, found, evaluation) for name, found in metrics.get("levels", {}).items() if "pooling" in found]
    conformal = manifest.conformal
    robustness = metrics.get("robustness") or {}
    needed = patients_needed(conformal.alpha)
    emphasis = "**{}**" if format == "markdown" else "{}"
    card = environment.get_template("model_card.jinja").render(
        manifest=manifest,
        format=format,
        figures=figures,
        out_of_fold=out_of_fold,
        folds=_folds(metrics.get("out_of_fold") or {}),
        max_difference=max(manifest.members[place].maps.max_difference or 0.0 for place in manifest.heatmap.members),
        shown=[
            (
                f"{number + 1}: {member.architecture}",
                "yes" if member.maps.passed else emphasis.format("no"),
                ", ".join(check.name for check in member.maps.checks if not check.passed) or UNDEFINED,
                "yes" if number in manifest.heatmap.members else "no",
            )
            for number, member in enumerate(manifest.members)
        ],
        levels=levels,
        levels_without={
            name: found["not_fitted"] for name, found in metrics.get("levels", {}).items() if "not_fitted" in found
        },
        splits=[
            (name, split["frames"], split["patients"], *(split["labels"][label] for label in manifest.labels))
            for name, split in metrics.get("splits", {}).items()
        ],
        frames_without_patient=metrics.get("frames_without_patient", 0),
        frames_without_label=metrics.get("frames_without_label", 0),
        unknown=[
            f"{label} in {count}"
            for label in manifest.labels
            if (count := sum(split.get("unknown", {}).get(label, 0) for split in metrics.get("splits", {}).values()))
        ],
        larger_labels=[
            f"{count} frames for the {name}" for name, count in metrics.get("label_levels", {}).items() if name != "frame"
        ],
        points=[
            (
                point.label,
                f"{point.threshold:.4f}",
                point.criterion,
                f"{point.sensitivity:.3f}",
                f"{point.specificity:.3f}",
                _interval(point.expected_sensitivity),
                _interval(point.expected_specificity),
            )
            for point in manifest.operating_points
        ],
        robustness=robustness,
        robustness_rows=[(name, *map(_figure, values)) for name, values in robustness.get("corruptions", {}).items()],
        site_rows=[
            (number, site["frames"], site["patients"], _figure(site["home"]), _figure(site["away"]), _interval(site["drop"]))
            for number, site in enumerate(robustness.get("sites", ()), 1)
        ],
        robustness_remark=robustness.get("remark", ""),
        local=metrics.get("local"),
        local_rows=list(_local_rows(metrics.get("local"))),
        bands=list(_bands(manifest)),
        needed_patients=needed,
        few_patients=[band.label for band in conformal.bands if min(band.present_patients, band.absent_patients) < needed],
        checks=[
            (
                check.name,
                check.frames,
                f"{check.value:.3f}",
                f"{check.reference:.3f}",
                "yes" if check.passed else emphasis.format("no" if check.frames else "not checked"),
            )
            for check in manifest.heatmap.checks
        ],
        **more,
    )
    return card.rstrip() + "\n"


def _networks(manifest: Manifest, trained: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return a line for each network: its architecture, what it started from, and its seed and fold if there are several."""
    lines = []
    for number, member in enumerate(manifest.members):
        start = member.started_from
        unused = f"; it did not use {', '.join(start.unused)} of that file" if start.unused else ""
        made = f"{member.architecture}, started from {start.words.replace('random', 'random weights')}{unused}"
        if len(manifest.members) == 1:
            lines.append(f"architecture: {made}")
            continue
        own = trained[number]
        fold = "" if own["fold"] is None else f", trained without fold {own['fold'] + 1}"
        lines.append(f"network {number + 1}: {made}, seed {own['seed']}{fold}")
    return lines


def _block(evaluation: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Return what a table of figures shows; None if nothing was measured."""
    if not evaluation:
        return None
    headings, *rows = _figures(evaluation, tuple(_TITLES))
    return {"headings": headings, "rows": rows, "notes": _notes(evaluation)}


def _folds(evaluation: Mapping[str, Any]) -> list[list[str]]:
    """Return header and rows of the figures of each fold (means over the labels), and their mean and spread; empty without."""
    if "folds" not in evaluation:
        return []
    names = [name for name in _TITLES if name in evaluation["macro"]]
    rows = [["fold", "frames / patients", *(_TITLES[name] for name in names)]]
    for number, found in enumerate(evaluation["folds"], 1):
        values = [found["macro"][name]["value"] for name in names]
        shown = [UNDEFINED if value is None else f"{value:.3f}" for value in values]
        rows.append([str(number), f"{found['frames']} / {found['patients']}", *shown])
    spread = [evaluation["spread"]["macro"][name] for name in names]
    for title, kind in (("mean", "mean"), ("standard deviation", "sd")):
        rows.append([title, "", *(UNDEFINED if one[kind] is None else f"{one[kind]:.3f}" for one in spread)])
    return rows


def _level(name: str, found: Mapping[str, Any], frames: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return what the card says of a level: how it is pooled, from how many units it was learned, and its figures."""
    evaluation = (frames or {}).get("levels", {}).get(name)
    headings, *rows = _figures(evaluation, _LEVEL_FIGURES) if evaluation else [[]]
    losses = ", ".join(f"{pooling} {loss:.3f}" for pooling, loss in found["tune_losses"].items())
    counts = ", ".join(f"{split} {part['units']}" for split, part in found["splits"].items())
    test = found["splits"]["test"]
    return {
        "name": name,
        "pooling": found["pooling"],
        "losses": losses,
        "counts": counts,
        "without_frames": test["without_frames"],
        "headings": headings,
        "rows": rows,
        "notes": _notes(evaluation) if evaluation else [],
    }


def _figure(value: float | None) -> str:
    return UNDEFINED if value is None else f"{value:.3f}"


def _local_rows(local: Mapping[str, Any] | None) -> Iterator[tuple[str, ...]]:
    if not local:
        return
    for label, found in local["figures"].items():
        pairs = [
            " / ".join(UNDEFINED if found[when][name] is None else f"{found[when][name]:.3f}" for when in ("before", "after"))
            for name in ("sensitivity", "specificity", "uncertain")
        ]
        yield label, f"{local['present'][label]} / {local['absent'][label]}", *pairs


def _bands(manifest: Manifest) -> Iterator[tuple[str, ...]]:
    measured = manifest.conformal.measured
    for band in manifest.conformal.bands:
        found = measured.labels[band.label] if measured else None
        parts = (found.covered_positives, found.covered_negatives, found.uncertain) if found else (None,) * 3
        patients = f"{band.present_patients} / {band.absent_patients}"
        yield band.label, f"{band.present_from:.4f}", f"{band.absent_below:.4f}", patients, *map(_interval, parts)


def _figures(evaluation: Mapping[str, Any], names: Sequence[str]) -> list[list[str]]:
    """Return header and rows; the mean over the labels comes last if there are several."""
    rows = [["label", "positive/negative", *(_TITLES[name] for name in names)]]
    for label, found in evaluation["labels"].items():
        shown = [_interval(found["metrics"][name]) for name in names]
        rows.append([label, f"{found['n_positive']}/{found['n_negative']}", *shown])
    if len(evaluation["labels"]) > 1:
        rows.append(["mean of labels", "", *(_interval(evaluation["macro"][name]) for name in names)])
    return rows


def _interval(figure: Interval | Mapping[str, Any] | None) -> str:
    """Return a figure with its interval; a dash if it is not defined."""
    values = asdict(figure) if isinstance(figure, Interval) else figure
    if values is None or values["value"] is None:
        return UNDEFINED
    limits = "" if values["low"] is None else f" ({values['low']:.3f} to {values['high']:.3f})"
    return f"{values['value']:.3f}{limits}"


def _units(evaluation: Mapping[str, Any]) -> str:
    """Return what was evaluated, in the plural; the key under which its number is."""
    return next(units for units in _SINGULAR if units in evaluation)


def _notes(evaluation: Mapping[str, Any]) -> list[str]:
    labels, resamples, units = evaluation["labels"], evaluation["resamples"], _units(evaluation)
    of_patients = "" if units == "patients" else f" of {evaluation['patients']} patients"
    scaled = f"; {Calibration(**evaluation['calibration']).words}" if units == "frames" else ""
    notes = [
        f"{evaluation[units]} {units}{of_patients}{scaled}.",
        f"At least one label is uncertain in {_interval(evaluation['uncertain'])} of the {units}.",
        f"Uncertain {units} count as errors in sensitivity, specificity and the figures that follow from them.",
    ]
    for label, found in labels.items():
        if local := found.get("at_prevalence"):
            notes.append(
                f"If {label} has a prevalence of {local['prevalence']:g}: PPV {_interval(local['ppv'])}, NPV "
                f"{_interval(local['npv'])}."
            )
    if argmax := evaluation["argmax"]:
        accuracy, balanced = _interval(argmax["accuracy"]), _interval(argmax["balanced_accuracy"])
        notes.append(f"Most probable of {len(labels)} labels: balanced accuracy {balanced}, accuracy {accuracy}.")
        if "quadratic_kappa" in argmax:
            kappa, error = _interval(argmax["quadratic_kappa"]), _interval(argmax["grade_error"])
            notes.append(f"Grades of the most probable label: quadratic weighted kappa {kappa}, mean error {error} grades.")
    groups = [*(found["metrics"] for found in labels.values()), evaluation["macro"], argmax, {"": evaluation["uncertain"]}]
    defined = [figure for metrics in groups for figure in metrics.values() if figure["value"] is not None]
    if any(figure["low"] is not None for figure in defined):
        notes += [
            f"In brackets: 95 % intervals by patient "
            f"(proportions, AUROC: closed form; others: {resamples} resamples of patients).",
            "No brackets: no interval would be honest (fewer than 2 patients of a kind, resamples all alike, or an ECE).",
        ]
    few = [
        f"{label} ({found['positive_patients']} with it, {found['negative_patients']} without)"
        for label, found in labels.items()
        if 0 < min(found["positive_patients"], found["negative_patients"]) < FEW_PATIENTS
    ]
    if few:
        notes.append(f"Fewer than {FEW_PATIENTS} patients, so figures say little and intervals are wide: {', '.join(few)}.")
    if most := max((figure["left_out"] for figure in defined), default=0):
        notes.append(f"Up to {most} of {resamples} resamples were left out because a figure is not defined there.")
    if lacking := [label for label, found in labels.items() if not (found["n_positive"] and found["n_negative"])]:
        names = ", ".join(lacking)
        notes.append(
            f"Figures marked {UNDEFINED} are not defined: no positive or no negative {_SINGULAR[units]} here of {names}."
        )
    return notes
