"""Reads what newer objects say in codes only: the view and the part of the body, in the terms of the older attributes."""

from collections.abc import Mapping
from types import MappingProxyType

from pydicom.dataset import Dataset

from pipeline.imaging.dicom.header import Scope, code, item, texts

_VIEWS = MappingProxyType(
    {
        ("SCT", "399348003"): "AP",
        ("SRT", "R-10206"): "AP",
        ("SCT", "272479007"): "PA",
        ("SRT", "R-10214"): "PA",
        ("SCT", "399173006"): "LL",
        ("SRT", "R-10236"): "LL",
        ("SCT", "399198007"): "RL",
        ("SRT", "R-10232"): "RL",
    }
)
"""Views of PS3.16 CID 4010 that View Position (0018,5101) has a term for."""
_BODY_PARTS = MappingProxyType(
    {
        ("SCT", "816094009"): "CHEST",
        ("SCT", "51185008"): "CHEST",
        ("SRT", "T-D3000"): "CHEST",
        ("SCT", "818981001"): "ABDOMEN",
        ("SCT", "113345001"): "ABDOMEN",
        ("SRT", "T-D4000"): "ABDOMEN",
        ("SCT", "816092008"): "PELVIS",
        ("SCT", "12921003"): "PELVIS",
        ("SRT", "T-D6000"): "PELVIS",
        ("SCT", "76752008"): "BREAST",
        ("SRT", "T-04000"): "BREAST",
        ("SCT", "85562004"): "HAND",
        ("SRT", "T-D8700"): "HAND",
        ("SCT", "56459004"): "FOOT",
        ("SRT", "T-D9700"): "FOOT",
        ("SCT", "72696002"): "KNEE",
        ("SRT", "T-D9200"): "KNEE",
        ("SCT", "89546000"): "SKULL",
        ("SRT", "T-11100"): "SKULL",
        ("SCT", "16982005"): "SHOULDER",
        ("SRT", "T-D2220"): "SHOULDER",
        ("SCT", "81745001"): "EYE",
        ("SRT", "T-AA000"): "EYE",
    }
)
"""Parts that radiographs often show, by PS3.16 Annex L, which pairs the codes with Body Part Examined (0018,0015)."""


def view_position(dataset: Dataset) -> str:
    """View Position (0018,5101), else View Code Sequence (0054,0220); empty where neither says it in a known way."""
    return code(dataset, "ViewPosition") or _term(item(dataset, "ViewCodeSequence"), _VIEWS)


def body_part(scope: Scope) -> str:
    """Body Part Examined (0018,0015), else Anatomic Region Sequence (0008,2218) of the frame or of the instance."""
    named = code(scope.dataset, "BodyPartExamined")
    holder = scope.holder("FrameAnatomySequence", "AnatomicRegionSequence")
    return named or (_term(item(holder, "AnatomicRegionSequence"), _BODY_PARTS) if holder is not None else "")


def _term(entry: Dataset | None, terms: Mapping[tuple[str, str], str]) -> str:
    """Return the term of a code; its scheme may be written in the old way, SNM3 or 99SDM for SRT (PS3.16 8.1.1)."""
    if entry is None:
        return ""
    scheme = "".join(texts(entry, "CodingSchemeDesignator")).strip().upper()
    scheme = "SRT" if scheme in ("SNM3", "99SDM") else scheme
    return terms.get((scheme, "".join(texts(entry, "CodeValue")).strip().upper()), "")
