"""Streaming a folder: order, failures, batches across files, and that stopping stops the threads."""

import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TypeVar

import numpy as np
import pytest
from PIL import Image

from pipeline.errors import InputError, Reason, UnreadableError
from pipeline.imaging.sources import StudyFile, discover, read_frames
from pipeline.records import Check, Frame, Policy, Quarantined, Reading
from pipeline.score import batch
from pipeline.score.batch import Scored, score_folder
from pipeline.score.predictor import Predictor
from tests.builders import make_bundle, make_dicom, make_frame, make_quality

Item = TypeVar("Item")


@pytest.fixture
def predictor(tmp_path: Path) -> Predictor:
    return Predictor(make_bundle(tmp_path / "bundle"))


@pytest.fixture
def studies(tmp_path: Path) -> Path:
    """Pictures, a volume, a file of another modality and two that cannot be read, in folders."""
    root = tmp_path / "studies"
    (root / "b").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for number in range(12):
        Image.fromarray(rng.integers(0, 255, (40 + number, 50), np.uint8)).save(root / "b" / f"{number:02}.png")
    (root / "a.dcm").write_bytes(make_dicom(rng.integers(0, 4000, (7, 30, 30), np.uint16)))
    (root / "b" / "03x.dcm").write_bytes(make_dicom(Modality="OPT"))
    (root / "b" / "05x.dcm").write_bytes(b"this is only text")
    (root / "c.dcm").write_bytes(make_dicom(PixelData=None))
    return root


def name(item: Scored | Quarantined) -> tuple[str, int | None]:
    return (
        (item.source, item.frame_number) if isinstance(item, Quarantined) else (item.frame.source, item.frame.key.frame_number)
    )


@pytest.mark.parametrize("batch_size", [1, 4, 100])
def test_results_come_in_the_order_of_the_files_and_frames(studies: Path, predictor: Predictor, batch_size: int) -> None:
    items = list(score_folder(studies, predictor, batch_size=batch_size))
    expected = [("a.dcm", number) for number in range(1, 8)]
    for number in range(12):
        expected.append((f"b/{number:02}.png", 1))
        expected += [("b/03x.dcm", 1)] if number == 3 else [("b/05x.dcm", None)] if number == 5 else []
    assert [name(item) for item in items] == [*expected, ("c.dcm", None)]


def test_a_frame_gets_in_a_folder_what_it_gets_alone(studies: Path, predictor: Predictor) -> None:
    scored = [item for item in score_folder(studies, predictor) if isinstance(item, Scored)]
    alone = [frame for file in discover(studies) for frame in readable(file) if frame.modality != "OPT"]
    for item, frame in zip(scored, alone, strict=True):
        (expected,) = predictor.predict([frame])
        assert item.prediction.predictions == expected.predictions
        assert item.prediction.heatmaps[1].values.tobytes() == expected.heatmaps[1].values.tobytes()
        np.testing.assert_array_equal(item.frame.pixels, frame.pixels)


def readable(file: StudyFile) -> Iterator[Frame]:
    if file.path.name not in ("05x.dcm", "c.dcm"):
        yield from read_frames(file)


def test_failures_have_reasons(studies: Path, predictor: Predictor) -> None:
    failures = [item for item in score_folder(studies, predictor) if isinstance(item, Quarantined)]
    assert [(item.source, item.reason) for item in failures] == [
        ("b/03x.dcm", "wrong_modality"),
        ("b/05x.dcm", "not_an_image"),
        ("c.dcm", "no_pixels"),
    ]


def test_frames_that_the_gate_refuses_are_failures_and_others_are_marked(tmp_path: Path) -> None:
    quality = make_quality({Check.BLANK: Policy.REJECT}, smallest_side=64)
    predictor = Predictor(make_bundle(tmp_path / "bundle", quality=quality))
    volume = np.stack([make_frame().pixels * 255, np.zeros((48, 40))]).astype(np.uint8)
    (tmp_path / "a.dcm").write_bytes(make_dicom(volume))
    marked, refused = score_folder(tmp_path / "a.dcm", predictor)
    assert isinstance(marked, Scored)
    assert isinstance(refused, Quarantined)
    assert [flag.check for flag in marked.prediction.flags] == [Check.TOO_SMALL]
    assert (refused.source, refused.frame_number, refused.reason) == ("a.dcm", 2, "blank")


def test_one_file_can_be_scored(studies: Path, predictor: Predictor) -> None:
    (item,) = score_folder(studies / "b" / "00.png", predictor)
    assert name(item) == ("00.png", 1)


def test_an_empty_folder_gives_nothing(tmp_path: Path, predictor: Predictor) -> None:
    (tmp_path / "empty").mkdir()
    assert list(score_folder(tmp_path / "empty", predictor)) == []


def test_a_missing_folder_is_said(tmp_path: Path, predictor: Predictor) -> None:
    with pytest.raises(InputError, match="missing"):
        list(score_folder(tmp_path / "missing", predictor))


def test_progress_sees_every_file(studies: Path, predictor: Predictor) -> None:
    seen: list[int | None] = []

    def count(items: Iterable[Item], description: str, total: int | None = None) -> Iterator[Item]:
        seen.append(total)
        for item in items:
            yield item
            seen.append(1)

    list(score_folder(studies, predictor, count))
    assert seen == [16, *[1] * 16]


def test_an_unexpected_error_in_one_file_does_not_end_the_run(
    studies: Path, predictor: Predictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(file: StudyFile, reading: Reading) -> Iterator[Frame]:
        if file.source == "b/02.png":
            raise ZeroDivisionError("a secret of the file")
        yield from read_frames(file, reading)

    monkeypatch.setattr(batch, "read_frames", read)
    items = list(score_folder(studies, predictor))
    failure = next(item for item in items if name(item) == ("b/02.png", None))
    assert isinstance(failure, Quarantined)
    assert (
        failure.message == "Reading the file ended in an unexpected ZeroDivisionError. Please report it as a fault of octray."
    )
    assert sum(isinstance(item, Scored) for item in items) == 7 + 11


def test_a_volume_that_breaks_off_keeps_the_frames_before_and_names_the_one_that_failed(
    studies: Path, predictor: Predictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(file: StudyFile, reading: Reading) -> Iterator[Frame]:
        for frame in read_frames(file, reading):
            if frame.key.frame_number == 4:
                raise UnreadableError(Reason.TRUNCATED, "It is cut.")
            yield frame

    monkeypatch.setattr(batch, "read_frames", read)
    items = list(score_folder(studies / "a.dcm", predictor))
    assert [name(item) for item in items] == [("a.dcm", number) for number in (1, 2, 3, 4)]
    assert isinstance(items[-1], Quarantined)
    assert (items[-1].reason, items[-1].message) == ("truncated", "It is cut. No frame after this one was read.")


def test_stopping_early_stops_the_decoding(studies: Path, predictor: Predictor) -> None:
    items = score_folder(studies, predictor, batch_size=1)
    next(items)
    items.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("decode")]


def test_only_a_bounded_number_of_frames_is_decoded_ahead(
    tmp_path: Path, predictor: Predictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "studies").mkdir()
    for number in range(3):
        (tmp_path / "studies" / f"{number}.dcm").write_bytes(make_dicom(np.zeros((200, 8, 8), np.uint8)))
    lock, decoded, most = threading.Lock(), 0, 0

    def read(file: StudyFile, reading: Reading) -> Iterator[Frame]:
        nonlocal decoded
        for frame in read_frames(file, reading):
            with lock:
                decoded += 1
            yield frame

    monkeypatch.setattr(batch, "read_frames", read)
    for used, _ in enumerate(score_folder(tmp_path / "studies", predictor, batch_size=4)):
        with lock:
            most = max(most, decoded - used)
    assert decoded == 600
    assert most <= 4 + batch.DECODERS * (batch.FRAMES_AHEAD + 1)


def test_large_frames_are_bounded_by_their_pixels(
    tmp_path: Path, predictor: Predictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "studies").mkdir()
    for number in range(6):
        (tmp_path / "studies" / f"{number}.dcm").write_bytes(make_dicom(np.zeros((20, 8, 8), np.uint8)))
    monkeypatch.setattr(batch, "PIXELS_AHEAD", 3 * 64)
    monkeypatch.setattr(batch, "BATCH_PIXELS", 2 * 64)
    lock, decoded, most = threading.Lock(), 0, 0

    def read(file: StudyFile, reading: Reading) -> Iterator[Frame]:
        nonlocal decoded
        for frame in read_frames(file, reading):
            with lock:
                decoded += 1
            yield frame

    monkeypatch.setattr(batch, "read_frames", read)
    for used, _ in enumerate(score_folder(tmp_path / "studies", predictor)):
        with lock:
            most = max(most, decoded - used)
    assert decoded == 120
    # one batch and the frame that did not fit, what lies ready, one frame for the file in use, and one in each decoder's hand
    assert most <= (2 + 1) + 3 + 1 + batch.DECODERS


def test_a_frame_larger_than_the_budget_passes_alone(
    studies: Path, predictor: Predictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = [name(item) for item in score_folder(studies, predictor)]
    monkeypatch.setattr(batch, "PIXELS_AHEAD", 1)
    monkeypatch.setattr(batch, "BATCH_PIXELS", 1)
    assert [name(item) for item in score_folder(studies, predictor)] == expected


def test_batches_end_at_frames_or_pixels_and_lose_nothing() -> None:
    small, large = make_frame(pixels=np.zeros((10, 10), np.float32)), make_frame(pixels=np.zeros((90, 10), np.float32))
    frames = [small, small, small, large, small, large, large, small]
    found = list(batch.batches(frames, 2, 1000))
    assert [[frame.pixels.size for frame in one] for one in found] == [[100, 100], [100, 900], [100, 900], [900, 100]]
    found = list(batch.batches(frames, 4, 500))
    assert [[frame.pixels.size for frame in one] for one in found] == [[100] * 3, [900], [100], [900], [900], [100]]
