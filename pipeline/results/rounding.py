"""How numbers are rounded wherever results are written, compared or put in order."""

DIGITS = 4
"""Digits after the point of every number: more than anyone reads, and fewer than what other hardware changes."""


def rounded(value: float) -> float:
    """Round a number to `DIGITS` digits after the point, with no minus before a zero."""
    return round(value, DIGITS) + 0.0


def known(value: float | None) -> float | None:
    """Return a number rounded, or None where it is not known."""
    return None if value is None else rounded(value)
