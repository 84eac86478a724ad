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
from pipeline.ingest.deidentify.search import PLACEHOLDERS, Search, is_term

_META = frozenset({0x00020000, 0x00020001, 0x00020002, 0x00020003, 0x00020010, 0x00020012, 0x00020013})
_WORDS = frozenset({"AE", "CS", "LO", "LT", "PN", "SH", "ST", "UC", "UR", "UT"})
_NUMBERS = frozenset({"DS", "IS", "AS", "DA", "DT", "TM", "UI"})
_DAY = re.compile(r"[0-9]{8}")
_OLDEST = 90
_LONG = 6
_METHOD = frozenset({0x00120063, 0x00120064})
"""De-identification Method and its codes, which octray writes and nobody else."""


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
    found = [
        *_structure(dataset, pseudonym, options),
        *(_place(element.tag) for element, _ in left(dataset, identity, options)),
    ]
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
        if element.VR == "AS" and any(text[:-1].isdecimal() and int(text[:-1]) > _OLDEST for text in texts if text[-1] == "Y"):
            yield _place(element.tag)
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


def left(dataset: Dataset, identity: Identity, options: Options) -> Iterator[tuple[DataElement, str]]:
    """Yield the elements of a data set in which something of the original is found again, each with the text that has it."""
    uids = frozenset() if Keep.UIDS in options.keep else identity.uids
    search = Search.of(identity.names, identity.identifiers | uids, identity.dates)
    for path, element in walk(dataset):
        if path[0] not in _METHOD:
            for text in texts_of(element):
                if (element.VR == "UI" and text in uids) or _is_left(path, element, text, identity, search):
                    yield element, text


def _is_left(path: Path, element: DataElement, text: str, identity: Identity, search: Search) -> bool:
    if text in PLACEHOLDERS or (element.VR == "CS" and is_term(text)):
        return False
    if element.VR in ("DA", "DT"):
        return (path, text) in identity.placed_dates
    if element.VR in ("DS", "IS"):
        return bool(_DAY.fullmatch(text)) and text in identity.dates
    if element.VR in _NUMBERS:
        return False
    is_short = element.VR in _WORDS - {"CS"} and text.upper() in identity.short_identifiers
    return is_short or search.finds_identifier(text) or (element.VR in _WORDS and search.finds_name(text))


def _raw(content: bytes, dataset: Dataset, identity: Identity, options: Options) -> list[str]:
    """Search the bytes themselves for longer texts, whatever element they may be in, apart from texts that say nothing."""
    searched = content
    if dataset.file_meta.TransferSyntaxUID == DeflatedExplicitVRLittleEndian:
        start = 132 + 12 + dataset.file_meta.FileMetaInformationGroupLength
        searched += zlib.decompress(content[start:], -zlib.MAX_WBITS)
    searched = searched.upper()
    uids = set() if Keep.UIDS in options.keep else {uid.encode() for uid in identity.uids if len(uid) >= _LONG}
    harmless = "\n".join(_harmless(dataset)).upper().encode()
    found = any(_count(text, searched) > _count(text, harmless) for text in identity.raw | uids)
    return ["the bytes of the file"] if found else []


def _harmless(dataset: Dataset) -> Iterator[str]:
    """Yield the texts in which a name or an identifier may stand by chance: defined terms, placeholders, what octray says."""
    for path, element in walk(dataset):
        for text in texts_of(element):
            if path[0] in _METHOD or text in PLACEHOLDERS or (element.VR == "CS" and is_term(text)):
                yield text


def _count(text: bytes, searched: bytes) -> int:
    """Count where a text occurs; digits count only where they stand alone, since the new UIDs have many."""
    if not re.fullmatch(rb"[\d.]+", text) or text not in searched:
        return searched.count(text)
    return len(re.findall(rb"(?<![\w.])" + re.escape(text) + rb"(?![\w.])", searched))


def _place(tag: BaseTag) -> str:
    return f"({tag.group:04x},{tag.element:04x})"
