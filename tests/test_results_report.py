"""The report page: order, what it says, that it is safe and whole, read with the standard library's HTML parser."""

import base64
import io
import re
import shutil
import subprocess
from collections.abc import Iterable
from dataclasses import replace
from datetime import UTC, datetime
from functools import reduce
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipeline.errors import Reason
from pipeline.evaluate.metrics import evaluate
from pipeline.frames import Quarantined
from pipeline.model.bundle import Bundle
from pipeline.predictions import FramePrediction, Heatmap, State
from pipeline.results.patient import Detail, Patient
from pipeline.results.report import FAILURES_SHOWN, STUDIES_A_PAGE, write_report
from pipeline.results.words import REASONS, moment, percent, rate, spelled_out
from pipeline.results.worklist import NOT_SCORED, URGENT, Ranking, Study, Totals
from pipeline.settings import Check, Flag
from tests.builders import make_bundle, make_key, make_member, make_prediction, make_result, make_sample, make_support
from tests.server_chromium import Chromium

VOID = {"meta", "img", "br", "input"}


class Page(HTMLParser):
    """Collects tags, attributes and text, and checks that every tag is closed in order."""

    def __init__(self, content: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(content)
        self.text = " ".join(self.text.split())
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def make_scored(number: int, pneumonia: float, source: str = "", frame_number: int = 1, **overrides: Any) -> FramePrediction:
    key = make_key(frame_number, number)
    normal = make_prediction("NORMAL", 1 - pneumonia, positive=pneumonia < 0.5)
    finding = make_prediction("PNEUMONIA", pneumonia, positive=pneumonia >= 0.5)
    return replace(make_result(normal, finding, source=source or f"study{number}.dcm", key=key), **overrides)


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return make_bundle(tmp_path / "bundle")


@pytest.fixture
def picture(tmp_path: Path) -> Heatmap:
    Image.new("RGB", (40, 20), (200, 30, 30)).save(tmp_path / "picture.jpg")
    return Heatmap("PNEUMONIA", True, "picture.jpg", rows=16, columns=12)


RANKING = Ranking("NORMAL")


def studies_of(frames: Iterable[FramePrediction], ranking: Ranking = RANKING) -> list[Study]:
    """Studies in the order in which the ledger gives them: the most urgent first."""
    groups: dict[str, list[FramePrediction]] = {}
    for frame in frames:
        groups.setdefault(frame.key.study_instance_uid, []).append(frame)
    urgency = {uid: ranking.of_study(group) for uid, group in groups.items()}
    studies = [Study(uid, ranking.sorted(group), rank=urgency[uid][0]) for uid, group in groups.items()]
    return sorted(studies, key=lambda study: urgency[study.study_instance_uid], reverse=True)


def write_studies(tmp_path: Path, bundle: Bundle, studies: list[Study], **more: Any) -> str:
    totals = reduce(Totals.plus, studies, Totals())
    failures = [failure for study in studies for failure in study.failures]
    write_report(tmp_path, bundle, iter(studies), failures, totals, **more)
    return (tmp_path / "report.html").read_text(encoding="utf-8")


def write(tmp_path: Path, bundle: Bundle, frames: list[FramePrediction], failures: list[Quarantined] | None = None) -> str:
    """Write the report of some frames, and of files beside them that are no studies."""
    ranking = Ranking(bundle.manifest.normal_label, bundle.manifest.urgency)
    beside = tuple(replace(failure, reason="not_an_image") for failure in failures or ())
    studies = [*studies_of(frames, ranking), Study("", (), beside)]
    write_report(tmp_path, bundle, iter(studies), failures or (), reduce(Totals.plus, studies, Totals()))
    return (tmp_path / "report.html").read_text(encoding="utf-8")


def test_the_most_urgent_study_comes_first(tmp_path: Path, bundle: Bundle) -> None:
    frames = [make_scored(1, 0.1), make_scored(2, 0.6), make_scored(3, 0.4), make_scored(4, 0.99)]
    page = Page(write(tmp_path, bundle, frames))
    headings = re.findall(r"\d\. (study\d\.dcm)", page.text)
    assert headings == ["study4.dcm", "study2.dcm", "study3.dcm", "study1.dcm"]
    assert [attributes["class"] for attributes in page.all("section")] == [*["study urgent"] * 2, *["study calm"] * 2]


def test_a_positive_comes_before_a_higher_probability_that_is_negative() -> None:
    low = make_result(make_prediction("A", 0.2, positive=True), make_prediction("B", 0.1, positive=False))
    high = make_result(make_prediction("A", 0.1, False), make_prediction("B", 0.8, False), key=make_key(number=2))
    studies = studies_of([high, low], Ranking())
    assert [study.rank for study in studies] == [URGENT, 0]


def test_digits_that_are_not_written_decide_about_no_order() -> None:
    low, high = 0.87650001, 0.87650002
    frames = [make_scored(1, low), make_scored(2, high)]
    assert RANKING.of_study(frames[:1]) == RANKING.of_study(frames[1:]) == (URGENT, 0.8765)
    volume = [make_scored(1, low, frame_number=1), make_scored(1, high, frame_number=2)]
    assert [frame.key.frame_number for frame in RANKING.sorted(volume)] == [1, 2]


def test_frames_of_one_study_stand_together_the_most_urgent_first() -> None:
    frames = [make_scored(1, 0.3, frame_number=1), make_scored(2, 0.6), make_scored(1, 0.8, frame_number=2)]
    first, second = studies_of(frames)
    assert [frame.key.frame_number for frame in first.frames] == [2, 1]
    assert len(second.frames) == 1


def test_only_the_first_frames_of_a_volume_are_shown_large(tmp_path: Path, bundle: Bundle) -> None:
    frames = [make_scored(1, number / 20, "oct.dcm", number) for number in range(1, 11)]
    page = Page(write(tmp_path, bundle, frames))
    assert len(page.all("article")) == 3
    assert "7 more images, less urgent" in page.text
    assert re.findall(r"Frame (\d+)", page.text) == [str(number) for number in range(10, 0, -1)]


def test_it_says_what_it_is_for_and_what_it_is_not(tmp_path: Path, bundle: Bundle) -> None:
    text = Page(write(tmp_path, bundle, [make_scored(1, 0.9)])).text
    assert "Not a medical device; not for diagnosis." in text
    assert bundle.manifest.bundle_id in text
    assert "looks for PNEUMONIA in images of modality CR, DX" in text


def test_pictures_are_in_the_page_and_have_a_text_alternative(tmp_path: Path, bundle: Bundle, picture: Heatmap) -> None:
    page = Page(write(tmp_path, bundle, [make_scored(1, 0.9, heatmaps=(picture,))]))
    assert [image["class"] for image in page.all("img")] == ["thumbnail"]
    (name,) = (one["aria-label"] for one in page.all("svg") if "aria-label" in one)
    assert name == "Frame 1, and beside it the same with the heatmap of PNEUMONIA: positive evidence"
    (image,) = page.all("image")
    header, _, content = str(image["href"]).partition(",")
    assert header == "data:image/jpeg;base64"
    with Image.open(io.BytesIO(base64.b64decode(content))) as shown:
        assert shown.size == (40, 20)


def test_what_the_gate_found_is_said_of_the_frame_and_named_in_the_list(tmp_path: Path, bundle: Bundle) -> None:
    frame = make_scored(1, 0.9)
    flags = (Flag(Check.WHITE_BORDERS, "White wedges <there>."), Flag(Check.ROTATED, "Upside down."))
    page = write(tmp_path, bundle, [replace(frame, flags=flags), make_scored(2, 0.1)])
    assert page.count("White wedges &lt;there&gt;.") == page.count("Upside down.") == 1
    assert page.count(">White wedges at the edges<br>On its side or upside down</td>") == 1


def test_failures_are_listed_with_their_reasons(tmp_path: Path, bundle: Bundle) -> None:
    text = Page(write(tmp_path, bundle, [], [Quarantined("bad.dcm", "truncated", "The file is cut.")])).text
    for part in ("Not scored", "bad.dcm", "File cut off", "The file is cut.", "No study was scored."):
        assert part in text


def test_a_bundle_whose_heatmaps_failed_their_checks_says_so_on_every_page(tmp_path: Path, bundle: Bundle) -> None:
    frames = [make_scored(number, 0.9) for number in range(STUDIES_A_PAGE + 1)]
    doubtful = make_bundle(tmp_path / "doubtful", heatmap=make_support("randomisation"))
    caveat = "The heatmaps of this bundle failed checks (randomisation): do not rely on them."
    assert '<p class="warning">' + caveat + "</p>" in write(tmp_path, doubtful, frames)
    assert caveat in Page((tmp_path / "report-2.html").read_text(encoding="utf-8")).text
    assert "failed checks" not in write(tmp_path, bundle, frames)


@pytest.mark.parametrize(
    ("method", "computed", "is_part"),
    [
        ("grad-cam", "closed_form", True),
        ("hirescam", "closed_form", True),
        ("layercam", "closed_form", False),
        ("grad-cam", "gradient", False),
    ],
)
def test_only_exact_evidence_is_called_so(tmp_path: Path, method: str, computed: str, is_part: bool) -> None:
    support = make_support(method=method, computed=computed, exact=computed == "closed_form")
    bundle = make_bundle(tmp_path / "bundle", heatmap=support)
    text = Page(write(tmp_path, bundle, [make_scored(1, 0.9)])).text
    assert ("adds to the model's output for the label: exact evidence" in text) == is_part
    assert ("does not say how much a part changes the probability" in text) != is_part
    assert "The last colour stands for 2;" in text
    assert "logit" not in text
    assert f"({method}, {'in closed form' if computed == 'closed_form' else 'by a backward pass'})" in text
    assert "An empty heatmap means that nothing supported the label" in text


def test_nothing_from_a_file_becomes_markup(tmp_path: Path, picture: Heatmap) -> None:
    evil = "<script>alert(1)</script>\"'>&.dcm"
    bundle = make_bundle(tmp_path / "bundle", labels=("<b>NORMAL", evil), members=(make_member(evil),))
    predictions = tuple(make_prediction(label) for label in bundle.manifest.labels)
    frame = replace(make_result(*predictions, source=evil), heatmaps=(Heatmap(evil, False, picture.picture),))
    patient = Patient({Detail.NAME: evil, Detail.ID: evil}, why_unknown="")
    study = Study("1.2", (frame,), (Quarantined(evil, evil, evil),), patient=patient)
    for shown in (study, replace(study, frames=(), patient=Patient(why_unknown=evil))):
        content = write_studies(tmp_path, bundle, [shown], source=evil, details=set(Detail))
        page = Page(content)
        assert not page.all("script")
        assert not re.search(r"<b>NORMAL|\"'>", content)
        assert evil in page.text


def test_it_loads_nothing_and_runs_nothing(tmp_path: Path, bundle: Bundle, picture: Heatmap) -> None:
    content = write(tmp_path, bundle, [make_scored(1, 0.9, heatmaps=(picture,))], [Quarantined("x", "y", "z")])
    page = Page(content)
    assert not {tag for tag, _ in page.tags} & {"script", "link", "iframe", "object"}
    assert not re.search(r"https?://|@import|url\(", content)
    targets = [str(attributes["href"]) for attributes in page.all("a")]
    places = {attributes["id"] for _, attributes in page.tags if "id" in attributes}
    assert targets
    assert {target.removeprefix("#") for target in targets} <= places


@pytest.mark.slow
def test_a_heatmap_is_made_faint_or_left_out_without_a_script(tmp_path: Path, bundle: Bundle, chromium: Chromium) -> None:
    picture = np.zeros((240, 8 + 2 * 300 + 96, 3), np.uint8)
    picture[:200, :300], picture[:200, 308:608] = (0, 0, 255), (255, 0, 0)  # the frame, and the frame with its heatmap
    Image.fromarray(picture).save(tmp_path / "heatmap.png")
    shown = Heatmap("PNEUMONIA", True, "heatmap.png", rows=200, columns=300)
    write(tmp_path, bundle, [make_scored(1, 0.9, heatmaps=(shown,))])
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    seen = {}
    for how in ("full", "faint", "off"):
        chosen = page.replace(" checked>", ">").replace(f'class="{how}">', f'class="{how}" checked>')
        (tmp_path / "report.html").write_text(chosen, encoding="utf-8")
        chromium.screenshot(tmp_path / "report.html", tmp_path / "screen.png")
        with Image.open(tmp_path / "screen.png") as screen:
            pixels = np.asarray(screen.convert("RGB")).reshape(-1, 3)
        seen[how] = [int((pixels == colour).all(axis=1).sum()) for colour in ((0, 0, 255), (255, 0, 0))]
    assert seen["full"] == pytest.approx([60_000, 60_000], rel=0.02)  # the picture as it was drawn, but for its edges
    assert seen["faint"] == pytest.approx([60_000, 0], rel=0.02, abs=1500)
    assert seen["off"] == pytest.approx([120_000, 0], rel=0.02, abs=1500)  # the frame lies over its heatmap


def test_equal_input_gives_equal_bytes(tmp_path: Path, bundle: Bundle, picture: Heatmap) -> None:
    frames = [make_scored(1, 0.9, heatmaps=(picture,)), make_scored(2, 0.2)]
    assert write(tmp_path, bundle, frames) == write(tmp_path, bundle, frames)


def test_a_study_of_several_files_says_so(tmp_path: Path, bundle: Bundle) -> None:
    frames = [make_scored(1, 0.9, "patient/study/a.dcm"), make_scored(1, 0.2, "patient/study/b.dcm", 2)]
    text = Page(write(tmp_path, bundle, frames)).text
    for part in ("1. patient/study/a.dcm and 1 more file", "a.dcm, frame 1", "b.dcm, frame 2"):
        assert part in text


def test_many_studies_fill_several_pages_that_lead_to_each_other(tmp_path: Path, bundle: Bundle) -> None:
    (tmp_path / "report-9.html").write_text("of an earlier run")
    count = 2 * STUDIES_A_PAGE + 5
    frames = [make_scored(number, (count - number) / count / 2) for number in range(count)]
    write(tmp_path, bundle, frames, [Quarantined("x.dcm", "not_an_image", "No image.")])
    names = ["report.html", "report-2.html", "report-3.html"]
    assert sorted(path.name for path in tmp_path.glob("report*.html")) == sorted(names)
    pages = [Page((tmp_path / name).read_text(encoding="utf-8")) for name in names]
    ranks = [re.findall(r"(\d+)\. study(\d+)\.dcm", page.text) for page in pages]
    assert [len(found) for found in ranks] == [STUDIES_A_PAGE, STUDIES_A_PAGE, 5]
    assert [int(rank) - 1 for found in ranks for rank, _ in found] == list(range(count))
    assert [int(number) for found in ranks for _, number in found] == list(range(count))
    for page in pages:
        links = {str(attributes["href"]) for attributes in page.all("a")}
        assert set(names) <= links | {"report.html"}
    assert ["x.dcm" in page.text for page in pages] == [True, False, False]
    write(tmp_path, bundle, frames[:3])
    assert [path.name for path in tmp_path.glob("report*.html")] == ["report.html"]


def test_more_failures_than_anyone_reads_are_left_to_the_table(tmp_path: Path, bundle: Bundle) -> None:
    failures = [Quarantined(f"{number}.dcm", "not_an_image", "No image.") for number in range(FAILURES_SHOWN + 3)]
    text = Page(write(tmp_path, bundle, [make_scored(1, 0.9)], failures)).text
    assert f"These are the first {FAILURES_SHOWN}; failures.csv lists all {FAILURES_SHOWN + 3}." in text
    assert text.count(".dcmall") == FAILURES_SHOWN


def test_each_eye_has_its_result(tmp_path: Path, bundle: Bundle) -> None:
    frames = []
    for number, (side, value) in enumerate([("R", 0.2), ("R", 0.9), ("L", 0.1), ("", 0.3)], 1):
        scored = make_scored(1, value, "oct.dcm", number)
        frames.append(seen(scored, laterality=side))
    text = Page(write(tmp_path, bundle, frames)).text
    assert "Right: PNEUMONIA 90.0 % positive (2 images)" in text
    assert "Left: PNEUMONIA 10.0 % negative (1 image)" in text


def test_what_is_positive_in_a_less_urgent_frame_is_said_of_study_and_eye(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "bundle", ("NORMAL", "PNEUMONIA", "EFFUSION"))
    frames = []
    for number, (pneumonia, effusion) in enumerate([(0.9, 0.1), (0.8, 0.1), (0.7, 0.1), (0.1, 0.6)], 1):
        key = make_key(number)
        values = {"NORMAL": 0.05, "PNEUMONIA": pneumonia, "EFFUSION": effusion}
        predictions = (make_prediction(label, value, value > 0.5) for label, value in values.items())
        result = make_result(*predictions, source="oct.dcm", key=key)
        frames.append(seen(result, laterality="R"))
    page = Page(re.sub(r"<details>.*?</details>", "", write(tmp_path, bundle, frames), flags=re.DOTALL))
    text = page.text
    said = "PNEUMONIA 90.0 % positive; EFFUSION 60.0 % positive (4 images)"
    assert f"All images: {said}" in text
    assert f"Right: {said}" in text
    assert "also EFFUSION" in text


def test_the_first_page_has_an_excerpt_of_the_model_card_and_each_has_the_limits(tmp_path: Path, bundle: Bundle) -> None:
    frames = [make_scored(number, 0.9) for number in range(STUDIES_A_PAGE + 1)]
    first = Page(write(tmp_path, bundle, frames)).text
    second = Page((tmp_path / "report-2.html").read_text(encoding="utf-8")).text
    assert first.count("From the model card") == 2
    assert second.count("From the model card") == 1
    assert all("without earlier studies" in text for text in (first, second))


def test_uncertain_stands_between_positive_and_negative(tmp_path: Path, bundle: Bundle) -> None:
    frames = [make_scored(1, 0.45), make_unsure(make_scored(2, 0.4)), make_scored(3, 0.6)]
    page = Page(write(tmp_path, bundle, frames))
    assert re.findall(r"\d\. (study\d)\.dcm", page.text) == ["study3", "study2", "study1"]
    assert "uncertain" in page.text


def text_of(content: str) -> str:
    """What a reader reads, blanks joined."""
    return Page(content).text


def row_of(content: str, rank: int) -> str:
    """What stands in one row of the worklist."""
    (row,) = re.findall(rf'<tr id="row-{rank}".*?</tr>', content, re.DOTALL)
    return " ".join(unescape(re.sub(r"<[^>]*>", " ", row)).split())


def seen(frame: FramePrediction, **facts: str) -> FramePrediction:
    return replace(frame, facts=replace(frame.facts, **facts))


def make_unsure(frame: FramePrediction) -> FramePrediction:
    unsure = tuple(replace(one, state=State.UNCERTAIN) for one in frame.predictions)
    return replace(frame, predictions=unsure)


@pytest.mark.parametrize("eye", ["R", "L"])
def test_the_worklist_names_the_file_the_eye_and_the_view_that_decided(tmp_path: Path, eye: str) -> None:
    use = {"modalities": ("OPT",), "view_positions": ()}
    bundle = make_bundle(tmp_path / "bundle", intended_use=use)
    chances = {"R": 0.9, "L": 0.1} if eye == "R" else {"R": 0.2, "L": 0.8}
    names = {"R": "p/a-right.dcm", "L": "p/b-left.dcm"}
    frames = [
        seen(make_scored(1, chances[side], names[side], number), laterality=side, view_position="PA")
        for number, side in enumerate(names, 1)
    ]
    row = row_of(write(tmp_path, bundle, frames), 1)
    other = names["L" if eye == "R" else "R"]
    assert names[eye] in row
    assert other not in row
    words = {"R": "right eye (OD)", "L": "left eye (OS)"}[eye]
    assert f"{words}, view PA, 1 more file" in row


def test_the_report_says_for_whom_the_model_is_meant(tmp_path: Path) -> None:
    use = {"modalities": ("CR", "DX"), "view_positions": ("PA", "AP"), "ages": (0, 17)}
    bundle = make_bundle(tmp_path / "bundle", intended_use=use)
    words = text_of(write(tmp_path, bundle, [make_scored(1, 0.9)]))
    assert "in images of modality CR, DX, view PA, AP, of patients aged 0 to 17 years." in words


def test_a_side_is_an_eye_only_where_the_model_looks_at_eyes(tmp_path: Path, bundle: Bundle) -> None:
    content = write(tmp_path, bundle, [seen(make_scored(1, 0.9), laterality="R", view_position="AP")])
    assert "right, view AP" in row_of(content, 1)
    assert "eye" not in text_of(content)
    assert "AP: antero-posterior" in text_of(content)


def test_a_frame_of_a_volume_that_decided_is_named(tmp_path: Path, bundle: Bundle) -> None:
    frames = [make_scored(1, chance, "volume.dcm", number) for number, chance in enumerate((0.2, 0.9, 0.4), 1)]
    assert "volume.dcm frame 2 PNEUMONIA 90.0 % positive" in row_of(write(tmp_path, bundle, frames), 1)


def test_a_study_that_was_scored_in_part_says_so_in_its_row_and_its_card(tmp_path: Path, bundle: Bundle) -> None:
    (study,) = studies_of([make_scored(1, 0.1, "p/a.dcm")])
    refused = Quarantined("p/b.dcm", "too_small", "The frame has 8 rows.")
    content = write_studies(tmp_path, bundle, [replace(study, failures=(refused,))])
    assert "1 of 2 images not scored" in row_of(content, 1)
    card = text_of(content).partition("1. p/a.dcm and 1 more file")[2]
    assert "1 of 2 images not scored. The results say nothing about what is missing." in card
    assert "b.dcm: too small. The frame has 8 rows." in card
    assert "1scored in part" in text_of(content)


def test_a_study_of_which_nothing_was_scored_stands_before_the_negative_ones(tmp_path: Path, bundle: Bundle) -> None:
    scored = studies_of([make_scored(1, 0.9), make_unsure(make_scored(2, 0.4)), make_scored(3, 0.1)])
    cut = Quarantined("cut.dcm", "truncated", "The file is cut off.")
    unscored = Study("1.2.9", (), (cut, replace(cut, source="cut2.dcm")), rank=RANKING.of_study([])[0])
    letter = Study("", (), (Quarantined("letter.txt", "not_an_image", "No image."),), rank=NOT_SCORED)
    order = sorted([*scored, unscored, letter], key=lambda study: study.rank, reverse=True)
    content = write_studies(tmp_path, bundle, order)
    assert re.findall(r"\d\. (study\d|cut)\.dcm", Page(content).text) == ["study1", "study2", "cut", "study3"]
    row = row_of(content, 3)
    assert "cut.dcm 1 more file not scored 2 of 2 images not scored: file cut off" in row
    assert '<tr id="row-5"' not in content
    assert "1studies not scored" in text_of(content)
    assert "letter.txt" in text_of(content).partition("Not scored:")[2]


def test_an_uncertain_normal_label_does_not_look_positive(tmp_path: Path, bundle: Bundle) -> None:
    frame = make_unsure(make_scored(1, 0.2))
    content = write(tmp_path, bundle, [frame])
    assert re.findall(r'No finding: <span class="state ([a-z]+)">([a-z]+)</span>', content) == [("uncertain", "uncertain")]
    assert "found" not in re.findall(r'<div class="label([^"]*)">', content)


def test_the_label_of_no_finding_is_likely_or_unlikely(tmp_path: Path, bundle: Bundle) -> None:
    text = text_of(write(tmp_path, bundle, [make_scored(1, 0.9), make_scored(2, 0.1)]))
    assert "No finding: unlikely" in text
    assert "No finding: likely" in text
    assert text.count("No finding: the label NORMAL") == 1


def test_the_configured_order_of_findings_comes_before_their_probability(tmp_path: Path) -> None:
    labels = ("NORMAL", "CNV", "DME", "DRUSEN", "OTHER")
    bundle = make_bundle(tmp_path / "bundle", labels, urgency=("CNV", "DME", "DRUSEN"))
    ranking = Ranking("NORMAL", bundle.manifest.urgency)
    frames = []
    for number, (label, chance) in enumerate([("OTHER", 0.99), ("DRUSEN", 0.98), ("CNV", 0.6), ("DME", 0.97), ("CNV", 0.7)], 1):
        key = make_key(number=number)
        chances = {name: chance if name == label else 0.01 for name in labels}
        made = (make_prediction(name, value, positive=value > 0.5) for name, value in chances.items())
        frames.append(make_result(*made, source=f"{number}.dcm", key=key))
    content = write(tmp_path, bundle, frames)
    assert re.findall(r"\d\. (\d)\.dcm", Page(content).text) == ["5", "3", "4", "2", "1"]
    assert re.findall("|".join(labels[1:]), "".join(row_of(content, rank) for rank in range(1, 6))) == [
        *("CNV", "CNV", "DME", "DRUSEN", "OTHER")
    ]
    both = (make_prediction("DRUSEN", 0.99), make_prediction("CNV", 0.6), make_prediction("DME", 0.9, positive=False))
    assert [one.label for one in ranking.findings(both)] == ["CNV", "DRUSEN", "DME"]
    negative = tuple(replace(one, state=State.NEGATIVE) for one in both)
    assert [one.label for one in ranking.findings(negative)] == ["DRUSEN", "DME", "CNV"]


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        *((1.0, ">99.9 %"), (0.99951, ">99.9 %"), (0.9991, ">99.9 %"), (0.999, "99.9 %"), (0.5, "50.0 %")),
        *((0.001, "0.1 %"), (0.0009, "<0.1 %"), (0.0, "<0.1 %")),
    ],
)
def test_a_probability_is_never_a_certainty(tmp_path: Path, bundle: Bundle, value: float, shown: str) -> None:
    assert percent(value) == shown
    content = write(tmp_path, bundle, [make_scored(1, value)])
    assert shown in row_of(content, 1)
    assert not re.search(r"\b(100\.0|0\.0) ?%", content)


def test_a_rate_that_was_measured_may_be_all_or_none() -> None:
    assert [rate(value) for value in (1.0, 0.0, 0.9999, 0.00001, 0.876)] == ["100 %", "0 %", "99.9 %", "0.1 %", "87.6 %"]


def test_abbreviations_are_spelled_out_once_a_page(tmp_path: Path) -> None:
    names = {"CNV": "choroidal neovascularisation", "DME": "diabetic <macular> oedema"}
    bundle = make_bundle(
        tmp_path / "bundle",
        ("NORMAL", "CNV", "DME"),
        label_names=names,
        intended_use={"modalities": ("OPT",), "view_positions": ()},
    )
    made = [make_prediction(label, 0.4, positive=False) for label in bundle.manifest.labels]
    text = text_of(write(tmp_path, bundle, [seen(make_result(*made), laterality="L")]))
    for words in (*names.values(), "oculus sinister, the left eye", "ophthalmic tomography"):
        assert text.count(words) == 1
    assert "oculus dexter" not in text
    assert spelled_out("ECE of OPT, and of OCT") == {"ECE": "expected calibration error", "OPT": "ophthalmic tomography"}


def test_abbreviations_of_the_model_card_are_spelled_out_below_it(tmp_path: Path) -> None:
    evaluation = evaluate(make_sample(labels=("NORMAL", "PNEUMONIA")), 10).to_json()
    bundle = make_bundle(tmp_path / "bundle", metrics={"evaluation": evaluation})
    text = text_of(write(tmp_path, bundle, []))
    assert "F1: harmonic mean of precision and sensitivity; MCC: Matthews correlation coefficient" in text


def test_every_reason_and_check_has_plain_words() -> None:
    assert REASONS.keys() >= {*Reason, *Check}
    assert not [words for words in REASONS.values() if "_" in words]


def test_each_card_leads_to_the_next_the_previous_and_back_to_the_list(tmp_path: Path, bundle: Bundle) -> None:
    count = STUDIES_A_PAGE + 2
    write(tmp_path, bundle, [make_scored(number, (count - number) / count / 2) for number in range(count)])
    ways: dict[int, list[str]] = {}
    for name in ("report.html", "report-2.html"):
        content = (tmp_path / name).read_text(encoding="utf-8")
        for rank, links in re.findall(r'<nav class="ways" aria-label="From study (\d+)">(.*?)</nav>', content):
            ways[int(rank)] = re.findall(r'href="([^"]+)"', links)
    assert len(ways) == count
    assert ways[1] == ["#study-2", "#row-1"]
    assert ways[2] == ["#study-3", "#study-1", "#row-2"]
    last = STUDIES_A_PAGE
    assert ways[last] == [f"report-2.html#study-{last + 1}", f"#study-{last - 1}", f"#row-{last}"]
    assert ways[last + 1] == [f"#study-{last + 2}", f"report.html#study-{last}", f"#row-{last + 1}"]
    assert ways[count] == [f"#study-{count - 1}", f"#row-{count}"]


def test_the_list_shows_the_frame_itself_small(tmp_path: Path, bundle: Bundle) -> None:
    drawn = Image.new("RGB", (600, 300), (200, 30, 30))
    drawn.paste((90, 90, 90), (0, 0, 250, 200))
    drawn.save(tmp_path / "picture.jpg", quality=95)
    picture = Heatmap("PNEUMONIA", True, "picture.jpg", rows=200, columns=250)
    content = write(tmp_path, bundle, [make_scored(1, 0.9, heatmaps=(picture,))])
    (source,) = re.findall(r'class="thumbnail" alt="" width="\d+" height="\d+" src="data:image/jpeg;base64,([^"]+)"', content)
    with Image.open(io.BytesIO(base64.b64decode(source))) as small:
        assert small.size == (90, 72)
        assert np.abs(np.asarray(small, np.int16) - 90).max() < 4
    (tmp_path / "picture.jpg").write_bytes((tmp_path / "picture.jpg").read_bytes()[:200])
    assert "thumbnail" not in write(tmp_path, bundle, [make_scored(1, 0.9, heatmaps=(picture,))]).partition("</style>")[2]


def test_the_report_says_which_folder_when_and_what_is_new(tmp_path: Path, bundle: Bundle) -> None:
    times = (1_700_000_000.0, 1_700_086_400.0, 1_700_090_000.0)
    frames = [make_scored(number, 0.9 - number / 10) for number in range(3)]
    studies = [replace(one, scored_at=at, is_new=at > times[1]) for one, at in zip(studies_of(frames), times, strict=True)]
    content = write_studies(tmp_path, bundle, studies, source="incoming", since=times[1])
    shown = [f"{moment(at):%Y-%m-%d %H:%M}" for at in times]
    assert f"Folder incoming scored from {shown[0]} to {shown[2]}; 1 study new since the report of {shown[1]}" in text_of(
        content
    )
    assert [row_of(content, rank).endswith(f"{at} new") for rank, at in enumerate(shown, 1)] == [False, False, True]
    assert datetime.fromisoformat(re.findall(r'<time datetime="([^"]+)"', content)[0]) == datetime.fromtimestamp(times[0], UTC)
    old = [replace(one, is_new=False) for one in studies]
    soon = [replace(one, scored_at=times[0] - times[0] % 60 + rank) for rank, one in enumerate(studies)]
    assert f"scored {shown[0]}" in text_of(write_studies(tmp_path, bundle, soon))
    assert "nothing new since the report of" in text_of(write_studies(tmp_path, bundle, old, since=times[2]))
    assert "new since" not in text_of(write_studies(tmp_path, bundle, old))


def test_what_a_killed_run_left_of_a_page_is_removed(tmp_path: Path, bundle: Bundle) -> None:
    (tmp_path / ".report-7.html.part").write_text("Doe, Jane")
    write(tmp_path, bundle, [make_scored(1, 0.9)])
    assert not list(tmp_path.glob(".report*"))


@pytest.mark.slow
def test_every_sheet_names_its_study_and_has_a_number(
    tmp_path: Path, bundle: Bundle, picture: Heatmap, chromium: Chromium
) -> None:
    if shutil.which("pdftotext") is None:
        pytest.skip("pdftotext is not here: install Debian's package poppler-utils")
    Image.new("RGB", (600, 300), (20, 20, 20)).save(tmp_path / "picture.jpg")
    frames = [
        make_scored(number, 0.9 - number / 100, f"study{number}.dcm", frame, heatmaps=(picture,))
        for number in range(6)
        for frame in range(1, 4)
    ]
    failures = [Quarantined(f"bad{number}.dcm", "truncated", "The file is cut off.") for number in range(60)]
    content = write(tmp_path, bundle, frames, failures)
    opened = content.replace('<details class="optional"', '<details open class="optional"')
    (tmp_path / "opened.html").write_text(opened, encoding="utf-8")
    sheets = {}
    for name in ("report", "opened"):
        chromium.pdf(tmp_path / f"{name}.html", tmp_path / f"{name}.pdf")
        told = subprocess.run(
            ["pdftotext", "-layout", tmp_path / f"{name}.pdf", "-"], capture_output=True, text=True, check=True
        )
        sheets[name] = told.stdout.split("\f")[:-1]
    count = len(sheets["report"])
    assert [f"Page {number} of {count}" in sheet for number, sheet in enumerate(sheets["report"], 1)] == [True] * count
    cards = [sheet for sheet in sheets["report"] if re.search(r"^\s*Frame \d", sheet, re.MULTILINE)]
    assert len(cards) > 3
    for sheet in cards:
        places = [match.start() for match in re.finditer(r"Frame \d", sheet)]
        assert re.search(r"\d\. study\d\.dcm", sheet[: places[0]])  # whose pictures follow is said above them
    for sheet in sheets["report"]:
        assert not re.search(r"\d\. study\d\.dcm\s[^\f]{0,60}\n+\s*Page \d+ of", sheet)  # no heading at the foot of a sheet
    assert not any("bad0.dcm" in sheet for sheet in sheets["report"])
    extra = sheets["opened"][count - 1 :]
    assert "bad0.dcm" in "".join(extra)
    assert not any(re.search(r"\d\. study\d\.dcm", sheet) for sheet in extra[1:])


@pytest.mark.slow
def test_no_sheet_ends_between_a_heading_and_its_first_frame(tmp_path: Path, bundle: Bundle, chromium: Chromium) -> None:
    if shutil.which("pdftotext") is None:
        pytest.skip("pdftotext is not here: install Debian's package poppler-utils")
    content = write(tmp_path, bundle, [make_scored(number, 0.9 - number / 100) for number in range(50)])
    content = content.replace("Study Instance UID ", f"Study Instance UID {'1.2.345678' * 11} ")  # wraps, as real ones do
    heights = iter(range(100))
    spaced = re.sub('<section class="study', lambda card: f'<p style="height: {next(heights) % 23}mm"></p>{card[0]}', content)
    (tmp_path / "spaced.html").write_text(spaced, encoding="utf-8")
    chromium.pdf(tmp_path / "spaced.html", tmp_path / "spaced.pdf")
    told = subprocess.run(["pdftotext", "-layout", tmp_path / "spaced.pdf", "-"], capture_output=True, text=True, check=True)
    parts = [re.split(r"\d\. study\d+\.dcm", sheet) for sheet in told.stdout.split("\f")]
    assert sum(len(part) > 1 for part in parts) > 5
    assert all("Frame 1" in after for part in parts for after in part[1:])


@pytest.mark.slow
def test_frames_that_are_folded_on_screen_are_printed(tmp_path: Path, bundle: Bundle, chromium: Chromium) -> None:
    content = write(tmp_path, bundle, [make_scored(1, 0.9 - number / 200, "oct.dcm", number) for number in range(1, 120)])
    (tmp_path / "unfolded.html").write_text(content.replace("<details>", "<details open>"), encoding="utf-8")
    pages = []
    for name in ("report", "unfolded"):
        chromium.pdf(tmp_path / f"{name}.html", tmp_path / f"{name}.pdf")
        pages.append(max(int(number) for number in re.findall(rb"/Count (\d+)", (tmp_path / f"{name}.pdf").read_bytes())))
    assert pages[0] == pages[1] > 3


@pytest.mark.slow
def test_a_browser_shows_and_prints_it(tmp_path: Path, bundle: Bundle, picture: Heatmap, chromium: Chromium) -> None:
    frames = [make_scored(number, 1 - number / 20, heatmaps=(picture,)) for number in range(12)]
    write(tmp_path, bundle, frames, [Quarantined("<b>x</b>.dcm", "not_an_image", "No image.")])
    page = tmp_path / "report.html"
    shown = Page(chromium.text(page).partition("<!DOCTYPE html>")[2])
    assert re.findall(r"\d+\. (study\d+)\.dcm", shown.text) == [f"study{number}" for number in range(12)]
    assert "<b>x</b>.dcm" in shown.text
    chromium.screenshot(page, tmp_path / "screen.png")
    with Image.open(tmp_path / "screen.png") as screen:
        assert screen.size == (1280, 1600)
        colours = screen.convert("RGB").getcolors(2**21)
    assert colours is not None
    assert any(red > 150 and green < 60 for _, (red, green, _) in colours)  # the findings stand out
    chromium.pdf(page, tmp_path / "page.pdf")
    content = (tmp_path / "page.pdf").read_bytes()
    assert content.startswith(b"%PDF")
    assert content.count(b"/Type /Page\n") + content.count(b"/Type /Page ") + content.count(b"/Type /Page/") > 1


@pytest.mark.slow
def test_everything_is_reached_by_the_keyboard(tmp_path: Path, bundle: Bundle, chromium: Chromium) -> None:
    frames = [make_scored(1, 0.9 - number / 20, "oct.dcm", number) for number in range(1, 8)]
    write(tmp_path, bundle, [*frames, make_scored(2, 0.3)], [Quarantined("x.dcm", "not_an_image", "No image.")])
    with chromium.reader(tmp_path / "report.html") as reader:
        stops = []
        for _ in range(8):
            reader.press("Tab", 9)
            stops.append(reader.evaluate(FOCUSED))
            assert reader.evaluate("getComputedStyle(document.activeElement).outlineStyle") != "none"
        listed, card = ["#study-1", "#study-2"], ["#study-2", "#row-1", "SUMMARY"]
        assert stops == ["#main", "#not-scored", "#model-card", *listed, *card]
        assert not reader.evaluate("document.querySelector('details').open")
        reader.press("Enter", 13)
        assert reader.evaluate("document.querySelector('details').open")
        reader.evaluate("document.querySelector('.ways a[href=\"#study-2\"]').focus()")
        reader.press("Enter", 13)
        assert reader.evaluate("location.hash") == "#study-2"
        reader.press("Tab", 9)
        assert reader.evaluate(FOCUSED) == "#study-1"  # the previous one, from the card that was reached
        reader.press("Tab", 9)
        reader.press("Enter", 13)
        assert reader.evaluate("location.hash") == "#row-2"
        reader.press("Tab", 9)
        assert reader.evaluate(FOCUSED) == "#study-2"  # back in the list, at the study


FOCUSED = "document.activeElement.getAttribute('href') || document.activeElement.tagName"


def test_it_says_how_often_the_bundle_is_uncertain(tmp_path: Path, bundle: Bundle) -> None:
    share = {"value": 0.184, "low": 0.1, "high": 0.26}
    measured = {"frames": 141, "patients": 78, "uncertain": share, "open_labels": share, "labels": {}}
    conformal = {"alpha": 0.1, "bands": (), "measured": measured}
    wary = make_bundle(tmp_path / "wary", conformal=conformal)
    said = text_of(write(tmp_path, wary, [make_scored(1, 0.9)]))
    assert "On its test data, 141 frames of 78 patients, this model was uncertain about" in said
    assert "at least one label in 18.4 % of the frames." in said
    assert "was not measured" in text_of(write(tmp_path, bundle, [make_scored(1, 0.9)]))
