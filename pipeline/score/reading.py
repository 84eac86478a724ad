"""How a bundle reads: files into frames that pass its quality gate, on its network's grid; light, for worker processes."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.errors import UnreadableError
from pipeline.frames import Box, FloatArray, Frame, FrameFacts, Quarantined
from pipeline.imaging.preprocess import bright_height, placement, prepare
from pipeline.imaging.quality.gate import admit, may_differ
from pipeline.imaging.sources import StudyFile, open_file, read_frames_from_bytes
from pipeline.settings import Flag, Gate, Preprocessing, Reading
from pipeline.workers.process import restart_clock

MIN_HEIGHT, MAX_HEIGHT, MAX_WIDTH = 224, 512, 560


@dataclass(frozen=True, slots=True, eq=False)
class View:
    """A frame at the size at which it is drawn.

    Parameters
    ----------
    grey
        uint8 array of shape (height, width), as `display_shape` gives them.
    box
        Where the whole frame lies on the network's square, in network pixels.
    size
        Side of that square, in network pixels.
    """

    grey: NDArray[np.uint8]
    box: Box
    size: int


def view_of(frame: Frame, preprocessing: Preprocessing) -> View:
    """Make the view of a frame for a network that sees it by way of `preprocessing`."""
    rows, columns = frame.shape
    height, width = display_shape(rows, columns)
    grey = np.asarray(frame.pixels * np.float32(255) + np.float32(0.5), np.uint8)
    if grey.shape != (height, width):
        grey = np.asarray(Image.fromarray(grey).resize((width, height), Image.Resampling.BILINEAR))
    box = placement(rows, columns, preprocessing, bright_height(frame.pixels, preprocessing))
    return View(grey, box, preprocessing.size)


def display_shape(rows: int, columns: int) -> tuple[int, int]:
    """Return the rows and columns at which a frame is drawn: aspect kept, neither too small to see nor too large."""
    factor = min(np.clip(rows, MIN_HEIGHT, MAX_HEIGHT) / rows, MAX_WIDTH / columns)
    return max(1, round(rows * factor)), max(1, round(columns * factor))


@dataclass(frozen=True, slots=True)
class InMemoryFile:
    """A file whose content is in memory, such as an upload; `source` is as in `StudyFile`."""

    source: str
    content: bytes


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
        What heatmaps are drawn on; None if none are.
    file
        What it was read from; None if that does not matter.
    """

    facts: FrameFacts
    pixels: FloatArray
    flags: tuple[Flag, ...]
    view: View | None
    file: StudyFile | InMemoryFile | None = None

    @property
    def is_reduced(self) -> bool:
        """Whether it was decoded at a reduced resolution."""
        facts = self.facts
        return (facts.decoded_rows, facts.decoded_columns) != (facts.rows, facts.columns)


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
            If the gate refuses it.
        """
        flags = admit(frame, self.gate)
        pixels = prepare(frame.pixels, self.preprocessing, frame.whole_box, frame.whole_shape)
        return Admitted(frame.facts(), pixels, flags, view_of(frame, self.preprocessing) if self.drawn else None)


def read_admitted(file: StudyFile | InMemoryFile, admission: Admission) -> Iterator[Admitted | Quarantined]:
    """Read the frames of a file, each with the hash of the file; those that the gate refuses come out with the reason.

    A frame of which the gate might find something else in the whole of it is read whole, whatever the terms say.

    Raises
    ------
    UnreadableError
        As `read_frames`.
    """
    if isinstance(file, InMemoryFile):
        content, file_sha256 = file.content, ""  # it cannot be replaced
        frames = read_frames_from_bytes(content, file.source, admission.reading)
    else:
        content, frames = open_file(file, admission.reading)
        file_sha256 = hashlib.sha256(content).hexdigest()
    whole, passed = read_frames_from_bytes(content, file.source, _unreduced(admission).reading), 0
    for index, frame in enumerate(frames):
        if frame.whole_shape is not None and may_differ(frame, admission.gate):
            restart_clock()
            frame, passed = next(islice(whole, index - passed, None)), index + 1
        try:
            yield replace(admission.admit(replace(frame, file_sha256=file_sha256)), file=file)
        except UnreadableError as error:
            yield Quarantined(frame.source, error.reason, str(error), frame.key.frame_number)


def read_whole(item: Admitted, admission: Admission) -> Iterator[Admitted | Quarantined]:
    """Read a frame again, whole; made for worker processes.

    Parameters
    ----------
    item
        The frame as it was read.
    admission
        By which terms.

    Yields
    ------
    Admitted or Quarantined
        The frame, and nothing else; nothing at all if the file was replaced by one that has fewer.

    Raises
    ------
    UnreadableError
        As `read_frames`.
    """
    restart_clock()
    assert item.file is not None  # noqa: S101 - for mypy
    for number, frame in enumerate(read_admitted(item.file, _unreduced(admission)), 1):
        restart_clock()
        if number == item.facts.key.frame_number:
            yield frame
            return


def _unreduced(admission: Admission) -> Admission:
    return replace(admission, reading=replace(admission.reading, side=None))
