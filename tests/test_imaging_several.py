"""Every picture of a file is read, or the file is refused with the number of pictures in it."""

import hashlib
import io
import json
import shutil
import struct
import subprocess
from typing import Any

import imagecodecs
import numpy as np
import pytest
import tifffile
from PIL import Image, PngImagePlugin

from pipeline.cli.main import main
from pipeline.errors import Reason, UnreadableError
from pipeline.frames import Frame
from pipeline.imaging.sources import read_frames_from_bytes
from pipeline.imaging.tiff import MOST_PAGES

STACK = np.random.default_rng(0).integers(0, 256, (5, 48, 64), np.uint8)


def read(content: bytes) -> list[Frame]:
    return list(read_frames_from_bytes(content, "a.tif"))


def refused(content: bytes) -> UnreadableError:
    with pytest.raises(UnreadableError) as caught:
        read(content)
    return caught.value


def tiff(*arrays: np.ndarray, **options: Any) -> bytes:
    """A TIFF file without a description, unless the options give one."""
    buffer = io.BytesIO()
    with tifffile.TiffWriter(buffer) as writer:
        for array in arrays:
            writer.write(array, **({"photometric": "minisblack", "metadata": None} | options))
    return buffer.getvalue()


def hashes(pictures: Any) -> list[str]:
    return [hashlib.sha256(np.ascontiguousarray(one).tobytes()).hexdigest() for one in pictures]


def pillow(*pictures: np.ndarray, kind: str, **options: Any) -> bytes:
    first, *others = (Image.fromarray(one) for one in pictures)
    buffer = io.BytesIO()
    first.save(buffer, kind, **({"save_all": True, "append_images": others} if others else {}), **options)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("stack", "options"),
    [
        (STACK, {"imagej": True}),
        (STACK.astype(np.uint16) * 257, {"imagej": True}),
        (np.repeat(STACK[..., None], 3, -1), {"imagej": True}),
        (STACK, {"photometric": "minisblack"}),
        (STACK.astype(np.uint16) * 257, {"photometric": "minisblack", "bigtiff": True, "byteorder": ">"}),
        (STACK.astype(np.float32) / 256, {"photometric": "minisblack"}),
        (np.repeat(STACK[..., None], 3, -1), {"photometric": "rgb"}),
        (np.repeat(STACK[:, None], 3, 1), {"photometric": "rgb", "planarconfig": "separate"}),
    ],
)
def test_a_stack_with_one_page_is_read_whole(stack: np.ndarray, options: dict[str, Any]) -> None:
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, stack, **{"truncate": True}, **options)
    content = buffer.getvalue()
    with tifffile.TiffFile(io.BytesIO(content)) as opened:
        assert len(opened.pages) == 1
        expected = opened.asarray()
    frames = read(content)
    if options.get("planarconfig"):
        expected = np.moveaxis(expected, 1, -1)
    assert [frame.stored_sha256 for frame in frames] == hashes(expected)
    assert [frame.key.frame_number for frame in frames] == [1, 2, 3, 4, 5]
    assert {frame.number_of_frames for frame in frames} == {5}
    assert all("5 pictures on 1 of its pages" in frame.notes[0] for frame in frames)
    assert frames[-1].instance_sha256 == hashes([expected])[0]


def test_a_stack_of_metamorph_is_read_whole() -> None:
    plane_tag = (33629, 5, 5, (0, 1) * 5, True)
    frames = read(tiff(STACK[0], extratags=[plane_tag]) + STACK[1:].tobytes())
    assert [frame.stored_sha256 for frame in frames] == hashes(STACK)


def test_a_stack_with_one_page_that_is_cut_off_is_told_by_its_pictures() -> None:
    for options in ({"imagej": True}, {"photometric": "minisblack"}):
        buffer = io.BytesIO()
        tifffile.imwrite(buffer, STACK, **{"truncate": True}, **options)
        for missing, left in ((1, 4), (STACK[0].size, 4), (2 * STACK[0].size + 1, 2)):
            error = refused(buffer.getvalue()[:-missing])
            assert error.reason is Reason.TRUNCATED
            assert f"it holds {left} of 5 pictures" in str(error)


@pytest.mark.parametrize("description", ["ImageJ=1.54f\nimages=5\nslices=5\n", json.dumps({"shape": [5, 48, 64]})])
def test_a_description_that_outlived_its_stack_is_noted(description: str) -> None:
    for options in ({}, {"compression": "zlib"}):
        (frame,) = read(tiff(STACK[0], description=description, **options))
        assert frame.stored_sha256 == hashes(STACK)[0]
        assert "says 5 pictures, but there is no room for more than 1" in frame.notes[0]


def test_a_chain_of_pages_that_breaks_off_is_refused_with_the_numbers() -> None:
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, STACK, imagej=True)
    content = bytearray(buffer.getvalue())
    with tifffile.TiffFile(io.BytesIO(bytes(content))) as opened:
        page = opened.pages[2]
        at = page.offset + 2 + 12 * len(page.tags)
    content[at : at + 4] = bytes(4)
    error = refused(bytes(content))
    assert error.reason is Reason.INCONSISTENT
    assert "should hold 5 pictures, but 3 were found" in str(error)


def test_a_file_of_more_planes_than_pages_are_allowed_is_refused() -> None:
    content = tiff(STACK[0][:1, :1], description=f"ImageJ=1.54f\nimages={MOST_PAGES + 1}\n")
    assert refused(content + bytes(MOST_PAGES)).reason is Reason.RESOURCE_LIMIT


def test_pages_of_any_size_are_frames_of_their_own() -> None:
    pictures = [STACK[0], STACK[1][:30], STACK[2][:, :20].astype(np.uint16)]
    frames = read(tiff(*pictures))
    assert [frame.stored_sha256 for frame in frames] == hashes(pictures)
    assert [frame.shape for frame in frames] == [one.shape for one in pictures]


@pytest.mark.parametrize("count", [2, 3, 4, 5])
def test_pictures_that_are_samples_of_one_page_or_its_depth_are_refused_with_their_number(count: int) -> None:
    planes = tiff(STACK[:count], planarconfig="separate")
    pixels = tiff(np.moveaxis(STACK[:count], 0, -1), planarconfig="contig")
    volume = tiff(STACK[:count, :48, :64], volumetric=True, tile=(16, 16))
    for content in (planes, pixels, volume):
        error = refused(content)
        assert error.reason is Reason.UNSUPPORTED_ENCODING
        assert f"holds {count} pictures" in str(error)
    (frame,) = read(tiff(np.repeat(STACK[0][..., None], 3, -1), planarconfig="contig"))
    np.testing.assert_allclose(frame.pixels * 255, STACK[0], atol=1e-4)


def sub_ifds(*pictures: tuple[np.ndarray, int]) -> bytes:
    """The first picture is on a page, the others in its SubIFDs, each with a NewSubfileType."""
    buffer = io.BytesIO()
    with tifffile.TiffWriter(buffer) as writer:
        for number, (array, kind) in enumerate(pictures):
            options = {"subifds": len(pictures) - 1} if number == 0 else {}
            writer.write(array, photometric="minisblack", metadata=None, subfiletype=kind, **options)
    return buffer.getvalue()


def test_sub_ifds_are_pictures_unless_they_are_reduced_copies() -> None:
    frames = read(sub_ifds((STACK[0], 0), (STACK[1], 0), (STACK[2][::2, ::2], 1), (STACK[3], 1)))
    assert [frame.stored_sha256 for frame in frames] == hashes([STACK[0], STACK[1], STACK[3]])
    for frame in frames:
        assert frame.notes == ("Reduced copies that the TIFF file holds beside its pictures were ignored: 1.",)


def test_a_thumbnail_before_its_picture_is_left_out() -> None:
    """As cameras do it, DNG for example."""
    (frame,) = read(sub_ifds((STACK[0][::4, ::4], 1), (STACK[1], 0)))
    assert frame.stored_sha256 == hashes(STACK)[1]


def test_sub_ifds_that_come_round_are_refused() -> None:
    content = bytearray(sub_ifds((STACK[0], 0), (STACK[1], 0)))
    with tifffile.TiffFile(io.BytesIO(bytes(content))) as opened:
        tag = opened.pages.first.tags[330]
        content[tag.valueoffset : tag.valueoffset + 4] = opened.pages.first.offset.to_bytes(4, "little")
    assert refused(bytes(content)).reason is Reason.INCONSISTENT


def test_the_older_tag_for_reduced_copies_counts() -> None:
    buffer = io.BytesIO()
    with tifffile.TiffWriter(buffer) as writer:
        writer.write(STACK[0], photometric="minisblack", metadata=None, extratags=[(255, 3, 1, 1, True)])
        writer.write(STACK[1][::2, ::2], photometric="minisblack", metadata=None, extratags=[(255, 3, 1, 2, True)])
    (frame,) = read(buffer.getvalue())
    assert frame.stored_sha256 == hashes(STACK)[0]
    assert "ignored: 1." in frame.notes[0]


def test_a_file_of_copies_alone_is_refused_with_their_number() -> None:
    error = refused(tiff(STACK[0], STACK[1], subfiletype=1))
    assert error.reason is Reason.NO_PIXELS
    assert "2 are marked as copies" in str(error)


def test_animations_and_files_of_several_pictures_are_refused_with_their_number() -> None:
    jpegs = [pillow(one, kind="JPEG") for one in STACK]
    pngs = [pillow(one, kind="PNG") for one in STACK]
    several = {
        "animated PNG": (pillow(*STACK, kind="PNG"), 5),
        "animated PNG with a picture of its own": (pillow(*STACK, kind="PNG", default_image=True), 5),
        "MPO": (pillow(*STACK[:3], kind="MPO"), 3),
        "joined JPEG": (b"".join(jpegs[:2]), 2),
        "padded JPEG": ((bytes(7)).join(jpegs), 5),
        "progressive JPEG": (pillow(STACK[0], kind="JPEG", progressive=True) + jpegs[1], 2),
        "joined PNG": (b"".join(pngs), 5),
    }
    for name, (content, count) in several.items():
        error = refused(content)
        assert error.reason is Reason.UNSUPPORTED_ENCODING, name
        assert f"holds {count} pictures" in str(error), name


def test_one_picture_is_read_whatever_follows_it() -> None:
    jpeg, png = pillow(STACK[0], kind="JPEG"), pillow(STACK[0], kind="PNG")
    exif = Image.Exif()
    exif[0x010E] = "holds \xff\xd8\xff in a text"
    single = pillow(STACK[0], kind="PNG", save_all=True)
    with_thumbnail = pillow(STACK[0], kind="JPEG", exif=exif.tobytes() + b"\xff\xd8\xff\xe0" + jpeg)
    for content in (jpeg + bytes(9), jpeg + b"MotionPhoto" + jpeg, png + b"text" + png, single, with_thumbnail):
        (frame,) = read(content)
        assert frame.notes == ()


def mpo(second: np.ndarray, kind: int, xmp: bytes = b"") -> bytes:
    """An MPO of two pictures, the second of which its index calls `kind` (CIPA DC-007 5.2.3.3.1)."""
    content = bytearray(pillow(STACK[0], second, kind="MPO"))
    index = content.index(b"MPF\0") + 4
    pointer = content.index(b"\x02\xb0\x07\x00", index) + 8
    entries = index + int.from_bytes(content[pointer : pointer + 4], "little")
    content[entries + 16 : entries + 19] = kind.to_bytes(3, "little")
    if xmp:
        start = content.rindex(b"\xff\xd8\xff") + 2
        content[start:start] = b"\xff\xe1" + (len(xmp) + 2).to_bytes(2, "big") + xmp
    return bytes(content)


def test_previews_and_gain_maps_are_no_further_pictures() -> None:
    small = STACK[1][::2, ::2]
    for content in (mpo(small, 0x010001), mpo(small, 0, b'http://ns.adobe.com/xap/1.0/\0 hdrgm:Version="1.0"')):
        (frame,) = read(content)
        assert frame.shape == STACK[0].shape
        assert frame.notes == ("Smaller copies that the file holds beside its picture were ignored: 1.",)
    assert "holds 2 pictures" in str(refused(mpo(small, 0x020002)))


def test_a_jpeg_of_a_kind_that_is_not_read_is_not_called_damaged() -> None:
    deep = STACK[0].astype(np.uint16) * 16
    kinds = {
        "with 12 bits a sample": imagecodecs.jpeg8_encode(deep, bitspersample=12),
        "without loss": imagecodecs.ljpeg_encode(deep, bitspersample=12),
        "LS": imagecodecs.jpegls_encode(STACK[0]),
    }
    for words, content in kinds.items():
        error = refused(content)
        assert error.reason is Reason.UNSUPPORTED_ENCODING, words
        assert f"a JPEG {words}, which octray reads in DICOM files only" in str(error)


@pytest.mark.skipif(shutil.which("jpegtran") is None, reason="no encoder of arithmetic coding (jpegtran)")
@pytest.mark.parametrize("options", [(), ("-progressive",)])
def test_a_jpeg_with_arithmetic_coding_is_read(options: tuple[str, ...]) -> None:
    plain = pillow(STACK[0], kind="JPEG")
    content = subprocess.run(["jpegtran", "-arithmetic", *options], input=plain, capture_output=True, check=True).stdout
    assert b"\xff\xca" in content or b"\xff\xc9" in content
    assert [frame.stored_sha256 for frame in read(content)] == [frame.stored_sha256 for frame in read(plain)]


def test_a_tiff_compressed_in_an_unknown_way_is_not_called_damaged() -> None:
    content = bytearray(tiff(STACK[0]))
    with tifffile.TiffFile(io.BytesIO(bytes(content))) as opened:
        at = opened.pages.first.tags[259].valueoffset
    content[at : at + 2] = (60123).to_bytes(2, "little")
    assert refused(bytes(content)).reason is Reason.UNSUPPORTED_ENCODING


@pytest.mark.parametrize("orientation", [0, 1, 2, 3, 6, 8, 9])
def test_an_orientation_is_noted_and_not_applied(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture = Image.fromarray(STACK[0])
    contents = {"TIFF": tiff(STACK[0], extratags=[(274, 3, 1, orientation, True)])}
    for kind in ("JPEG", "PNG"):
        buffer = io.BytesIO()
        picture.save(buffer, kind, exif=exif)
        contents[kind] = buffer.getvalue()
    chunks = contents["PNG"]
    start, end = chunks.index(b"eXIf") - 4, chunks.index(b"IDAT") - 4
    contents["PNG, at its end"] = chunks[:start] + chunks[end:-12] + chunks[start:end] + chunks[-12:]
    packet = f'<rdf:Description tiff:Orientation="{orientation}"/>'.encode()
    contents["TIFF, in XMP"] = tiff(STACK[0], extratags=[(700, 1, len(packet), packet, True)])
    for kind, content in contents.items():
        (frame,) = read(content)
        assert frame.shape == STACK[0].shape, kind
        said = f"({'TIFF' if 'TIFF' in kind else 'EXIF'} orientation {orientation}); the pixels are as stored."
        assert any(said in note for note in frame.notes) == (2 <= orientation <= 8), kind


def test_damaged_exif_data_do_no_harm_to_a_picture() -> None:
    text = PngImagePlugin.PngInfo()
    text.add_text("Raw profile type exif", "\nexif\n  12\nno hexadecimal number")
    contents = [pillow(STACK[0], kind="PNG", pnginfo=text), pillow(STACK[0], kind="PNG", exif=b"Exif\0\0no header")]
    for content in contents:
        (frame,) = read(content)
        assert frame.stored_sha256 == hashes(STACK)[0]
        assert "EXIF data of the file cannot be read" in frame.notes[0]
    for tags in ([(34850, 4, 1, 2**31, True)], [(274, 2, 5, "text", True)]):
        content = tiff(STACK[0], extratags=tags).replace(struct.pack("<H", 34850), struct.pack("<H", 34665))
        assert read(content)[0].stored_sha256 == hashes(STACK)[0]


def test_a_camera_is_known_by_the_exif_data_of_a_tiff() -> None:
    """Exposure time, in the IFD of EXIF (34665), which is appended to the file here, and among the tags of the page."""
    plain = tiff(STACK[0], extratags=[(60000, 4, 1, 0, True)])
    at, end = plain.index(struct.pack("<HHI", 60000, 4, 1)), len(plain)
    ifd = struct.pack("<HHHIII", 1, 33434, 5, 1, end + 18, 0) + struct.pack("<II", 1, 60)
    assert read(plain[:at] + struct.pack("<HHII", 34665, 4, 1, end) + plain[at + 12 :] + ifd)[0].by_camera
    assert read(tiff(STACK[0], extratags=[(33434, 5, 1, (1, 60), True)]))[0].by_camera
    assert not read(tiff(STACK[0]))[0].by_camera


def test_inspect_says_how_many_pictures_there_are(tmp_path: Any, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "animated.png").write_bytes(pillow(*STACK, kind="PNG"))
    (tmp_path / "stack.tif").write_bytes(sub_ifds((STACK[0], 0), (STACK[1], 0), (STACK[2][::2, ::2], 1)))
    assert main(["inspect", str(tmp_path), "--json"]) == 1
    first, *frames = map(json.loads, capsys.readouterr().out.splitlines())
    assert (first["reason"], "holds 5 pictures" in first["message"]) == ("unsupported_encoding", True)
    assert [(one["frame_number"], one["frames"]) for one in frames] == [(1, 2), (2, 2)]
    assert all("ignored: 1." in one["notes"][0] for one in frames)
