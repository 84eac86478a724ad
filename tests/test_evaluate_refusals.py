"""Bundles refuse what they were not made for by its picture alone: the other phantoms, and pictures that are neither."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.foreign import foreign_pictures
from pipeline.cli.main import main
from pipeline.errors import UnreadableError
from pipeline.frames import Frame, Split
from pipeline.imaging.sources import discover, read_frames
from pipeline.ingest.index import load_index
from pipeline.model.bundle import load_bundle
from pipeline.score.predictor import Predictor
from tests.builders import make_frame

STUDIES = {"xray": 60, "oct": 30}
LEAST_REFUSED = 0.99


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Phantoms of both kinds, and a bundle on frozen features for each."""
    root = tmp_path_factory.mktemp("refusals")
    for modality, count in STUDIES.items():
        phantoms, index, bundle = root / modality, root / modality / "index", root / modality / "bundle"
        assert main(["phantom", str(phantoms), "--modality", modality, "--studies", str(count), "--seed", "4"]) == 0
        given = ["ingest", str(phantoms / "studies"), "--labels", str(phantoms / "labels.csv"), "--out", str(index)]
        assert main([*given, "--split", "40/20/20/20"]) == 0
        course = ["preprocessing.size=128", "train.way=probe", "train.threads=1", "evaluate.bootstrap=100"]
        assert main(["train", modality, "--index", str(index), "--out", str(bundle), *course, "tracking.enabled=false"]) == 0
    return root


def frames_of(folder: Path, predictor: Predictor) -> Iterator[Frame]:
    """The frames of all studies as the bundle reads them, without what their headers say of them."""
    for file in discover(folder / "studies"):
        for frame in read_frames(file, predictor.admission.reading):
            yield replace(frame, modality="", view_position="", body_part="")


def is_refused(frame: Frame, predictor: Predictor) -> bool:
    try:
        predictor.predict([frame], heatmaps=False)
    except UnreadableError:
        return True
    return False


@pytest.mark.slow
@pytest.mark.parametrize(("own", "other"), [("xray", "oct"), ("oct", "xray")])
def test_a_bundle_refuses_the_other_phantoms_and_what_is_no_medical_image(own: str, other: str, root: Path) -> None:
    predictor = Predictor(load_bundle(root / own / "bundle"))
    tested = {record.source for record in load_index(root / own / "index").of(Split.TEST)}
    known = [frame for frame in frames_of(root / own, predictor) if frame.source in tested]
    assert sum(is_refused(frame, predictor) for frame in known) <= 0.1 * len(known)
    strangers = [is_refused(frame, predictor) for frame in frames_of(root / other, predictor)]
    assert len(strangers) >= STUDIES[other]
    assert sum(strangers) >= LEAST_REFUSED * len(strangers)
    pictures = [(kind, make_frame(pixels=picture, modality="")) for kind, picture in foreign_pictures()]
    assert {"photographs", "noise in blocks", "noise, smooth", "pages of text"} <= {kind for kind, _ in pictures}
    assert [kind for kind, frame in pictures if not is_refused(frame, predictor)] == []
