"""Looks into a de-identified file for anything that identifies, with none of the code and the table that made it."""

import io
import re
import zlib
from collections.abc import Iterable, Iterator
from decimal import Decimal

from pydicom import dcmread
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.tag import BaseTag
from pydicom.uid import DeflatedExplicitVRLittleEndian

from pipeline.deidentify.codes import meanings
from pipeline.deidentify.identity import IDENTIFIERS, Identity, Path, texts_of, walk
from pipeline.deidentify.numbers import FORCED, NUMBERS, forced_numbers, is_free
from pipeline.deidentify.options import Keep, Options, Refusal, RefusedError
from pipeline.deidentify.search import PLACEHOLDERS, Search, is_term, number_of
from pipeline.deidentify.values import is_registered

_META = frozenset({0x00020000, 0x00020001, 0x00020002, 0x00020003, 0x00020010, 0x00020012, 0x00020013})
_WORDS = frozenset({"AE", "CS", "LO", "LT", "PN", "SH", "ST", "UC", "UR", "UT"})
_NUMBERS = frozenset({"DS", "IS", "AS", "DA", "DT", "TM", "UI"})
_OLDEST = 90
_LONG = 6
_METHOD = frozenset({0x00120063, 0x00120064})
"""De-identification Method and its codes, which octray writes and nobody else."""
_CODED = frozenset({"CodeMeaning", "CodeValue", "CodingSchemeDesignator"})
_DESCRIBED = frozenset({"AdditionalPatientHistory", "Occupation", "PatientComments", "RequestingService", "VisitComments"})
"""Identifiers of which safe words may stay with `Keep.DESCRIPTORS`."""


def verify(content: bytes, identity: Identity, pseudonym: str, options: Options, allowed: frozenset[int] = frozenset()) -> None:
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
    allowed
        Tags of attributes in which nothing is searched for, since somebody looked at them.

    Raises
    ------
    RefusedError
        `IDENTITY_LEFT`, with the tags of the attributes in which something was found.
    """
    dataset = dcmread(io.BytesIO(content))
    found = [*_structure(dataset, pseudonym, options)]
    repeated = [_place(element.tag) for element, _ in left(dataset, identity, options, allowed)]
    if not found and repeated:
        raise RefusedError(
            Refusal.IDENTITY_LEFT,
            f"A value in {', '.join(dict.fromkeys(repeated))} repeats an identifier or a date of the file and cannot be "
            "replaced safely. Look at the file; if it is chance, add --allow SHA256:ATTRIBUTE (the crosswalk has the hash).",
        )
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
    for path, _, element in walk(dataset):
        tags = [BaseTag(tag) for tag in path if tag > 0xFFFF]
        texts = set(texts_of(element))
        strange = element.VR == "UI" and Keep.UIDS not in options.keep and not all(map(_is_new_uid, texts))
        if any(_forbidden(tag) for tag in tags) or element.VR == "UN" or strange:
            yield _place(element.tag)
        if element.VR == "AS" and any(text[:-1].isdecimal() and int(text[:-1]) > _OLDEST for text in texts if text[-1] == "Y"):
            yield _place(element.tag)
        described = element.keyword in _DESCRIBED and Keep.DESCRIPTORS in options.keep
        personal = element.VR in ("PN", "AE") or (element.keyword in IDENTIFIERS and not described)
        dated = element.VR in ("DA", "DT") and (Keep.DATES not in options.keep or element.keyword == "PatientBirthDate")
        if (personal and not _is_pseudonymous(element, texts, allowed)) or (dated and not texts <= allowed):
            yield _place(element.tag)


def _forbidden(tag: BaseTag) -> bool:
    return tag.is_private or tag.element == 0 or tag.group >> 8 in (0x50, 0x60)


def _is_new_uid(uid: str) -> bool:
    """Say whether a UID is one that the Standard registers, or one in the arc in which new ones are made (PS3.5 B.2)."""
    return is_registered(uid) or uid.startswith("2.25.")


def _is_pseudonymous(element: DataElement, texts: set[str], allowed: Iterable[str]) -> bool:
    """Say whether nothing but placeholders stands there; the identifier of another patient has a pseudonym of its own."""
    other = element.keyword == "PatientID" and all(re.fullmatch(r"P[0-9A-F]{15}", text) for text in texts)
    return other or texts <= set(allowed)


def left(
    dataset: Dataset, identity: Identity, options: Options, allowed: frozenset[int] = frozenset()
) -> Iterator[tuple[DataElement, str]]:
    """Yield the elements of a data set in which something of the original is found again, each with the text that has it.

    What the file or the Standard forces is none of it: the size of an image, its bits and tables, registered codes.
    """
    uids = frozenset() if Keep.UIDS in options.keep else identity.uids
    search = Search.of(identity.names, identity.identifiers | uids, identity.days)
    forced = forced_numbers(dataset)
    for path, item, element in walk(dataset):
        if path[0] in _METHOD or element.keyword in FORCED or int(element.tag) in allowed or _is_coded(item, element):
            continue
        for text in texts_of(element):
            if (element.VR == "UI" and text in uids) or _is_left(path, element, text, identity, search, forced):
                yield element, text


def _is_left(
    path: Path, element: DataElement, text: str, identity: Identity, search: Search, forced: frozenset[Decimal]
) -> bool:
    kind = str(element.VR)
    if text in PLACEHOLDERS or (kind == "CS" and is_term(text)):
        return False
    if kind == "UI":
        return not is_registered(text) and not identity.of_patient.isdisjoint(text.split("."))
    if kind in ("DA", "DT", "TM", "AS"):
        return (path, text) in identity.placed_dates or search.is_identifier(text.replace(":", ""))
    if kind in NUMBERS:
        is_found = search.is_identifier(text) or search.is_day(text)
        return is_found and (is_free(element.tag) or number_of(text) not in forced)
    is_short = kind in _WORDS - {"CS"} and text.upper() in identity.short_identifiers
    return is_short or search.finds_identifier(text) or (kind in _WORDS and search.finds_name(text))


def _is_coded(item: Dataset, element: DataElement) -> bool:
    """Say whether this is text of a coded entry as a dictionary of codes has it (PS3.3 8.8), or the character set."""
    if element.keyword == "SpecificCharacterSet":
        return True
    if element.keyword not in _CODED:
        return False
    scheme = str(item.get("CodingSchemeDesignator") or "").strip()
    known = meanings(scheme, str(item.get("CodeValue") or "").strip())
    return bool(known) and (element.keyword != "CodeMeaning" or str(element.value).lower() in {one.lower() for one in known})


def _raw(content: bytes, dataset: Dataset, identity: Identity, options: Options) -> list[str]:
    """Search the bytes themselves for longer texts, apart from the texts of elements, in which nothing was found before."""
    searched = content
    if dataset.file_meta.TransferSyntaxUID == DeflatedExplicitVRLittleEndian:
        start = 132 + 12 + dataset.file_meta.FileMetaInformationGroupLength
        searched += zlib.decompress(content[start:], -zlib.MAX_WBITS)
    searched = searched.upper()
    uids = set() if Keep.UIDS in options.keep else {uid.encode() for uid in identity.uids if len(uid) >= _LONG}
    harmless = "\n".join(_texts(dataset)).upper().encode("utf-8", "replace")
    found = any(_count(text, searched) > _count(text, harmless) for text in identity.raw | uids)
    return ["the bytes of the file"] if found else []


def _texts(dataset: Dataset) -> Iterator[str]:
    """Yield the texts of all elements that hold text."""
    elements = [*dataset.file_meta, *(element for _, _, element in walk(dataset))]
    for element in elements:
        if element.VR in _WORDS | _NUMBERS:
            yield from texts_of(element)


def _count(text: bytes, searched: bytes) -> int:
    """Count where a text occurs; digits count only where they stand alone, since the new UIDs have many."""
    if not re.fullmatch(rb"[\d.]+", text) or text not in searched:
        return searched.count(text)
    return len(re.findall(rb"(?<![\w.])" + re.escape(text) + rb"(?![\w.])", searched))


def _place(tag: BaseTag) -> str:
    return f"({tag.group:04x},{tag.element:04x})"
