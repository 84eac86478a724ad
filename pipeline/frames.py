"""Frames and what is known of them, as it passes between rooms: frozen dataclasses and enums, numpy arrays, nothing heavier."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.settings import Check

FloatArray = NDArray[np.float32]


EXACT_EVIDENCE = "exact evidence"


class Split(StrEnum):
    """The parts of an index; no patient occurs in two of them.

    `train` fits the weights, `tune` chooses between them (early stopping, regularisation), `calibration` fits the temperature
    and the operating points, `test` is only ever read to report figures. `promotion`, which most indexes do not have, decides
    between a new bundle and the one in use; no training reads it.
    """

    TRAIN = "train"
    TUNE = "tune"
    CALIBRATION = "calibration"
    TEST = "test"
    PROMOTION = "promotion"


TRAINING_SPLITS = (Split.TRAIN, Split.TUNE, Split.CALIBRATION, Split.TEST)
"""What a training reads."""


class LabelLevel(StrEnum):
    """For what a label was given, the smallest first.

    A label of an instance, an eye, a study or a patient need not hold for each of its frames: one B-scan of a volume may show
    no fluid. A file of one frame is that frame.
    """

    FRAME = "frame"
    INSTANCE = "instance"
    EYE = "eye"
    STUDY = "study"
    PATIENT = "patient"


@dataclass(frozen=True, slots=True)
class InstanceKey:
    """The key of a frame: study > series > instance > frame, always complete.

    Parameters
    ----------
    study_instance_uid
        Study Instance UID (0020,000D); derived from the content (2.25.*) for files that carry none.
    series_instance_uid
        Series Instance UID (0020,000E), or a derived one.
    sop_instance_uid
        SOP Instance UID (0008,0018), or a derived one.
    frame_number
        Starts at 1, as in DICOM.
    """

    study_instance_uid: str
    series_instance_uid: str
    sop_instance_uid: str
    frame_number: int


class Box(NamedTuple):
    """The box that a whole frame takes on other pixels, in those pixels: on a smaller copy of it, or on the network's grid.

    Parameters
    ----------
    top, left
        Of the outer corner of the frame's first pixel; negative if the frame begins outside.
    rows, columns
        Size of the whole frame.
    """

    top: float
    left: float
    rows: float
    columns: float


@dataclass(frozen=True, slots=True)
class FrameFacts:
    """A frame without its pixels: what it is and how it was read.

    Parameters
    ----------
    key, source, laterality, view_position, transfer_syntax_uid, photometric_interpretation, notes, file_sha256, decoder
        As in `Frame`.
    rows, columns
        Of the frame in its file.
    decoded_rows, decoded_columns
        At which it was decoded: fewer if a reduced resolution was enough.
    """

    key: InstanceKey
    source: str
    laterality: str = ""
    view_position: str = ""
    transfer_syntax_uid: str = ""
    photometric_interpretation: str = ""
    rows: int = 0
    columns: int = 0
    decoded_rows: int = 0
    decoded_columns: int = 0
    notes: tuple[str, ...] = ()
    file_sha256: str = ""
    decoder: str = ""


@dataclass(frozen=True, slots=True, eq=False)
class Frame:
    """One image as a reader would see it.

    Parameters
    ----------
    pixels
        float32 array of shape (rows, columns) in [0, 1], MONOCHROME2 sense: 0 is black, 1 is white.
    key
        Study, series, instance and frame.
    source
        Path of the file below what was given to read, with forward slashes.
    pixel_sha256
        Hash of the frame's decoded stored values (C order, little endian) with their shape and type; equal pixels, equal hash.
        This and the other hashes are empty if they were not requested, or if the frame was not decoded whole.
    modality
        Modality (0008,0060), for example CR, DX or OPT, for B-scans only: en-face frames are OPTENF, photographs
        of the eye OP; empty if neither the file nor its SOP class states it.
    view_position
        View Code Sequence (0054,0220), else View Position (0018,5101): AP, PA, LL, RL, FRONTAL, LATERAL or another term; empty
        if unknown.
    laterality
        R, L, U or B: Image Laterality (0020,0062) before Laterality (0020,0060); empty if unknown, never guessed.
    pixel_spacing_mm
        Distance between rows and between columns in mm; None if unknown.
    photometric_interpretation
        Photometric Interpretation (0028,0004) of the file.
    transfer_syntax_uid
        Transfer Syntax UID (0002,0010); empty for files that are not DICOM.
    sop_class_uid
        SOP Class UID (0008,0016); empty if unknown.
    body_part
        Anatomic Region Sequence (0008,2218), else Body Part Examined (0018,0015), for example CHEST; empty if unknown.
    patient_age
        In completed years, by `imaging.dicom.header.patient_age`; None if unknown.
    burned_in_annotation
        Burned In Annotation (0028,0301), YES or NO; empty if unknown.
    by_camera
        Whether the file says with what exposure or lens a camera took it (EXIF).
    instance_number
        Instance Number (0020,0013); None if unknown.
    number_of_frames
        How many frames the instance has.
    slice_position_mm
        Where the frame lies along the normal of its plane: Image Position (0020,0032) on the normal of Image Orientation
        (0020,0037); None if unknown.
    stored_sha256
        Hash of the frame's decoded stored values alone (C order, little endian): of a palette the indices, of colour RGB.
    instance_sha256
        The same over the stored values of all frames of the instance; only its last frame has it.
    stored_range
        Smallest and largest stored value.
    whole_shape
        Rows and columns of the frame in its file if `pixels` have fewer, since they were decoded at a reduced resolution.
    whole_box
        The box that the whole frame then takes on `pixels`, in their pixels.
    notes
        What was assumed on the way to grey levels, in sentences.
    file_sha256
        Hash of the bytes of the file, or of the member of an archive; empty if it was not requested.
    decoder
        What decoded the stored values: the name of a library as its distribution has it, or octray.
    """

    pixels: FloatArray
    key: InstanceKey
    source: str
    pixel_sha256: str
    modality: str = ""
    view_position: str = ""
    laterality: str = ""
    pixel_spacing_mm: tuple[float, float] | None = None
    photometric_interpretation: str = ""
    transfer_syntax_uid: str = ""
    sop_class_uid: str = ""
    body_part: str = ""
    patient_age: int | None = None
    burned_in_annotation: str = ""
    by_camera: bool = False
    instance_number: int | None = None
    number_of_frames: int = 1
    slice_position_mm: float | None = None
    stored_sha256: str = ""
    instance_sha256: str = ""
    stored_range: tuple[float, float] = (0.0, 0.0)
    whole_shape: tuple[int, int] | None = None
    whole_box: Box | None = None
    notes: tuple[str, ...] = ()
    file_sha256: str = ""
    decoder: str = ""

    @property
    def shape(self) -> tuple[int, int]:
        """Rows (0028,0010) and columns (0028,0011) of the frame in its file, at whatever resolution it was decoded."""
        return self.whole_shape or (self.pixels.shape[0], self.pixels.shape[1])

    def facts(self) -> FrameFacts:
        """Return the frame without its pixels."""
        return FrameFacts(
            self.key,
            self.source,
            self.laterality,
            self.view_position,
            self.transfer_syntax_uid,
            self.photometric_interpretation,
            *self.shape,
            self.pixels.shape[0],
            self.pixels.shape[1],
            self.notes,
            self.file_sha256,
            self.decoder,
        )


@dataclass(frozen=True, slots=True)
class ImageRecord:
    """One row of an index: a frame with its labels, its patient and its split.

    Parameters
    ----------
    key
        Study, series, instance and frame.
    root
        Position of the source folder in the index's list of sources.
    source
        Path of the file below that folder.
    patient_key
        Pseudonym of the patient; the file's own study if none is known.
    pixel_sha256
        As in `Frame`.
    labels
        True, False, or None if it is not known; None is never "absent".
    split
        Which part of the index the frame belongs to.
    rows, columns
        Size of the frame in pixels.
    modality, view_position, laterality
        As in `Frame`.
    file_sha256
        Hash of the bytes of the file, or of the member of an archive, that holds the frame.
    flags
        What the quality gate found and lets pass.
    label_level
        For what the labels were given; None if the frame has none.
    """

    key: InstanceKey
    root: int
    source: str
    patient_key: str
    pixel_sha256: str
    labels: Mapping[str, bool | None]
    split: Split
    rows: int
    columns: int
    modality: str = ""
    view_position: str = ""
    laterality: str = ""
    file_sha256: str = ""
    flags: tuple[Check, ...] = ()
    label_level: LabelLevel | None = None


@dataclass(frozen=True, slots=True)
class Quarantined:
    """A file, or a frame of it, that could not be used.

    Parameters
    ----------
    source
        Path of the file below what was given.
    reason
        A `Reason` code.
    message
        A sentence for people.
    frame_number
        None if the whole file is meant.
    root
        Position of the source folder in the index's list of sources.
    """

    source: str
    reason: str
    message: str
    frame_number: int | None = None
    root: int = 0


def of_whole_file(rows: Sequence[Quarantined]) -> tuple[Quarantined, ...]:
    """Return one row instead of those of a file's frames if all of them were refused for the same reason."""
    if len(rows) > 1 and len({(row.reason, row.message) for row in rows}) == 1:
        return (replace(rows[0], frame_number=None),)
    return tuple(rows)
