import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from pipeline.errors import Reason, UnreadableError
from pipeline.frames import Frame
from pipeline.imaging.identity import stored_sha256
from pipeline.imaging.sources import discover, read_frames, read_frames_from_bytes
from pipeline.imaging.vendor.heidelberg import from_ufloat16
from pipeline.settings import Limits, Reading
from tests.builders import make_dicom, make_zip

Scans = NDArray[Any]


def read(content: bytes, source: str = "a", reading: Reading | None = None) -> list[Frame]:
    return list(read_frames_from_bytes(content, source, reading or Reading()))


def refused(content: bytes, source: str = "a", reading: Reading | None = None) -> Reason:
    with pytest.raises(UnreadableError) as caught:
        read(content, source, reading)
    return caught.value.reason


def reflectivity(scans: int = 3, rows: int = 6, columns: int = 8) -> NDArray[np.float32]:
    values = np.random.default_rng(1).random((scans, rows, columns), dtype=np.float32)
    values[0, 0, :2] = np.finfo(np.float32).max, 0
    return values


def make_vol(scans: NDArray[np.float32], eye: bytes = b"OS", **overrides: Any) -> bytes:
    """A `.vol` file as Heidelberg describes it: header, SLO image, then a header and the reflectivity of each B-scan."""
    count, rows, columns = scans.shape
    fields: dict[str, Any] = {"scale_x": 0.0112, "distance": 0.24, "scale_z": 0.0039, "pattern": 3, "count": count}
    fields |= overrides
    header = struct.pack(
        "<12s3I3d2I2dId4sQiI",
        *(b"HSF-OCT-103", columns, fields["count"], rows, fields["scale_x"], fields["distance"], fields["scale_z"]),
        *(5, 4, 0.01, 0.01, 30, 0.5, eye, 0, fields["pattern"], 300),
    )
    blocks = [b"HSF-BS-103".ljust(300, b"\0") + scan.astype("<f4").tobytes() for scan in scans]
    return header.ljust(2048, b"\0") + bytes(range(20)) + b"".join(blocks)


def test_every_b_scan_of_a_vol_file_is_a_frame_and_the_slo_image_is_none() -> None:
    scans = reflectivity()
    frames = read(make_vol(scans))
    assert [frame.key.frame_number for frame in frames] == [1, 2, 3]
    assert (
        len({(frame.key.study_instance_uid, frame.key.series_instance_uid, frame.key.sop_instance_uid) for frame in frames})
        == 1
    )
    expected = np.where(scans > 1, 0, scans) ** 0.25
    for frame, grey in zip(frames, expected, strict=True):
        np.testing.assert_allclose(frame.pixels, grey, atol=1e-6)
        assert (frame.pixels.dtype, frame.pixels.shape) == (np.float32, (6, 8))
    assert {(frame.modality, frame.laterality, frame.pixel_spacing_mm, frame.number_of_frames) for frame in frames} == {
        ("OPT", "L", (0.0039, 0.0112), 3)
    }
    assert [frame.slice_position_mm for frame in frames] == pytest.approx([0, 0.24, 0.48])
    assert frames[1].notes == ("The file holds reflectivity: the grey levels are its fourth root, as HEYEX displays it.",)
    assert frames[1].stored_range == (scans[1].min(), scans[1].max())


@pytest.mark.parametrize(("eye", "laterality"), [(b"OD", "R"), (b"OS", "L"), (b"", ""), (b"XX", "")])
def test_the_eye_of_a_vol_file_is_never_guessed(eye: bytes, laterality: str) -> None:
    assert {frame.laterality for frame in read(make_vol(reflectivity(), eye))} == {laterality}


def test_distances_that_cannot_be_true_are_unknown() -> None:
    (frame,) = read(make_vol(reflectivity(1), scale_x=11.2, pattern=2))
    assert (frame.pixel_spacing_mm, frame.slice_position_mm) == (None, None)
    (frame,) = read(make_vol(reflectivity(1), scale_z=float("nan"), distance=-1.0))
    assert (frame.pixel_spacing_mm, frame.slice_position_mm) == (None, None)


def test_the_real_vol_file_gives_the_spacing_and_the_eye_of_its_header_and_the_grey_levels_of_its_render(
    shared_data: Path,
) -> None:
    folder = shared_data / "oct-spectralis-vol"
    content = (folder / "spectralis_1bscan_scrubbed.vol").read_bytes()
    (frame,) = read(content)
    columns, scans, rows = struct.unpack_from("<3I", content, 12)
    scale_x, _, scale_z = struct.unpack_from("<3d", content, 24)
    assert (frame.number_of_frames, frame.shape) == (scans, (rows, columns))
    assert frame.pixel_spacing_mm == (scale_z, scale_x)
    assert (content[84:86], frame.laterality) == (b"OD", "R")
    rendered = np.asarray(Image.open(folder / "bscan.png"))
    assert np.abs(frame.pixels * 255 - 0.5 - rendered).max() <= 0.5  # the render cuts off what follows the point
    with pytest.raises(UnreadableError, match="The file is empty"):
        read((folder / "invalid_empty.vol").read_bytes())


def test_the_real_vol_file_is_read_as_eyepy_reads_it(shared_data: Path) -> None:
    reader = pytest.importorskip("eyepy.io.he.vol_reader", reason="eyepy, the oracle, is not installed")
    path = shared_data / "oct-spectralis-vol" / "spectralis_1bscan_scrubbed.vol"
    with path.open("rb") as stream:
        expected = reader.vol_format.parse_stream(stream)
    (frame,) = read(path.read_bytes())
    assert frame.pixel_spacing_mm == (expected.scale_y, expected.scale_x)
    assert expected.scan_position.strip("\0") == "OD"
    np.testing.assert_allclose(frame.pixels, np.asarray(expected.bscans[0].data) ** 0.25, atol=1e-6)


def test_a_vol_file_that_is_cut_off_is_refused() -> None:
    whole = make_vol(reflectivity(2, 4, 6))
    assert {refused(whole[:length]) for length in (8, 100, 2047, 2048, 2060, 2400, len(whole) - 1)} == {Reason.TRUNCATED}


def test_a_vol_file_that_is_too_large_empty_or_holds_no_numbers_is_refused() -> None:
    whole = make_vol(reflectivity())
    assert refused(whole, reading=Reading(Limits(frame_pixels=47))) is Reason.RESOURCE_LIMIT
    assert refused(whole, reading=Reading(Limits(file_pixels=143))) is Reason.RESOURCE_LIMIT
    assert refused(make_vol(reflectivity(), count=2**32 - 1)) is Reason.RESOURCE_LIMIT
    assert refused(make_vol(reflectivity(), count=0)) is Reason.NO_PIXELS
    assert refused(whole[:20] + bytes(4) + whole[24:]) is Reason.EMPTY_IMAGE
    assert refused(make_vol(np.full((1, 2, 2), np.nan, np.float32))) is Reason.INCONSISTENT


def make_topcon(blocks: Sequence[tuple[bytes, bytes]], kind: bytes = b"FDA") -> bytes:
    packed = [bytes([len(name)]) + name + struct.pack("<I", len(data)) + data for name, data in blocks]
    return b"FOCT" + kind + struct.pack("<2I", 2, 1) + b"".join(packed) + b"\0"


def raw_block(scans: Scans, mode: int = 2, unused: int = 1) -> bytes:
    """16 bits a pixel; between the number of B-scans and the size, 1 byte was seen by some and 17 by others."""
    count, rows, columns = scans.shape
    data = scans.astype("<u2").tobytes()
    return struct.pack("<B4I", mode, columns, rows, 16, count) + bytes(unused) + struct.pack("<I", len(data)) + data


def jpeg_block(scans: Scans, encode: Any) -> bytes:
    encoded = [encode(scan) for scan in scans]
    header = struct.pack("<B6I", 2, 0, 0, scans.shape[2], scans.shape[1], len(encoded), 0)
    return header + b"".join(struct.pack("<I", len(one)) + one for one in encoded)


PARAMETERS = b"@PARAM_SCAN_04", struct.pack("<3I3d", 0, 0, 0, 6.0, 3.0, 2.6)
EYE = b"@CAPTURE_INFO_02", b"\1" + bytes(50)


@pytest.mark.parametrize(
    ("kind", "name", "unused"),
    [(b"FDA", b"@IMG_MOT_COMP_03", 1), (b"FDA", b"@IMG_MOT_COMP_03", 17), (b"FDS", b"@IMG_SCAN_03", 1)],
)
def test_every_b_scan_of_a_topcon_file_is_a_frame(kind: bytes, name: bytes, unused: int) -> None:
    scans = np.random.default_rng(2).integers(0, 60000, (3, 5, 8))
    fundus = (b"@IMG_OBS", bytes(100)), (b"@IMG_FUNDUS", bytes(50))
    frames = read(make_topcon([*fundus, (name, raw_block(scans, unused=unused)), PARAMETERS, EYE], kind))
    assert [frame.key.frame_number for frame in frames] == [1, 2, 3]
    for frame, scan in zip(frames, scans, strict=True):
        assert frame.stored_range == (scan.min(), scan.max())
        low, high = np.percentile(scan, (0.5, 99.5))
        np.testing.assert_allclose(frame.pixels, np.clip((scan - low) / (high - low), 0, 1), atol=1e-6)
        assert (frame.modality, frame.laterality, frame.number_of_frames) == ("OPT", "L", 3)
        assert frame.pixel_spacing_mm == pytest.approx((0.0026, 0.75))
    assert [frame.slice_position_mm for frame in frames] == pytest.approx([0, 1, 2])


@pytest.mark.parametrize("encode", [lambda scan: imagecodecs.jpeg2k_encode(scan, level=0), imagecodecs.jpeg8_encode])
def test_encoded_b_scans_of_a_topcon_file_are_decoded(encode: Any) -> None:
    scans = np.add.outer(np.array([0, 40]), np.add.outer(np.arange(32) * 2, np.arange(48))).astype(np.uint8)
    frames = read(make_topcon([(b"@IMG_JPEG", jpeg_block(scans, encode)), (b"@CAPTURE_INFO", b"\0")]))
    assert [frame.laterality for frame in frames] == ["R", "R"]
    for frame, scan in zip(frames, scans, strict=True):
        np.testing.assert_allclose(frame.pixels * 255, scan, atol=3)
        assert (frame.pixel_spacing_mm, frame.slice_position_mm) == (None, None)


def test_a_topcon_file_of_several_volumes_is_refused_with_their_number() -> None:
    block = (b"@IMG_SCAN_03", raw_block(np.ones((2, 4, 4))))
    with pytest.raises(UnreadableError, match="holds 3 volumes") as caught:
        read(make_topcon([block, EYE, block, block]))
    assert caught.value.reason is Reason.UNSUPPORTED_ENCODING
    assert len(read(make_topcon([block, (b"@IMG_MOT_COMP_03", block[1]), EYE, EYE]))) == 2


def test_older_parameters_of_a_topcon_file_are_read_and_impossible_ones_are_not() -> None:
    scans = raw_block(np.ones((1, 4, 4)), mode=1)
    old = (b"@PARAM_SCAN_02", struct.pack("<B5I3d", 0, 0, 0, 0, 0, 0, 2.0, 2.0, 3.5))
    (frame,) = read(make_topcon([(b"@IMG_SCAN_03", scans), old]))
    assert (frame.pixel_spacing_mm, frame.laterality) == (pytest.approx((0.0035, 0.5)), "")
    wide = (b"@PARAM_SCAN_04", struct.pack("<3I3d", 0, 0, 0, 1200.0, 3.0, 2.6))
    assert read(make_topcon([(b"@IMG_SCAN_03", scans), wide]))[0].pixel_spacing_mm is None


def test_a_topcon_file_that_is_damaged_or_without_b_scans_is_refused() -> None:
    scans = np.ones((2, 16, 16))
    whole = make_topcon([(b"@IMG_SCAN_03", raw_block(scans)), EYE])
    assert {refused(whole[:length]) for length in range(15, len(whole), 40)} == {Reason.TRUNCATED}
    assert refused(make_topcon([EYE])) is Reason.NO_PIXELS
    assert refused(make_topcon([(b"@IMG_SCAN_03", raw_block(scans[:0]))])) is Reason.NO_PIXELS
    assert refused(make_topcon([(b"@IMG_SCAN_03", raw_block(scans)[:-1])])) is Reason.TRUNCATED
    assert refused(make_topcon([(b"@IMG_SCAN_03", raw_block(scans)[:5])])) is Reason.TRUNCATED
    assert refused(whole, reading=Reading(Limits(frame_pixels=255))) is Reason.RESOURCE_LIMIT
    huge = bytearray(whole)
    struct.pack_into("<I", huge, whole.index(b"@IMG_SCAN_03") + 12 + 4 + 1, 2**31)
    assert refused(bytes(huge)) is Reason.RESOURCE_LIMIT
    block = jpeg_block(scans.astype(np.uint8), lambda scan: imagecodecs.jpeg2k_encode(scan[:8], level=0))
    assert refused(make_topcon([(b"@IMG_JPEG", block)])) is Reason.INCONSISTENT
    block = jpeg_block(scans.astype(np.uint8), lambda scan: imagecodecs.jpeg2k_encode(scan, level=0))
    assert refused(make_topcon([(b"@IMG_JPEG", block[:-30])])) is Reason.TRUNCATED
    assert refused(make_topcon([(b"@IMG_JPEG", block[:-30] + bytes(30))])) in (Reason.DECODE_FAILED, Reason.TRUNCATED)


CIRRUS = "P1_Macular Cube 4x3_1-2-2013_10-11-12_OS_sn1234_cube_z.img"


def test_an_img_file_is_read_by_the_size_in_its_name_and_turned() -> None:
    scans = np.random.default_rng(3).integers(0, 256, (3, 1024, 12), np.uint8)
    name = CIRRUS.replace("4x3", "12x3")
    frames = read(scans.tobytes(), f"folder/{name}")
    for frame, scan in zip(frames, scans, strict=True):
        np.testing.assert_allclose(frame.pixels * 255, np.rot90(scan, 2), atol=1e-4)
        assert (frame.modality, frame.laterality, frame.pixel_spacing_mm, frame.number_of_frames) == ("OPT", "L", None, 3)
        assert "no header" in frame.notes[0]
    assert refused(scans.tobytes()[:-1], name) is Reason.INCONSISTENT
    assert refused(scans.tobytes(), "disk.img") is Reason.NOT_AN_IMAGE
    assert refused(scans.tobytes(), "scan") is Reason.NOT_AN_IMAGE
    assert refused(scans.tobytes(), name, Reading(Limits(file_pixels=1000))) is Reason.RESOURCE_LIMIT


@pytest.mark.parametrize(
    ("name", "eye"),
    [
        ("P1-Macular-Cube-12x3-1-2-2013-10-11-12-OD-sn1234-cube-z.img", "R"),
        ("P1 Macular Cube 12x3 1-2-2013 10-11-12 OS sn1234 cube z.IMG", "L"),
        ("P1_MacularCube12x3_1-2-2013_10-11-12_OD_sn1234_cube_raw.img", "R"),
        ("OD_OS_clinic_Optic Disc Cube 12x3_1-2-2013_10-11-12_OD_sn1234_cube_z.img", "R"),
        ("P1 \u2013 Macular\u00a0Cube 12x3 \u2013 1-2-2013_10-11-12_OS_sn1234_cube_z (2).img", "L"),
        ("1024x768_Anterior Segment Cube 12x3_1-2-2013_10-11-12_OS_sn1234_cube_z - Copy.img", "L"),
        ("P1_Macular Cube 12 x 3_1-2-2013_10-11-12_OS_sn1234_cube_z.img", "L"),
        ("Cube 12x3 cube_z.img", ""),
    ],
)
def test_an_img_file_may_be_named_with_dashes_or_spaces(name: str, eye: str) -> None:
    scans = np.random.default_rng(3).integers(0, 256, (3, 1024, 12), np.uint8)
    frames = read(scans.tobytes(), f"OS_1-2_OS_/{name}")
    assert [frame.stored_sha256 for frame in frames] == [stored_sha256(np.rot90(scan, 2)) for scan in scans]
    assert {frame.laterality for frame in frames} == {eye}


@pytest.mark.parametrize(
    ("protocol", "lines", "columns"),
    [
        ("HD 5 Line Raster", 5, 1024),
        ("HD 5 Line Raster", 5, 4096),
        ("HD-5-Line-Raster", 5, 4096),
        ("HD5LineRaster", 5, 1024),
        ("HD 21 Line", 21, 1024),
        ("HD 1 Line 100x", 1, 4096),
        ("HD 5-Line Raster", 5, 1024),
        ("5 Line Raster", 5, 1024),
        ("HD 5 Line Raster 2048x5", 5, 2048),
    ],
)
def test_an_hd_raster_has_the_lines_of_its_protocol_and_the_columns_of_its_bytes(
    protocol: str, lines: int, columns: int
) -> None:
    content = np.arange(lines * 1024 * columns, dtype=np.uint32).astype(np.uint8).tobytes()
    for name in (f"P9_{protocol}_9-22-2017_12-22-6_OD_sn58_lineEnhanced.img", f"P9 {protocol} 9-22-2017 OD sn8 cube_raw.img"):
        frames = read(content, name)
        assert [frame.shape for frame in frames] == [(1024, columns)] * lines
        assert {frame.laterality for frame in frames} == {"R"}
        for wrong in (content[:-1], content + b"\0", content[: len(content) // 2], content * 2):
            assert refused(wrong, name) is Reason.INCONSISTENT
        assert refused(b"", name) is Reason.NOT_AN_IMAGE


@pytest.mark.parametrize(
    "name",
    [
        "P1_Angiography 3x3 mm_11-7-2016_11-48-5_OS_sn2646_FlowCube_z.img",
        "P1_Angiography 12x3_11-7-2016_11-48-5_OS_sn2646_FlowCube_z.img",
        "P1_Angio (6mmx6mm)_6-13-2019_13-2-0_OS_sn25281_cube_z.img",
        "P1_HD Line_9-22-2017_12-22-6_OD_sn5_lineEnhanced.img",
        "backup 12x3.img",
        "backup of 5 lines.img",
        "P1_HD 5 Line Raster_9-22-2017_12-22-6_OD_sn5_FlowCube_z.img",
        "12x3_lslo.img",
    ],
)
def test_an_img_file_whose_name_does_not_give_its_size_is_no_image(name: str) -> None:
    assert refused(bytes(3 * 1024 * 12), name) is Reason.NOT_AN_IMAGE


def test_pixels_of_an_img_file_may_look_like_dicom_without_a_preamble() -> None:
    name = CIRRUS.replace("4x3", "12x3")
    content = b"\x08\0\x05\0CS\x0a\0" + bytes(3 * 1024 * 12 - 8)
    assert len(read(content, name)) == 3
    dicom = make_dicom()
    for other, there in ((name, dicom), ("disk.img", dicom), ("disk.img", dicom[132:])):
        assert read(there, other)[0].modality == "CR"


def container(kind: int, where: tuple[int, int, int, int], data: bytes) -> bytes:
    return struct.pack("<12s5I4i2H2I", b"MDbData", 0, 0, 0, len(data), 0, *where, 1, 0, kind, 0) + data


def image(kind: int, values: Scans) -> bytes:
    return struct.pack("<5I", values.nbytes, kind, values.size, *values.shape) + values.tobytes()


def make_e2e(items: Sequence[tuple[int, tuple[int, int, int, int], bytes]], per_directory: int = 2) -> bytes:
    """An `.e2e` file: a list of directories, each before what it lists, of which the last is named first."""
    content = bytearray(struct.pack("<12sI20s", b"CMDb", 100, b"") + bytes(52))
    previous = 0
    for start in range(0, len(items), per_directory):
        some = items[start : start + per_directory]
        at = len(content)
        data_at = at + 52 + 44 * len(some)
        folders, data = b"", b""
        for kind, where, payload in some:
            folders += struct.pack("<4I4i2H2I", at, data_at + len(data), len(payload), 0, *where, 1, 0, kind, 0)
            data += container(kind, where, payload)
        content += struct.pack("<12sI20s4I", b"MDbDir", 100, b"", len(some), at, previous, 0) + folders + data
        previous = at
    content[36:88] = struct.pack("<12sI20s4I", b"MDbMDir", 100, b"", 0, previous, 0, 0)
    return bytes(content)


B_SCAN, SLO, IMAGE, EYE_OF_SERIES = 35652097, 33620481, 0x40000000, 11


def eye_item(series: int, letter: bytes) -> tuple[int, tuple[int, int, int, int], bytes]:
    return EYE_OF_SERIES, (1, 2, series, -1), bytes(14) + letter + bytes(12)


def scan_item(series: int, number: int, stored: Scans) -> tuple[int, tuple[int, int, int, int], bytes]:
    return IMAGE, (1, 2, series, 2 * number), image(B_SCAN, stored)


def test_real_reflectivity_has_the_ten_bits_of_mantissa_that_e2e_stores(shared_data: Path) -> None:
    content = (shared_data / "oct-spectralis-vol" / "spectralis_1bscan_scrubbed.vol").read_bytes()
    values = np.frombuffer(content[-4 * 768 * 496 :], "<f4")
    exponent = np.frexp(values)[1] - 1 + 63
    mantissa = values / np.ldexp(np.float32(1), exponent - 63) - 1
    bits = np.where(values > 0, (exponent << 10) + (mantissa * 1024).astype(int), 0).astype(np.uint16)
    assert np.array_equal(from_ufloat16(bits), values)


def value_of(stored: Scans) -> NDArray[np.float64]:
    """The number that Heidelberg's 16 bits mean: 10 bits of mantissa, 6 of exponent, no sign."""
    exponent = (stored >> 10).astype(float)
    return np.where(exponent > 0, (1 + (stored & 1023) / 1024) * 2.0 ** (exponent - 63), (stored & 1023) / 1024 * 2.0**-62)


def e2e_scans() -> Scans:
    stored = np.random.default_rng(4).integers(30 << 10, 63 << 10, (4, 5, 7)).astype("<u2")
    stored[0, 0, 0], stored[0, 0, 1] = 0xFFFF, 0
    return stored


def e2e_items(scans: Scans) -> list[tuple[int, tuple[int, int, int, int], bytes]]:
    localizer = IMAGE, (1, 2, 7, -1), image(SLO, np.zeros((9, 9), np.uint8))
    return [
        scan_item(7, 1, scans[1]),
        eye_item(7, b"L"),
        localizer,
        scan_item(7, 0, scans[0]),
        eye_item(8, b"R"),
        scan_item(8, 0, scans[2]),
        scan_item(9, 0, scans[3]),
    ]


def test_every_b_scan_of_an_e2e_file_is_a_frame_of_its_series_and_eye() -> None:
    scans = e2e_scans()
    content = make_e2e(e2e_items(scans))
    frames = read(content)
    assert [frame.key.frame_number for frame in frames] == [1, 2, 3, 4]
    assert [(frame.laterality, frame.number_of_frames) for frame in frames] == [("L", 2), ("L", 2), ("R", 1), ("", 1)]
    assert len({frame.key.series_instance_uid for frame in frames}) == 3
    assert len({frame.key.study_instance_uid for frame in frames}) == 1
    for frame, stored in zip(frames, scans, strict=True):
        expected = np.where(stored == 0xFFFF, 0, value_of(stored)) ** 0.25
        np.testing.assert_allclose(frame.pixels, np.minimum(expected, 1), rtol=1e-5)
        assert (frame.modality, frame.pixel_spacing_mm, frame.slice_position_mm) == ("OPT", None, None)
        assert "in degrees" in frame.notes[1]
    several = read(b"E2EMultipleVolumeFile".ljust(64, b"\0") + content)
    assert [frame.pixel_sha256 for frame in several] == [frame.pixel_sha256 for frame in frames]


def test_an_e2e_file_has_the_containers_that_eyepy_finds(tmp_path: Path) -> None:
    reader = pytest.importorskip("eyepy.io.he.e2e_reader", reason="eyepy, the oracle, is not installed")
    scans = e2e_scans()
    path = tmp_path / "a.e2e"
    path.write_bytes(make_e2e(e2e_items(scans), per_directory=10))
    with reader.HeE2eReader(path) as opened:
        found = {
            (series.id, slice_id): folder.data
            for series in opened.series
            for slice_id, one in series.slices.items()
            for folder in one.folders[reader.TypesEnum.image]
        }
        eyes = [series.laterality() for series in opened.series[:2]]
    assert {key: (data.type, data.height, data.width) for key, data in found.items()} == dict.fromkeys(
        [(7, 0), (7, 2), (8, 0), (9, 0)], (B_SCAN, 5, 7)
    )
    assert [chr(int(eye)) for eye in eyes] == ["L", "R"]  # eyepy gives the code of the letter


def test_an_e2e_file_that_is_damaged_never_hangs_and_is_refused() -> None:
    scans = e2e_scans()
    items = e2e_items(scans)
    whole = make_e2e(items)
    for length in range(5, len(whole), 60):
        assert refused(whole[:length]) is Reason.TRUNCATED
    assert refused(make_e2e([item for item in items if item[0] != IMAGE])) is Reason.NO_PIXELS
    assert refused(make_e2e([items[2]])) is Reason.NO_PIXELS
    assert refused(whole, reading=Reading(Limits(frame_pixels=34))) is Reason.RESOURCE_LIMIT
    circle = bytearray(whole)
    first = whole.index(b"MDbDir")
    struct.pack_into("<I", circle, first + 44, struct.unpack_from("<I", whole, 36 + 40)[0])
    assert len(read(bytes(circle))) == 4
    wrong = struct.pack("<5I", 0, B_SCAN, 1, 5, 7) + bytes(70)
    assert refused(make_e2e([(IMAGE, (1, 2, 7, 0), wrong)])) is Reason.INCONSISTENT


def test_altered_files_of_devices_are_read_or_refused() -> None:
    rng = np.random.default_rng(5)
    flat = np.ones((2, 16, 16), np.uint8)
    for whole in (
        make_vol(reflectivity()),
        make_topcon([(b"@IMG_SCAN_03", raw_block(flat)), PARAMETERS, EYE]),
        make_topcon([(b"@IMG_JPEG", jpeg_block(flat, imagecodecs.jpeg8_encode))]),
        make_e2e(e2e_items(e2e_scans())),
    ):
        for _ in range(100):
            altered = bytearray(whole)
            for at in rng.integers(0, len(whole), rng.integers(1, 8)):
                altered[at] = rng.integers(256)
            try:
                frames = read(bytes(altered), reading=Reading(Limits(file_pixels=10**6)))
            except UnreadableError:
                continue
            assert all(frame.pixels.min() >= 0 and frame.pixels.max() <= 1 for frame in frames)


def test_files_of_devices_are_found_in_archives_too(tmp_path: Path) -> None:
    members: Mapping[str, bytes] = {
        "a.vol": make_vol(reflectivity()),
        "b.fda": make_topcon([(b"@IMG_SCAN_03", raw_block(np.ones((2, 4, 4))))]),
    }
    (tmp_path / "study.zip").write_bytes(make_zip(members))
    frames = [frame for file in discover(tmp_path) for frame in read_frames(file)]
    assert [(frame.source, frame.key.frame_number) for frame in frames] == [
        *(("study.zip/a.vol", number) for number in (1, 2, 3)),
        *(("study.zip/b.fda", number) for number in (1, 2)),
    ]
