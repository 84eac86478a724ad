"""The real files of the shared data against their manifest, whose hashes pydicom's `pixel_array` gave."""

import csv
import hashlib
import io
from pathlib import Path

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.encaps import generate_frames

from pipeline.errors import Reason, UnreadableError
from pipeline.frames import Frame
from pipeline.imaging import guard
from pipeline.imaging.dicom.decoding import stored_values
from pipeline.imaging.dicom.layout import read_layout
from pipeline.imaging.sources import StudyFile, read_frames
from pipeline.settings import DEFAULT_READING, Limits

REFERENCE_SUMS = (
    *(16384, 98415, 280552, 623696, 518886, 411878, 553218, 353250),
    *(191472, 222611, 156363, 116482, 155933, 38519, 16384, 16384),
)
BIG_ENDIAN = "1.2.840.10008.1.2.2"
LOSSY_JPEG = ("1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.51")


@pytest.fixture(scope="module")
def samples(shared_data: Path) -> Path:
    guard.silence_decoders()
    return shared_data / "dicom-samples"


def manifest(samples: Path) -> list[dict[str, str]]:
    with (samples / "manifest.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def decoded(content: bytes) -> list[np.ndarray]:
    dataset = pydicom.dcmread(io.BytesIO(content), force=True)
    layout = read_layout(dataset, dataset.file_meta.TransferSyntaxUID, Limits())
    return list(stored_values(dataset, layout, DEFAULT_READING))


def test_stored_values_are_those_of_the_manifest(samples: Path) -> None:
    rows = [row for row in manifest(samples) if row["kind"] == "ok" and row["ts_uid"] not in LOSSY_JPEG]
    wrong = []
    for row in rows:
        digest = hashlib.sha256()
        for array in decoded((samples / "files" / row["file"]).read_bytes()):
            # The manifest hashed big endian files in their own byte order.
            order = ">" if row["ts_uid"] == BIG_ENDIAN else "<"
            digest.update(np.ascontiguousarray(array, array.dtype.newbyteorder(order)).data)
        if digest.hexdigest() != row["pixel_sha256"]:
            wrong.append(row["file"])
    assert len(rows) > 100
    assert wrong == []


def frames_of(samples: Path, name: str) -> list[Frame]:
    return list(read_frames(StudyFile(samples / "files" / name, name)))


def test_frames_carry_the_hash_of_the_manifest(samples: Path) -> None:
    """Of all grey files but lossy JPEG and big endian, whose hash the manifest takes in the order of the file."""
    left_out = (*LOSSY_JPEG, BIG_ENDIAN)
    rows = [row for row in manifest(samples) if row["kind"] == "ok" and row["photometric"].startswith("MONO")]
    checked = 0
    for row in rows:
        frames = frames_of(samples, row["file"])
        assert len(frames) == int(row["frames"] or 1), row["file"]
        assert {frame.shape for frame in frames} == {(int(row["rows"]), int(row["cols"]))}, row["file"]
        if row["ts_uid"] not in left_out:
            assert frames[-1].instance_sha256 == row["pixel_sha256"], row["file"]
            checked += 1
    assert checked > 60


def test_lossy_jpeg_is_within_one_level_of_pillow(samples: Path) -> None:
    rows = [row for row in manifest(samples) if row["kind"] == "ok" and row["ts_uid"] == LOSSY_JPEG[0]]
    for row in rows:
        content = (samples / "files" / row["file"]).read_bytes()
        dataset = pydicom.dcmread(io.BytesIO(content))
        encoded = generate_frames(dataset.PixelData, number_of_frames=int(row["frames"] or 1))
        for stored, one in zip(decoded(content), encoded, strict=True):
            expected = np.asarray(Image.open(io.BytesIO(one)), np.int64)
            assert np.abs(stored - expected).max() <= 1, row["file"]
    assert len(rows) >= 6


@pytest.mark.parametrize("name", ["MR3", "MR4"])
def test_twelve_bits_of_lossy_jpeg_are_close_to_the_lossless_original(samples: Path, name: str) -> None:
    folder = samples / "files"
    lossy, original = (
        decoded((folder / f"dicom-test-files__WG04__{kind}__{name}_{kind}").read_bytes())[0].astype(np.int64)
        for kind in ("JPLY", "JPLL")
    )
    assert original.max() > 255
    assert np.abs(lossy - original).mean() < 0.004 * original.max()


def test_twelve_bits_of_lossy_jpeg_against_a_reference_decoder(samples: Path) -> None:
    """Sums over 64 rows each as libjpeg of the JPEG committee gives them (pylibjpeg-libjpeg 2.5.0), to 0.05 levels a pixel."""
    (stored,) = decoded((samples / "files" / "pydicom__JPGExtended.dcm").read_bytes())
    assert stored.max() <= 264
    np.testing.assert_allclose(stored.reshape(16, -1).sum(axis=1), REFERENCE_SUMS, atol=0.05 * 64 * 256)


REASONS = {
    "no_pixels": {Reason.NO_PIXELS, Reason.NO_IMAGE, Reason.TRUNCATED},
    "undecodable_or_bad": {Reason.INCONSISTENT, Reason.TRUNCATED, Reason.UNSUPPORTED_ENCODING, Reason.RESOURCE_LIMIT},
    "not_or_broken": {Reason.NO_PIXELS, Reason.NO_IMAGE, Reason.COLOURED},
    "ok": {Reason.COLOURED},
}
READ_ALL_THE_SAME = {
    "pydicom-data__parametric_map_double_float.dcm",
    "dicom-test-files__WG04__JPLY__MR3_JPLY",
    "dicom-test-files__WG04__JPLY__MR4_JPLY",
    "pydicom-data__liver_rle.dcm",
    "pydicom-data__liver_nonbyte_aligned_rle.dcm",
}
"""Files that the tool which wrote the manifest could not decode, and octray can."""


def outcome(samples: Path, name: str) -> Reason | None:
    """Why a file cannot be read; None where it can."""
    try:
        frames_of(samples, name)
    except UnreadableError as error:
        return error.reason
    return None


def test_every_file_ends_as_its_kind_says(samples: Path) -> None:
    rows = manifest(samples)
    outcomes = {row["file"]: outcome(samples, row["file"]) for row in rows}
    for row in rows:
        reason = outcomes[row["file"]]
        assert reason is None or reason in REASONS[row["kind"]], row["file"]
        assert reason is not Reason.COLOURED or not row["photometric"].startswith("MONO"), row["file"]
    assert {row["file"] for row in rows if row["kind"] != "ok" and outcomes[row["file"]] is None} == READ_ALL_THE_SAME


@pytest.mark.parametrize("name", ["liver", "liver_nonbyte_aligned"])
def test_single_bits_in_rle_are_those_of_the_uncompressed_file(samples: Path, name: str) -> None:
    plain, compressed = (frames_of(samples, f"pydicom-data__{name}{kind}.dcm") for kind in ("_j2k", "_rle"))
    assert [frame.stored_sha256 for frame in plain] == [frame.stored_sha256 for frame in compressed]
