"""The words of reports: plain names for codes, and how numbers, times and abbreviations are written."""

import re
from collections.abc import Iterable, Mapping
from datetime import datetime

from pipeline.levels import Level, LevelPrediction, LevelResult, Pooling
from pipeline.predictions import Prediction, State

NO_FINDING = "No finding"

REASONS: Mapping[str, str] = {
    "not_an_image": "Not an image",
    "truncated": "File cut off",
    "no_image": "Object without an image",
    "no_pixels": "Image without its pixels",
    "empty_image": "Image without rows or columns",
    "coloured": "Colour picture",
    "unsupported_encoding": "Unsupported encoding",
    "inconsistent": "Header and pixels contradict each other",
    "decode_failed": "Damaged",
    "not_opened": "Could not be opened",
    "resource_limit": "Too large",
    "time_limit": "Takes too long to read",
    "memory_limit": "Needs more memory than is available",
    "decoder_crash": "Crashes the decoder",
    "worker_ended": "Reading was ended from outside",
    "unsafe_path": "Leads out of the folder",
    "missing": "File missing",
    "no_worker": "Not read: reading could not start",
    "out_of_distribution": "Unlike the images that the model learned from",
    "wrong_modality": "Another modality",
    "wrong_body_part": "Another body part",
    "not_frontal": "Another view",
    "wrong_age": "Another age",
    "unknown_age": "Age unknown",
    "too_small": "Too small",
    "blank": "Blank",
    "saturated": "Fully white or black in large parts",
    "inverted": "Black and white inverted",
    "rotated": "On its side or upside down",
    "cropped": "Cut off at an edge",
    "half_frame": "Half of an image",
    "photographed_film": "Photograph of a film or screen",
    "burned_in_text": "Text in the picture",
    "white_borders": "White wedges at the edges",
}
"""What reasons for not scoring a file or frame, and checks of the quality gate, are called, by their codes."""

EYES: Mapping[str, str] = {"R": "right eye (OD)", "L": "left eye (OS)", "B": "both eyes (OU)"}
SIDES: Mapping[str, str] = {"R": "right", "L": "left", "B": "both sides", "U": "unpaired"}
"""Laterality (0020,0060) and Image Laterality (0020,0062), of eyes and of everything else."""
_EYE_MODALITIES = frozenset({"OP", "OPT", "OPTENF", "OPTBSV", "OAM", "OPM", "OPR", "OPV"})

POOLINGS: Mapping[Pooling, str] = {
    Pooling.MAX: "the largest probability",
    Pooling.NOISY_OR: "noisy-or",
    Pooling.MEAN: "the mean",
    Pooling.ATTENTION: "attention",
}
"""How images became one result."""

ABBREVIATIONS: Mapping[str, str] = {
    "OD": "oculus dexter, the right eye",
    "OS": "oculus sinister, the left eye",
    "OU": "oculus uterque, both eyes",
    "PA": "postero-anterior",
    "AP": "antero-posterior",
    "LL": "left lateral",
    "RL": "right lateral",
    "LLD": "left lateral decubitus",
    "RLD": "right lateral decubitus",
    "LLO": "left lateral oblique",
    "RLO": "right lateral oblique",
    "CR": "computed radiography",
    "DX": "digital radiography",
    "RG": "radiographic imaging",
    "OPT": "ophthalmic tomography",
    "OP": "ophthalmic photography",
    "UID": "unique identifier",
    "AUROC": "area under the curve of sensitivity against false alarms",
    "F1": "harmonic mean of precision and sensitivity",
    "MCC": "Matthews correlation coefficient",
    "ECE": "expected calibration error",
}
"""Names of the eyes, defined terms of View Position (PS3.3 C.8.1.1.1) and Modality (C.7.3.1.1.1), measures of a model card."""
_WORD = re.compile(r"[A-Z][A-Z0-9]+")


def spelled_out(text: str) -> dict[str, str]:
    """Return what the abbreviations in a text stand for, if known, in the order of their first use."""
    return {word: ABBREVIATIONS[word] for word in dict.fromkeys(_WORD.findall(text)) if word in ABBREVIATIONS}


def percent(value: float) -> str:
    """Return a probability in percent with one digit after the point, and never a certainty: `>99.9 %`, `<0.1 %`."""
    if value > 0.999:
        return ">99.9 %"
    return "<0.1 %" if value < 0.001 else f"{value * 100:.1f} %"


def rate(value: float) -> str:
    """Return a measured rate in percent; unlike a probability, it may be 0 % or 100 %."""
    return f"{value * 100:.0f} %" if value in (0, 1) else f"{min(max(value * 100, 0.1), 99.9):.1f} %"


def count(number: int, noun: str) -> str:
    """Return a number with its noun: 1 frame, 2 frames."""
    plural = f"{noun[:-1]}ies" if noun.endswith("dy") else f"{noun}s"
    return f"{number:,} {noun if number == 1 else plural}"


def reason(code: str) -> str:
    """Return a reason or a check in plain words."""
    return REASONS.get(code, code.replace("_", " ").capitalize())


def state(prediction: Prediction | LevelPrediction, normal_label: str | None) -> str:
    """Return the state of a prediction in one word; the label that means no finding is likely, unlikely or uncertain."""
    if prediction.label != normal_label:
        return prediction.state.value
    return {State.POSITIVE: "likely", State.NEGATIVE: "unlikely"}.get(prediction.state, prediction.state.value)


def label(name: str, normal_label: str | None) -> str:
    """Return the displayed name of a label; the one that means no finding is always called that."""
    return NO_FINDING if name == normal_label else name


def side(laterality: str, modalities: Iterable[str]) -> str:
    """Return which eye or side an image shows, for a model of these modalities; empty if that is not known."""
    named = set(modalities)
    return (EYES if named and named <= _EYE_MODALITIES else SIDES).get(laterality, "")


def unit(result: LevelResult, modalities: Iterable[str]) -> str:
    """Return what a result is about: this study, an eye or side, or the patient, with the number of studies if several."""
    several = f" in {count(result.studies, 'study')}" if result.studies > 1 else ""
    if result.level is Level.STUDY:
        return "This study"
    if result.level is Level.PATIENT:
        return f"Patient{several}"
    name = side(result.laterality, modalities)
    return f"{name[:1].upper()}{name[1:]}{several}"


def moment(seconds: float) -> datetime:
    """Return seconds since 1970 as local time, in whole seconds."""
    return datetime.fromtimestamp(int(seconds)).astimezone()
