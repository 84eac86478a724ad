"""`report.html`: pages that open from disk and print, the most urgent study first; they load nothing and run no script.

The pages are made from `templates/report.html`. Whatever comes from a file is escaped by Jinja2.
"""

import base64
import hashlib
import io
import json
import math
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, NamedTuple

from PIL import Image

from pipeline.atomic import replacing_text
from pipeline.evaluate.outliers import RANKED_PATIENTS
from pipeline.frames import Quarantined
from pipeline.imaging.preprocess import PANEL_GAP
from pipeline.levels import Level, LevelResult, Pooling
from pipeline.model.bundle import METRICS, Bundle, Manifest
from pipeline.model.card import card_excerpt
from pipeline.predictions import FramePrediction, Heatmap, Prediction, State
from pipeline.progress import Progress, silent
from pipeline.results import words
from pipeline.results.patient import Detail
from pipeline.results.words import count
from pipeline.results.worklist import UNCERTAIN, URGENT, AnyPrediction, Ranking, SomePrediction, Study, Totals, decisive

if TYPE_CHECKING:
    from jinja2 import Environment

STUDIES_A_PAGE = 50
FAILURES_SHOWN = 500
_FAILURES_A_STUDY = 5
_FRAMES_SHOWN = 3
_PICTURES_A_FRAME = 2
_THUMBNAIL = 112, 72
"""Columns and rows at most: what a list has room for, twice as fine as it is shown."""


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
    equal bytes. The studies of one page are held in memory, and one picture at a time.

    Parameters
    ----------
    folder
        The folder of results; pictures are read from it. Pages of an earlier report are removed.
    bundle
        The bundle that scored; the first page shows an excerpt of its model card.
    studies
        The most urgent first; those that are no studies at all are skipped.
    failures
        The first of what was not scored, with the reasons; `FAILURES_SHOWN` of them are shown.
    totals
        Counts of all of it.
    progress
        Is shown the studies as they are written.
    source
        Name of the folder that was scored.
    since
        When an earlier run wrote the report, in seconds since 1970; 0 if none did.
    details
        What the report says of patients and examinations, if a study knows it.
    """
    template = _environment().get_template("report.html")
    pages = max(1, math.ceil(totals.listed / STUDIES_A_PAGE))
    rest = iter(progress((study for study in studies if study.is_listed), "writing the report", totals.listed))
    shown_details = [detail for detail in Detail if detail in details]
    for part in folder.glob(".report*.part"):  # of a run that was killed
        part.unlink()

    def parts(number: int) -> Iterator[str]:
        yield from template.generate(
            page=_Page(folder, bundle, number, pages, totals.listed),
            manifest=bundle.manifest,
            studies=list(islice(rest, STUDIES_A_PAGE)),
            totals=totals,
            source=source,
            since=since,
            details=shown_details,
            columns=[{"name": name, "details": some} for name, group in _COLUMNS.items() if (some := group & set(details))],
            failures=failures[:FAILURES_SHOWN],
        )

    with replacing_text(folder / page_name(1)) as first:
        first.writelines(parts(1))
        for number in range(2, pages + 1):
            with replacing_text(folder / page_name(number)) as file:
                file.writelines(parts(number))
    for old in folder.glob("report-*.html"):
        if old.stem[7:].isdecimal() and not 2 <= int(old.stem[7:]) <= pages:
            old.unlink()


def page_name(number: int) -> str:
    """Return the name of a page of the report, from 1 on."""
    return "report.html" if number == 1 else f"report-{number}.html"


@cache
def _environment() -> "Environment":
    from jinja2 import Environment, PackageLoader, StrictUndefined  # late: importing it takes longer than many commands

    environment = Environment(
        loader=PackageLoader("pipeline.results"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "count": count,
        "detail_name": _DETAILS.__getitem__,
        "file_name": lambda source: PurePosixPath(source).name,
        "moment": words.moment,
        "percent": words.percent,
        "rate": words.rate,
        "reason": words.reason,
        "thousands": lambda number: f"{number:,}",
    }
    environment.globals |= {"failures_a_study": _FAILURES_A_STUDY, "frames_shown": _FRAMES_SHOWN, "panel_gap": PANEL_GAP}
    return environment


class _Embedded(NamedTuple):
    """A picture within the page."""

    id: str
    width: int
    height: int
    uri: str


@dataclass(frozen=True, slots=True)
class _Page:
    """What the template asks of one page: everything that has to be chosen, sorted or looked up."""

    folder: Path
    bundle: Bundle
    number: int
    count: int
    studies: int

    @property
    def _manifest(self) -> Manifest:
        return self.bundle.manifest

    @property
    def _ranking(self) -> Ranking:
        return Ranking(self._manifest.normal_label, self._manifest.urgency)

    @property
    def first_rank(self) -> int:
        """The place of the first study of this page in the worklist, from 1."""
        return (self.number - 1) * STUDIES_A_PAGE + 1

    def name(self, number: int) -> str:
        """Return the name of another page."""
        return page_name(number)

    def near(self) -> list[int]:
        """Return the pages that this one links to: its neighbours, the first and the last."""
        return sorted({1, self.count, *range(max(1, self.number - 3), min(self.count, self.number + 3) + 1)})

    def ways(self, rank: int) -> Iterator[tuple[str, str, str]]:
        """Yield the links of a card as word, page and place.

        The next study comes first, so that the keys Tab and Enter lead from one to the next.
        """
        if rank < self.studies:
            yield "Next", self._page_of(rank + 1), f"study-{rank + 1}"
        if rank > 1:
            yield "Previous", self._page_of(rank - 1), f"study-{rank - 1}"
        yield "Back to the list", "", f"row-{rank}"

    def _page_of(self, rank: int) -> str:
        number = (rank - 1) // STUDIES_A_PAGE + 1
        return "" if number == self.number else page_name(number)

    def level(self, study: Study) -> str:
        """Return the class by which the style sheet tells studies apart."""
        if not study.frames:
            return "unknown"
        return "urgent" if study.rank >= URGENT else "unsure" if study.rank >= UNCERTAIN else "calm"

    def patient(self, study: Study, details: Collection[Detail]) -> list[tuple[Detail, str]]:
        """Return what is known of the patient and the examination, each with a word that says what it is."""
        known = study.patient.details if study.patient else {}
        return [
            (detail, f"{_SHORT[detail]} {known[detail]}".strip())
            for detail in Detail
            if detail in details and known.get(detail)
        ]

    def place(self, study: Study) -> str:
        """Say which frame decided, of which eye or side and in which view, and how many other files the study has."""
        parts = []
        if study.frames:
            result = study.frames[0]
            alone = result.key.frame_number == [frame.source for frame in study.frames].count(result.source) == 1
            parts = ["" if alone else f"frame {result.key.frame_number}", self._side(result.facts.laterality)]
            parts.append(f"view {result.facts.view_position}" if result.facts.view_position else "")
        return ", ".join(part for part in (*parts, self.other_files(study)) if part)

    def other_files(self, study: Study, before: str = "") -> str:
        """Say how many other files a study has, with `before` before it; empty if it has one."""
        sources = {frame.source for frame in study.frames} | {failure.source for failure in study.failures}
        return f"{before}{count(others, 'more file')}" if (others := len(sources) - 1) else ""

    def notes(self, study: Study) -> list[str]:
        """Return what a reader has to know beside the findings: what is missing, and what the quality gate found."""
        single = self.only_single(study)
        images = [f"positive in single images only: {', '.join(single)}"] if single else []
        return [*([self.gap(study)] if study.failures else []), *images, *self.marks(study.frames)]

    def gap(self, study: Study) -> str:
        """Say how much of a study was not scored; of one of which nothing was, also why."""
        said = f"{len(study.failures)} of {count(len(study.frames) + len(study.failures), 'image')} not scored"
        reasons = dict.fromkeys(words.reason(failure.reason) for failure in study.failures)
        return said if study.frames else f"{said}: {', '.join(list(reasons)[:3]).lower()}"

    def marks(self, frames: Iterable[FramePrediction]) -> list[str]:
        """Name what the quality gate found in some frames, each once."""
        return list(dict.fromkeys(words.reason(flag.check) for frame in frames for flag in frame.flags))

    def top(self, frame: FramePrediction) -> Prediction:
        """Return the most urgent finding of a frame."""
        predictions = frame.predictions
        return (self._ranking.findings(predictions) or list(predictions))[0]

    def verdict(self, study: Study) -> AnyPrediction:
        """Return the most urgent finding of a study: of its result as a whole if there is one, else of its frames."""
        return self.worth_saying(study.whole)[0] if study.whole else self.said(study.frames)[0]

    def worth_saying(self, predictions: Sequence[SomePrediction]) -> list[SomePrediction]:
        """Return every finding that is positive or uncertain, the most urgent first; the most probable one if there is none."""
        found = self._ranking.findings(predictions) or list(predictions)
        return [one for one in found if one.state is not State.NEGATIVE] or found[:1]

    def said(self, frames: Sequence[FramePrediction]) -> list[Prediction]:
        """Return what is worth saying of some frames together, by `LabelSet.states`."""
        return self.worth_saying(decisive([frame.predictions for frame in frames], self._manifest.label_set))

    def also_positive(self, study: Study) -> list[str]:
        """Return what is positive in a study beside its most urgent finding."""
        said: Sequence[AnyPrediction] = self.worth_saying(study.whole) if study.whole else self.said(study.frames)
        top = self.verdict(study).label
        return [one.label for one in said if one.state is State.POSITIVE and one.label != top]

    def only_single(self, study: Study) -> list[str]:
        """Return which findings are positive in a frame of a study, and not in the study as a whole."""
        whole = {one.label: one.state for one in study.whole}
        said = self.said(study.frames) if whole else []
        return [
            one.label
            for one in said
            if one.state is State.POSITIVE
            and State.POSITIVE is not whole[one.label]
            and one.label != self._manifest.normal_label
        ]

    def unit(self, result: LevelResult) -> str:
        """Return what the result of a level is about."""
        return words.unit(result, self._manifest.intended_use.modalities)

    def pooled(self, result: LevelResult) -> str:
        """Say from what the result of a level was made."""
        left_out = f", {count(result.left_out, 'image')} not scored and left out" if result.left_out else ""
        return f"{count(result.frames, 'image')}, pooled by {words.POOLINGS[result.pooling]}{left_out}"

    def deciding(self, result: LevelResult) -> str:
        """Name the frames that count most for what is said first of a result, with their weights; empty if it has one frame."""
        if result.frames < 2:
            return ""
        top = self.worth_saying(result.predictions)[0]
        files = {frame.source: f"{PurePosixPath(frame.source).name} " for frame in top.deciding}
        if len(files) == 1 and result.level is Level.STUDY:
            files = dict.fromkeys(files, "")
        named = [f"{files[one.source]}frame {one.frame_number}" for one in top.deciding]
        parts = [f"{name} ({words.rate(one.weight)})" for name, one in zip(named, top.deciding, strict=True)]
        if result.pooling is Pooling.MAX:
            return f"{self.label(top)} was decided by {named[0]}."
        return f"Most weight for {self.label(top)}: {', '.join(parts)}."

    def sides(self, study: Study) -> Iterator[tuple[str, Sequence[FramePrediction]]]:
        """Yield all frames of a study, if it has several, and those of each eye or side, with their names.

        What has a result as a whole, which is shown instead, is left out.
        """
        if len(study.frames) < 2:
            return
        known = {one.laterality for one in study.levels if one.level is Level.EYE}
        if not study.whole:
            yield "All images", study.frames
        elif len({frame.facts.laterality for frame in study.frames}) == 1:
            return
        for laterality in sorted(set("RLB") - known, key="RLB".index):
            if frames := [frame for frame in study.frames if frame.facts.laterality == laterality]:
                side = self._side(laterality)
                yield f"Any image of {side}" if study.whole else side[:1].upper() + side[1:], frames

    def named_frames(self, study: Study) -> list[tuple[str, FramePrediction]]:
        """Return the frames with their names: file if there are several, number, eye or side, view."""
        is_one_file = len({frame.source for frame in study.frames}) == 1
        named = []
        for frame in study.frames:
            number = f"{'Frame' if is_one_file else 'frame'} {frame.key.frame_number}"
            view = f"view {frame.facts.view_position}" if frame.facts.view_position else ""
            file, side = "" if is_one_file else PurePosixPath(frame.source).name, self._side(frame.facts.laterality)
            parts = (file, number, side, view)
            named.append((", ".join(part for part in parts if part), frame))
        return named

    def label(self, prediction: AnyPrediction) -> str:
        """Return the displayed name of a prediction's label."""
        return words.label(prediction.label, self._manifest.normal_label)

    def state(self, prediction: AnyPrediction) -> str:
        """Return the displayed state of a prediction."""
        return words.state(prediction, self._manifest.normal_label)

    def threshold(self, prediction: Prediction) -> float:
        """Return the operating point of a prediction's label."""
        return next(point.threshold for point in self._manifest.operating_points if point.label == prediction.label)

    def pictures(self, frame: FramePrediction) -> list[Heatmap]:
        """Return the heatmaps to show: of what is positive or uncertain, else of the most probable finding."""
        found = self._ranking.findings(frame.predictions)
        labels = [one.label for one in found if one.state is not State.NEGATIVE][:_PICTURES_A_FRAME]
        pictures = {picture.label: picture for picture in frame.heatmaps}
        return [pictures[label] for label in labels or [one.label for one in found[:1]] if label in pictures]

    def embedded(self, picture: Heatmap) -> _Embedded | None:
        """Return a heatmap as a data URI; None if its file is missing or damaged."""
        try:
            content = (self.folder / picture.picture).read_bytes()
            with Image.open(io.BytesIO(content)) as image:
                kind, width, height = image.get_format_mimetype(), image.width, image.height
        except OSError:
            return None
        name = f"heatmap-{hashlib.sha256(picture.picture.encode()).hexdigest()[:12]}"
        return _Embedded(name, width, height, f"data:{kind};base64,{base64.b64encode(content).decode()}")

    def thumbnail(self, study: Study) -> _Embedded | None:
        """Return the most urgent frame, small; None if its picture is damaged or does not say where the frame is."""
        picture = next((picture for frame in study.frames[:1] for picture in frame.heatmaps[:1]), None)
        if picture is None or not picture.rows or not picture.columns:
            return None
        try:
            with Image.open(self.folder / picture.picture) as image:
                whole, spare = image.size, min(picture.columns / _THUMBNAIL[0], picture.rows / _THUMBNAIL[1])
                image.draft("L", (int(whole[0] / spare), int(whole[1] / spare)))  # decodes no more than is shown
                scale = image.width / whole[0]
                small = image.convert("L").crop((0, 0, round(picture.columns * scale), round(picture.rows * scale)))
        except OSError:
            return None
        small.thumbnail(_THUMBNAIL, Image.Resampling.BILINEAR)
        buffer = io.BytesIO()
        small.save(buffer, "JPEG", quality=70)
        uri = f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"
        return _Embedded("", small.width, small.height, uri)

    def card(self) -> str:
        """Return the excerpt of the model card as HTML."""
        return card_excerpt(self._manifest, json.loads(self.bundle.read(METRICS)), ranked_patients=RANKED_PATIENTS)

    def failure_rows(self, failures: Iterable[Quarantined]) -> Iterator[tuple[str, ...]]:
        """Yield the rows of the table of what was not scored."""
        for item in failures:
            yield item.source, str(item.frame_number or "all"), words.reason(item.reason), item.message

    def operating_points(self) -> Iterator[tuple[str, ...]]:
        """Yield the rows of the table of operating points."""
        points = {point.label: point for point in self._manifest.operating_points}
        for label in self._manifest.labels:
            name, point = words.label(label, self._manifest.normal_label), points[label]
            yield name, words.percent(point.threshold), words.rate(point.sensitivity), words.rate(point.specificity)

    def level_points(self) -> Iterator[tuple[str, ...]]:
        """Yield the rows of the table of operating points of studies, eyes and patients."""
        for rule in self._manifest.levels:
            for point in rule.operating_points:
                name, pooling = words.label(point.label, self._manifest.normal_label), words.POOLINGS[rule.pooling]
                rates = words.percent(point.threshold), words.rate(point.sensitivity), words.rate(point.specificity)
                yield rule.level.value, pooling, name, *rates

    def abbreviations(self, studies: Iterable[Study]) -> Mapping[str, str]:
        """Spell out, once a page, what is abbreviated on it; what only the model card abbreviates follows there."""
        manifest, use = self._manifest, self._manifest.intended_use
        results = [frame for study in studies for frame in study.frames]
        shown = [f"{self._side(result.facts.laterality)} {result.facts.view_position}" for result in results]
        terms = words.spelled_out(" ".join((*shown, *use.modalities, *use.view_positions, "UID")))
        said = {label: text for label, text in manifest.label_names.items() if label in manifest.labels}
        said |= {term: text for term, text in terms.items() if term not in manifest.labels}
        if manifest.normal_label is not None and manifest.normal_label != words.NO_FINDING:
            said[words.NO_FINDING] = f"the label {manifest.normal_label}"
        return said

    def abbreviations_of(self, card: str) -> Mapping[str, str]:
        """Spell out what the excerpt of the model card abbreviates and the page has not spelled out before."""
        use = self._manifest.intended_use
        before = {*words.spelled_out(" ".join((*use.modalities, *use.view_positions))), *self._manifest.labels}
        terms = words.spelled_out(re.sub("<[^>]*>", " ", card))
        return {term: text for term, text in terms.items() if term not in before}

    def _side(self, laterality: str) -> str:
        return words.side(laterality, self._manifest.intended_use.modalities)


_DETAILS = {
    Detail.NAME: "name",
    Detail.ID: "patient ID",
    Detail.BIRTH_DATE: "birth date",
    Detail.ACCESSION_NUMBER: "accession number",
    Detail.STUDY_DATE: "study date",
    Detail.DEVICE: "device",
}
_SHORT = {
    Detail.NAME: "",
    Detail.ID: "ID",
    Detail.BIRTH_DATE: "born",
    Detail.ACCESSION_NUMBER: "accession",
    Detail.STUDY_DATE: "study of",
    Detail.DEVICE: "",
}
_COLUMNS = {
    "Patient": frozenset({Detail.NAME, Detail.ID, Detail.BIRTH_DATE}),
    "Examination": frozenset({Detail.ACCESSION_NUMBER, Detail.STUDY_DATE, Detail.DEVICE}),
}
"""The columns of the worklist that are about people, and what each contains."""
