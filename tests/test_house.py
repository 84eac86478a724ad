"""The house: what `benchmarks/house.py` measures and nothing may bring back."""

from pathlib import Path

from benchmarks.house import circles, parsed, several_meanings

ROOT = Path(__file__).parents[1]


def test_no_public_name_has_two_meanings() -> None:
    assert several_meanings(dict(parsed(ROOT))) == {}


def test_no_modules_import_each_other_in_a_circle() -> None:
    assert circles(ROOT) == []
