"""The house: what `benchmarks/house.py` measures and nothing may bring back, and that tests keep out of the user's folders."""

import os
from pathlib import Path

from benchmarks.house import circles, parsed, several_meanings
from pipeline.deidentify.crosswalk import default_key_path
from pipeline.model.weights import cache_folder

ROOT = Path(__file__).parents[1]


def test_no_public_name_has_two_meanings() -> None:
    assert several_meanings(dict(parsed(ROOT))) == {}


def test_no_modules_import_each_other_in_a_circle() -> None:
    assert circles(ROOT) == []


def test_tests_have_folders_of_their_own_in_place_of_the_users() -> None:
    for name, folder in (("XDG_CACHE_HOME", cache_folder()), ("XDG_CONFIG_HOME", default_key_path().parent)):
        assert folder == Path(os.environ[name], "octray")
        assert folder.parents[1].name.startswith("octray-tests-")
