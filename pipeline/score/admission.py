"""What a bundle asks of files and frames, and what it makes of them before it scores them; light, for worker processes."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace

from pipeline.errors import UnreadableError
from pipeline.imaging.preprocess import prepare
from pipeline.imaging.quality.gate import admit
from pipeline.imaging.sources import StudyFile, open_file, read_frames_from_bytes
from pipeline.intake import Flag, Gate, Reading
from pipeline.records import FloatArray, Frame, FrameFacts, Preprocessing, Quarantined
from pipeline.score.view import View, view_of


@dataclass(frozen=True, slots=True, eq=False)
class Admitted:
    """A frame that a bundle's quality gate lets pass, as the network and people will see it.

    Parameters
    ----------
    facts
        The frame without its pixels.
    pixels
        float32 array of shape (1, size, size) in [0, 1], as `prepare` gives it.
    flags
        What the gate found in the frame.
    view
        What heatmaps are drawn on; None where none are.
    """

    facts: FrameFacts
    pixels: FloatArray
    flags: tuple[Flag, ...]
    view: View | None


@dataclass(frozen=True, slots=True)
class Admission:
    """The terms of a bundle.

    Parameters
    ----------
    reading
        How files are read: as they were read to train it.
    gate
        What it asks of frames.
    preprocessing
        How frames come onto the network's grid.
    drawn
        Whether heatmaps will be drawn.
    """

    reading: Reading
    gate: Gate
    preprocessing: Preprocessing
    drawn: bool = True

    def admit(self, frame: Frame) -> Admitted:
        """Let a frame pass that the bundle was made for and that is good enough for it.

        Raises
        ------
        UnreadableError
            Where the gate refuses it.
        """
        flags = admit(frame, self.gate)
        pixels = prepare(frame.pixels, self.preprocessing, frame.whole_box, frame.whole_shape)
        return Admitted(frame.facts(), pixels, flags, view_of(frame, self.preprocessing) if self.drawn else None)


def read_admitted(file: StudyFile, admission: Admission) -> Iterator[Admitted | Quarantined]:
    """Read the frames of a file, each with the hash of the file; those that the gate refuses come out with the reason.

    Raises
    ------
    UnreadableError
        As `read_frames`.
    """
    content, frames = open_file(file, admission.reading)
    file_sha256 = hashlib.sha256(content).hexdigest()
    yield from _admitted((replace(frame, file_sha256=file_sha256) for frame in frames), admission)


def read_admitted_bytes(content: bytes, source: str, admission: Admission) -> Iterator[Admitted | Quarantined]:
    """Do what `read_admitted` does for a file that is in memory already, but for its hash."""
    yield from _admitted(read_frames_from_bytes(content, source, admission.reading), admission)


def _admitted(frames: Iterator[Frame], admission: Admission) -> Iterator[Admitted | Quarantined]:
    for frame in frames:
        try:
            yield admission.admit(frame)
        except UnreadableError as error:
            yield Quarantined(frame.source, error.reason, str(error), frame.key.frame_number)
