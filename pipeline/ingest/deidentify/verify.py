"""Looks into a de-identified file for anything that identifies, with none of the code and the table that made it."""

import io
import re
import zlib
from collections.abc import Iterable, Iterator

from pydicom import dcmread
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.tag import BaseTag
from pydicom.uid import DeflatedExplicitVRLittleEndian

from pipeline.ingest.deidentify.identity import IDENTIFIERS, Identity, Path, texts_of, walk
from pipeline.ingest.deidentify.options import Keep, Options, Refusal, RefusedError

PLACEHOLDERS = frozenset({"", "ANONYMIZED", "0", "000Y", "19000101", "19000101000000", "000000"})
"""What may stand in place of something that identifies."""
_WORDLESS = frozenset({"NONE", "UNKNOWN", "ANONYMOUS", "ANON", "NA", "N/A"})
_META = frozenset({0x00020000, 0x00020001, 0x00020002, 0x00020003, 0x00020010, 0x00020012, 0x00020013})
_WORDS = frozenset({"AE", "LO", "LT", "PN", "SH", "ST", "UC", "UR", "UT"})
_NUMBERS = frozenset({"DS", "IS", "AS", "DA", "DT", "TM", "UI"})
_LONG = 6


def verify(content: bytes, identity: Identity, pseudonym: str, options: Options) -> None:
    """Search a file that is about to be written.

    Parameters
    ----------
    content
        All its bytes.
    identity
        What the original said.
    pseudonym
        What may stand for the patient.
    options
        What was asked to be kept.

    Raises
    ------
    RefusedError
        `IDENTITY_LEFT`, with the tags of the attributes in which something was found.
    """
    dataset = dcmread(io.BytesIO(content))
    found = [*_structure(dataset, pseudonym, options), *(_place(element.tag) for element in left(dataset, identity, options))]
    if found := found or _raw(content, dataset, identity, options):
        places = ", ".join(dict.fromkeys(found))
        raise RefusedError(
            Refusal.IDENTITY_LEFT,
            f"Something that identifies would be left in {places}. Please report it as a fault of octray.",
        )


def _structure(dataset: Dataset, pseudonym: str, options: Options) -> Iterator[str]:
    """Yield where something stands that may not be in any de-identified file."""
    allowed = PLACEHOLDERS | {pseudonym}
    yield from (_place(tag) for tag in list(dataset.file_meta.keys()) if int(tag) not in _META)
    if dataset.preamble != bytes(128):
        yield "the preamble"
    if dataset.get("PatientIdentityRemoved") != "YES" or dataset.get("PatientID") != pseudonym:
        yield "Patient ID"
    for path, element in walk(dataset):
        tags = [BaseTag(tag) for tag in path if tag > 0xFFFF]
        if any(_forbidden(tag) for tag in tags) or element.VR == "UN":
            yield _place(element.tag)
        texts = set(texts_of(element))
        personal = element.VR in ("PN", "AE") or element.keyword in IDENTIFIERS
        dated = element.VR in ("DA", "DT") and (Keep.DATES not in options.keep or element.keyword == "PatientBirthDate")
        if (personal and not _is_pseudonymous(element, texts, allowed)) or (dated and not texts <= allowed):
            yield _place(element.tag)


def _forbidden(tag: BaseTag) -> bool:
    return tag.is_private or tag.element == 0 or tag.group >> 8 in (0x50, 0x60)


def _is_pseudonymous(element: DataElement, texts: set[str], allowed: Iterable[str]) -> bool:
    """Say whether nothing but placeholders stands there; the identifier of another patient has a pseudonym of its own."""
    other = element.keyword == "PatientID" and all(re.fullmatch(r"P[0-9A-F]{15}", text) for text in texts)
    return other or texts <= set(allowed)


def left(dataset: Dataset, identity: Identity, options: Options) -> Iterator[DataElement]:
    """Yield the elements of a data set in which something of the original is found again."""
    uids = frozenset() if Keep.UIDS in options.keep else identity.uids
    words = re.compile(rf"(?<!\w)(?:{_either(identity.names - _WORDLESS)})(?!\w)")
    terms = identity.identifiers - _WORDLESS - PLACEHOLDERS
    phrases = re.compile(rf"(?<![^\W_])(?:{_either(terms | uids)})(?![^\W_])|{_either(identity.dates)}")
    for path, element in walk(dataset):
        for text in texts_of(element):
            is_short = element.VR in _WORDS and text.upper() in identity.short_identifiers
            if is_short or (element.VR == "UI" and text in uids) or _is_left(path, element, text, identity, (words, phrases)):
                yield element
                break


def _is_left(path: Path, element: DataElement, text: str, identity: Identity, patterns: tuple[re.Pattern[str], ...]) -> bool:
    if element.VR in ("DA", "DT"):
        return text not in PLACEHOLDERS and (path, text) in identity.placed_dates
    if element.VR in _NUMBERS or text in PLACEHOLDERS:
        return False
    words, phrases = patterns
    return bool(phrases.search(text.upper()) or (element.VR in _WORDS and words.search(text.upper())))


def _raw(content: bytes, dataset: Dataset, identity: Identity, options: Options) -> list[str]:
    """Search the bytes themselves for longer texts, whatever element they may be in."""
    searched = content
    if dataset.file_meta.TransferSyntaxUID == DeflatedExplicitVRLittleEndian:
        start = 132 + 12 + dataset.file_meta.FileMetaInformationGroupLength
        searched += zlib.decompress(content[start:], -zlib.MAX_WBITS)
    uids = set() if Keep.UIDS in options.keep else {uid.encode() for uid in identity.uids}
    known = {word.encode() for word in PLACEHOLDERS | _WORDLESS}
    texts = {text for text in identity.raw | uids if len(text) >= _LONG and text.upper() not in known}
    return ["the bytes of the file"] if any(_is_among(text, searched) for text in texts) else []


def _is_among(text: bytes, searched: bytes) -> bool:
    """Say whether a text occurs; digits count only where they stand alone, since the new UIDs have many."""
    if text not in searched:
        return False
    alone = rb"(?<![\w.])" + re.escape(text) + rb"(?![\w.])"
    return not re.fullmatch(rb"[\d.]+", text) or re.search(alone, searched) is not None


def _either(texts: Iterable[str]) -> str:
    """Return a pattern for any of some texts, one that never matches where there is none."""
    return "|".join(re.escape(text) for text in sorted(texts)) or r"(?!)"


def _place(tag: BaseTag) -> str:
    return f"({tag.group:04x},{tag.element:04x})"
