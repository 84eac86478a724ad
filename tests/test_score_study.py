"""Studies are scored as they come: in their order, several at a time, whatever their files do."""

import itertools
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial
from itertools import chain
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from PIL import Image

from pipeline.errors import BundleError, ScoringError
from pipeline.frames import Frame, Quarantined
from pipeline.imaging.file_workers import file_workers
from pipeline.imaging.sources import StudyFile, discover, locate, read_frames
from pipeline.model.bundle import GRAPH, Bundle, write_bundle
from pipeline.predictions import FramePrediction, StudyRecord
from pipeline.score import study
from pipeline.score.pictures import draw, jpeg, png
from pipeline.score.predictor import Predictor
from pipeline.score.reading import Admitted, InMemoryFile, view_of
from pipeline.score.study import (
    HeatmapForm,
    Scoring,
    score_files,
    score_singly,
    score_studies,
    score_study,
    without_partial_files,
)
from pipeline.settings import FRAME_SECONDS, Check, Policy, WorkerLimits
from pipeline.workers import ahead
from pipeline.workers.ahead import ITEMS_AHEAD
from tests.builders import (
    make_bundle,
    make_dicom,
    make_frame,
    make_known_pixels,
    make_quality,
    make_wary_bundle,
    score_folder,
)
from tests.fuzz.bombs import endless_items
from tests.scoring_tasks import scored_and_imported
from tests.test_services_api_scoring import make_volume
from tests.worker_tasks import crash_after_a_frame, crash_on_second, fail_to_run, hang_after_two_frames, load_without_memory


@pytest.fixture(params=["in workers", "here"])
def predictor(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Predictor:
    if request.param == "here":
        monkeypatch.setattr(Predictor, "runs_in_workers", False)
    return Predictor(make_bundle(tmp_path / "bundle"), threads=1)


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


def name(item: FramePrediction | Quarantined) -> tuple[str, int | None]:
    return (
        (item.source, item.frame_number) if isinstance(item, Quarantined) else (item.facts.source, item.facts.key.frame_number)
    )


def hold_up_the_first_call(predictor: Predictor) -> None:
    """Have the first call of the network end after the others, where there are any at the same time."""
    predict, calls = predictor.predict_admitted, itertools.count()

    def slow(frames: Sequence[Admitted], heatmaps: bool = True) -> list[FramePrediction | Quarantined]:
        time.sleep(0.3 if next(calls) == 0 else 0)
        return predict(frames, heatmaps)

    predictor.predict_admitted = slow  # type: ignore[method-assign]


@pytest.mark.parametrize(("frames_at_once", "cores"), [(1, 4), (4, 1), (100, 2)])
def test_results_come_in_the_order_of_the_files_and_frames(
    studies: Path, predictor: Predictor, frames_at_once: int, cores: int
) -> None:
    predictor.engine.frames_at_once = frames_at_once
    hold_up_the_first_call(predictor)
    items = list(score_folder(studies, predictor, cores))
    expected = [("a.dcm", number) for number in range(1, 8)]
    for number in range(12):
        expected.append((f"b/{number:02}.png", 1))
        expected += [("b/03x.dcm", 1)] if number == 3 else [("b/05x.dcm", None)] if number == 5 else []
    assert [name(item) for item in items] == [*expected, ("c.dcm", None)]


def test_a_frame_gets_in_a_folder_what_it_gets_alone(studies: Path, predictor: Predictor) -> None:
    scored = [item for item in score_folder(studies, predictor) if isinstance(item, FramePrediction)]
    alone = [frame for file in discover(studies) for frame in readable(file) if frame.modality != "OPT"]
    for item, frame in zip(scored, alone, strict=True):
        (expected,) = predictor.predict([frame])
        assert item.predictions == expected.predictions
        assert item.heatmaps[1].values.tobytes() == expected.heatmaps[1].values.tobytes()
        assert item.facts == replace(frame.facts(), file_sha256=item.facts.file_sha256)


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
    assert isinstance(marked, FramePrediction)
    assert isinstance(refused, Quarantined)
    assert [flag.check for flag in marked.flags] == [Check.TOO_SMALL]
    assert (refused.source, refused.frame_number, refused.reason) == ("a.dcm", 2, "blank")


def test_one_file_can_be_scored(studies: Path, predictor: Predictor) -> None:
    (item,) = score_folder(studies / "b" / "00.png", predictor)
    assert name(item) == ("00.png", 1)


def test_no_studies_give_nothing(predictor: Predictor) -> None:
    assert list(score_studies([], predictor)) == []


@pytest.mark.parametrize("frames_at_once", [1, 3, 100])
def test_every_study_ends_behind_its_last_frame_or_failure(studies: Path, predictor: Predictor, frames_at_once: int) -> None:
    predictor.engine.frames_at_once = frames_at_once
    files = {file.source: file for file in discover(studies)}
    members = {"first": ["a.dcm", "b/00.png"], "failed": ["b/05x.dcm"], "last": ["b/01.png", "c.dcm"]}
    given = [(study, [files[source] for source in sources]) for study, sources in members.items()]
    seen: list[str] = []
    for study_name, item in score_studies(given, predictor):
        seen.append(study_name if isinstance(item, StudyRecord) else name(item)[0])
    assert seen == [*["a.dcm"] * 7, "b/00.png", "first", "b/05x.dcm", "failed", "b/01.png", "c.dcm", "last"]


def test_studies_are_taken_as_they_are_needed(studies: Path, predictor: Predictor) -> None:
    (file,) = (file for file in discover(studies) if file.source == "b/00.png")
    taken = 0

    def endless() -> Iterator[tuple[int, list[StudyFile]]]:
        nonlocal taken
        while True:
            taken += 1
            yield taken, [file]

    with closing(score_studies(endless(), predictor)) as items:
        for _ in range(20):
            next(items)
    assert taken < 20 + max(study.TASKS_A_WORKER * study.FILES_AT_ONCE, ITEMS_AHEAD) + 8


@pytest.mark.parametrize("source", ["b/00.png", "a.dcm"])
@pytest.mark.parametrize("forms", [set(), {"values"}, {"jpeg"}, {"png"}, {"values", "jpeg", "png"}])
def test_of_heatmaps_that_is_made_which_is_asked_for(
    studies: Path, predictor: Predictor, forms: set[HeatmapForm], source: str
) -> None:
    files = [file for file in discover(studies) if file.source == source]
    *frames, record = score_study(files, predictor, heatmaps=forms)
    assert isinstance(record, StudyRecord)
    assert record.frames == tuple(frame.without_content() for frame in frames)
    for scored, frame in zip(frames, read_frames(files[0]), strict=True):
        assert isinstance(scored, FramePrediction)
        (expected,) = predictor.predict([frame])
        assert sum(one.values is not None for one in scored.heatmaps) == 2 * ("values" in forms)
        finding = next(heatmap for heatmap in expected.heatmaps if heatmap.label == "PNEUMONIA")
        support = predictor.manifest.heatmap
        picture = draw(view_of(frame, predictor.admission.preprocessing), finding, support.full_scale, support.meaning)
        files_of_it = jpeg(picture) if "jpeg" in forms else b"", png(picture) if "png" in forms else b""
        found = [(one.label, one.has_positive_evidence, one.jpeg, one.png) for one in scored.heatmaps if one.rows]
        assert found == [("PNEUMONIA", finding.has_positive_evidence, *files_of_it)] * any(files_of_it)


def test_pictures_are_drawn_as_they_are_needed(studies: Path, predictor: Predictor, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that memory holds few of them, however many frames are in one call of the network."""
    monkeypatch.setattr(ahead, "BYTES_AHEAD", 0)
    drawn, count = study.drawn, itertools.count(1)
    pictures = []
    monkeypatch.setattr(study, "drawn", lambda *given: pictures.append(next(count)) or drawn(*given))
    (studies / "many.dcm").write_bytes(make_dicom(np.random.default_rng(1).integers(0, 4000, (40, 30, 30), np.uint16)))
    predictor.engine.frames_at_once = 20
    files = [file for file in discover(studies) if file.source == "many.dcm"]
    with closing(score_study(files, predictor, heatmaps={"png"}, in_workers=False)) as items:
        next(items)
        time.sleep(0.5)
        assert len(pictures) <= 4
        assert sum(isinstance(item, FramePrediction) for item in items) == 39


def make_overflowing_bundle(path: Path) -> Bundle:
    """The bundle of `make_bundle`, whose network returns infinity for everything but black."""
    plain = make_bundle(path)
    model = onnx.load_from_string(plain.read(GRAPH))
    (kernel,) = (tensor for tensor in model.graph.initializer if tensor.name == "kernel")
    kernel.CopyFrom(numpy_helper.from_array(np.full(tuple(kernel.dims), 3e38, np.float32), "kernel"))
    contents = {name: plain.read(name) for name in plain.manifest.files} | {GRAPH: model.SerializeToString()}
    fields = {name: value for name, value in plain.manifest if name not in ("schema_version", "bundle_id", "files")}
    return write_bundle(path, contents, **fields)


@pytest.mark.parametrize("runs_in_workers", [True, False])
def test_a_call_that_fails_ends_the_run_and_the_reading(
    studies: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, runs_in_workers: bool
) -> None:
    monkeypatch.setattr(Predictor, "runs_in_workers", runs_in_workers)
    predictor = Predictor(make_overflowing_bundle(tmp_path / "bundle"))
    before = threading.active_count()
    with pytest.raises(BundleError, match="not numbers"):
        list(score_folder(studies, predictor, cores=2))
    assert threading.active_count() == before


def test_a_bundle_that_was_replaced_under_way_ends_the_run(studies: Path, tmp_path: Path) -> None:
    predictor = Predictor(make_bundle(tmp_path / "bundle"))
    make_bundle(tmp_path / "bundle", temperature=2.0)
    with pytest.raises(BundleError, match="The bundle bundle was replaced while it was in use"):
        list(score_folder(studies, predictor))


def outline(items: Iterable[FramePrediction | Quarantined]) -> list[tuple[object, ...]]:
    """All that was found, in a form that can be compared."""
    return [(*name(item), item.reason) if isinstance(item, Quarantined) else (*name(item), *item.predictions) for item in items]


@pytest.mark.parametrize("task", [crash_on_second, hang_after_two_frames])
def test_files_on_which_a_worker_failed_together_are_scored_alone(
    studies: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, task: object
) -> None:
    predictor = Predictor(make_bundle(tmp_path / "bundle"))
    monkeypatch.setenv(FRAME_SECONDS, "2")
    expected = outline(score_folder(studies, predictor))
    monkeypatch.setattr(study, "score_files", task)
    assert outline(score_folder(studies, predictor)) == expected


def test_scoring_alone_that_fails_earlier_than_scoring_together_loses_neither_failures_nor_ends(
    studies: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    predictor = Predictor(make_bundle(tmp_path / "bundle"))
    monkeypatch.setenv(FRAME_SECONDS, "1")
    monkeypatch.setattr(study, "score_files", hang_after_two_frames)
    monkeypatch.setattr(study, "score_singly", crash_after_a_frame)
    files = {file.source: file for file in discover(studies)}
    seen = [
        study_name if isinstance(item, StudyRecord) else (*name(item), getattr(item, "reason", ""))
        for study_name, item in score_studies([("first", [files["a.dcm"]]), ("second", [files["b/00.png"]])], predictor)
    ]
    assert seen == [
        ("a.dcm", 1, ""),
        ("a.dcm", 2, ""),
        ("a.dcm", 3, "decoder_crash"),
        "first",
        ("b/00.png", 1, ""),
        ("b/00.png", 2, "decoder_crash"),
        "second",
    ]


@pytest.mark.parametrize("frames_at_once", [1, 3, 100])
def test_what_comes_of_files_does_not_depend_on_the_frames_in_one_call(
    studies: Path, tmp_path: Path, frames_at_once: int
) -> None:
    predictor = Predictor(make_bundle(tmp_path / "bundle"))
    predictor.engine.frames_at_once = frames_at_once
    how = Scoring(predictor, predictor.admission, frozenset({"values"}))
    files = list(discover(studies))
    (together, marks), (singly, expected) = (
        (outline(item for item in items if item is not None), [item is None for item in items])
        for items in (list(chain.from_iterable(task(files, how))) for task in (score_files, score_singly))
    )
    assert (together, marks) == (singly, expected)
    assert marks.count(True) == len(files)


def test_a_network_that_fails_is_no_fault_of_the_files(studies: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(study, "score_files", fail_to_run)
    with pytest.raises(ScoringError, match="The network ended in an unexpected TypeError. Start again with more memory free"):
        list(score_folder(studies, Predictor(make_bundle(tmp_path / "bundle"))))


def test_a_network_that_cannot_be_loaded_is_no_fault_of_the_files(
    studies: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = make_bundle(tmp_path / "bundle")
    loading = (load_without_memory, (bundle.path, bundle.manifest.bundle_id))
    monkeypatch.setattr(Scoring, "__reduce__", lambda _: loading)
    with pytest.raises(ScoringError, match="The network ended in an unexpected MemoryError"):
        list(score_folder(studies, Predictor(bundle)))


def test_small_files_are_read_together_and_large_ones_alone(tmp_path: Path) -> None:
    sizes = [1, study.SMALL_BYTES, study.SMALL_BYTES + 1, 5, 5, 5, 5, 5]
    members = []
    for number, size in enumerate(sizes):
        (tmp_path / str(number)).write_bytes(bytes(size))
        members.append(study._Member(StudyFile(tmp_path / str(number), str(number)), "a", False, ""))
    members.append(study._Member(StudyFile(tmp_path / "gone", "gone"), "a", True, ""))
    groups = [[member.file.source for member in group] for group in study._groups(members)]
    assert groups == [["0", "1"], ["2"], ["3", "4", "5", "6"], ["7", "gone"]]


def test_a_file_that_hangs_or_breaks_off_does_not_end_the_run(
    studies: Path, predictor: Predictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    (studies / "b" / "02x.dcm").write_bytes(endless_items(100_000))
    (studies / "b" / "04x.dcm").write_bytes(make_volume(damaged=3))
    monkeypatch.setenv(FRAME_SECONDS, "1")
    items = list(score_folder(studies, predictor))
    failures = {name(item): item for item in items if isinstance(item, Quarantined)}
    assert failures["b/02x.dcm", None].reason == "time_limit"
    assert failures["b/04x.dcm", 3].reason == "decode_failed"
    assert failures["b/04x.dcm", 3].message.endswith("No frame after this one was read.")
    assert [name(item) for item in items if name(item)[0] == "b/04x.dcm"] == [("b/04x.dcm", number) for number in (1, 2, 3)]
    assert sum(isinstance(item, FramePrediction) for item in items) == 7 + 12 + 2


def test_stopping_early_stops_the_decoding(studies: Path, predictor: Predictor) -> None:
    before = threading.active_count()
    items = score_folder(studies, predictor)
    next(items)
    items.close()
    assert threading.active_count() == before


def test_batches_end_at_frames_or_items_and_lose_nothing(predictor: Predictor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(study, "ITEMS_AT_ONCE", 4)
    frame, failure = predictor.admission.admit(make_frame()), Quarantined("a.dcm", "no_pixels", "")
    items = [frame, frame, failure, frame, frame, *[failure] * 5, frame]
    found = list(study.batches(items, 2, lambda item: isinstance(item, Admitted)))
    assert [len(one) for one in found] == [2, 3, 4, 2]
    assert [item for one in found for item in one] == items


def test_a_frame_unlike_the_training_comes_out_as_a_failure(tmp_path: Path) -> None:
    stripes = np.tile(np.array([0, 255], np.uint8), (48, 20))
    volume = np.stack([(make_known_pixels(1) * 255).astype(np.uint8), stripes])
    (tmp_path / "a.dcm").write_bytes(make_dicom(volume))
    known, strange = score_folder(tmp_path / "a.dcm", Predictor(make_wary_bundle(tmp_path / "bundle")))
    assert isinstance(known, FramePrediction)
    assert isinstance(strange, Quarantined)
    assert (strange.source, strange.frame_number, strange.reason) == ("a.dcm", 2, "out_of_distribution")


def test_a_worker_scores_and_draws_without_torch(tmp_path: Path) -> None:
    (tmp_path / "a.dcm").write_bytes(make_dicom())
    predictor = Predictor(make_bundle(tmp_path / "bundle"))
    assert predictor.runs_in_workers
    scoring = Scoring(predictor, predictor.admission, frozenset({"values", "jpeg", "png"}))
    task = partial(scored_and_imported, scoring=scoring)
    with file_workers(1, WorkerLimits(frame_seconds=60.0)) as pool:
        ((count, imported),) = pool.run(task, [locate(tmp_path, "a.dcm")])
    assert count == 1
    assert {"onnxruntime", "pydicom", "PIL"} <= imported
    assert not {"torch", "timm", "mlflow", "pytorch_grad_cam", "monai", "sklearn", "pandas", "matplotlib"} & imported


def test_a_study_that_is_cancelled_reports_what_it_had_no_time_for(studies: Path, predictor: Predictor) -> None:
    files = {file.source: file for file in discover(studies)}
    asked = itertools.count()
    some = [files[source] for source in ("b/00.png", "a.dcm", "b/01.png", "b/02.png")]
    *items, record = score_study(some, predictor, cancel=lambda: "Enough." if next(asked) == 3 else "")
    whole_file = [("b/01.png", None), ("b/02.png", None)]
    assert [name(item) for item in items] == [("b/00.png", 1), *(("a.dcm", number) for number in (1, 2, 3)), *whole_file]
    assert isinstance(record, StudyRecord)
    assert {row.reason for row in record.not_used} == {"time_limit"}
    assert [row.message for row in record.not_used] == ["Enough. No frame after this one was read.", "Enough.", "Enough."]
    whole = without_partial_files(record)
    assert [frame.source for frame in whole.frames] == ["b/00.png"]
    row = whole.not_used[0]
    assert (row.source, row.frame_number, row.message) == ("a.dcm", None, "Enough.")


def test_progress_is_told_how_many_files_are_finished(studies: Path, predictor: Predictor) -> None:
    told: list[int] = []
    files = list(discover(studies))
    list(score_study(files, predictor, progress=told.append))
    assert told == list(range(1, len(files) + 1))


def test_files_in_memory_are_scored_as_those_on_a_disk(studies: Path, predictor: Predictor) -> None:
    files = list(discover(studies))
    in_memory = (InMemoryFile(file.source, file.path.read_bytes()) for file in files)
    *_, expected = score_study(files, predictor)
    *_, record = score_study(in_memory, predictor)
    assert isinstance(expected, StudyRecord)
    frames = tuple(replace(frame, facts=replace(frame.facts, file_sha256="")) for frame in expected.frames)
    assert record == replace(expected, frames=frames)
