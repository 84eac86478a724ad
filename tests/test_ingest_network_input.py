"""From an index to the network's input: the order of the rows, and files that changed since they were ingested."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipeline.errors import InputError
from pipeline.imaging.preprocess import prepare
from pipeline.imaging.sources import read_frames_from_bytes
from pipeline.ingest import network_input
from pipeline.ingest.build import build_index
from pipeline.ingest.index import Index
from pipeline.ingest.network_input import prepared_frames
from pipeline.settings import Check, Fit, Policy, Preprocessing
from tests.builders import make_dicom, make_gate

GRID = Preprocessing(size=40, fit=Fit.CROP, exact_decoding=True)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    root = tmp_path / "studies"
    for number in range(12):
        (root / f"{number:02}").mkdir(parents=True)
        Image.fromarray(rng.integers(0, 255, (30, 50 + number), np.uint8)).save(root / f"{number:02}" / "a.png")
    volume = rng.integers(0, 4000, (5, 33, 44), np.uint16)
    (root / "03" / "volume.dcm").write_bytes(make_dicom(volume, SOPInstanceUID="1.2.3"))
    return root


@pytest.fixture
def index(folder: Path) -> Index:
    return build_index([folder])[0]


def test_it_is_what_reading_and_preparing_give_in_the_order_of_the_rows(index: Index, folder: Path) -> None:
    found = list(prepared_frames(index.records, index.sources, GRID))
    expected = [
        prepare(frame.pixels, GRID)
        for source in dict.fromkeys(record.source for record in index.records)
        for frame in read_frames_from_bytes((folder / source).read_bytes(), source)
    ]
    assert len(found) == 17
    assert [frame.tobytes() for frame in found] == [frame.tobytes() for frame in expected]
    assert {(frame.shape, frame.dtype.name) for frame in found} == {((1, 40, 40), "float32")}


def test_some_frames_of_a_volume_in_any_order(index: Index) -> None:
    volume = [record for record in index.records if record.source.endswith("volume.dcm")]
    chosen = [volume[4], volume[1]]
    whole = list(prepared_frames(volume, index.sources, GRID))
    some = list(prepared_frames(chosen, index.sources, GRID))
    assert [frame.tobytes() for frame in some] == [whole[4].tobytes(), whole[1].tobytes()]


def test_several_sources_are_kept_apart(tmp_path: Path) -> None:
    for number, name in enumerate(("one", "two")):
        (tmp_path / name).mkdir()
        Image.fromarray(np.full((20, 20), 100 * number + 20, np.uint8)).save(tmp_path / name / "same.png")
    index, _ = build_index([tmp_path / "one", tmp_path / "two"])
    means = [float(frame.mean()) for frame in prepared_frames(index.records, index.sources, GRID)]
    assert means == pytest.approx([20 / 255, 120 / 255])


def test_nothing_gives_nothing(index: Index) -> None:
    assert list(prepared_frames((), index.sources, GRID)) == []


def overwrite(path: Path) -> None:
    Image.fromarray(np.zeros((30, 50), np.uint8)).save(path)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-200])


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (Path.unlink, "a.png could be read when it was ingested: The file is not there any more."),
        (cut, "a.png is not the same as when it was ingested."),
        (overwrite, "a.png is not the same as when it was ingested. Ingest the folder again."),
    ],
)
def test_a_file_that_changed_is_named_without_its_folder(change: object, sentence: str, index: Index, folder: Path) -> None:
    change(folder / "07" / "a.png")  # type: ignore[operator]
    with pytest.raises(InputError) as caught:
        list(prepared_frames(index.records, index.sources, GRID))
    assert str(caught.value).startswith(sentence)
    assert str(caught.value).endswith("Ingest the folder again.")
    assert str(folder) not in str(caught.value)


def test_a_frame_that_is_gone_is_named(index: Index, folder: Path) -> None:
    record = next(record for record in index.records if record.source.endswith("volume.dcm"))
    beyond = replace(record, key=replace(record.key, frame_number=9))
    with pytest.raises(InputError, match=r"^volume.dcm has no frame 9 any more\. Ingest the folder again\.$"):
        list(prepared_frames([beyond], index.sources, GRID))


@pytest.mark.parametrize(
    ("use", "check", "said"),
    [
        ({"ages": (0, 17)}, Check.WRONG_AGE, "By its header, the patient is not 0 to 17 years old."),
        ({"body_parts": ("HAND",)}, Check.WRONG_BODY_PART, "The header names another part of the body than HAND,"),
        ({"modalities": ("OPT",)}, Check.WRONG_MODALITY, "The frame is of another modality than OPT."),
        ({"view_positions": ("LL",)}, Check.NOT_FRONTAL, "The header names another view than LL,"),
    ],
)
def test_frames_that_scoring_would_refuse_are_refused_with_the_gates_own_words(
    tmp_path: Path, use: dict[str, Any], check: Check, said: str
) -> None:
    header = {"PatientAge": "043Y", "BodyPartExamined": "CHEST", "ViewPosition": "PA"}
    (tmp_path / "adult.dcm").write_bytes(make_dicom(**header))
    (tmp_path / "silent.png").write_bytes(b"")
    overwrite(tmp_path / "silent.png")
    index, _ = build_index([tmp_path])
    with pytest.raises(InputError) as caught:
        list(prepared_frames(index.records, index.sources, GRID, gate=make_gate({check: Policy.REJECT}, **use)))
    assert str(caught.value).startswith(f"adult.dcm is not what the model is meant for, and scoring would refuse it. {said}")
    assert "Ingest again with --config, which leaves such frames out" in str(caught.value)
    for passing in (make_gate({check: Policy.FLAG}, **use), make_gate({check: Policy.REJECT}), None):
        assert len(list(prepared_frames(index.records, index.sources, GRID, gate=passing))) == 2


def test_pixels_that_are_not_numbers_are_refused_with_the_name_of_their_file(
    index: Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(pixels: np.ndarray, *arguments: object) -> np.ndarray:  # no reader gives such pixels; a new one might
        prepared = prepare(pixels, *arguments)  # type: ignore[arg-type]
        if pixels.shape == (33, 44):
            prepared[0, 3, 3] = np.nan
        return prepared

    monkeypatch.setattr(network_input, "prepare", broken)
    with pytest.raises(InputError, match=r"^Frame 1 of volume\.dcm has pixels that are not numbers\. Export the file again"):
        list(prepared_frames(index.records, index.sources, GRID))
