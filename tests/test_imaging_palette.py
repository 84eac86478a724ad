import io
import struct
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.pixels.processing import apply_color_lut
from pydicom.uid import ExplicitVRBigEndian

from pipeline.errors import Reason, UnreadableError
from pipeline.frames import Frame
from pipeline.imaging.dicom.display import read_palette
from pipeline.imaging.sources import read_frames_from_bytes
from tests.builders import make_dataset, make_dicom

STORED = np.arange(120, dtype=np.uint16).reshape(10, 12)


def read(content: bytes) -> Frame:
    (frame,) = read_frames_from_bytes(content, "a.dcm")
    return frame


def refused(content: bytes) -> UnreadableError:
    with pytest.raises(UnreadableError) as caught:
        read(content)
    return caught.value


def make_palette(
    tables: list[bytes],
    descriptor: tuple[int, int, int],
    pixels: np.ndarray = STORED,
    segmented: bool = False,
    **overrides: Any,
) -> Dataset:
    """A picture with one table for each of red, green and blue."""
    dataset = make_dataset(pixels, PhotometricInterpretation="PALETTE COLOR", **overrides)
    for number, table in enumerate(tables):
        dataset.add_new(0x00281101 + number, "SS" if descriptor[1] < 0 else "US", list(descriptor))
        dataset.add_new((0x00281221 if segmented else 0x00281201) + number, "OW", table)
    return dataset


def write(dataset: Dataset) -> bytes:
    buffer = io.BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def parsed(dataset: Dataset) -> Dataset:

    return pydicom.dcmread(io.BytesIO(write(dataset)))


@pytest.mark.parametrize("first", [0, 7, 200])
def test_colours_are_those_of_pydicom(first: int) -> None:
    tables = [np.random.default_rng(seed).integers(0, 65536, 100).astype("<u2").tobytes() for seed in range(3)]
    dataset = parsed(make_palette(tables, (100, first, 16)))
    np.testing.assert_array_equal(read_palette(dataset).look_up(STORED), apply_color_lut(STORED, dataset))


def test_stored_values_beyond_a_table_of_bytes_take_its_last_entry() -> None:
    """pydicom 3.0.2 takes them modulo 256 here."""
    table = bytes(range(256))
    stored = np.array([[0, 255, 256, 300, 65535]], np.uint16)
    dataset = parsed(make_palette([table] * 3, (256, 0, 8), stored))
    np.testing.assert_array_equal(read_palette(dataset).look_up(stored)[..., 0], [[0, 255, 255, 255, 255]])


def test_a_table_of_65536_entries() -> None:
    stored = np.array([[0, 1, 40000, 65535]], np.uint16)
    table = np.arange(65535, -1, -1).astype("<u2").tobytes()
    frame = read(write(make_palette([table] * 3, (0, 0, 16), stored)))
    np.testing.assert_allclose(frame.pixels, 1 - stored / 65535, atol=1e-6)


@pytest.mark.parametrize("first", [-50, 65486])
def test_tables_of_signed_values_start_below_zero_however_that_is_written(first: int) -> None:
    stored = (STORED.astype(np.int16) - 50).astype(np.int16)
    table = np.arange(120).astype("u1").tobytes()
    frame = read(write(make_palette([table] * 3, (120, first, 8), stored)))
    np.testing.assert_allclose(frame.pixels, STORED / 255, atol=1e-6)


def test_tables_of_bytes_in_big_endian_files_are_swapped_as_words() -> None:
    """OW: each word holds its first byte in its lower half (PS3.5 6.2)."""
    table = np.arange(120).astype("u1").tobytes()
    swapped = np.frombuffer(table, "<u2").byteswap().tobytes()
    dataset = make_palette([swapped] * 3, (120, 0, 8), PixelData=STORED.astype(">u2").tobytes())
    dataset.file_meta.TransferSyntaxUID = ExplicitVRBigEndian
    np.testing.assert_allclose(read(write(dataset)).pixels, STORED / 255, atol=1e-6)


def words(*values: int) -> bytes:
    return struct.pack(f"<{len(values)}H", *values)


DISCRETE = (0, 3, 10, 20, 30)
LINEAR = (1, 57, 600)
SEGMENTED = [
    (words(*DISCRETE, *LINEAR, *LINEAR, 0, 3, 5, 6, 7), 16),
    (bytes((0, 3, 10, 20, 30, 1, 57, 200, 1, 57, 3, 0, 3, 5, 6, 7)), 8),
]


@pytest.mark.parametrize(("segments", "bits"), SEGMENTED)
def test_segmented_tables_are_expanded_as_in_pydicom(segments: bytes, bits: int) -> None:
    dataset = parsed(make_palette([segments] * 3, (120, 0, bits), segmented=True))
    np.testing.assert_array_equal(read_palette(dataset).look_up(STORED), apply_color_lut(STORED, dataset))
    assert read(write(dataset)).pixels.max() > 0


@pytest.mark.parametrize("bits", [8, 16])
def test_indirect_segments_repeat_earlier_ones(bits: int) -> None:
    """From byte `offset` on, two segments: the discrete one and the linear one."""
    if bits == 16:
        segments = words(0, 2, 1, 1, *DISCRETE, *LINEAR) + words(2, 2) + struct.pack("<L", 8)
        top = 600
    else:
        segments = bytes((0, 2, 1, 1, *DISCRETE, 1, 57, 200)) + bytes((2, 2)) + struct.pack("<L", 4)
        top = 200
    line = np.rint(np.linspace(30, top, 58)[1:])
    expected = np.concatenate([[1, 1], [10, 20, 30], line, [10, 20, 30], line])[:120]
    dataset = parsed(make_palette([segments] * 3, (120, 0, bits), segmented=True))
    np.testing.assert_array_equal(read_palette(dataset).look_up(STORED)[..., 0].ravel(), expected)


@pytest.mark.parametrize(
    "segments",
    [
        b"",
        words(0, 3, 1, 2),
        words(*LINEAR),
        words(2, 1, 0, 0),
        words(0, 0, 0, 0, 0, 0),
        words(9, 3, 1, 2, 3),
        words(0, 2, 1, 1, 2, 65535, 8, 0),
        words(0, 2, 1, 1, 2, 65535, 65535, 65535),
    ],
)
def test_segments_that_contradict_themselves_are_refused(segments: bytes) -> None:
    error = refused(write(make_palette([segments] * 3, (120, 0, 16), segmented=True)))
    assert error.reason in (Reason.INCONSISTENT, Reason.DECODE_FAILED)
    assert "colour palette" in str(error)


def test_tables_that_differ_in_size_or_are_missing_are_refused() -> None:
    table = bytes(240)
    assert refused(write(make_palette([table, table], (120, 0, 16)))).reason is Reason.INCONSISTENT
    assert refused(write(make_palette([table, table, bytes(10)], (120, 0, 16)))).reason is Reason.INCONSISTENT
    dataset = make_palette([table] * 3, (120, 0, 16))
    dataset.GreenPaletteColorLookupTableDescriptor = [120, 5, 16]
    assert refused(write(dataset)).reason is Reason.INCONSISTENT


def test_palettes_of_colours_are_refused() -> None:
    tables = [np.full(120, level, "u1").tobytes() for level in (200, 100, 100)]
    error = refused(write(make_palette(tables, (120, 0, 8))))
    assert error.reason is Reason.COLOURED
    assert "difference between its channels is 100" in str(error)


@pytest.mark.parametrize(
    ("presentation", "first", "coloured"),
    [("COLOR", 119, True), ("MIXED", 0, True), ("COLOR", 120, False), ("MONOCHROME", 0, False)],
)
def test_a_supplemental_palette_colours_the_values_from_its_first_on(presentation: str, first: int, coloured: bool) -> None:
    content = make_dicom(STORED, PixelPresentation=presentation, RedPaletteColorLookupTableDescriptor=[10, first, 16])
    if coloured:
        error = refused(content)
        assert error.reason is Reason.COLOURED
        assert "supplemental palette" in str(error)
    else:
        assert read(content).stored_sha256 == read(make_dicom(STORED)).stored_sha256
