"""The facts in the header of a DICOM file, about the instance and its frames, read once into one record."""

import re
from dataclasses import dataclass
from datetime import date

import numpy as np
from pydicom.dataset import Dataset

from pipeline.imaging.dicom.dataset import instance_uids, uid_text
from pipeline.imaging.dicom.display import Palette, is_reducible, read_palette, rendering, stored_limits
from pipeline.imaging.dicom.elements import Scope, code, numbers, texts, whole_number
from pipeline.imaging.dicom.layout import Layout
from pipeline.imaging.dicom.terms import RADIOGRAPHY, body_part, intent_notes, modality, view_position
from pipeline.imaging.grayscale import Rendering

_OLDEST = 130
"""Years; a greater age is a mistake or means that it is unknown."""
_UNKNOWN_BIRTH = date(1900, 1, 1)
_AGE = re.compile(r"\s*(\d{1,3})\s*([DWMY])\s*", re.IGNORECASE)
_DAYS = {"D": 1.0, "W": 7.0, "M": 365.25 / 12, "Y": 365.25}
_PER_FRAME, _SHARED = "PerFrameFunctionalGroupsSequence", "SharedFunctionalGroupsSequence"
_DESCRIPTOR = "RedPaletteColorLookupTableDescriptor"
_SPACINGS = ("PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing")


@dataclass(frozen=True, slots=True)
class FrameHeader:
    """The facts in a header about one frame: its own functional group counts first, then the shared one, then the instance.

    Parameters
    ----------
    modality, laterality, body_part, pixel_spacing_mm, slice_position_mm
        As in `Frame`.
    rendering
        The way from its stored values to grey levels; not used if there is a palette.
    notes
        Parts of that way that had to be ignored, in sentences.
    """

    modality: str
    laterality: str
    body_part: str
    pixel_spacing_mm: tuple[float, float] | None
    slice_position_mm: float | None
    rendering: Rendering
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Header:
    """The facts in the header of a DICOM file.

    Parameters
    ----------
    dataset
        Holds the pixel data, and the functional groups of the frames.
    layout
        How the pixel data are laid out.
    uids
        Study, Series and SOP Instance UID.
    sop_class_uid, view_position, patient_age, burned_in_annotation, instance_number
        As in `Frame`.
    stored_limits
        Smallest and largest value that Bits Stored (0028,0101) can hold.
    palette
        Of PALETTE COLOR frames.
    coloured_from
        The first stored value that a supplemental palette colours in grey frames; None if there is no such palette.
    voi_explanation
        As in `Reading`.
    is_reducible
        Whether averages of neighbouring stored values can stand for the values; see `display.is_reducible`.
    notes
        What was assumed about the file, in sentences.
    """

    dataset: Dataset
    layout: Layout
    uids: tuple[str, str, str]
    sop_class_uid: str
    view_position: str
    patient_age: int | None
    burned_in_annotation: str
    instance_number: int | None
    stored_limits: tuple[int, int]
    palette: Palette | None
    coloured_from: float | None
    voi_explanation: str
    is_reducible: bool
    notes: tuple[str, ...]
    _of_every_frame: FrameHeader | None

    def frame(self, number: int) -> FrameHeader:
        """Return the facts about a frame; `number` counts from 1.

        Raises
        ------
        UnreadableError
            `INCONSISTENT` if a lookup table of the frame contradicts its own description.
        """
        if self._of_every_frame is not None:
            return self._of_every_frame
        return _frame_header(Scope.of(self.dataset, number - 1), self.sop_class_uid, self.palette, self.voi_explanation)


def read_header(
    dataset: Dataset, layout: Layout, content: bytes, voi_explanation: str = "", notes: tuple[str, ...] = ()
) -> Header:
    """Read the header of a DICOM file whose pixel data were checked.

    Parameters
    ----------
    dataset, layout
        As `parse` and `read_layout` give them.
    content
        The whole file, from which missing UIDs are derived.
    voi_explanation
        As in `Reading`.
    notes
        What was assumed before, in sentences.

    Raises
    ------
    UnreadableError
        `INCONSISTENT` if a lookup table or a palette contradicts its own description.
    """
    uids, uid_notes = instance_uids(dataset, content)
    sop_class = uid_text(dataset, "SOPClassUID")
    palette = read_palette(dataset) if layout.photometric_interpretation == "PALETTE COLOR" else None
    has_groups, limits, descriptor = _PER_FRAME in dataset, stored_limits(dataset), numbers(dataset, _DESCRIPTOR)
    every = None if has_groups else _frame_header(Scope.of(dataset, 0), sop_class, palette, voi_explanation)
    return Header(
        dataset=dataset,
        layout=layout,
        uids=uids,
        sop_class_uid=sop_class,
        view_position=view_position(dataset),
        patient_age=patient_age(dataset),
        burned_in_annotation=code(dataset, "BurnedInAnnotation"),
        instance_number=whole_number(dataset, "InstanceNumber"),
        stored_limits=limits,
        palette=palette,
        coloured_from=descriptor[1]
        if code(dataset, "PixelPresentation") in ("COLOR", "MIXED") and len(descriptor) == 3
        else None,
        voi_explanation=voi_explanation,
        is_reducible=(
            code(dataset, "Modality") in RADIOGRAPHY
            and every is not None
            and not any(keyword in dataset for keyword in (_SHARED, _DESCRIPTOR))
            and (layout.bits is None or not layout.bits.overlays)
            and is_reducible(every.rendering, limits)
        ),
        notes=notes + uid_notes + layout.notes + (layout.bits.notes if layout.bits else ()) + intent_notes(dataset, sop_class),
        _of_every_frame=every,
    )


def _frame_header(scope: Scope, sop_class: str, palette: Palette | None, voi_explanation: str) -> FrameHeader:
    way, notes = rendering(scope, voi_explanation) if palette is None else (Rendering(), ())
    return FrameHeader(
        modality=modality(scope, sop_class),
        laterality=laterality(scope),
        body_part=body_part(scope),
        pixel_spacing_mm=pixel_spacing(scope),
        slice_position_mm=_slice_position(scope),
        rendering=way,
        notes=notes,
    )


def patient_age(dataset: Dataset) -> int | None:
    """Return the patient's age in completed years; None if the file does not state it in a usable way.

    Patient's Age (0010,1010), in days, weeks, months or years (PS3.5 6.2, AS), else the time from Patient's Birth Date
    (0010,0030) to Study Date (0008,0020). Ages below zero or above `_OLDEST` are ignored, and so are 000Y and the birth date
    1900-01-01, which mean that it is unknown.
    """
    stated = _AGE.fullmatch("".join(texts(dataset, "PatientAge")))
    if stated and (int(stated[1]) or stated[2].upper() != "Y"):
        years = int(int(stated[1]) * _DAYS[stated[2].upper()] / 365.25 + 1e-9)
        if years <= _OLDEST:
            return years
    born, studied = _date(dataset, "PatientBirthDate"), _date(dataset, "StudyDate")
    if born is None or studied is None or born == _UNKNOWN_BIRTH:
        return None
    years = studied.year - born.year - ((studied.month, studied.day) < (born.month, born.day))
    return years if 0 <= years <= _OLDEST else None


def _date(dataset: Dataset, keyword: str) -> date | None:
    """Return a date; it may be written with dots, as before 1993 (PS3.5 6.2, DA)."""
    text = "".join(texts(dataset, keyword)).strip().replace(".", "")
    try:
        return date.fromisoformat(text) if len(text) == 8 else None
    except ValueError:
        return None


def laterality(scope: Scope) -> str:
    """Frame Laterality (0020,9072) before Image Laterality (0020,0062) before Laterality (0020,0060); R, L, U, B or empty."""
    frame = scope.holder("FrameAnatomySequence", "FrameLaterality")
    found = [code(frame, "FrameLaterality")] if frame is not None else []
    found += [code(scope.dataset, keyword) for keyword in ("ImageLaterality", "Laterality")]
    return next((one for one in found if one in ("R", "L", "U", "B")), "")


def pixel_spacing(scope: Scope) -> tuple[float, float] | None:
    """Pixel Spacing (0028,0030), Imager Pixel Spacing (0018,1164) or Nominal Scanned Pixel Spacing (0018,2010), in mm."""
    holder = scope.holder("PixelMeasuresSequence", *_SPACINGS)
    if holder is None:
        return None
    for keyword in _SPACINGS:
        found = numbers(holder, keyword)
        if len(found) == 2 and min(found) > 0:
            return found[0], found[1]
    return None


def _slice_position(scope: Scope) -> float | None:
    """Return Image Position (0020,0032) along the normal of Image Orientation (0020,0037), in mm (PS3.3 C.7.6.2.1.1)."""
    place = scope.holder("PlanePositionSequence", "ImagePositionPatient")
    plane = scope.holder("PlaneOrientationSequence", "ImageOrientationPatient")
    position = numbers(place, "ImagePositionPatient") if place is not None else ()
    directions = numbers(plane, "ImageOrientationPatient") if plane is not None else ()
    if len(position) != 3 or len(directions) != 6:
        return None
    normal = np.cross(directions[:3], directions[3:])
    length = float(np.linalg.norm(normal))
    return float(np.dot(position, normal)) / length if length > 0 else None
