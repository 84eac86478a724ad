"""Searches text for names, identifiers and dates, however they are written: joined, inflected, without accents."""

import re
import unicodedata
from collections.abc import Iterable, Iterator
from contextlib import suppress
from datetime import date, datetime
from decimal import Decimal, InvalidOperation
from functools import cache
from importlib import resources

from pipeline.deidentify.values import word_list

PLACEHOLDERS = frozenset({"", "ANONYMIZED", "0", "000Y", "19000101", "19000101000000", "000000"})
"""Values that may replace something identifying."""
_NO_IDENTITY = frozenset({"NONE", "UNKNOWN", "ANONYMOUS", "ANON", "NA", "N/A"})
_ANYWHERE = 5
"""Shortest name and shortest identifier that are also searched for inside other words, in characters."""
_COMPRESSION_METHODS = frozenset(
    f"ISO_{one}" for one in ("10918_1", "13818_2", "14495_1", "14496_10", "15444_1", "15444_15", "18181_1")
)
"""Defined terms of Lossy Image Compression Method (0028,2114)."""
_LEAST_IDENTIFIER, _LEAST_DAY, _SIGNED = 1000, 100_000, 10_000
"""Smallest numbers that are searched for as identifiers and as days, and the smallest one whose sign is ignored."""
_FIRST_IDEOGRAPH = "⺀"
_CYRILLIC = re.compile(r"[Ѐ-ӿ]+")
_CYRILLIC_ENDINGS = "АЯЫИЙОЕУЮЬ"
_SHORTEST_STEM = 4
_UMLAUTS = str.maketrans({"Ä": "AE", "Ö": "OE", "Ü": "UE", "Å": "AA", "Ø": "OE"})
_NOT_ALPHANUMERIC = re.compile(r"[\W_]+")
_NEVER = re.compile(r"(?!)")
_UNACCENTED = str.maketrans(
    {"Ł": "L", "Đ": "D", "Ð": "D", "Ø": "O", "Ħ": "H", "Ŧ": "T", "Ŋ": "N", "Æ": "AE", "Œ": "OE", "Þ": "TH"}
    | {chr(hiragana): chr(hiragana + 0x60) for hiragana in range(0x3041, 0x3097)}
)
"""Letters that Unicode does not decompose, as people write them without strokes, and Hiragana as Katakana."""


class Search:
    """Searches texts and numbers for identifying values.

    Parameters
    ----------
    names
        Names, and words of places and institutions; folded. Those of five letters and more are found inside other words.
    identifiers
        Identifiers and UIDs; folded. They are found between other letters, and as numbers.
    days
        Days, which are found in any spelling.
    """

    def __init__(self, names: Iterable[str], identifiers: Iterable[str], days: Iterable[date]) -> None:
        names = {_stem(name) for name in names} - _NO_IDENTITY
        identifiers = set(identifiers) - _NO_IDENTITY - PLACEHOLDERS
        self._days = frozenset(days)
        anywhere = {name for name in names if is_ideographic(name) or len(name) >= _ANYWHERE or _is_stem(name)}
        words = [rf"{_as_word(name)}|{_as_word(name + 'S')}" for name in names - anywhere]
        self._names = _any_of([*map(re.escape, sorted(anywhere)), *words])
        dates = [f"{day:%Y%m%d}" for day in sorted(self._days)]
        self._identifiers = _any_of([*map(_as_word, sorted(identifiers)), *dates])
        with_digits = {one for one in identifiers if any(map(str.isdigit, one))}
        self._alphanumeric_identifiers = _any_of(
            map(re.escape, sorted(text for one in with_digits if len(text := alphanumeric(one)) >= _ANYWHERE))
        )
        self._identifier_numbers = _as_numbers(identifiers, _LEAST_IDENTIFIER)
        self._day_numbers = _as_numbers({digits for day in self._days for digits in _digits_of(day)}, _LEAST_DAY)

    def finds_name(self, text: str) -> bool:
        """Return whether a text contains a name."""
        plain = folded(text)
        return bool(self._names.search(plain) or self._names.search(alphanumeric(plain)))

    def finds_identifier(self, text: str) -> bool:
        """Return whether a text contains an identifier or a day."""
        plain = folded(text)
        if self._identifiers.search(plain) or self._alphanumeric_identifiers.search(alphanumeric(plain)):
            return True
        if self.is_identifier(text):
            return True
        return any(map(str.isdigit, plain)) and not self._days.isdisjoint(days_in(text))

    def is_identifier(self, text: str) -> bool:
        """Return whether a whole text is the number of an identifier; 4471230.0 and 4.47123E6 are 4471230."""
        number = number_of(text)
        if number is None:
            return False
        return number in self._identifier_numbers or (abs(number) >= _SIGNED and abs(number) in self._identifier_numbers)

    def is_day(self, text: str) -> bool:
        """Return whether a whole text is a number that spells a day."""
        return number_of(text) in self._day_numbers


# Words


def folded(text: str) -> str:
    """Return a text in capitals, without accents and strokes, and with one script for Japanese syllables."""
    plain = "".join(one for one in unicodedata.normalize("NFKD", text) if not unicodedata.combining(one))
    return unicodedata.normalize("NFC", plain).upper().translate(_UNACCENTED)


def alphanumeric(text: str) -> str:
    """Return the letters and digits of a text."""
    return _NOT_ALPHANUMERIC.sub("", text)


def name_forms(name: str) -> set[str]:
    """Return how a name is written in capitals: without accents, and with the vowels that stand for umlauts."""
    return {folded(name), folded(name.upper().translate(_UMLAUTS))}


def is_ideographic(text: str) -> bool:
    """Return whether all characters are Chinese, Japanese or Korean, of which a few make a name."""
    return bool(text) and min(text) >= _FIRST_IDEOGRAPH


def is_defined_term(text: str) -> bool:
    """Return whether a text consists of words of the Standard's defined terms."""
    words = _NOT_ALPHANUMERIC.sub(" ", text).lower().split()
    return text in _COMPRESSION_METHODS or (bool(words) and all(word in word_list("code_terms.txt") for word in words))


def is_common(word: str) -> bool:
    """Return whether a word is not identifying: a word of anatomy, techniques or terms, or one that many addresses have."""
    return any(word.lower() in word_list(name) for name in ("code_terms.txt", "safe_words.txt", "common_words.txt"))


def _stem(name: str) -> str:
    """Return a name without its endings, if it is in Cyrillic script."""
    stem = name.rstrip(_CYRILLIC_ENDINGS) if _CYRILLIC.fullmatch(name) else name
    return stem if len(stem) >= _SHORTEST_STEM else name


def _is_stem(name: str) -> bool:
    return len(name) >= _SHORTEST_STEM and _CYRILLIC.fullmatch(name) is not None


def _as_word(text: str) -> str:
    """Return a pattern that finds a text that no letter or digit continues; an underscore is neither."""
    before = r"(?<!\d)0*" if text[0].isdigit() else r"(?<![^\W\d_])"
    after = r"(?!\d)" if text[-1].isdigit() else r"(?![^\W\d_])"
    return f"{before}{re.escape(text)}{after}"


def _any_of(patterns: Iterable[str]) -> re.Pattern[str]:
    return re.compile(joined) if (joined := "|".join(patterns)) else _NEVER


# Numbers


def number_of(text: str) -> Decimal | None:
    """Return the number that a whole text is; None if it is none."""
    try:
        found = Decimal(text.strip())
    except InvalidOperation:
        return None
    return found if found.is_finite() else None


def _as_numbers(texts: Iterable[str], least: int) -> frozenset[Decimal]:
    """Return texts of digits as numbers, without small ones, which every file contains."""
    found = (Decimal(text) for text in texts if text.isascii() and text.isdigit())
    return frozenset(number for number in found if number >= least)


# Days

_TOKEN = re.compile(r"\d+|[^\W\d_]+")
_GAP = re.compile(r"[\W_]{0,3}")
_FILLERS = frozenset(
    {"A", "AL", "D", "DE", "DEL", "DEN", "DER", "DES", "DI", "DO", "E", "EN", "ER", "G", "LE", "LO", "OF", "RD", "ND", "ST"}
    | {"T", "TH", "THE", "Y", "Г", "ГОДА", "Р", "РОКУ", "ΤΟΥ", "年", "月", "日", "년", "월", "일"}
)
"""Words between the parts of a date: articles, ordinals, and the signs for year, month and day."""
_SHORTEST_MONTH = 3
_PARTS = 3
_CENTURIES = (1900, 2000)
_BUDDHIST = 543
"""Years by which the Thai calendar is ahead."""
_LATEST = "2400"
_ERAS = {
    "明治": 1867,
    "大正": 1911,
    "昭和": 1925,
    "平成": 1988,
    "令和": 2018,
    "M": 1867,
    "T": 1911,
    "S": 1925,
    "H": 1988,
    "R": 2018,
}
_OF_ERA = re.compile(rf"({'|'.join(_ERAS)})[ .]?(\d{{1,2}})[ .年/-]{{1,2}}(\d{{1,2}})[ .月/-]{{1,2}}(\d{{1,2}})(?!\d)")
"""Years of Japanese eras."""


def days_in(text: str) -> set[date]:
    """Return every day that a text may mean; 03/04/2019 may mean two days, and a year of two digits two centuries."""
    plain = folded(text)
    tokens = list(_tokens(plain))
    found = _valid((_ERAS[era] + int(year), month, day) for era, year, month, day in _OF_ERA.findall(plain))
    for at, (kind, token, _) in enumerate(tokens):
        if kind == "digits":
            found |= _valid(_from_digits(token))
        following = tokens[at : at + _PARTS]
        kinds = [kind for kind, _, _ in following]
        if kinds[:2] == ["month", "digits"] and len(following[1][1]) in (5, 6) and following[1][2]:
            digits = following[1][1]
            found |= _valid((year, month, digits[:-4]) for year in _years(digits[-4:]) for month in _months()[token])
        if len(following) == _PARTS and all(is_close for _, _, is_close in following[1:]):
            found |= _valid(_from_parts(kinds, [token for _, token, _ in following]))
    return found


def _digits_of(day: date) -> set[str]:
    """Return the digits of a day written without separators: eight, seven, and six with a year of two digits."""
    return {f"{day:{form}}" for form in ("%Y%m%d", "%d%m%Y", "%m%d%Y", "%Y%j", "%y%m%d", "%d%m%y", "%m%d%y")}


def _tokens(text: str) -> Iterator[tuple[str, str, bool]]:
    """Yield the digits, months and other words in turn, each with whether it is close to the one before."""
    end = 0
    is_close = True
    for match in _TOKEN.finditer(text):
        is_close = is_close and _GAP.fullmatch(text, end, match.start()) is not None
        end, token = match.end(), match[0]
        kind = "digits" if token.isdigit() else "month" if token in _months() else "word"
        if kind == "word" and token in _FILLERS:
            continue
        yield kind, token, is_close
        is_close = True


def _from_digits(digits: str) -> Iterator[tuple[int, int | str, int | str]]:
    """Yield year, month and day that a run of digits may mean; a time of day may follow them."""
    if len(digits) in (8, 12, 14):
        yield int(digits[:4]), digits[4:6], digits[6:8]
    if len(digits) == 8:
        yield int(digits[4:]), digits[2:4], digits[:2]
        yield int(digits[4:]), digits[:2], digits[2:4]
    if len(digits) == 7:  # ISO 8601: the year, and the day of the year
        with suppress(ValueError):
            found = datetime.strptime(digits, "%Y%j")
            yield found.year, found.month, found.day
    if len(digits) == 6:
        first, second, third = digits[:2], digits[2:4], digits[4:]
        for year, month, day in ((first, second, third), (third, second, first), (third, first, second)):
            yield from ((one, month, day) for one in _years(year))


def _from_parts(kinds: list[str], parts: list[str]) -> Iterator[tuple[int, int | str, int | str]]:
    """Yield year, month and day that three parts of a text may mean."""
    first, second, third = parts
    if kinds == ["digits"] * _PARTS:
        orders = [(first, second, third), (first, third, second), (third, second, first), (third, first, second)]
    elif kinds == ["digits", "month", "digits"]:
        orders = [(third, second, first), (first, second, third)]
    elif kinds == ["month", "digits", "digits"]:
        orders = [(third, first, second)]
    elif kinds == ["digits", "digits", "month"]:
        orders = [(first, third, second)]
    else:
        return
    for year, month, day in orders:
        for one in _months().get(month, (month,)):
            yield from ((number, one, day) for number in _years(year) if len(day) <= 2 and len(str(one)) <= 2)


def _years(digits: str) -> Iterable[int]:
    if len(digits) == 2:
        return [century + int(digits) for century in _CENTURIES]
    years = [int(digits), int(digits) - _BUDDHIST] if len(digits) == 4 else []
    return years if digits > _LATEST else years[:1]


def _valid(found: Iterable[tuple[int, int | str, int | str]]) -> set[date]:
    days = set()
    for year, month, day in found:
        try:
            days.add(date(year, int(month), int(day)))
        except ValueError:
            continue
    return days


@cache
def _months() -> dict[str, frozenset[int]]:
    """Return the months that a word may mean, by the word in capitals."""
    lines = resources.files(__package__).joinpath("months.txt").read_text(encoding="utf-8").splitlines()
    found: dict[str, set[int]] = {}
    for number, line in enumerate((line for line in lines if not line.startswith("#")), 1):
        for word in folded(line).split():
            for length in range(min(_SHORTEST_MONTH, len(word)), len(word) + 1):
                found.setdefault(word[:length], set()).add(number)
    return {word: frozenset(numbers) for word, numbers in found.items()}
