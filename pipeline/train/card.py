"""The model card: what a reader must know before trusting a bundle, in the order of Mitchell et al. (2019)."""

import math
from collections.abc import Sequence

from pipeline.config import Config
from pipeline.evaluate.figures import markdown_table
from pipeline.evaluate.metrics import Evaluation
from pipeline.evaluate.outliers import RANKED_PATIENTS
from pipeline.frames import Split
from pipeline.model.bundle import ExplanationCheck, HeatmapSupport, Interval, Provenance
from pipeline.predictions import Activation, OperatingPoint
from pipeline.train.judge import Verdict
from pipeline.train.material import Material

_DISCLAIMER = (
    "**Not a medical device.** For research only; not to be used for diagnosis or for decisions about patients. "
    "The figures hold for patients like those of the data set below, and for no others."
)


def model_card(
    config: Config,
    material: Material,
    verdict: Verdict,
    heatmap: HeatmapSupport,
    origin: Provenance,
) -> str:
    """Return the card as Markdown."""
    parts = [
        f"# {config.name}: {', '.join(material.labels)}",
        _DISCLAIMER,
        _model(config, heatmap),
        _use(config, material),
        _data(material, origin),
        _figures(verdict.evaluation),
        _points(verdict.points),
        _abstention(config, verdict),
        _explanations(heatmap),
        _origin(origin),
    ]
    return "\n\n".join(parts) + "\n"


def _model(config: Config, heatmap: HeatmapSupport) -> str:
    grid = config.preprocessing
    heatmaps = (
        f"exact, {heatmap.method} by the closed form (largest difference to grad-cam {heatmap.max_difference:.1e} logits)"
        if heatmap.exact
        else f"{heatmap.method} by gradient: its closed form does not hold for this network"
    )
    return (
        "## Model\n\n"
        f"- architecture: {config.model.architecture}, started from `{config.published()['model']['weights']}` weights\n"
        f"- input: one grey-level frame on {grid.size} x {grid.size} pixels, fit `{grid.fit}`, "
        f"white borders {'masked' if grid.mask_white_borders else 'kept'}\n"
        f"- output: {config.model.activation} over the labels, calibrated by one temperature\n"
        f"- heatmaps: {heatmaps}"
    )


def _use(config: Config, material: Material) -> str:
    urgent = [label for label in config.data.urgency if label in material.labels]
    return (
        "## Intended use\n\n"
        f"- modalities: {', '.join(config.data.modalities) or 'any'}\n"
        f"- view positions: {', '.join(config.data.view_positions) or 'any'}\n"
        f"- parts of the body: {', '.join(config.data.body_parts) or 'any'}\n"
        f"- ages: {f'{ages[0]} to {ages[1]} years' if (ages := config.data.ages) else 'any'}\n"
        f"- label that means no finding: {config.data.normal_label or 'none'}\n"
        f"- order of the findings, most urgent first: {', '.join(map(_cell, urgent)) or 'none given; the probability decides'}"
    )


def _data(material: Material, origin: Provenance) -> str:
    labels = " | ".join(map(_cell, material.labels))
    lines = [f"| split | frames | patients | {labels} |", "|---" * (3 + len(material.labels)) + "|"]
    for split in Split:
        rows = material.rows(split)
        counts = [int((material.targets[rows, column] == 1).sum()) for column in range(len(material.labels))]
        cells = [split.value, len(rows), len(set(material.patients(rows))), *counts]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    table = "\n".join(lines)
    return f"## Data\n\nIndex `{origin.dataset_name}`, sha256 `{origin.dataset_sha256}`.{_unknown(material)}\n\n{table}"


def _unknown(material: Material) -> str:
    """Say how many frames name no patient, since splits and intervals then rest on studies."""
    count = sum(record.patient_key == record.key.study_instance_uid for record in material.records)
    if not count:
        return ""
    return (
        f"\n\n{count} frames name no patient: each of their studies counts as a patient of its own, so that one patient may be "
        "in several splits, and figures and intervals may be too good."
    )


def _figures(evaluation: Evaluation | None) -> str:
    if evaluation is None:
        return "## Figures\n\nNot measured: the index has no test split."
    return (
        "## Figures\n\nOn the test split, whose patients were used for nothing else; in brackets 95 % intervals over "
        f"resampled patients.\n\n{markdown_table(evaluation)}"
    )


def _points(points: Sequence[OperatingPoint]) -> str:
    lines = [
        f"| {_cell(point.label)} | {point.threshold:.4f} | {point.criterion} "
        f"| {point.sensitivity:.3f} | {point.specificity:.3f} |"
        for point in points
    ]
    head = "| label | threshold | criterion | sensitivity | specificity |\n|---|---|---|---|---|\n"
    return (
        "## Operating points\n\nChosen on the calibration split. Sensitivity and specificity are those of the states there, "
        "uncertain frames counted as errors.\n\n" + head + "\n".join(lines)
    )


def _abstention(config: Config, verdict: Verdict) -> str:
    """Say when the bundle does not answer, and how often that happened on the test split."""
    return f"## When it does not answer\n\n{_uncertain(config, verdict)}\n\n{_refused(verdict)}"


def _uncertain(config: Config, verdict: Verdict) -> str:
    alpha, measured = config.evaluate.conformal_alpha, verdict.states
    lines = [
        "| label | uncertain from | to below | patients with / without | present covered | absent covered | uncertain |",
        "|---|---|---|---|---|---|---|",
    ]
    for band in verdict.bands:
        found = measured.labels[band.label] if measured else None
        parts = [found.covered_positives, found.covered_negatives, found.uncertain] if found else [None] * 3
        edges = f"{band.present_from:.4f} | {band.absent_below:.4f} | {band.present_patients} / {band.absent_patients}"
        lines.append(f"| {_cell(band.label)} | {edges} | {' | '.join(map(_part, parts))} |")
    often = (
        f'**This bundle says "uncertain" of at least one label in {_part(measured.uncertain)} of the frames** '
        f"({measured.frames} test frames of {measured.patients} patients)."
        if measured
        else "How often it does was not measured: the index has no test split."
    )
    needed = math.ceil(1 / alpha - 1 - 1e-9)
    few = [band.label for band in verdict.bands if min(band.present_patients, band.absent_patients) < needed]
    caveat = (
        f" Fewer than {needed} patients with or without {', '.join(map(_cell, few))} do not allow that without an assumption: "
        "there the log odds of patients are taken as normal."
        if few
        else ""
    )
    exclusive = (
        " Labels exclude each other, so that one is positive only if all others are ruled out."
        if config.model.activation is Activation.SOFTMAX
        else ""
    )
    normal = config.data.normal_label
    follows = f" {_cell(normal)} follows from the findings: positive if all of them are negative." if normal else ""
    return (
        f"{often}\n\nA label is uncertain inside a band around its operating point. The band reaches over the 95 % interval of "
        f"the operating point over resampled patients, and so far that at most {alpha:g} of new frames with the label are "
        f"called negative, and of new frames without it positive, patients counting alike.{caveat}{exclusive}{follows} "
        "Bands are fitted on the calibration split; coverage and share of uncertain frames are those of the test split.\n\n"
        + "\n".join(lines)
    )


def _refused(verdict: Verdict) -> str:
    reference, measured = verdict.reference, verdict.refusals
    if reference.calibration_patients >= RANKED_PATIENTS:
        limit = "what 1 % of further patients exceed, by rank"
    else:
        limit = (
            "the limit that 1 % of further patients exceed if log distances are normal, as fewer than "
            f"{RANKED_PATIENTS} patients show no rank"
        )
    alarms = (
        f"{measured.refused_patients} of {measured.patients} test patients have a frame that is refused "
        f"({measured.refused_patients / measured.patients:.3f}, 95 % interval {measured.low:.3f} to {measured.high:.3f}), "
        f"{measured.refused_frames} of {measured.frames} test frames"
        if measured
        else "not measured on a test split"
    )
    return (
        "A frame is refused if it is unlike all training frames: if the distance of its features to neighbour number "
        f"{reference.neighbours} among them is above a threshold. The threshold is {limit}, each patient counted with the "
        f"farthest frame ({reference.calibration_patients} calibration patients, {reference.calibration_frames} frames). "
        f"False alarms: {alarms}."
    )


def _part(interval: Interval | None) -> str:
    if interval is None or interval.value is None:
        return "-"
    limits = "" if interval.low is None else f" ({interval.low:.3f} to {interval.high:.3f})"
    return f"{interval.value:.3f}{limits}"


def _explanations(heatmap: HeatmapSupport) -> str:
    if not heatmap.checks:
        return f"## Heatmaps\n\n{_scale(heatmap)}\n\nNot checked."
    lines = [
        f"| {check.name} | {check.frames} | {check.value:.3f} | {check.reference:.3f} | {_passed(check)} |"
        for check in heatmap.checks
    ]
    head = "| check | frames | found | held against | passed |\n|---|---|---|---|---|\n"
    caveat = f"**{heatmap.caveat}**\n\n" if heatmap.caveat else ""
    asked = "Checks on frames of the calibration split:"
    return f"## Heatmaps\n\n{caveat}{_scale(heatmap)}\n\n{asked}\n\n{head}" + "\n".join(lines)


def _scale(heatmap: HeatmapSupport) -> str:
    """Say what the colours mean."""
    number = heatmap.true_positives
    shown = f"{number} true positives" if number else "the frames with a finding (there was no true positive)"
    return (
        f"Colours stand for {heatmap.meaning}, from 0 to {heatmap.full_scale:g} in every picture of this bundle. On {shown} "
        "of the calibration split, the strongest cell reaches no more in 95 % of those of each finding."
    )


def _passed(check: ExplanationCheck) -> str:
    return "yes" if check.passed else "**no**" if check.frames else "**not checked**"


def _cell(text: str) -> str:
    """Return a text that does not end its cell of a Markdown table."""
    return text.replace("|", r"\|")


def _origin(origin: Provenance) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in origin.versions.items())
    return (
        "## Origin\n\n"
        f"- written: {origin.created}\n- configuration: {origin.config_name}, seed {origin.seed}\n"
        f"- commit: {origin.git_commit or 'not known'}\n- MLflow run: {origin.mlflow_run_id or 'not tracked'}\n"
        f"- versions: {versions}"
    )
