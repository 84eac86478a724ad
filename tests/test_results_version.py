"""Results that are stored are used again as long as `RESULTS_VERSION` stays: no result may change without it."""

import json
from pathlib import Path

import pytest

from pipeline.version import RESULTS_VERSION, reading_versions, scoring_versions
from tests import golden_results
from tests.golden_results import COMMAND, differences, golden, results, rewrite


def test_results_are_those_of_this_results_version() -> None:
    version, before = golden()
    assert version == RESULTS_VERSION, f"RESULTS_VERSION is {RESULTS_VERSION}: write the golden results again ({COMMAND})."
    changed = differences(before, results())
    assert not changed, (
        f"Results changed: {', '.join(changed)}. If that is meant, raise RESULTS_VERSION in pipeline/version.py, so that older "
        f"stored results are not used any more, and write the golden results again ({COMMAND})."
    )


def test_values_are_compared_with_a_tolerance_and_hashes_are_not() -> None:
    before: golden_results.Results = {"a": [0.5, 1.0], "b": "1f", "c": "2e"}
    assert differences(before, before | {"a": [0.5004, 1.0]}) == []
    assert differences(before, {"a": [0.502, 1.0], "b": "1e", "d": "2e"}) == ["a", "b", "c", "d"]


def test_golden_results_are_not_rewritten_before_the_number_is_raised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(golden_results, "GOLDEN", tmp_path / "golden.json")
    monkeypatch.setattr(golden_results, "results", lambda: {"a": "1"})
    assert rewrite() == f"Wrote 1 results of version {RESULTS_VERSION}."
    monkeypatch.setattr(golden_results, "results", lambda: {"a": "2", "b": "1"})
    assert rewrite().startswith("Nothing was written: a changed. Raise RESULTS_VERSION")
    monkeypatch.setattr(golden_results, "RESULTS_VERSION", RESULTS_VERSION + 1)
    assert rewrite() == f"Wrote 2 results of version {RESULTS_VERSION + 1}."
    assert json.loads((tmp_path / "golden.json").read_text())["results"] == {"a": "2", "b": "1"}


def test_libraries_count_as_well() -> None:
    for versions in (reading_versions(), scoring_versions()):
        assert versions["results"] == str(RESULTS_VERSION)
        assert {"numpy", "pillow", "pydicom", "imagecodecs"} <= versions.keys()
    assert {"onnxruntime", "python"} <= scoring_versions().keys() - reading_versions().keys()
