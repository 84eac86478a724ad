"""Reads days out of text, however they are spelled: in digits of any order, with months by name, with years of two digits."""

import re
import unicodedata
from collections.abc import Iterable, Iterator
from contextlib import suppress
from datetime import date, datetime
from functools import cache
from importlib import resources

_TOKEN = re.compile(r"\d+|[^\W\d_]+")
_GAP = re.compile(r"[\W_]{0,3}")
_FILLERS = frozenset(
    {"A", "AL", "D", "DE", "DEL", "DEN", "DER", "DES", "DI", "DO", "E", "EN", "ER", "G", "LE", "LO", "OF", "RD", "ND", "ST"}
    | {"T", "TH", "THE", "Y", "Г", "ГОДА", "Р", "РОКУ", "ΤΟΥ", "年", "月", "日", "년", "월", "일"}
)
"""What stands between the parts of a date: articles, ordinals, and the signs for year, month and day."""
_SHORTEST_MONTH = 3
_PARTS = 3
_CENTURIES = (1900, 2000)
_PLAIN = str.maketrans(
    {"Ł": "L", "Đ": "D", "Ð": "D", "Ø": "O", "Ħ": "H", "Ŧ": "T", "Ŋ": "N", "Æ": "AE", "Œ": "OE", "Þ": "TH"}
    | {chr(hiragana): chr(hiragana + 0x60) for hiragana in range(0x3041, 0x3097)}
)
"""Letters that Unicode does not take apart, as people write them without strokes, and Hiragana as Katakana."""
_BUDDHIST = 543
"""Years by which the calendar of Thailand is ahead."""
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


def folded(text: str) -> str:
    """Return a text in capitals, without accents and strokes, and with one script for Japanese syllables."""
    plain = "".join(one for one in unicodedata.normalize("NFKD", text) if not unicodedata.combining(one))
    return unicodedata.normalize("NFC", plain).upper().translate(_PLAIN)


def days_in(text: str) -> set[date]:
    """Return every day that a text may mean; 03/04/2019 may mean two, and a year of two digits two centuries."""
    plain = folded(text)
    tokens = list(_tokens(plain))
    found = _valid((_ERAS[era] + int(year), month, day) for era, year, month, day in _OF_ERA.findall(plain))
    for at, (kind, token, _) in enumerate(tokens):
        if kind == "digits":
            found |= _valid(_run(token))
        following = tokens[at : at + _PARTS]
        kinds = [kind for kind, _, _ in following]
        if kinds[:2] == ["month", "digits"] and len(following[1][1]) in (5, 6) and following[1][2]:
            digits = following[1][1]
            found |= _valid((year, month, digits[:-4]) for year in _years(digits[-4:]) for month in _months()[token])
        if len(following) == _PARTS and all(joined for _, _, joined in following[1:]):
            found |= _valid(_triple(kinds, [token for _, token, _ in following]))
    return found


def day_numbers(day: date) -> set[str]:
    """Return the digits in which a day is written without signs between them: eight, seven, and six with a year of two."""
    return {f"{day:{form}}" for form in ("%Y%m%d", "%d%m%Y", "%m%d%Y", "%Y%j", "%y%m%d", "%d%m%y", "%m%d%y")}


def _tokens(text: str) -> Iterator[tuple[str, str, bool]]:
    """Yield digits, months and other words in turn, each with whether it stands close behind the one before."""
    end = 0
    joined = True
    for match in _TOKEN.finditer(text):
        joined = joined and _GAP.fullmatch(text, end, match.start()) is not None
        end, token = match.end(), match[0]
        kind = "digits" if token.isdigit() else "month" if token in _months() else "word"
        if kind == "word" and token in _FILLERS:
            continue
        yield kind, token, joined
        joined = True


def _run(digits: str) -> Iterator[tuple[int, int | str, int | str]]:
    """Yield year, month and day as a run of digits may have them, also one with a time of day behind them."""
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


def _triple(kinds: list[str], parts: list[str]) -> Iterator[tuple[int, int | str, int | str]]:
    """Yield year, month and day as three parts of a text may mean them."""
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
    made = set()
    for year, month, day in found:
        try:
            made.add(date(year, int(month), int(day)))
        except ValueError:
            continue
    return made


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
