"""Names as people write them: which are the same, which look alike, what they look like, and how a message shows them."""

import posixpath
import re
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterable

_EXAMPLES = 5
_SHOWN = 60
"""Characters of a cell that a message shows."""
_AROUND = re.compile(r"^[\s\u200b\ufeff]+|[\s\u200b\ufeff]+$")
"""Blanks, and the byte order mark that is left when tables are copied together."""
_UNSEEN = frozenset("\u200b\ufeff")
_ZEROS = re.compile(r"(?<!\d)(?<!\d\.)0+(?=\d)")
PATIENTS = "patients"
_NO_FINDINGS = {
    "eyes": frozenset(("od", "os", "ou", "re", "le", "l", "r", "left", "right", "both"))
    | {"lefteye", "righteye", "botheyes", "eyeleft", "eyeright"}
    | {"links", "rechts", "gauche", "droite", "izquierda", "derecha", "sinistra", "destra"},
    "splits": frozenset(("train", "training", "val", "valid", "validation", "test", "testing"))
    | {"tune", "tuning", "calibration", "dev", "holdout"},
}
_MANY_NUMBERS = 8
"""From how many numbered names labels look like patients: no scale of grades is so long."""


def examples(names: Iterable[str], most: int = _EXAMPLES) -> str:
    """Return some names and how many there are in all, for an error message; files by their own names only."""
    found = sorted({shortened(posixpath.basename(name)) for name in names})
    more = f" and {len(found) - most} more" if len(found) > most else ""
    return ", ".join(found[:most]) + more


def shortened(text: str) -> str:
    """Return a cell as a message may show it."""
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def trimmed(text: str) -> str:
    """Return a text without blanks, and without byte order marks, around it."""
    text = text.strip()
    return _AROUND.sub("", text) if text[:1] in _UNSEEN or text[-1:] in _UNSEEN else text


def same_text(text: str) -> str:
    """Return a name in the one form in which two spellings of it are equal: Unicode NFC, without blanks around it."""
    return unicodedata.normalize("NFC", trimmed(text))


def plain(name: str) -> str:
    """Return a name in compatible characters, without case, blanks, unseen characters, and signs of a spreadsheet."""
    compatible = unicodedata.normalize("NFKC", name).casefold()
    seen = (one for one in compatible if not one.isspace() and unicodedata.category(one) != "Cf")
    return "".join(one for one in seen if one not in "=\"'")


def alike_but_for_spelling(names: Iterable[str]) -> list[str]:
    """Return names that are equal without case, blanks, leading zeros, and signs of spreadsheets (="0012", 12.0)."""
    forms = {name: _ZEROS.sub("", re.sub(r"\.0+$", "", plain(name))) for name in names}
    counts = Counter(forms.values())
    return sorted((name for name, form in forms.items() if counts[form] > 1), key=lambda name: (forms[name], name))


def look_like(names: Collection[str]) -> str:
    """Return what names look like if not like findings: eyes, splits, or patients, which are numbered."""
    words = {re.sub(r"[\W_]+", "", name).casefold() for name in names}
    for what, known in _NO_FINDINGS.items():
        if len(words & known) > 1 or 2 * len(words & known) >= len(words) > 0:
            return what
    shapes = Counter(re.sub(r"[0-9]+", "0", name) for name in names)
    numbered = max((count for shape, count in shapes.items() if "0" in shape), default=0)
    return PATIENTS if numbered >= _MANY_NUMBERS and 2 * numbered >= len(names) else ""
