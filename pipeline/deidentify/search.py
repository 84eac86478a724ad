"""Finds names, identifiers and dates again in text, however they are written: joined, inflected, without accents."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import date
from decimal import Decimal, InvalidOperation
from functools import cache
from importlib import resources

from pipeline.deidentify.spellings import day_numbers, days_in, folded

PLACEHOLDERS = frozenset({"", "ANONYMIZED", "0", "000Y", "19000101", "19000101000000", "000000"})
"""What may stand in place of something that identifies."""
WORDLESS = frozenset({"NONE", "UNKNOWN", "ANONYMOUS", "ANON", "NA", "N/A"})
_ANYWHERE = 5
"""Letters from which on a name, and characters from which on an identifier, is searched for within other words, too."""
_METHODS = frozenset(f"ISO_{one}" for one in ("10918_1", "13818_2", "14495_1", "14496_10", "15444_1", "15444_15", "18181_1"))
"""Defined terms of Lossy Image Compression Method (0028,2114)."""
_LEAST_IDENTIFIER, _LEAST_DAY, _SIGNED = 1000, 100_000, 10_000
"""Numbers from which on identifiers and days are searched for among numbers, and from which on their sign says nothing."""
_FIRST_IDEOGRAPH = "⺀"
_CYRILLIC = re.compile(r"[Ѐ-ӿ]+")
_ENDINGS = "АЯЫИЙОЕУЮЬ"
_STEM = 4
_UMLAUTS = str.maketrans({"Ä": "AE", "Ö": "OE", "Ü": "UE", "Å": "AA", "Ø": "OE"})
_NOT_ALPHANUMERIC = re.compile(r"[\W_]+")
_NEVER = re.compile(r"(?!)")


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
    """What is searched for in texts and numbers.

    Parameters
    ----------
    names
        Finds names and words of places as words, and longer ones anywhere.
    phrases
        Finds identifiers between other words and numbers, and days as eight digits.
    runs
        Finds longer identifiers in texts of which only letters and digits are left.
    numbers
        Identifiers as numbers.
    days
        Days, which text may spell in any way.
    days_as_numbers
        The same as numbers.
    """

    names: re.Pattern[str]
    phrases: re.Pattern[str]
    runs: re.Pattern[str]
    numbers: frozenset[Decimal]
    days: frozenset[date]
    days_as_numbers: frozenset[Decimal]

    @staticmethod
    def of(names: Iterable[str], identifiers: Iterable[str], days: Iterable[date]) -> "Search":
        """Make the patterns; names and identifiers are folded."""
        names = {_stem(name) for name in names} - WORDLESS
        identifiers = set(identifiers) - WORDLESS - PLACEHOLDERS
        days = frozenset(days)
        anywhere = {name for name in names if is_ideographic(name) or len(name) >= _ANYWHERE or _is_stem(name)}
        runs = {squeezed(one) for one in identifiers if any(map(str.isdigit, one)) and len(squeezed(one)) >= _ANYWHERE}
        phrases = [_bounded(one) for one in sorted(identifiers)] + [f"{day:%Y%m%d}" for day in sorted(days)]
        spelled = {one for day in days for one in day_numbers(day)}
        return Search(
            _pattern(
                [*map(re.escape, sorted(anywhere)), *(rf"{_bounded(one)}|{_bounded(one + 'S')}" for one in names - anywhere)]
            ),
            _pattern(phrases),
            _pattern(map(re.escape, sorted(runs))),
            as_numbers(identifiers, _LEAST_IDENTIFIER),
            days,
            as_numbers(spelled, _LEAST_DAY),
        )

    def finds_name(self, text: str) -> bool:
        """Say whether a text holds a name."""
        plain = folded(text)
        return bool(self.names.search(plain) or self.names.search(squeezed(plain)))

    def finds_identifier(self, text: str) -> bool:
        """Say whether a text holds an identifier or a day."""
        plain = folded(text)
        if self.phrases.search(plain) or self.runs.search(squeezed(plain)) or self.is_identifier(text):
            return True
        return any(map(str.isdigit, plain)) and not self.days.isdisjoint(days_in(text))

    def is_identifier(self, text: str) -> bool:
        """Say whether a text as a whole is the number of an identifier; 4471230.0 and 4.47123E6 are 4471230."""
        number = number_of(text)
        return number is not None and (number in self.numbers or (abs(number) >= _SIGNED and abs(number) in self.numbers))

    def is_day(self, text: str) -> bool:
        """Say whether a text as a whole is the number of a day."""
        return number_of(text) in self.days_as_numbers


def as_numbers(texts: Iterable[str], least: int) -> frozenset[Decimal]:
    """Return the numbers that texts of digits are, without small ones, which stand in every file."""
    found = (Decimal(text) for text in texts if text.isascii() and text.isdigit())
    return frozenset(number for number in found if number >= least)


def number_of(text: str) -> Decimal | None:
    """Return the number that a text is as a whole, None if it is none."""
    try:
        found = Decimal(text.strip())
    except InvalidOperation:
        return None
    return found if found.is_finite() else None


def is_term(text: str) -> bool:
    """Say whether a text is made of words of the Standard's defined terms."""
    words = _NOT_ALPHANUMERIC.sub(" ", text).lower().split()
    return text in _METHODS or (bool(words) and all(word in _listed("code_terms.txt") for word in words))


def is_common(word: str) -> bool:
    """Say whether a word says nothing of anybody: one of anatomy, techniques and terms, or one that many addresses have."""
    return any(word.lower() in _listed(name) for name in ("code_terms.txt", "safe_words.txt", "common_words.txt"))


@cache
def _listed(name: str) -> frozenset[str]:
    lines = resources.files(__package__).joinpath(name).read_text(encoding="utf-8").splitlines()
    return frozenset(word for line in lines if not line.startswith("#") for word in line.split())


def _stem(name: str) -> str:
    """Return a name without the endings that inflect it in Cyrillic script."""
    stem = name.rstrip(_ENDINGS) if _CYRILLIC.fullmatch(name) else name
    return stem if len(stem) >= _STEM else name


def _is_stem(name: str) -> bool:
    return len(name) >= _STEM and _CYRILLIC.fullmatch(name) is not None


def _bounded(text: str) -> str:
    """Return a pattern that finds a text between other letters or other digits, of which an underscore is neither."""
    before = r"(?<!\d)0*" if text[0].isdigit() else r"(?<![^\W\d_])"
    after = r"(?!\d)" if text[-1].isdigit() else r"(?![^\W\d_])"
    return f"{before}{re.escape(text)}{after}"


def _pattern(alternatives: Iterable[str]) -> re.Pattern[str]:
    return re.compile(joined) if (joined := "|".join(alternatives)) else _NEVER
