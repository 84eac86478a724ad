import hashlib
import io
import re
import struct
import zlib
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import ExifTags, Image

from pipeline.errors import Reason, UnreadableError
from pipeline.frames import Frame
from pipeline.imaging import raster
from pipeline.imaging.grayscale import to_grey
from pipeline.imaging.identity import pixel_sha256
from pipeline.imaging.sources import read_frames_from_bytes
from pipeline.settings import Limits, Reading
from tests.builders import make_dicom

GREY = (np.add.outer(np.arange(30), np.arange(20)) * 5).astype(np.uint8)
RGB = np.stack([GREY] * 3, -1)
COLOURED = np.stack([GREY, GREY, 255 - GREY], -1)
OPAQUE = np.full_like(GREY, 255)


def save(array: np.ndarray | Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image = array if isinstance(array, Image.Image) else Image.fromarray(array)
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def save_tiff(array: np.ndarray, **options: Any) -> bytes:
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, array, **options)
    return buffer.getvalue()


def read(content: bytes) -> list[Frame]:
    return list(read_frames_from_bytes(content, "a.png"))


def refused(content: bytes) -> UnreadableError:
    with pytest.raises(UnreadableError) as caught:
        read(content)
    return caught.value


@pytest.mark.parametrize(
    "content",
    [
        save(GREY),
        save(RGB),
        save(np.dstack([GREY, OPAQUE])),
        save(np.dstack([RGB, OPAQUE])),
        save(Image.fromarray(GREY).convert("P")),
        save_tiff(GREY),
        save_tiff(RGB, photometric="rgb"),
        save_tiff(np.moveaxis(RGB, -1, 0), photometric="rgb", planarconfig="separate"),
        save_tiff(255 - GREY, photometric="miniswhite"),
        save_tiff(GREY, compression="zlib", tile=(16, 16)),
    ],
    ids=["L", "RGB", "LA", "RGBA", "P", "tiff", "tiff rgb", "tiff planar", "tiff miniswhite", "tiff tiles"],
)
def test_lossless_eight_bit_grey_comes_out_as_it_is(content: bytes) -> None:
    (frame,) = read(content)
    np.testing.assert_allclose(frame.pixels, GREY / 255, atol=1e-7)
    assert frame.pixels.dtype == np.float32
    assert frame.notes == ()
    assert frame.modality == ""
    assert frame.transfer_syntax_uid == ""


def make_tiff(values: np.ndarray, bits: int, colours: np.ndarray | None = None) -> bytes:
    """An uncompressed TIFF of 1 to 8 bits a pixel, grey or with a palette of words of shape (3, entries)."""
    packed = np.packbits(np.unpackbits(values[..., None], axis=-1)[..., 8 - bits :].reshape(len(values), -1), axis=1).tobytes()
    words = b"" if colours is None else colours.astype("<u2").tobytes()
    shorts = {256: values.shape[1], 257: values.shape[0], 258: bits, 259: 1, 262: 1 if colours is None else 3}
    shorts |= {273: 8, 277: 1, 278: values.shape[0], 279: len(packed)}
    entries = [struct.pack("<HHII", tag, 3, 1, value) for tag, value in shorts.items()]
    if colours is not None:
        entries.append(struct.pack("<HHII", 320, 3, colours.size, 8 + len(packed)))
    end = 8 + len(packed) + len(words)
    directory = struct.pack("<H", len(entries)) + b"".join(entries) + bytes(4)
    return struct.pack("<2sHI", b"II", 42, end) + packed + words + directory


PALETTE = np.repeat((np.arange(256)[::-1] // 2 + 40)[None], 3, axis=0)


@pytest.mark.parametrize("factor", [257, 256, 1])
@pytest.mark.parametrize("bits", [8, 4, 2, 1])
def test_a_palette_in_a_tiff_file_is_the_picture_that_it_is_in_a_png_file(factor: int, bits: int) -> None:
    indices, palette = GREY >> (8 - bits), PALETTE[:, : 2**bits]
    image = Image.fromarray(indices, "P")
    image.putpalette(palette.T.astype(np.uint8).tobytes())
    (expected,) = read(save(image))
    (frame,) = read(make_tiff(indices, bits, palette * factor))
    np.testing.assert_array_equal(frame.pixels, expected.pixels)
    assert frame.pixel_sha256 == expected.pixel_sha256
    assert frame.notes == expected.notes == ()
    if factor == 256:
        (by_pillow,) = read(save(image, "TIFF"))
        np.testing.assert_array_equal(by_pillow.pixels, expected.pixels)


def test_a_palette_of_words_runs_over_their_range() -> None:
    palette = np.repeat(np.arange(256)[None] * 100 + 7, 3, axis=0)
    (frame,) = read(make_tiff(GREY, 8, palette))
    np.testing.assert_allclose(frame.pixels, (GREY * 100.0 + 7) / 65535, atol=1e-6)
    assert frame.notes == ()


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_grey_of_a_few_bits_runs_over_their_range(bits: int) -> None:
    values = GREY >> (8 - bits)
    (frame,) = read(make_tiff(values, bits))
    np.testing.assert_allclose(frame.pixels, values / (2**bits - 1), atol=1e-6)


def test_one_picture_has_one_hash_in_every_encoding() -> None:
    hashes = {read(content)[0].pixel_sha256 for content in (save(GREY), save(RGB), save_tiff(GREY), make_dicom(GREY))}
    assert hashes == {pixel_sha256(GREY)}
    assert pixel_sha256(GREY) != pixel_sha256(GREY.astype(np.uint16)) != pixel_sha256(GREY.T)


@pytest.mark.parametrize("array", [GREY, RGB])
def test_grey_jpegs_are_pillows(array: np.ndarray) -> None:
    content = save(array, "JPEG", quality=90)
    (frame,) = read(content)
    np.testing.assert_allclose(frame.pixels * 255, np.asarray(Image.open(io.BytesIO(content)).convert("L")), atol=1.01)


@pytest.mark.parametrize(
    "content",
    [
        save(COLOURED),
        save(COLOURED, "JPEG"),
        save(np.dstack([COLOURED, OPAQUE])),
        save(Image.fromarray(COLOURED).quantize(32)),
        save_tiff(COLOURED, photometric="rgb"),
        make_dicom(COLOURED),
    ],
)
def test_coloured_pictures_are_refused(content: bytes) -> None:
    error = refused(content)
    assert error.reason is Reason.COLOURED
    assert "is coloured" in str(error)


def test_two_levels_of_colour_are_forgiven_in_a_jpeg_only() -> None:
    nearly = RGB.copy()
    nearly[..., 2] = np.maximum(nearly[..., 2], 2) - 2
    assert refused(save(nearly)).reason is Reason.COLOURED
    np.testing.assert_array_equal(to_grey(nearly, 2), nearly[..., 0])
    with pytest.raises(UnreadableError, match="between its channels is 2"):
        to_grey(nearly, 1)


@pytest.mark.parametrize("content", [save(np.dstack([GREY, GREY])), save(np.dstack([RGB, GREY])), save(GREY, transparency=5)])
def test_transparent_pictures_are_refused(content: bytes) -> None:
    assert "partly transparent" in str(refused(content))


@pytest.mark.parametrize("kind", ["png", "tiff"])
def test_sixteen_bits_are_kept_and_shown_between_percentiles(kind: str) -> None:
    deep = (np.add.outer(np.arange(30), np.arange(20)) * 83).astype(np.uint16)
    (frame,) = read(save(deep) if kind == "png" else save_tiff(deep))
    low, high = np.percentile(deep, (0.5, 99.5))
    np.testing.assert_allclose(frame.pixels, np.clip((deep - low) / (high - low), 0, 1), atol=1e-5)
    assert frame.pixel_sha256 == pixel_sha256(deep)
    assert "names no window" in frame.notes[0]


def test_a_stack_has_one_frame_a_page_and_leaves_thumbnails_out() -> None:
    buffer = io.BytesIO()
    with tifffile.TiffWriter(buffer) as writer:
        writer.write(GREY)
        writer.write(GREY[::2, ::2], subfiletype=1)
        writer.write(GREY[::-1])
    frames = read(buffer.getvalue())
    assert [frame.key.frame_number for frame in frames] == [1, 2]
    np.testing.assert_allclose(frames[1].pixels, GREY[::-1] / 255, atol=1e-7)
    assert len({frame.key.sop_instance_uid for frame in frames}) == 1


def test_an_instance_has_the_hash_of_all_its_frames() -> None:
    for content in (save(GREY), save(GREY, "JPEG"), save_tiff(GREY)):
        (frame,) = read(content)
        assert frame.instance_sha256 == frame.stored_sha256
    volume = np.stack([GREY, GREY[::-1], GREY // 2]).astype(">u2")
    frames = read(save_tiff(volume, photometric="minisblack", byteorder=">"))
    assert [frame.instance_sha256 for frame in frames] == ["", "", hashlib.sha256(volume.astype("<u2").tobytes()).hexdigest()]
    for content in (save(GREY), save_tiff(GREY)):
        (frame,) = read_frames_from_bytes(content, "a", Reading(hashes=False))
        assert frame.instance_sha256 == ""


def test_uids_come_from_the_content() -> None:
    (frame,), (again,), (other,) = (read(save(array)) for array in (GREY, GREY, GREY[::-1]))
    uids = {frame.key.study_instance_uid, frame.key.series_instance_uid, frame.key.sop_instance_uid}
    assert len(uids) == 3
    assert all(re.fullmatch(r"2\.25\.\d{1,39}", uid) for uid in uids)
    assert frame.key == again.key
    assert not uids & {other.key.study_instance_uid, other.key.sop_instance_uid}


def test_a_picture_is_never_turned_in_silence() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    (frame,) = read(save(GREY, "JPEG", exif=exif, quality=100))
    assert frame.pixels.shape == GREY.shape
    assert frame.notes == ("The file asks to be turned or mirrored (EXIF orientation 6); the pixels are as stored.",)


def test_a_camera_is_known_by_its_exposure() -> None:
    exif = Image.Exif()
    exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.FNumber] = 1.8
    (frame,) = read(save(GREY, "JPEG", exif=exif))
    (plain,) = read(save(GREY, "JPEG"))
    assert (frame.by_camera, plain.by_camera) == (True, False)


def test_one_bit_pictures_are_black_and_white() -> None:
    (frame,) = read(save(Image.fromarray(GREY > 100)))
    assert set(np.unique(frame.pixels)) == {0.0, 1.0}
    (page,) = read(save_tiff(GREY > 100, photometric="minisblack"))
    np.testing.assert_array_equal(page.pixels, frame.pixels)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF"])
def test_every_cut_is_told(kind: str) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (64, 64), dtype=np.uint8)
    content = save_tiff(noise) if kind == "TIFF" else save(noise, kind)
    for cut in range(30, len(content) - 200, 211):
        assert refused(content[:cut]).reason in (Reason.TRUNCATED, Reason.DECODE_FAILED), cut
    assert refused(content[: len(content) // 2]).reason is Reason.TRUNCATED


def png_of_size(rows: int, columns: int) -> bytes:
    header = b"IHDR" + columns.to_bytes(4, "big") + rows.to_bytes(4, "big") + bytes([8, 0, 0, 0, 0])
    return raster.PNG + b"\x00\x00\x00\x0d" + header + zlib.crc32(header).to_bytes(4, "big") + save(GREY)[33:]


def test_bombs_and_empty_pictures_are_refused_by_their_header() -> None:
    assert refused(png_of_size(Limits().frame_pixels, 2)).reason is Reason.RESOURCE_LIMIT
    assert refused(png_of_size(0, 20)).reason is Reason.EMPTY_IMAGE
    jpeg = bytearray(save(GREY, "JPEG"))
    frame_header = jpeg.index(b"\xff\xc0")
    jpeg[frame_header + 5 : frame_header + 9] = b"\xff\xff\xff\xff"
    assert refused(bytes(jpeg)).reason is Reason.RESOURCE_LIMIT
    tiff = tifffile.TiffFile(io.BytesIO(save_tiff(GREY)))
    content = bytearray(save_tiff(GREY))
    for name in ("ImageWidth", "ImageLength"):
        offset = tiff.pages.first.tags[name].valueoffset
        content[offset : offset + 4] = (2**20).to_bytes(4, "little")
    assert refused(bytes(content)).reason is Reason.RESOURCE_LIMIT


@pytest.mark.parametrize(
    "content",
    [
        save(Image.new("CMYK", (9, 9)), "JPEG"),
        save_tiff(np.zeros((9, 9), np.complex64)),
        save_tiff(np.zeros((2, 9, 9)), volumetric=True),
    ],
)
def test_kinds_that_are_not_grey_pictures_are_refused(content: bytes) -> None:
    error = refused(content)
    assert error.reason is Reason.UNSUPPORTED_ENCODING
    assert "octray does not read" in str(error)


def test_values_that_are_no_numbers_are_refused() -> None:
    assert refused(save_tiff(np.full((4, 4), np.nan, np.float32))).reason is Reason.INCONSISTENT
    assert read(save_tiff(np.eye(9, dtype=np.float32)))[0].pixels.max() == 1


def test_damaged_files_are_told() -> None:
    broken = bytearray(save(GREY))
    broken[60:80] = bytes(20)
    assert refused(bytes(broken)).reason is Reason.DECODE_FAILED
    assert refused(b"II*\x00" + bytes(40)).reason is Reason.NO_PIXELS
