"""What a user should look at before training: labels and patients that may not be what they seem, in one sentence each."""

import re
from collections import Counter

import yaml

from pipeline.ingest.index import Index
from pipeline.ingest.path_names import NAME_THE_FOLDER
from pipeline.ingest.spelling import PATIENTS, alike_but_for_spelling, examples, look_like, plain

_MANY_FOLDERS = 20
"""From how many names of folders labels look like patients: no scale of grades is so long."""
_MANY_FILES = 8
_NO_VALUES = frozenset({"na", "none", "null", "nil", "-", "?", "unknown", "missing", "#value!", "#ref!"})
_NO_PATIENTS = frozenset(
    {"n/a", "anon", "anonym", "anonymous", "anonymized", "anonymised", "unbekannt", "inconnu", "desconocido"}
)
_MONTHS = "jan|feb|f[eé]v|m[aä]r|mrz|apr|avr|ma[iy]|jun|jul|aug|ao[uû]|sep|o[ck]t|nov|de[cz]"
_MANGLED = re.compile(rf"[0-9]([.,][0-9]+)?E[+][0-9]+|[0-9]{{1,2}}[-. ]{{1,2}}({_MONTHS})[a-zä]{{0,6}}[.]?", re.IGNORECASE)
"""What spreadsheets make of long numbers, and of numbers that look like a day and a month."""
_NO_FINDING = frozenset(
    {
        "nofinding",
        "nofindings",
        "normal",
        "healthy",
        "negative",
        "noabnormality",
        "unremarkable",
        "unauffällig",
        "normalbefund",
        "sain",
    }
)
"""Labels that mean no finding, without case, blanks and signs."""


def label_remarks(index: Index, from_folders: bool) -> list[str]:
    """Return sentences on labels: those that look like something else, or like each other, and how to write them.

    Parameters
    ----------
    index
        Frames with labels and patients.
    from_folders
        Whether labels are names of folders, which say of each file one thing only.
    """
    labels = index.labels
    patients: dict[str, set[str]] = {label: set() for label in labels}
    frames = Counter[str]()
    for record in index.records:
        present = [label for label, holds in record.labels.items() if holds]
        frames.update(present)
        for label in present:
            patients[label].add(record.patient_key)
    return [
        remark
        for remark in (
            _strange(labels, patients, from_folders),
            _alike(labels, frames),
            _empty_words(labels, frames),
            _contradictory(index),
            _yaml_words(labels),
            _normal(labels),
        )
        if remark
    ]


def patient_remarks(index: Index, patient_from: str) -> list[str]:
    """Return sentences on patients: keys that look like two spellings of one, or like none, or are found too often."""
    keys = {record.patient_key for record in index.records if record.patient_key != record.key.study_instance_uid}
    files = {(record.root, record.source) for record in index.records}
    remarks = []
    if twice := alike_but_for_spelling(keys):
        remarks.append(
            f"{len(twice)} patient keys differ from another only in case, blanks, leading zeros or signs of a spreadsheet, and "
            "count as different patients, who may be in different splits. If they are the same, write them in the same way."
        )
    if unknown := sorted(key for key in keys if plain(key) in _NO_VALUES | _NO_PATIENTS):
        count = sum(record.patient_key in unknown for record in index.records)
        remarks.append(
            f"The patient key {', '.join(unknown)} ({count} frames) may stand for patients who are not known; all of them "
            "count as one. Leave these rows out, or give each patient a key."
        )
    if mangled := [key for key in keys if _MANGLED.fullmatch(key.strip())]:
        remarks.append(
            f"{len(mangled)} patient keys look like numbers that a spreadsheet has rounded, such as 1.2E+11, or like dates "
            "that it has made of them, such as 1-Mar: different patients may have become one. Export them again, as text."
        )
    if patient_from and len(files) >= _MANY_FILES:
        if len(keys) == len(files):
            remarks.append(
                f"--patient-from gives each of {len(files)} files a patient of its own. If patients have several files, it "
                "takes too much of the path."
            )
        elif len(keys) == 1:
            remarks.append(f"--patient-from gives all {len(files)} files the same patient. It takes too little of the path.")
    return remarks


def _strange(labels: tuple[str, ...], patients: dict[str, set[str]], from_folders: bool) -> str:
    one_each = len(labels) > 1 and all(len(patients[label]) == 1 for label in labels)
    many = from_folders and len(labels) >= _MANY_FOLDERS
    alike = look_like(labels) or (PATIENTS if one_each or many else "")
    if not alike:
        return ""
    which = f"{len(labels)} labels" if alike == PATIENTS else f"labels {examples(labels)}"
    mend = NAME_THE_FOLDER if from_folders else "Check which column of the table holds the labels."
    return f"The {which} look like {alike}, not like findings. {mend}"


def _alike(labels: tuple[str, ...], frames: Counter[str]) -> str:
    twice = alike_but_for_spelling(labels)
    if not twice:
        return ""
    named = ", ".join(f"{_visible(label)} ({frames[label]} frames)" for label in twice[:6])
    return (
        f"The labels {named} differ only in case, blanks or invisible characters, and count as different. Give "
        "--merge-spellings if they are one."
    )


def _visible(label: str) -> str:
    """Return a label with its invisible characters written out."""
    return "".join(one if one.isprintable() and (one == " " or not one.isspace()) else f"\\u{ord(one):04x}" for one in label)


def _empty_words(labels: tuple[str, ...], frames: Counter[str]) -> str:
    found = [label for label in labels if label.casefold() in _NO_VALUES]
    if not found:
        return ""
    named = ", ".join(f"{label} ({frames[label]} frames)" for label in found)
    return (
        f"The label {named} may stand for a cell without a value. If it does, empty these cells and say with --empty what they "
        "mean."
    )


def _contradictory(index: Index) -> str:
    normal = [label for label in index.labels if plain(label) in _NO_FINDING]
    both = [
        record
        for record in index.records
        if any(record.labels.get(label) for label in normal) and sum(map(bool, record.labels.values())) > 1
    ]
    if not both:
        return ""
    return (
        f"{len(both)} frames have {' or '.join(normal)} and a finding: {examples((record.source for record in both), 3)}. "
        "Correct the table, or train on findings only with data.labels."
    )


def _yaml_words(labels: tuple[str, ...]) -> str:
    """Return how to write labels that YAML reads as something else than text: NO as false, 0 as a number."""
    if all(isinstance(yaml.safe_load(label), str) for label in labels if _is_word(label)):
        return ""
    quoted = ", ".join(f'"{label}"' for label in labels[:6])
    more = ", ..." if len(labels) > 6 else ""
    return (
        f"In a configuration, put these labels in quotes: data.labels=[{quoted}{more}]. YAML reads some of them as numbers "
        "or as yes and no."
    )


def _is_word(label: str) -> bool:
    return all(one.isalnum() or one in "+-.~_" for one in label)


def _normal(labels: tuple[str, ...]) -> str:
    normal = [label for label in labels if plain(label) in _NO_FINDING]
    if len(normal) != 1 or len(labels) < 2:
        return ""
    value = normal[0] if _is_word(normal[0]) else f"'{normal[0]}'"
    return f"The label {normal[0]} seems to mean no finding. Say so in the configuration: data.normal_label={value}."
