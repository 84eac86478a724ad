"""`report.html`: pages that open from disk and print, the most urgent study first; they load nothing and run no script."""

import math
from collections.abc import Iterator, Sequence
from html import escape
from itertools import islice
from pathlib import Path, PurePosixPath

from pipeline.model.bundle import MODEL_CARD, Bundle, HeatmapSupport
from pipeline.predictions import Prediction, State
from pipeline.progress import Progress, silent
from pipeline.records import Quarantined
from pipeline.results.card import excerpt
from pipeline.results.files import replacing
from pipeline.results.markup import count, figure, percent, table
from pipeline.results.record import StudyRecord
from pipeline.results.style import STYLE
from pipeline.results.totals import Totals
from pipeline.results.worklist import ReportFrame, Study, decisive, findings, study_of

STUDIES_A_PAGE = 50
FAILURES_SHOWN = 500
FRAMES_SHOWN = 3
PICTURES_A_FRAME = 2
WRITING = "Writing the report"
NOT_A_DEVICE = "Not a medical device; not for diagnosis."


def write_report(
    folder: Path,
    bundle: Bundle,
    records: Iterator[StudyRecord],
    failures: Sequence[Quarantined],
    totals: Totals,
    progress: Progress = silent,
) -> None:
    """Write `report.html`, and further pages where there are more than `STUDIES_A_PAGE` studies.

    Each page appears whole or not at all, and holds no date, so that equal input gives equal bytes; one page is in memory.

    Parameters
    ----------
    folder
        That of the results; pictures are read from it one at a time. Pages of an earlier report are removed.
    bundle
        That scored; the first page shows an excerpt of its model card.
    records
        The studies, most urgent first; those without a scored frame are passed over.
    failures
        The first of what was not scored, with the reasons; `FAILURES_SHOWN` of them are shown.
    totals
        Counts of all of it.
    progress
        Is shown the studies as they are written.
    """
    pages = max(1, math.ceil(totals.studies / STUDIES_A_PAGE))
    found = (
        study_of(record.study_instance_uid, record.frames, bundle.manifest.normal_label) for record in records if record.frames
    )
    rest = iter(progress(found, WRITING, totals.studies))
    for number in range(1, pages + 1):
        page = _Page(folder, bundle, totals, number, pages)
        with replacing(folder / page_name(number)) as file:
            shown = list(islice(rest, STUDIES_A_PAGE))
            file.writelines(f"{part}\n" for part in page.parts(shown, failures if number == 1 else ()))
    for old in folder.glob("report-*.html"):
        if old.stem[7:].isdecimal() and not 2 <= int(old.stem[7:]) <= pages:
            old.unlink()


def page_name(number: int) -> str:
    """Return the name of a page of the report, from 1 on."""
    return "report.html" if number == 1 else f"report-{number}.html"


class _Page:
    """Holds what every part of one page needs."""

    def __init__(self, folder: Path, bundle: Bundle, totals: Totals, number: int, pages: int) -> None:
        self._folder = folder
        self._bundle = bundle
        self._manifest = bundle.manifest
        self._totals = totals
        self._number = number
        self._pages = pages
        self._points = {point.label: point for point in bundle.manifest.operating_points}

    def parts(self, studies: Sequence[Study], failures: Sequence[Quarantined]) -> Iterator[str]:
        first = (self._number - 1) * STUDIES_A_PAGE + 1
        yield _HEAD
        yield from self._header()
        yield '<main id="main">'
        yield from self._overview(studies, first)
        if studies:
            yield '<h2>Studies</h2><p class="soft">The line across a bar is the operating point of the label.</p>'
        for rank, study in enumerate(studies, first):
            yield from self._study(rank, study)
        yield from self._others()
        yield from self._failures(failures)
        yield "</main>"
        yield from self._footer()
        yield "</body></html>"

    def _header(self) -> Iterator[str]:
        totals = self._totals
        page = "" if self._number == 1 else page_name(1)
        refused = f'<a href="{page}#not-scored">not scored</a>' if totals.failures else "not scored"
        numbers = (totals.studies, totals.urgent, totals.frames, totals.failures)
        names = ("studies", "with a finding", "frames scored", refused)
        yield '<a class="skip" href="#main">To the worklist</a>'
        yield "<header><h1>octray report</h1>"
        yield f'<p class="warning">{NOT_A_DEVICE} For research only; every result needs a reader.</p>'
        if caveat := self._manifest.heatmap.caveat:
            yield f'<p class="warning">{escape(caveat)}</p>'
        yield f'<p>{self._purpose()} <a href="{page}#model-card">From the model card</a></p>'
        yield '<ul class="figures">' + "".join(
            f"<li><b>{number}</b>{name}</li>" for number, name in zip(numbers, names, strict=True)
        )
        yield "</ul></header>"

    def _others(self) -> Iterator[str]:
        """Lead to the other pages: the neighbours, the first and the last."""
        if self._pages == 1:
            return
        near = {1, self._pages, *range(max(1, self._number - 3), min(self._pages, self._number + 3) + 1)}
        yield '<nav aria-label="Pages of the report"><p>Pages, most urgent first: '
        for number in sorted(near):
            current = ' aria-current="page"' if number == self._number else ""
            yield f'<a href="{page_name(number)}"{current}>{number}</a> '
        yield f"of {self._pages}</p></nav>"

    def _purpose(self) -> str:
        manifest, use = self._manifest, self._manifest.intended_use
        modalities = f"frames of modality {', '.join(use.modalities)}" if use.modalities else "frames of any modality"
        views = f", view {', '.join(use.view_positions)}" if use.view_positions else ""
        sentence = (
            f"This model looks for {', '.join(manifest.labels)} in {modalities}{views}. It is bundle {manifest.bundle_id} "
            f"({manifest.architecture}, trained on {manifest.provenance.dataset_name})."
        )
        return escape(sentence)

    def _overview(self, studies: Sequence[Study], first: int) -> Iterator[str]:
        yield "<h2>Worklist, most urgent first</h2>"
        yield from self._others()
        if not studies:
            yield "<p>No study was scored.</p>"
            return
        rows = (
            (
                str(rank),
                f'<a href="#study-{rank}">{escape(_study_name(study))}</a>',
                self._labels(study),
                *self._cells(study.frames[0])[1:],
                _marks(study.frames),
            )
            for rank, study in enumerate(studies, first)
        )
        yield from table(("#Rank", "Study", *_CELLS, "Quality"), rows)

    def _study(self, rank: int, study: Study) -> Iterator[str]:
        urgent = " urgent" if study.urgent else ""
        top = self._top(study.frames[0])
        yield f'<section class="study{urgent}" id="study-{rank}"><div class="title">'
        yield f"<h3>{rank}. {escape(_study_name(study))}</h3>{self._state(top)}</div>"
        yield f'<p class="soft">{count(len(study.frames), "frame")}; Study Instance UID {escape(study.study_instance_uid)}</p>'
        yield from self._whole(study)
        named = list(zip(_frame_names(study), study.frames, strict=True))
        for name, frame in named[:FRAMES_SHOWN]:
            yield from self._frame(name, frame)
        if rest := named[FRAMES_SHOWN:]:
            yield f"<details><summary>{count(len(rest), 'more frame')}, less urgent</summary>"
            cells = ((escape(name), *self._cells(frame), _marks([frame])) for name, frame in rest)
            yield from table(("Frame", *_CELLS, "Quality"), cells)
            yield "</details>"
        yield "</section>"

    def _whole(self, study: Study) -> Iterator[str]:
        """Say what all frames of a study say together, where it has several, and those of each eye or side."""
        groups = {"All frames": study.frames} if len(study.frames) > 1 else {}
        for side, eye in _SIDES.items():
            groups[eye] = tuple(frame for frame in study.frames if frame.prediction.laterality == side)
        for name, frames in groups.items():
            if frames:
                said = "; ".join(
                    f"{escape(one.label)} {percent(one.probability)} {self._state(one)}" for one in self._said(frames)
                )
                yield f"<p>{name}: {said} ({count(len(frames), 'frame')})</p>"

    def _said(self, frames: Sequence[ReportFrame]) -> list[Prediction]:
        """Return every finding that is positive or uncertain in any frame; the most probable one where there is none."""
        normal = self._manifest.normal_label
        every = decisive([frame.prediction.predictions for frame in frames], normal)
        found = findings(every, normal) or every
        return [one for one in found if one.state is not State.NEGATIVE] or found[:1]

    def _labels(self, study: Study) -> str:
        """Name the most urgent label of a study, and what else is positive in any of its frames."""
        top = self._top(study.frames[0]).label
        also = [one.label for one in self._said(study.frames) if one.state is State.POSITIVE and one.label != top]
        return escape(top) + (f'<div class="soft">also {escape(", ".join(also))}</div>' if also else "")

    def _frame(self, name: str, frame: ReportFrame) -> Iterator[str]:
        yield f'<article class="frame"><div class="labels"><h4>{escape(name)}</h4>'
        for prediction in frame.prediction.predictions:
            yield self._bar(prediction)
        for flag in frame.prediction.flags:
            yield f'<p class="mark">{escape(flag.message)}</p>'
        yield "</div>"
        found = findings(frame.prediction.predictions, self._manifest.normal_label)
        positive = [prediction.label for prediction in found if prediction.positive]
        wanted = positive[:PICTURES_A_FRAME] or [prediction.label for prediction in found[:1]]
        pictures = {picture.label: picture for picture in frame.pictures}
        yield from (figure(pictures[label], self._folder, name) for label in wanted if label in pictures)
        yield "</article>"

    def _bar(self, prediction: Prediction) -> str:
        found = " found" if prediction.positive and prediction.label != self._manifest.normal_label else ""
        threshold = self._points[prediction.label].threshold
        return (
            f'<div class="label{found}"><span>{escape(prediction.label)} {self._state(prediction)}</span>'
            f'<span class="number">{percent(prediction.probability)}</span>'
            f'<div class="bar" role="img" aria-label="probability {percent(prediction.probability)}, operating point '
            f'{percent(threshold)}"><i style="width:{prediction.probability:.1%}"></i>'
            f'<u style="left:{min(threshold, 0.997):.1%}"></u></div></div>'
        )

    def _cells(self, frame: ReportFrame) -> tuple[str, str, str]:
        top = self._top(frame)
        return escape(top.label), percent(top.probability), self._state(top)

    def _state(self, prediction: Prediction) -> str:
        kind = "normal" if prediction.positive and prediction.label == self._manifest.normal_label else prediction.state
        return f'<span class="state {kind}">{prediction.state}</span>'

    def _top(self, frame: ReportFrame) -> Prediction:
        predictions = frame.prediction.predictions
        return (findings(predictions, self._manifest.normal_label) or list(predictions))[0]

    def _failures(self, failures: Sequence[Quarantined]) -> Iterator[str]:
        shown = failures[:FAILURES_SHOWN]
        if not shown:
            return
        yield '<h2 id="not-scored">Not scored</h2>'
        yield "<p>The model did not look at these; that says nothing about the patient.</p>"
        if (rest := self._totals.failures - len(shown)) > 0:
            yield f"<p>These are the first {len(shown)}; <code>failures.csv</code> has the other {rest}, too.</p>"
        rows = (
            (escape(item.source), str(item.frame_number or "all"), escape(item.reason), escape(item.message)) for item in shown
        )
        yield from table(("File", "#Frame", "Reason", "What it means"), rows)

    def _footer(self) -> Iterator[str]:
        yield "<footer><h2>About these results</h2>"
        yield f"<p>{_PROBABILITIES}</p><p>{_heatmaps(self._manifest.heatmap)}</p>"
        points = (self._points[label] for label in self._manifest.labels)
        rows = (
            (escape(point.label), percent(point.threshold), percent(point.sensitivity), percent(point.specificity))
            for point in points
        )
        yield from table(("Label", "#Operating point", "#Sensitivity", "#Specificity"), rows)
        yield f"<h2>Limits</h2><ul>{''.join(f'<li>{limit}</li>' for limit in _LIMITS)}</ul>"
        if self._number == 1:
            yield '<h2 id="model-card">From the model card</h2>'
            yield from excerpt(self._bundle.read(MODEL_CARD).decode("utf-8", "replace"))
        yield f"<p>{NOT_A_DEVICE}</p></footer>"


def _heatmaps(support: HeatmapSupport) -> str:
    if support.computed == "none":
        return _NO_HEATMAPS
    how = "in closed form" if support.computed == "closed_form" else "by a backward pass"
    meaning = _PARTS if support.is_part_of_logit else _EVIDENCE
    return f"{meaning.format(method=f'{support.method}, {how}')} {_EMPTY}"


def _study_name(study: Study) -> str:
    first, *others = sorted({frame.prediction.source for frame in study.frames})
    return f"{first} and {count(len(others), 'more file')}" if others else first


def _marks(frames: Sequence[ReportFrame]) -> str:
    """Name what the quality gate found in some frames, each once."""
    checks = dict.fromkeys(flag.check for frame in frames for flag in frame.prediction.flags)
    return ", ".join(check.replace("_", " ") for check in checks)


def _frame_names(study: Study) -> list[str]:
    results = [frame.prediction for frame in study.frames]
    if len({result.source for result in results}) == 1:
        return [f"Frame {result.key.frame_number}" for result in results]
    return [f"{PurePosixPath(result.source).name}, frame {result.key.frame_number}" for result in results]


_SIDES = {"R": "Right (OD)", "L": "Left (OS)", "B": "Both sides (OU)"}
_CELLS = ("Label", "#Probability", "State")
_PROBABILITIES = (
    "A probability is calibrated on patients that the model was not trained on; it is positive from the label's operating "
    "point on. Sensitivity and specificity were measured there, on the calibration split. A study stands where its most urgent "
    "frame puts it."
)
_PARTS = (
    "A heatmap shows which part of the label's logit each place of the frame contributes ({method}). The "
    "colours mean the same in all pictures of one bundle: at the last colour a patch of 5 % of what the network sees doubles "
    "the odds of the label."
)
_EVIDENCE = (
    "A heatmap shows where in the frame its method finds evidence for the label ({method}). The colours mean the same in all "
    "pictures of one bundle, but they are no parts of the label's logit, and do not say how much a place changes the odds."
)
_EMPTY = "An empty heatmap says that nothing spoke for the label; it does not prove that nothing is there."
_LIMITS = (
    "A negative label does not say that nothing is there: of findings that the model was not trained on it says nothing.",
    "Each frame is looked at alone: neither earlier studies nor other views nor what is known of the patient count.",
    "The figures hold for patients like those that they were measured on; devices, protocols and how common a finding is "
    "change them.",
    "What was refused or could not be read was not looked at.",
)
_NO_HEATMAPS = "This bundle has no exact heatmaps, so that none are shown."
_HEAD = f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>octray report</title><style>{STYLE}</style></head><body>"""
