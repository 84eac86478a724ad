"""Reads which part of the body and which view a file names, in codes or in words, as DICOM's own terms.

Codes decide if they are known: `codes.csv` holds those of PS3.16 CID 4010 (views) and CID 4031 (parts of the body). Otherwise
the text of Body Part Examined (0018,0015) and View Position (0018,5101) decides, word by word, by `terms.csv`. A text means a
part or a view only if each of its words is in that table: `CHEST PA` is a chest, `CHEST LORDOTIC` and `CHEST ABDOMEN` are not.
"""

import csv
import re
import unicodedata
from collections.abc import Collection
from functools import cache, lru_cache
from importlib import resources
from typing import NamedTuple

from pydicom.dataset import Dataset

from pipeline.imaging.dicom.header import Scope, item, texts

RADIOGRAPHY = frozenset({"CR", "DX", "RG", "DR"})
"""Values of Modality (0008,0060) for projection radiographs (PS3.3 C.7.3.1.1.1); DR is older files' word for DX."""
_ASKED_AS_RADIOGRAPHS = frozenset({"CR", "DX"})
_STANDS_FOR = {"FRONTAL": frozenset({"AP", "PA"}), "LATERAL": frozenset({"LL", "RL"})}
_LONGEST_TERM = 2
"""Words in the longest term of `terms.csv`."""
_TERM = re.compile(r"[A-Z0-9][A-Z0-9 ]{0,31}")


class Text(NamedTuple):
    """What the words of a text mean; `other` is the text, in plain capitals, if a word of it is not in the table."""

    body_parts: frozenset[str]
    view_positions: frozenset[str]
    other: str


def body_part(scope: Scope) -> str:
    """Return the part of the body that a frame shows, for example CHEST; empty if it is not known.

    Anatomic Region Sequence (0008,2218) of the frame or of the instance, else Body Part Examined (0018,0015). A text that is
    not in the table is returned as it is, in capitals.
    """
    holder = scope.holder("FrameAnatomySequence", "AnatomicRegionSequence")
    coded = _meaning("body_part", item(holder, "AnatomicRegionSequence")) if holder is not None else ""
    text = read_text(" ".join(texts(scope.dataset, "BodyPartExamined")))
    return coded or text.other or (next(iter(text.body_parts)) if len(text.body_parts) == 1 else "")


def view_position(dataset: Dataset) -> str:
    """Return the view of a file: AP, PA, LL, RL, FRONTAL, LATERAL or another term; empty if it is not known.

    View Code Sequence (0054,0220) with View Modifier Code Sequence (0054,0222), else View Position (0018,5101), else a view
    that Body Part Examined (0018,0015) names beside the part, as in `CHEST LATERAL`.
    """
    entry = item(dataset, "ViewCodeSequence")
    if coded := _meaning("view_position", entry):
        modified = entry is not None and item(entry, "ViewModifierCodeSequence") is not None
        return f"{coded} MODIFIED" if modified else coded
    text = read_text(" ".join(texts(dataset, "ViewPosition")))
    if text.other:
        return text.other
    return _one_view(text.view_positions or read_text(" ".join(texts(dataset, "BodyPartExamined"))).view_positions)


@lru_cache(maxsize=1024)
def read_text(text: str) -> Text:
    """Read a part of the body and a view out of a text; a text that says `UNKNOWN` is read as one that says nothing."""
    plain = unicodedata.normalize("NFKD", text.upper().replace(".", ""))
    words = re.sub(r"[^\w]|_", " ", "".join(one for one in plain if not unicodedata.combining(one))).split()
    found: dict[str, set[str]] = {"body_part": set(), "view_position": set(), "neither": set(), "unknown": set()}
    place = 0
    while place < len(words):
        for length in range(min(_LONGEST_TERM, len(words) - place), 0, -1):
            if meaning := _terms().get(" ".join(words[place : place + length])):
                found[meaning[0]].add(meaning[1])
                place += length
                break
        else:
            whole = " ".join(words)
            return Text(frozenset(), frozenset(), whole if _TERM.fullmatch(whole) else "")
    return Text(frozenset(found["body_part"]), frozenset(found["view_position"]), "")


def is_expected_modality(modality: str, expected: Collection[str]) -> bool:
    """Return whether a Modality is among those expected; RG and DR are if CR or DX is."""
    as_radiograph = modality in RADIOGRAPHY - _ASKED_AS_RADIOGRAPHS and not _ASKED_AS_RADIOGRAPHS.isdisjoint(expected)
    return modality in expected or as_radiograph


def is_expected_body_part(part: str, expected: Collection[str]) -> bool:
    """Return whether a part of the body is among those expected, in whatever words the configuration names these."""
    return part in expected or any(part in read_text(one).body_parts for one in expected)


def is_expected_view(view: str, expected: Collection[str]) -> bool:
    """Return whether a view is among those expected; FRONTAL stands for AP and PA, LATERAL for LL and RL."""
    named = {one for text in expected for one in (text.upper(), *read_text(text).view_positions)}
    return not _views(view).isdisjoint(named.union(*map(_views, named)))


def _views(view: str) -> frozenset[str]:
    return _STANDS_FOR.get(view, frozenset({view}))


def _one_view(views: Collection[str]) -> str:
    """Return the one view that a text names; both frontal views are FRONTAL, a frontal and a lateral one are not known."""
    if len(views) == 1:
        return next(iter(views))
    return next((name for name, both in _STANDS_FOR.items() if views and set(views) <= both | {name}), "")


def _meaning(attribute: str, entry: Dataset | None) -> str:
    """Return the term of a code; its scheme may be written in the old way, SNM3 or 99SDM for SRT (PS3.16 8.1.1)."""
    if entry is None:
        return ""
    scheme = "".join(texts(entry, "CodingSchemeDesignator")).strip().upper()
    scheme = "SRT" if scheme in ("SNM3", "99SDM") else scheme
    return _codes().get((attribute, scheme, "".join(texts(entry, "CodeValue")).strip().upper()), "")


@cache
def _codes() -> dict[tuple[str, str, str], str]:
    return {(row["attribute"], row["scheme"], row["code"]): row["means"] for row in _table("codes.csv")}


@cache
def _terms() -> dict[str, tuple[str, str]]:
    return {row["term"]: (row["kind"], row["means"]) for row in _table("terms.csv")}


def _table(name: str) -> list[dict[str, str]]:
    return list(csv.DictReader((resources.files(__package__) / name).read_text(encoding="utf-8").splitlines()))
