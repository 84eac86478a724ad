"""What a worker process says of bad input: how it ended, and whether a frame contradicts its header."""

import io
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pydicom
from pydicom.dataset import Dataset

from pipeline.errors import UnreadableError
from pipeline.frames import Frame
from pipeline.imaging.sources import read_frames_from_bytes
from tests.fuzz.mutations import Mutant


@dataclass(frozen=True)
class Verdict:
    """How reading ended: `frames` were read, then `reason`, which is empty where it went well; there should be no `faults`."""

    frames: int
    reason: str
    peak_bytes: int
    faults: tuple[str, ...]


def judge(item: Path | Mutant | bytes) -> Iterator[Verdict]:
    """Read a file, or a copy of it with faults; what is no `UnreadableError` is left to the pool."""
    content = item if isinstance(item, bytes) else item.read_bytes() if isinstance(item, Path) else item.content()
    frames, reason, faults = 0, "", list[str]()
    header: Dataset | None = None
    try:
        for frame in read_frames_from_bytes(content, "bad.dcm"):
            if frame.transfer_syntax_uid and header is None:
                wanted = ["Rows", "Columns", "NumberOfFrames"]
                header = pydicom.dcmread(io.BytesIO(content), force=True, specific_tags=wanted)
            frames += 1
            faults += faults_of(frame, header)
    except UnreadableError as error:
        reason = error.reason.value
        faults += [] if 0 < len(str(error)) < 400 and str(error).isprintable() else [f"message {error!r}"]
    if not frames and not reason:
        faults.append("neither a frame nor a reason")
    yield Verdict(frames, reason, _peak(), tuple(faults))


def faults_of(frame: Frame, header: Dataset | None) -> Iterator[str]:
    """Hold a frame against the header of its DICOM file, as pydicom reads it."""
    pixels = frame.pixels
    if pixels.dtype != np.float32 or not np.isfinite(pixels).all() or pixels.min() < 0 or pixels.max() > 1:
        yield "pixels that are no numbers from 0 to 1"
    if header is not None and pixels.shape != (header.Rows, header.Columns):
        yield f"{pixels.shape} where the header says {header.Rows} x {header.Columns}"
    if header is not None and frame.key.frame_number > int(header.get("NumberOfFrames") or 1):
        yield f"frame {frame.key.frame_number} of {header.NumberOfFrames}"


def _peak() -> int:
    """The peak of this process's memory in bytes; `getrusage` would count that of the process that started it, too."""
    found = re.search(r"VmHWM:\s+([0-9]+) kB", Path("/proc/self/status").read_text())
    return int(found[1]) * 1024 if found else 0
