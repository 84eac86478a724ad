"""The real files of the shared data against their manifest, whose hashes pydicom's `pixel_array` gave."""

import csv
import hashlib
import io
from pathlib import Path

import numpy as np
import pydicom
import pytest

from pipeline.imaging import guard
from pipeline.imaging.decoding import stored_values
from pipeline.imaging.layout import read_layout
from pipeline.records import DEFAULT_READING, Limits

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
