"""Finds names, identifiers and dates again in text, however they are written: joined, inflected, without accents."""

import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from importlib import resources

PLACEHOLDERS = frozenset({"", "ANONYMIZED", "0", "000Y", "19000101", "19000101000000", "000000"})
"""What may stand in place of something that identifies."""
WORDLESS = frozenset({"NONE", "UNKNOWN", "ANONYMOUS", "ANON", "NA", "N/A"})
_ANYWHERE = 5
"""Letters from which on a name, and characters from which on an identifier, is searched for within other words, too."""
_FIRST_IDEOGRAPH = "⺀"
_CYRILLIC = re.compile(r"[Ѐ-ӿ]+")
_ENDINGS = "АЯЫИЙОЕУЮЬ"
_STEM = 4
_UMLAUTS = str.maketrans({"Ä": "AE", "Ö": "OE", "Ü": "UE", "Å": "AA", "Ø": "OE"})
_NOT_ALPHANUMERIC = re.compile(r"[\W_]+")
_NEVER = re.compile(r"(?!)")


def folded(text: str) -> str:
    """Return a text in capitals and without accents."""
    plain = "".join(one for one in unicodedata.normalize("NFKD", text) if not unicodedata.combining(one))
    return unicodedata.normalize("NFC", plain).upper()


def squeezed(text: str) -> str:
    """Return the letters and digits of a text."""
    return _NOT_ALPHANUMERIC.sub("", text)


def name_forms(name: str) -> set[str]:
    """Return how a name is written in capitals: without accents, and with the vowels that stand for umlauts."""
    return {folded(name), folded(name.upper().translate(_UMLAUTS))}


def is_ideographic(text: str) -> bool:
    """Say whether all characters are those of Chinese, Japanese or Korean, of which few make a name."""
    return bool(text) and min(text) >= _FIRST_IDEOGRAPH


@dataclass(frozen=True, slots=True)
class Search:
    """What is searched for in folded texts.

    Parameters
    ----------
    names
        Finds names as words, and longer ones anywhere.
    phrases
        Finds identifiers between other words and numbers, and dates.
    runs
        Finds longer identifiers in texts of which only letters and digits are left.
    """

    names: re.Pattern[str]
    phrases: re.Pattern[str]
    runs: re.Pattern[str]

    @staticmethod
    def of(names: Iterable[str], identifiers: Iterable[str], dates: Iterable[str]) -> "Search":
        """Make the patterns; names and identifiers are folded."""
        names = {_stem(name) for name in names} - WORDLESS
        identifiers = set(identifiers) - WORDLESS - PLACEHOLDERS
        anywhere = {name for name in names if is_ideographic(name) or len(name) >= _ANYWHERE or _is_stem(name)}
        runs = {squeezed(one) for one in identifiers if any(map(str.isdigit, one)) and len(squeezed(one)) >= _ANYWHERE}
        phrases = [_bounded(one) for one in sorted(identifiers)] + [re.escape(date) for date in sorted(dates)]
        return Search(
            _pattern(
                [*map(re.escape, sorted(anywhere)), *(rf"{_bounded(one)}|{_bounded(one + 'S')}" for one in names - anywhere)]
            ),
            _pattern(phrases),
            _pattern(map(re.escape, sorted(runs))),
        )

    def finds_name(self, text: str) -> bool:
        """Say whether a text holds a name."""
        plain = folded(text)
        return bool(self.names.search(plain) or self.names.search(squeezed(plain)))

    def finds_identifier(self, text: str) -> bool:
        """Say whether a text holds an identifier or a date."""
        plain = folded(text)
        return bool(self.phrases.search(plain) or self.runs.search(squeezed(plain)))


def is_term(text: str) -> bool:
    """Say whether a text is made of words of the Standard's defined terms."""
    words = _NOT_ALPHANUMERIC.sub(" ", text).lower().split()
    return bool(words) and all(word in _terms() for word in words)


@cache
def _terms() -> frozenset[str]:
    lines = resources.files(__package__).joinpath("code_terms.txt").read_text(encoding="utf-8").splitlines()
    return frozenset(word for line in lines if not line.startswith("#") for word in line.split())


def _stem(name: str) -> str:
    """Return a name without the endings that inflect it in Cyrillic script."""
    stem = name.rstrip(_ENDINGS) if _CYRILLIC.fullmatch(name) else name
    return stem if len(stem) >= _STEM else name


def _is_stem(name: str) -> bool:
    return len(name) >= _STEM and _CYRILLIC.fullmatch(name) is not None


def _bounded(text: str) -> str:
    """Return a pattern that finds a text between other letters or other digits, of which an underscore is neither."""
    before = r"(?<!\d)" if text[0].isdigit() else r"(?<![^\W\d_])"
    after = r"(?!\d)" if text[-1].isdigit() else r"(?![^\W\d_])"
    return f"{before}{re.escape(text)}{after}"


def _pattern(alternatives: Iterable[str]) -> re.Pattern[str]:
    return re.compile(joined) if (joined := "|".join(alternatives)) else _NEVER
