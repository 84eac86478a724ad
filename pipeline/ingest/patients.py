"""Finds out which files belong to one patient; the only place that reads Patient ID, which is never stored.

The pseudonym is a plain number in the order of the files. A hash of the identifier could be undone by trying all identifiers,
and one with a secret key would change with the key; a number reveals nothing, and the same files get the same numbers. Until
numbers are given, a hash with a secret key stands for the patient; the key is in the journal, which only its owner may read.
"""

import hashlib
import hmac
import io
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence

from pydicom import dcmread

from pipeline.errors import InputError
from pipeline.ingest.labels import examples, path_pattern, same_text


def parse_patient_pattern(text: str | None, columns: Sequence[str] = ()) -> re.Pattern[str] | None:
    """Understand `--patient-key`: a column of the table of labels, or a pattern for the path.

    Parameters
    ----------
    text
        Name of one of the columns, or a regular expression with one group; None if it was not given.
    columns
        The columns of the table of labels, if there is one.

    Returns
    -------
    Pattern
        None if the text is a column, or was not given.

    Raises
    ------
    InputError
        If it is neither.
    """
    if text is None or same_text(text) in columns:
        return None
    known = f"one of the columns {', '.join(columns)}" if columns else "a column of the table given by --labels"
    return path_pattern(text, "The patient key", f"neither {known}")


def keys_from_paths(pattern: re.Pattern[str], sources: Iterable[str]) -> dict[str, str]:
    """Return the patient key of each path: what the pattern's group matches in it, in one form of Unicode.

    Raises
    ------
    InputError
        If the group matches nothing in one or more of them.
    """
    keys, without = {}, []
    for source in sources:
        found = pattern.search(unicodedata.normalize("NFC", source))
        if found and (key := same_text(found.group(1) or "")):
            keys[source] = key
        else:
            without.append(source)
    if without:
        raise InputError(
            f"The patient key {pattern.pattern} does not match the path of {len(without)} files: {examples(without)}. "
            "It is searched for in the path below the source folder."
        )
    return keys


def read_patient_id(content: bytes) -> str:
    """Return Patient ID (0010,0020) of a DICOM file without the spaces around it; empty if it has none.

    Issuer of Patient ID (0010,0021) is ignored: two patients joined by mistake stay in one split, which does no harm; one
    patient divided by mistake would cross splits.
    """
    try:
        header = dcmread(io.BytesIO(content), specific_tags=["PatientID"], stop_before_pixels=True, force=True)
        return same_text(str(header.get("PatientID") or ""))
    except Exception:
        return ""


def hash_patient(patient_id: str, salt: bytes) -> str:
    """Return the keyed hash (HMAC, RFC 2104, with SHA-256) of an identifier; empty for an empty one."""
    return hmac.new(salt, patient_id.encode(errors="surrogatepass"), hashlib.sha256).hexdigest() if patient_id else ""


def pseudonyms(patients: Iterable[str]) -> Mapping[str, str]:
    """Return a pseudonym for each patient's hash, numbered in the order in which they first occur."""
    distinct = dict.fromkeys(filter(None, patients))
    return {patient: f"patient-{number:05d}" for number, patient in enumerate(distinct, start=1)}
