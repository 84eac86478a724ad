"""Escapes text in CSV tables so that no spreadsheet runs it as a formula (OWASP, "CSV injection"), and back again."""

import re

_FORMULA = re.compile(r"'*[=+\-@\t\r\n＝＋－＠]")


def csv_escape(text: str) -> str:
    """Return the text, with an apostrophe in front if a spreadsheet would take it for a formula."""
    return f"'{text}" if _FORMULA.match(text) else text


def csv_unescape(cell: str) -> str:
    """Return the text that was given to `csv_escape`."""
    return cell[1:] if cell.startswith("'") and _FORMULA.match(cell) else cell
