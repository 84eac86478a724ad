"""The report page: order, what it says, that it is safe and whole, read with the standard library's HTML parser."""

import base64
import io
import re
from dataclasses import replace
from functools import reduce
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

from pipeline.intake import Check, Flag
from pipeline.model.bundle import Bundle
from pipeline.records import Quarantined
from pipeline.results.record import StudyRecord
from pipeline.results.report import FAILURES_SHOWN, STUDIES_A_PAGE, write_report
from pipeline.results.totals import Totals
from pipeline.results.worklist import URGENT, Picture, ReportFrame, study_of, urgency_of
from tests.builders import make_bundle, make_key, make_prediction, make_result, make_support
from tests.server_chromium import Chromium

VOID = {"meta", "img", "br"}


class Page(HTMLParser):
    """Collects tags, attributes and text, and checks that every tag is closed in order."""

    def __init__(self, content: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(content)
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


def make_scored(number: int, pneumonia: float, source: str = "", frame_number: int = 1, **overrides: object) -> ReportFrame:
    key = make_key(frame_number, number)
    normal = make_prediction("NORMAL", 1 - pneumonia, positive=pneumonia < 0.5, key=key)
    finding = make_prediction("PNEUMONIA", pneumonia, positive=pneumonia >= 0.5, key=key)
    return ReportFrame(make_result(normal, finding, source=source or f"study{number}.dcm"), **overrides)  # type: ignore[arg-type]


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return make_bundle(tmp_path / "bundle")


@pytest.fixture
def picture(tmp_path: Path) -> Picture:
    Image.new("RGB", (40, 20), (200, 30, 30)).save(tmp_path / "picture.jpg")
    return Picture("PNEUMONIA", tmp_path / "picture.jpg", has_positive_evidence=True)


def records_of(frames: list[ReportFrame], normal_label: str | None = "NORMAL") -> list[StudyRecord]:
    """Studies in the order in which the ledger gives them: the most urgent first."""
    groups: dict[str, list[ReportFrame]] = {}
    for frame in frames:
        groups.setdefault(frame.prediction.key.study_instance_uid, []).append(frame)
    records = [StudyRecord(uid, tuple(group)) for uid, group in groups.items()]
    return sorted(records, key=lambda record: urgency_of(record.frames, normal_label), reverse=True)


def write(tmp_path: Path, bundle: Bundle, frames: list[ReportFrame], failures: list[Quarantined] | None = None) -> str:
    label = bundle.manifest.normal_label
    records = [*records_of(frames, label), StudyRecord("", (), tuple(failures or ()))]
    totals = reduce(lambda totals, record: totals.plus(record, label), records, Totals())
    write_report(tmp_path, bundle, iter(records), failures or (), totals)
    return (tmp_path / "report.html").read_text(encoding="utf-8")


def test_the_most_urgent_study_comes_first(tmp_path: Path, bundle: Bundle) -> None:
    frames = [make_scored(1, 0.1), make_scored(2, 0.6), make_scored(3, 0.4), make_scored(4, 0.99)]
    page = Page(write(tmp_path, bundle, frames))
    headings = re.findall(r"\d\. (study\d\.dcm)", page.text)
    assert headings == ["study4.dcm", "study2.dcm", "study3.dcm", "study1.dcm"]
    assert [attributes["class"] for attributes in page.all("section")] == ["study urgent", "study urgent", "study", "study"]


def test_a_positive_comes_before_a_higher_probability_that_is_negative() -> None:
    low = make_result(make_prediction("A", 0.2, positive=True), make_prediction("B", 0.1, positive=False))
    high_key = make_key(number=2)
    high = make_result(make_prediction("A", 0.1, False, key=high_key), make_prediction("B", 0.8, False, key=high_key))
    first, second = records_of([ReportFrame(high), ReportFrame(low)], None)
    assert [study_of("", record.frames, None).urgent for record in (first, second)] == [True, False]


def test_digits_that_are_not_written_decide_about_no_order() -> None:
    low, high = 0.87650001, 0.87650002
    frames = [make_scored(1, low), make_scored(2, high)]
    assert urgency_of(frames[:1], "NORMAL") == urgency_of(frames[1:], "NORMAL") == (URGENT, 0.8765)
    volume = [make_scored(1, low, frame_number=1), make_scored(1, high, frame_number=2)]
    assert [frame.prediction.key.frame_number for frame in study_of("", volume, "NORMAL").frames] == [1, 2]


def test_frames_of_one_study_stand_together_the_most_urgent_first() -> None:
    frames = [make_scored(1, 0.3, frame_number=1), make_scored(2, 0.6), make_scored(1, 0.8, frame_number=2)]
    first, second = (study_of("", record.frames, "NORMAL") for record in records_of(frames))
    assert [frame.prediction.key.frame_number for frame in first.frames] == [2, 1]
    assert len(second.frames) == 1


def test_only_the_first_frames_of_a_volume_are_shown_large(tmp_path: Path, bundle: Bundle) -> None:
    frames = [make_scored(1, number / 20, "oct.dcm", number) for number in range(1, 11)]
    page = Page(write(tmp_path, bundle, frames))
    assert len(page.all("article")) == 3
    assert "7 more frames, less urgent" in page.text
    assert re.findall(r"Frame (\d+)", page.text) == [str(number) for number in range(10, 0, -1)]


def test_it_says_what_it_is_for_and_what_it_is_not(tmp_path: Path, bundle: Bundle) -> None:
    text = Page(write(tmp_path, bundle, [make_scored(1, 0.9)])).text
    assert "Not a medical device; not for diagnosis." in text
    assert bundle.manifest.bundle_id in text
    assert "looks for NORMAL, PNEUMONIA in frames of modality CR, DX" in text


def test_pictures_are_in_the_page_and_have_a_text_alternative(tmp_path: Path, bundle: Bundle, picture: Picture) -> None:
    page = Page(write(tmp_path, bundle, [make_scored(1, 0.9, pictures=(picture,))]))
    (image,) = page.all("img")
    assert image["alt"] == "Frame 1, and beside it the same with the heatmap of PNEUMONIA: positive evidence"
    header, _, content = str(image["src"]).partition(",")
    assert header == "data:image/jpeg;base64"
    with Image.open(io.BytesIO(base64.b64decode(content))) as shown:
        assert shown.size == (40, 20)


def test_what_the_gate_found_is_said_of_the_frame_and_named_in_the_list(tmp_path: Path, bundle: Bundle) -> None:
    frame = make_scored(1, 0.9)
    flags = (Flag(Check.WHITE_BORDERS, "White wedges <there>."), Flag(Check.ROTATED, "Upside down."))
    page = write(tmp_path, bundle, [replace(frame, prediction=replace(frame.prediction, flags=flags)), make_scored(2, 0.1)])
    assert page.count("White wedges &lt;there&gt;.") == page.count("Upside down.") == 1
    assert page.count("<td>white borders, rotated</td>") == 1


def test_failures_are_listed_with_their_reasons(tmp_path: Path, bundle: Bundle) -> None:
    text = Page(write(tmp_path, bundle, [], [Quarantined("bad.dcm", "truncated", "The file is cut.")])).text
    for part in ("Not scored", "bad.dcm", "truncated", "The file is cut.", "No study was scored."):
        assert part in text


def test_a_bundle_without_exact_heatmaps_says_so(tmp_path: Path) -> None:
    heatmap = {"layer": "features", "classifier": "classifier.weight", "exact": False, "max_difference": 1.0}
    bundle = make_bundle(tmp_path / "bundle", heatmap=heatmap)
    assert "no exact heatmaps" in Page(write(tmp_path, bundle, [make_scored(1, 0.9)])).text


def test_a_bundle_whose_heatmaps_failed_their_checks_says_so_on_every_page(tmp_path: Path, bundle: Bundle) -> None:
    frames = [make_scored(number, 0.9) for number in range(STUDIES_A_PAGE + 1)]
    doubtful = make_bundle(tmp_path / "doubtful", heatmap=make_support("randomisation"))
    caveat = "The heatmaps of this bundle failed checks (randomisation): do not take them as a reason."
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
def test_only_what_is_part_of_the_logit_is_called_so(tmp_path: Path, method: str, computed: str, is_part: bool) -> None:
    bundle = make_bundle(tmp_path / "bundle", heatmap=make_support(method=method, computed=computed))
    text = Page(write(tmp_path, bundle, [make_scored(1, 0.9)])).text
    assert ("which part of the label's logit" in text) == ("doubles the odds" in text) == is_part
    assert ("no parts of the label's logit" in text) != is_part
    assert f"({method}, {'in closed form' if computed == 'closed_form' else 'by a backward pass'})" in text
    assert "An empty heatmap says that nothing spoke for the label" in text


def test_nothing_from_a_file_becomes_markup(tmp_path: Path, picture: Picture) -> None:
    evil = "<script>alert(1)</script>\"'>&.dcm"
    bundle = make_bundle(tmp_path / "bundle", labels=("<b>NORMAL", evil), architecture=evil)
    predictions = tuple(make_prediction(label) for label in bundle.manifest.labels)
    frame = ReportFrame(make_result(*predictions, source=evil), (Picture(evil, picture.path, False),))
    page = Page(write(tmp_path, bundle, [frame], [Quarantined(evil, evil, evil)]))
    assert not page.all("script")
    assert len(page.all("b")) == 4
    assert evil in page.text


def test_it_loads_nothing_and_runs_nothing(tmp_path: Path, bundle: Bundle, picture: Picture) -> None:
    content = write(tmp_path, bundle, [make_scored(1, 0.9, pictures=(picture,))], [Quarantined("x", "y", "z")])
    page = Page(content)
    assert not {tag for tag, _ in page.tags} & {"script", "link", "iframe", "object"}
    assert not re.search(r"https?://|@import|url\(", content)
    targets = [str(attributes["href"]) for attributes in page.all("a")]
    places = {attributes["id"] for _, attributes in page.tags if "id" in attributes}
    assert targets
    assert {target.removeprefix("#") for target in targets} == places


def test_equal_input_gives_equal_bytes(tmp_path: Path, bundle: Bundle, picture: Picture) -> None:
    frames = [make_scored(1, 0.9, pictures=(picture,)), make_scored(2, 0.2)]
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
    assert f"These are the first {FAILURES_SHOWN}; failures.csv has the other 3, too." in text
    assert text.count(".dcmall") == FAILURES_SHOWN


def test_each_eye_has_its_result(tmp_path: Path, bundle: Bundle) -> None:
    frames = []
    for number, (side, value) in enumerate([("R", 0.2), ("R", 0.9), ("L", 0.1), ("", 0.3)], 1):
        scored = make_scored(1, value, "oct.dcm", number)
        frames.append(replace(scored, prediction=replace(scored.prediction, laterality=side)))
    text = " ".join(Page(write(tmp_path, bundle, frames)).text.split())
    assert "Right (OD): PNEUMONIA 90.0% positive (2 frames)" in text
    assert "Left (OS): PNEUMONIA 10.0% negative (1 frame)" in text


def test_what_is_positive_in_a_less_urgent_frame_is_said_of_study_and_eye(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "bundle", ("NORMAL", "PNEUMONIA", "EFFUSION"))
    frames = []
    for number, (pneumonia, effusion) in enumerate([(0.9, 0.1), (0.8, 0.1), (0.7, 0.1), (0.1, 0.6)], 1):
        key = make_key(number)
        values = {"NORMAL": 0.05, "PNEUMONIA": pneumonia, "EFFUSION": effusion}
        predictions = (make_prediction(label, value, value > 0.5, key=key) for label, value in values.items())
        result = make_result(*predictions, source="oct.dcm")
        frames.append(ReportFrame(replace(result, laterality="R")))
    page = Page(re.sub(r"<details>.*?</details>", "", write(tmp_path, bundle, frames), flags=re.DOTALL))
    text = " ".join(page.text.split())
    said = "PNEUMONIA 90.0% positive; EFFUSION 60.0% positive (4 frames)"
    assert f"All frames: {said}" in text
    assert f"Right (OD): {said}" in text
    assert "also EFFUSION" in text


def test_the_first_page_has_an_excerpt_of_the_model_card_and_each_has_the_limits(tmp_path: Path, bundle: Bundle) -> None:
    frames = [make_scored(number, 0.9) for number in range(STUDIES_A_PAGE + 1)]
    first = Page(write(tmp_path, bundle, frames)).text
    second = Page((tmp_path / "report-2.html").read_text(encoding="utf-8")).text
    assert first.count("From the model card") == 2
    assert second.count("From the model card") == 1
    assert all("neither earlier studies" in text for text in (first, second))


def test_uncertain_stands_between_positive_and_negative(tmp_path: Path, bundle: Bundle) -> None:
    frames = [make_scored(1, 0.45), make_scored(2, 0.4), make_scored(3, 0.6)]
    result = frames[1].prediction
    unsure = tuple(replace(one, conformal_set=("present", "absent")) for one in result.predictions)
    frames[1] = replace(frames[1], prediction=replace(result, predictions=unsure))
    page = Page(write(tmp_path, bundle, frames))
    assert re.findall(r"\d\. (study\d)\.dcm", page.text) == ["study3", "study2", "study1"]
    assert "uncertain" in page.text


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
def test_a_browser_shows_and_prints_it(tmp_path: Path, bundle: Bundle, picture: Picture, chromium: Chromium) -> None:
    frames = [make_scored(number, 1 - number / 20, pictures=(picture,)) for number in range(12)]
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
        for _ in range(6):
            reader.press("Tab", 9)
            stops.append(reader.evaluate("document.activeElement.getAttribute('href') || document.activeElement.tagName"))
            assert reader.evaluate("getComputedStyle(document.activeElement).outlineStyle") != "none"
        assert stops == ["#main", "#model-card", "#not-scored", "#study-1", "#study-2", "SUMMARY"]
        assert not reader.evaluate("document.querySelector('details').open")
        reader.press("Enter", 13)
        assert reader.evaluate("document.querySelector('details').open")
        reader.evaluate("document.querySelector('a[href=\"#study-2\"]').focus()")
        reader.press("Enter", 13)
        assert reader.evaluate("location.hash") == "#study-2"
