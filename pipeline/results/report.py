"""`report.html`: pages that open from disk and print, the most urgent study first; they load nothing and run no script."""

import math
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from itertools import islice
from pathlib import Path, PurePosixPath

from pipeline.atomic import replacing_text
from pipeline.frames import Quarantined
from pipeline.model.bundle import MODEL_CARD, Bundle, Conformal, HeatmapSupport, Manifest
from pipeline.predictions import Prediction, State
from pipeline.progress import Progress, silent
from pipeline.results import words
from pipeline.results.card import excerpt
from pipeline.results.markup import figure, table, thumbnail, time
from pipeline.results.patient import Detail
from pipeline.results.style import STYLE
from pipeline.results.words import count, percent
from pipeline.results.worklist import UNCERTAIN, URGENT, Ranking, ReportFrame, Study, Totals

STUDIES_A_PAGE = 50
FAILURES_SHOWN = 500
FAILURES_A_STUDY = 5
FRAMES_SHOWN = 3
PICTURES_A_FRAME = 2
WRITING = "Writing the report"
NOT_A_DEVICE = "Not a medical device; not for diagnosis."


def write_report(
    folder: Path,
    bundle: Bundle,
    studies: Iterator[Study],
    failures: Sequence[Quarantined],
    totals: Totals,
    progress: Progress = silent,
    *,
    source: str = "",
    since: float = 0.0,
    details: Collection[Detail] = (),
) -> None:
    """Write `report.html`, and further pages if there are more than `STUDIES_A_PAGE` studies.

    Each page appears whole or not at all, the first one last, and depends on the arguments alone, so that equal input gives
    equal bytes; one page is in memory.

    Parameters
    ----------
    folder
        That of the results; pictures are read from it one at a time. Pages of an earlier report are removed.
    bundle
        That scored; the first page shows an excerpt of its model card.
    studies
        The most urgent first; those that are no studies at all are passed over.
    failures
        The first of what was not scored, with the reasons; `FAILURES_SHOWN` of them are shown.
    totals
        Counts of all of it.
    progress
        Is shown the studies as they are written.
    source
        Name of the folder that was scored.
    since
        When an earlier run has written the report, in seconds since 1970; 0 if none has.
    details
        What is said of patients and examinations, if a study knows it.
    """
    pages = max(1, math.ceil(totals.listed / STUDIES_A_PAGE))
    rest = iter(progress((study for study in studies if study.is_listed), WRITING, totals.listed))
    for part in folder.glob(".report*.part"):  # of a run that was killed
        part.unlink()
    with replacing_text(folder / page_name(1)) as first:
        for number in range(1, pages + 1):
            page = _Page(folder, bundle, totals, source, since, frozenset(details), number, pages)
            parts = (f"{part}\n" for part in page.parts(list(islice(rest, STUDIES_A_PAGE)), failures))
            if number == 1:
                first.writelines(parts)
                continue
            with replacing_text(folder / page_name(number)) as file:
                file.writelines(parts)
    for old in folder.glob("report-*.html"):
        if old.stem[7:].isdecimal() and not 2 <= int(old.stem[7:]) <= pages:
            old.unlink()


def page_name(number: int) -> str:
    """Return the name of a page of the report, from 1 on."""
    return "report.html" if number == 1 else f"report-{number}.html"


@dataclass(frozen=True, slots=True)
class _Page:
    """One page, and what all of its parts need."""

    folder: Path
    bundle: Bundle
    totals: Totals
    source: str
    since: float
    details: frozenset[Detail]
    number: int
    pages: int

    @property
    def _manifest(self) -> Manifest:
        return self.bundle.manifest

    @property
    def _ranking(self) -> Ranking:
        return Ranking(self._manifest.normal_label, self._manifest.urgency)

    @property
    def _use(self) -> str:
        """The modalities and views that the model is meant for."""
        use = self._manifest.intended_use
        return ", ".join((*use.modalities, *use.view_positions))

    def parts(self, studies: Sequence[Study], failures: Sequence[Quarantined]) -> Iterator[str]:
        """Yield the page, a piece at a time."""
        first = (self.number - 1) * STUDIES_A_PAGE + 1
        yield _HEAD
        yield from self._header()
        yield '<main id="main">'
        yield from self._worklist(studies, first)
        if studies:
            yield '<h2>Studies</h2><p class="soft">The line across a bar is the operating point: well above it a finding '
            yield "is called positive, around it uncertain.</p>"
        for rank, study in enumerate(studies, first):
            yield from self._study(rank, study)
        yield from self._other_pages()
        yield "</main>"
        yield from self._footer()
        if self.number == 1:
            yield from self._failures(failures)
        yield f'<p class="end">{NOT_A_DEVICE}</p></body></html>'

    def _header(self) -> Iterator[str]:
        totals = self.totals
        page = "" if self.number == 1 else page_name(1)
        refused = (
            f'<a href="{page}#not-scored">files or images not scored</a>' if totals.failures else "files or images not scored"
        )
        figures = {
            "studies scored": totals.studies,
            "with a finding": totals.urgent,
            "uncertain": totals.uncertain,
            "scored in part": totals.incomplete,
            "studies not scored": totals.not_scored,
            "images scored": totals.frames,
            refused: totals.failures,
        }
        yield '<a class="skip" href="#main">To the worklist</a>'
        yield "<header><h1>octray report</h1>"
        yield self._run()
        yield f'<p class="warning">{NOT_A_DEVICE} For research only; every result needs a reader.</p>'
        if caveat := self._manifest.heatmap.caveat:
            yield f'<p class="warning">{escape(caveat)}</p>'
        yield (
            '<ul class="figures">' + "".join(f"<li><b>{number:,}</b>{name}</li>" for name, number in figures.items()) + "</ul>"
        )
        yield f'<p>{self._purpose()} <a href="{page}#model-card">From the model card</a></p>'
        yield f'<p class="soft">{self._privacy()}</p></header>'

    def _run(self) -> str:
        """Say which folder was scored, when, and what is new."""
        totals, said = self.totals, []
        if totals.last_at:
            is_one_minute = totals.first_at // 60 == totals.last_at // 60
            since = "" if is_one_minute else f"from {time(totals.first_at)} to "
            said.append(f"scored {since}{time(totals.last_at)}")
        if self.since:
            new = f"{count(totals.new, 'study')} new" if totals.new else "nothing new"
            said.append(f"{new} since the report of {time(self.since)}")
        folder = f"Folder <b>{escape(self.source)}</b> " if self.source else ""
        return f'<p class="run">{folder}<span class="when">{"; ".join(said)}</span></p>'

    def _privacy(self) -> str:
        if not self.details:
            return "No patient is named here. <code>octray score --identity</code> adds names and numbers from the files."
        named = ", ".join(_DETAILS[detail] for detail in Detail if detail in self.details)
        return (
            f"Shown of patients and examinations: {named}, as the files stated it when this page was written. Keep this page "
            "as you keep patient records; none of it stands in any other result."
        )

    def _other_pages(self) -> Iterator[str]:
        """Lead to the other pages: the neighbours, the first and the last."""
        if self.pages == 1:
            return
        near = {1, self.pages, *range(max(1, self.number - 3), min(self.pages, self.number + 3) + 1)}
        yield '<nav class="pages" aria-label="Pages of the report"><p>Pages, most urgent first: '
        for number in sorted(near):
            current = ' aria-current="page"' if number == self.number else ""
            yield f'<a href="{page_name(number)}"{current}>{number}</a> '
        yield f"of {self.pages}</p></nav>"

    def _purpose(self) -> str:
        manifest, use = self._manifest, self._manifest.intended_use
        modalities = f"images of modality {', '.join(use.modalities)}" if use.modalities else "images of any modality"
        views = f", view {', '.join(use.view_positions)}" if use.view_positions else ""
        ages = f", of patients from {use.ages[0]} to {use.ages[1]} years" if use.ages else ""
        labels = ", ".join(label for label in manifest.labels if label != manifest.normal_label)
        sentence = (
            f"This model looks for {labels} in {modalities}{views}{ages}. It is bundle {manifest.bundle_id} "
            f"({manifest.architecture}, trained on {manifest.provenance.dataset_name})."
        )
        return escape(sentence)

    def _worklist(self, studies: Sequence[Study], first: int) -> Iterator[str]:
        yield "<h2>Worklist, most urgent first</h2>"
        yield from self._other_pages()
        if not studies:
            yield "<p>No study was scored.</p>"
            return
        yield f'<p class="soft">{self._abbreviations(studies)}</p>'
        groups = [name for name, group in _GROUPS.items() if self.details & group]
        names = ("Rank", "Image", "Study", *groups, "Result", "Notes", "Scored")
        cells = "".join(f'<th scope="col" class="of-{name.lower()}">{name}</th>' for name in names)
        yield f'<table class="worklist"><thead><tr>{cells}</tr></thead><tbody>'
        for rank, study in enumerate(studies, first):
            shown = zip(names, (str(rank), *self._row(rank, study, groups)), strict=True)
            cells = "".join(f'<td class="of-{name.lower()}">{cell}</td>' for name, cell in shown)
            yield f'<tr id="row-{rank}" class="{_level(study)}">{cells}</tr>'
        yield "</tbody></table>"

    def _row(self, rank: int, study: Study, groups: Sequence[str]) -> Iterator[str]:
        """Yield the cells of a study in the worklist: whose it is, what decided, and what a reader has to know beforehand."""
        link = f'<a href="#study-{rank}"'
        pictures = [picture for frame in study.frames[:1] for picture in frame.pictures[:1]]
        small = "".join(thumbnail(picture, self.folder) for picture in pictures)
        yield f'{link} tabindex="-1" aria-hidden="true">{small}</a>' if small else ""
        place = f'<div class="soft">{escape(self._place(study))}</div>' if self._place(study) else ""
        yield f"{link}>{escape(study.main_source)}</a>{place}"
        for group in groups:
            yield self._patient(study, _GROUPS[group] & self.details)
        yield self._result(study)
        yield "<br>".join(map(escape, _notes(study)))
        new = " <b>new</b>" if study.is_new else ""
        yield f'<span class="when">{time(study.scored_at)}{new}</span>' if study.scored_at else ""

    def _result(self, study: Study) -> str:
        """Name the most urgent finding of a study, and what else is positive in any of its frames."""
        if not study.frames:
            return self._verdict(study)
        top = self._top(study.frames[0])
        also = [one.label for one in self._said(study.frames) if one.state is State.POSITIVE and one.label != top.label]
        name, chance = escape(self._name(top.label)), escape(percent(top.probability))
        more = f'<div class="soft">also {escape(", ".join(also))}</div>' if also else ""
        return f'<b>{name}</b> <span class="number">{chance}</span> {self._verdict(study)}{more}'

    def _study(self, rank: int, study: Study) -> Iterator[str]:
        yield f'<section class="study {_level(study)}" id="study-{rank}"><div class="title"><div>'
        yield f"<h3>{rank}. {escape(study.main_source)}{_more_files(study)}</h3>{self._verdict(study)}{self._ways(rank)}"
        if self.details:
            yield f'<div class="patient">{self._patient(study, self.details, " &middot; ")}</div>'
        yield '</div></div><div class="body">'
        uid = f"; Study Instance UID {escape(study.study_instance_uid)}" if study.study_instance_uid else ""
        scored = f'<span class="when">; scored {time(study.scored_at)}</span>' if study.scored_at else ""
        images = count(len(study.frames), "image") if study.frames else "No image"
        yield f'<p class="soft">{images} scored{uid}{scored}</p>'
        yield from self._not_scored(study)
        yield from self._whole(study)
        named = list(zip(self._frame_names(study), study.frames, strict=True))
        for name, frame in named[:FRAMES_SHOWN]:
            yield from self._frame(name, frame)
        if rest := named[FRAMES_SHOWN:]:
            yield f"<details><summary>{count(len(rest), 'more image')}, less urgent</summary>"
            cells = ((escape(name), *self._cells(frame), escape(", ".join(_marks([frame])))) for name, frame in rest)
            yield from table(("Image", "Finding", "#Probability", "State", "Notes"), cells)
            yield "</details>"
        yield "</div></section>"

    def _ways(self, rank: int) -> str:
        """Return the links of a card: the next study first, so that the keys Tab and Enter lead from one to the next."""
        ways = [(f"row-{rank}", rank, "Back to the list")]
        if rank > 1:
            ways.insert(0, (f"study-{rank - 1}", rank - 1, "Previous"))
        if rank < self.totals.listed:
            ways.insert(0, (f"study-{rank + 1}", rank + 1, "Next"))
        links = (
            f'<a href="{"" if (page := (to - 1) // STUDIES_A_PAGE + 1) == self.number else page_name(page)}#{place}">{word}</a>'
            for place, to, word in ways
        )
        return f'<nav class="ways" aria-label="From study {rank}">{" ".join(links)}</nav>'

    def _patient(self, study: Study, details: Collection[Detail], between: str = "<br>") -> str:
        if study.patient is None or study.patient.why_unknown:
            return f'<span class="soft">{escape(study.patient.why_unknown if study.patient else "")}</span>'
        known = ((detail, study.patient.details.get(detail, "")) for detail in Detail if detail in details)
        return between.join(
            f"<b>{escape(text)}</b>" if detail is Detail.NAME else f"{_SHORT[detail]} {escape(text)}".strip()
            for detail, text in known
            if text
        )

    def _place(self, study: Study) -> str:
        """Say which frame decided, of which eye or side and in which view, and how many other files the study has."""
        parts = []
        if study.frames:
            result = study.frames[0].prediction
            alone = result.key.frame_number == [frame.prediction.source for frame in study.frames].count(result.source) == 1
            parts = ["" if alone else f"frame {result.key.frame_number}", self._side(result.laterality)]
            parts.append(f"view {result.view_position}" if result.view_position else "")
        return ", ".join(part for part in (*parts, _more_files(study).removeprefix(" and ")) if part)

    def _name(self, label: str) -> str:
        return words.label(label, self._manifest.normal_label)

    def _side(self, laterality: str) -> str:
        return words.side(laterality, self._manifest.intended_use.modalities)

    def _frame_names(self, study: Study) -> list[str]:
        results = [frame.prediction for frame in study.frames]
        is_one_file = len({result.source for result in results}) == 1
        names = []
        for result in results:
            number = f"{'Frame' if is_one_file else 'frame'} {result.key.frame_number}"
            view = f"view {result.view_position}" if result.view_position else ""
            parts = ("" if is_one_file else PurePosixPath(result.source).name, number, self._side(result.laterality), view)
            names.append(", ".join(part for part in parts if part))
        return names

    def _not_scored(self, study: Study) -> Iterator[str]:
        """Say what of a study was not scored and why, since what was scored does not speak for it."""
        if not study.failures:
            return
        yield f'<div class="mark"><p><b>{escape(_gap(study))}.</b> What was scored says nothing about it.</p><ul>'
        for failure in study.failures[:FAILURES_A_STUDY]:
            frame = f", frame {failure.frame_number}" if failure.frame_number else ""
            yield f"<li>{escape(PurePosixPath(failure.source).name)}{frame}: {_why(failure)}</li>"
        if (rest := len(study.failures) - FAILURES_A_STUDY) > 0:
            yield f"<li>and {rest} more, in <code>failures.csv</code></li>"
        yield "</ul></div>"

    def _whole(self, study: Study) -> Iterator[str]:
        """Say what all frames of a study say together, if it has several, and those of each eye or side."""
        if len(study.frames) < 2:
            return
        groups = {"All images": study.frames}
        for laterality in "RLB":
            frames = tuple(frame for frame in study.frames if frame.prediction.laterality == laterality)
            side = self._side(laterality)
            groups[side[:1].upper() + side[1:]] = frames
        for name, frames in groups.items():
            if frames:
                said = "; ".join(
                    f"{escape(self._name(one.label))} {escape(percent(one.probability))} {self._state(one)}"
                    for one in self._said(frames)
                )
                yield f"<p>{name}: {said} ({count(len(frames), 'image')})</p>"

    def _said(self, frames: Sequence[ReportFrame]) -> list[Prediction]:
        """Return every finding that is positive or uncertain in any frame; the most probable one if there is none."""
        every = self._ranking.decisive([frame.prediction.predictions for frame in frames])
        found = self._ranking.findings(every) or every
        return [one for one in found if one.state is not State.NEGATIVE] or found[:1]

    def _frame(self, name: str, frame: ReportFrame) -> Iterator[str]:
        yield f'<article class="frame"><div class="labels"><h4>{escape(name)}</h4>'
        for prediction in frame.prediction.predictions:
            yield self._bar(prediction)
        for flag in frame.prediction.flags:
            yield f'<p class="mark">{escape(flag.message)}</p>'
        yield "</div>"
        found = self._ranking.findings(frame.prediction.predictions)
        wanted = [one.label for one in found if one.state is not State.NEGATIVE][:PICTURES_A_FRAME]
        pictures = {picture.label: picture for picture in frame.pictures}
        for label in wanted or [one.label for one in found[:1]]:
            if label in pictures:
                yield figure(pictures[label], self.folder, name)
        yield "</article>"

    def _bar(self, prediction: Prediction) -> str:
        manifest, chance = self._manifest, percent(prediction.probability)
        found = " found" if prediction.state is State.POSITIVE and prediction.label != manifest.normal_label else ""
        threshold = next(point.threshold for point in manifest.operating_points if point.label == prediction.label)
        return (
            f'<div class="label{found}"><span>{escape(self._name(prediction.label))}: '
            f'{self._state(prediction)}</span><span class="number">{escape(chance)}</span>'
            f'<div class="bar" role="img" aria-label="probability {escape(chance)}, operating point '
            f'{escape(percent(threshold))}"><i style="width:{prediction.probability * 100:.0f}%"></i>'
            f'<u style="left:{min(threshold, 0.997) * 100:.1f}%"></u></div></div>'
        )

    def _cells(self, frame: ReportFrame) -> tuple[str, str, str]:
        top = self._top(frame)
        return escape(self._name(top.label)), escape(percent(top.probability)), self._state(top)

    def _state(self, prediction: Prediction) -> str:
        normal = self._manifest.normal_label
        kind = "likely" if prediction.label == normal and prediction.state is State.POSITIVE else prediction.state
        return f'<span class="state {kind}">{words.state(prediction, normal)}</span>'

    def _verdict(self, study: Study) -> str:
        return self._state(self._top(study.frames[0])) if study.frames else '<span class="state unknown">not scored</span>'

    def _top(self, frame: ReportFrame) -> Prediction:
        predictions = frame.prediction.predictions
        return (self._ranking.findings(predictions) or list(predictions))[0]

    def _abbreviations(self, studies: Iterable[Study]) -> str:
        """Spell out, once a page, what is abbreviated on it; what only the model card abbreviates follows there."""
        manifest = self._manifest
        results = [frame.prediction for study in studies for frame in study.frames]
        shown = " ".join(f"{self._side(result.laterality)} {result.view_position}" for result in results)
        said = {label: text for label, text in manifest.label_names.items() if label in manifest.labels}
        said |= {
            term: text for term, text in words.spelled_out(f"{shown} {self._use} UID").items() if term not in manifest.labels
        }
        if manifest.normal_label is not None and manifest.normal_label != words.NO_FINDING:
            said[words.NO_FINDING] = f"the label {manifest.normal_label}"
        return _glossary(said)

    def _failures(self, failures: Sequence[Quarantined]) -> Iterator[str]:
        """List what was not scored; it comes last and folded, and is printed only if it was opened."""
        shown = failures[:FAILURES_SHOWN]
        if not shown:
            return
        yield '<details class="optional" id="not-scored"><summary>'
        yield f"<h2>Not scored: {self.totals.failures:,} files or images</h2> open to see and to print them</summary>"
        yield "<p>The model did not look at these; that says nothing about the patient.</p>"
        if (rest := self.totals.failures - len(shown)) > 0:
            yield f"<p>These are the first {len(shown)}; <code>failures.csv</code> has the other {rest}, too.</p>"
        rows = (
            (escape(item.source), str(item.frame_number or "all"), escape(words.reason(item.reason)), escape(item.message))
            for item in shown
        )
        yield from table(("File", "#Frame", "Reason", "What it means"), rows)
        yield "</details>"

    def _footer(self) -> Iterator[str]:
        yield "<footer><h2>About these results</h2>"
        yield f"<p>{_PROBABILITIES} {_how_often_uncertain(self._manifest.conformal)}</p>"
        yield f"<p>{_heatmaps(self._manifest.heatmap)}</p>"
        points = {point.label: point for point in self._manifest.operating_points}
        rows = (
            (
                escape(self._name(label)),
                escape(percent(points[label].threshold)),
                words.rate(points[label].sensitivity),
                words.rate(points[label].specificity),
            )
            for label in self._manifest.labels
        )
        yield from table(("Label", "#Operating point", "#Sensitivity", "#Specificity"), rows)
        yield f"<h2>Limits</h2><ul>{''.join(f'<li>{limit}</li>' for limit in _LIMITS)}</ul>"
        if self.number == 1:
            yield '<h2 id="model-card">From the model card</h2>'
            card = list(excerpt(self.bundle.read(MODEL_CARD).decode("utf-8", "replace")))
            yield from card
            before = {*words.spelled_out(self._use), *self._manifest.labels}
            terms = words.spelled_out(re.sub("<[^>]*>", " ", "".join(card)))
            if said := {term: text for term, text in terms.items() if term not in before}:
                yield f'<p class="soft">{_glossary(said)}</p>'
        yield "</footer>"


def _how_often_uncertain(conformal: Conformal | None) -> str:
    """Say on which part of its test frames the bundle could not decide."""
    measured = conformal.measured if conformal else None
    if measured is None or measured.uncertain.value is None:
        return "How often this model is uncertain was not measured."
    return (
        f"This model was uncertain of at least one label in {words.rate(measured.uncertain.value)} of "
        f"{count(measured.frames, 'frame')} of {count(measured.patients, 'patient')} that it was tested on."
    )


def _heatmaps(support: HeatmapSupport) -> str:
    how = "in closed form" if support.computed == "closed_form" else "by a backward pass"
    meaning = (_EXACT if support.is_part_of_logit else _EVIDENCE).format(method=f"{support.method}, {how}")
    return f"{meaning} {_COLOURS.format(full=support.full_scale)} {_EMPTY}"


def _glossary(said: Mapping[str, str]) -> str:
    return "; ".join(f"{escape(short)}: {escape(text)}" for short, text in said.items()) + "."


def _level(study: Study) -> str:
    """Return the class by which a style tells studies apart."""
    if not study.frames:
        return "unknown"
    return "urgent" if study.rank >= URGENT else "unsure" if study.rank >= UNCERTAIN else "calm"


def _more_files(study: Study) -> str:
    sources = {frame.prediction.source for frame in study.frames} | {failure.source for failure in study.failures}
    return f" and {count(others, 'more file')}" if (others := len(sources) - 1) else ""


def _notes(study: Study) -> list[str]:
    """Return what a reader has to know of a study beside its findings: what is missing, and what the quality gate found."""
    return [*([_gap(study)] if study.failures else []), *_marks(study.frames)]


def _gap(study: Study) -> str:
    """Say how much of a study was not scored; of one of which nothing was, also why."""
    said = f"{len(study.failures)} of {count(len(study.frames) + len(study.failures), 'image')} not scored"
    reasons = dict.fromkeys(words.reason(failure.reason) for failure in study.failures)
    return said if study.frames else f"{said}: {', '.join(list(reasons)[:3]).lower()}"


def _why(failure: Quarantined) -> str:
    return f"{escape(words.reason(failure.reason).lower())}. {escape(failure.message)}"


def _marks(frames: Iterable[ReportFrame]) -> list[str]:
    """Name what the quality gate found in some frames, each once."""
    return list(dict.fromkeys(words.reason(flag.check) for frame in frames for flag in frame.prediction.flags))


_DETAILS = {
    Detail.NAME: "name",
    Detail.ID: "patient ID",
    Detail.BIRTH_DATE: "birth date",
    Detail.ACCESSION_NUMBER: "accession number",
    Detail.STUDY_DATE: "study date",
    Detail.DEVICE: "device",
}
_SHORT = {
    Detail.ID: "ID",
    Detail.BIRTH_DATE: "born",
    Detail.ACCESSION_NUMBER: "accession",
    Detail.STUDY_DATE: "study of",
    Detail.DEVICE: "",
}
_GROUPS = {
    "Patient": frozenset({Detail.NAME, Detail.ID, Detail.BIRTH_DATE}),
    "Examination": frozenset({Detail.ACCESSION_NUMBER, Detail.STUDY_DATE, Detail.DEVICE}),
}
"""The columns of the worklist, and what stands in each."""
_PROBABILITIES = (
    "A probability is calibrated on patients that the model was not trained on. Around its operating point a label is "
    "uncertain, above it positive, below it negative. Sensitivity and specificity are those of the calibration split; there an "
    "uncertain frame counts as an error. A study stands where its most urgent frame puts it."
)
_EXACT = (
    "A heatmap shows how much each place of the frame adds to what the model says for the label: exact evidence ({method})."
)
_EVIDENCE = (
    "A heatmap shows where in the frame its method finds evidence for the label ({method}). It does not say how much a place "
    "changes the probability."
)
_COLOURS = (
    "The colours mean the same in all pictures of one bundle. The last one stands for {full:g}, which the strongest place "
    "seldom exceeds in frames that the model rightly found positive. A dashed line shows the square that the network "
    "saw, if it did not see the whole frame. The buttons below a picture make its heatmap fainter, or leave it out."
)
_EMPTY = "An empty heatmap says that nothing spoke for the label; it does not prove that nothing is there."
_LIMITS = (
    "A negative label does not say that nothing is there: of findings that the model was not trained on it says nothing.",
    "Each frame is looked at alone: neither earlier studies nor other views nor what is known of the patient count.",
    "The figures hold for patients like those that they were measured on; devices, protocols and how common a finding is "
    "change them.",
    "What was refused or could not be read was not looked at.",
)
_HEAD = f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>octray report</title><style>{STYLE}</style></head><body>"""
