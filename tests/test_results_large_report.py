"""A report of thousands of studies: a browser opens it, and its first page shows the most urgent of them."""

import re
from pathlib import Path

import pytest
from PIL import Image

from pipeline.frames import Quarantined
from pipeline.predictions import Heatmap
from pipeline.results.report import STUDIES_A_PAGE
from tests.builders import make_bundle
from tests.server_chromium import Chromium
from tests.test_results_report import Page, make_scored, write

STUDIES = 5000


@pytest.mark.slow
def test_a_report_of_five_thousand_studies_opens_in_a_browser(tmp_path: Path, chromium: Chromium) -> None:
    bundle = make_bundle(tmp_path / "bundle")
    Image.new("RGB", (224, 224), (200, 30, 30)).save(tmp_path / "picture.jpg")
    picture = Heatmap("PNEUMONIA", True, "picture.jpg", rows=200, columns=60)
    frames = [make_scored(number, (number + 0.5) / STUDIES, heatmaps=(picture,)) for number in range(STUDIES)]
    write(tmp_path, bundle, frames, [Quarantined("x.dcm", "not_an_image", "No image.")])
    pages = STUDIES // STUDIES_A_PAGE
    assert len(list(tmp_path.glob("report*.html"))) == pages
    for name, page in (("report.html", 1), (f"report-{pages}.html", pages)):
        shown = Page(chromium.text(tmp_path / name).partition("<!DOCTYPE html>")[2])
        first = (page - 1) * STUDIES_A_PAGE
        ranks = range(first, first + STUDIES_A_PAGE)
        found = re.findall(r"(\d+)\. (study\d+\.dcm)", shown.text)
        assert found == [(str(rank + 1), f"study{STUDIES - 1 - rank}.dcm") for rank in ranks]
        links = {str(attributes["href"]) for attributes in shown.all("a")}
        assert {f"#study-{rank + 1}" for rank in ranks} <= links  # the rows of the worklist
        assert len(shown.all("img")) == STUDIES_A_PAGE  # thumbnails
        assert len(shown.all("image")) == STUDIES_A_PAGE
        assert f"of {pages}" in shown.text
