"""Moves dates by days, in the forms that DICOM allows (PS3.5 6.2, DA and DT)."""

import re
from datetime import date, timedelta

_DATE = re.compile(r"(\d{4})(\.?)(\d{2})\2(\d{2})")
_DATE_TIME = re.compile(r"(\d{4})(\d{2})?(\d{2})?(.*)", re.DOTALL)
_TIME = re.compile(r"([01]\d|2[0-3])(?:(:?)[0-5]\d(?:\2(?:[0-5]\d|60)(?:\.\d{1,6})?)?)?")
_ZONE = re.compile(r"[+-](0\d|1[0-4])[0-5]\d")
_REST = re.compile(r"(\d{2}(\d{2}(\d{2}(\.\d{1,6})?)?)?)?([+-]\d{4})?")


def shift_date(text: str, days: int) -> str | None:
    """Move a Date (DA), also one with the points of ACR-NEMA 300; None where it is none."""
    match = _DATE.fullmatch(text.strip())
    moved = _moved(match[1], match[3], match[4], days) if match else None
    return f"{moved:%Y%m%d}" if moved else None


def shift_date_time(text: str, days: int) -> str | None:
    """Move a Date Time (DT) and keep its precision, its time of day and its offset from UTC; None where it is none.

    Without a day the result is the month, or the year, that holds the first day of the original one, moved.
    """
    match = _DATE_TIME.fullmatch(text.strip())
    if match is None:
        return None
    year, month, day, rest = match.groups()
    moved = _moved(year, month or "01", day or "01", days)
    if moved is None or not _REST.fullmatch(rest) or (not day and rest[:1].isdigit()):
        return None
    return f"{moved:%Y%m%d}"[: 4 + len(month or "") + len(day or "")] + rest


def is_time(text: str) -> bool:
    """Say whether a text is a Time (TM), also one with the colons of ACR-NEMA 300."""
    return _TIME.fullmatch(text.strip()) is not None


def is_zone(text: str) -> bool:
    """Say whether a text is an offset from UTC, as in Timezone Offset From UTC (0008,0201)."""
    return _ZONE.fullmatch(text.strip()) is not None


def _moved(year: str, month: str, day: str, days: int) -> date | None:
    try:
        moved = date(int(year), int(month), int(day)) + timedelta(days=days)
    except (ValueError, OverflowError):
        return None
    return moved if moved.year >= 1000 else None
