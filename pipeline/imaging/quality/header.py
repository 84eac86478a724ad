"""Checks of the quality gate that need no pixels: modality, body part, view and size.

A value that the file does not state is never held against it. No value of the file stands in a sentence.
"""

from collections.abc import Sequence

from pipeline.imaging.dicom.terms import is_expected_body_part, is_expected_modality, is_expected_view
from pipeline.imaging.quality.look import Look


def wrong_modality(look: Look) -> str:
    """Modality (0008,0060) against what is expected; where nothing is, mammograms (MG) alone are wrong."""
    modality, expected = look.frame.modality, look.gate.intended_use.modalities
    if not expected and modality == "MG":
        return "The frame is a mammogram, which is taken only where Modality MG is asked for by name."
    if not modality or not expected or is_expected_modality(modality, expected):
        return ""
    return f"The frame is of another modality than {_listed(expected)}. Use a model that was made for it."


def wrong_body_part(look: Look) -> str:
    """Body Part Examined (0018,0015), or its code, against what is expected, as `imaging.dicom.codes` reads both."""
    part, expected = look.frame.body_part, look.gate.intended_use.body_parts
    if not part or not expected or is_expected_body_part(part, expected):
        return ""
    return f"The header names another part of the body than {_listed(expected)}, or names it in words unknown to octray."


def not_frontal(look: Look) -> str:
    """View Position (0018,5101), or its code, against what is expected; pixels are not asked."""
    view, expected = look.frame.view_position, look.gate.intended_use.view_positions
    if not view or not expected or is_expected_view(view, expected):
        return ""
    return (
        f"The header names another view than {_listed(expected)}, for example one from the side, or names it in words "
        "unknown to octray."
    )


def wrong_age(look: Look) -> str:
    """The patient's age against what is expected; an unknown age is not held against the frame."""
    age, expected = look.frame.patient_age, look.gate.intended_use.ages
    if age is None or expected is None or expected[0] <= age <= expected[1]:
        return ""
    return f"The patient is not {expected[0]} to {expected[1]} years old, its header says. Use a model for this age."


def unknown_age(look: Look) -> str:
    """An age that the file does not state, if one is expected."""
    ages = look.gate.intended_use.ages
    if ages is None or look.frame.patient_age is not None:
        return ""
    return f"The file does not state the patient's age; check that it is {ages[0]} to {ages[1]} years."


def too_small(look: Look) -> str:
    """Rows (0028,0010) and columns (0028,0011) of the file, whatever the resolution it was decoded at."""
    rows, columns = look.frame.shape
    smallest = look.gate.quality.smallest_side
    if min(rows, columns) >= smallest:
        return ""
    return f"The frame has {rows} x {columns} pixels; its shorter side needs at least {smallest}. Export it at its full size."


def photographed_film(look: Look) -> str:
    """The photograph of a film or screen, where the file itself says that a camera took it; pixels are not asked."""
    if not look.frame.by_camera:
        return ""
    return "The frame was taken by a camera, its file says: a photograph of a film or screen. Use the original file."


def _listed(values: Sequence[str]) -> str:
    return " or ".join(values)
