"""Finds out which files belong to one patient; the only place that reads Patient ID, which is never stored.

The pseudonym is a plain number in the order of the files. A hash of the identifier could be undone by trying all identifiers,
and one with a secret key would change with the key; a number reveals nothing, and the same files get the same numbers. Until
numbers are given, a hash with a secret key stands for the patient; the key is in the journal, which only its owner may read.
"""

import hashlib
import hmac
import io
from collections.abc import Iterable, Mapping

from pydicom import dcmread

from pipeline.ingest.spelling import same_text


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
