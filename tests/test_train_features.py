"""The cache of features: what is read is what was written, whoever else writes, and no fault of the file stops training."""

import multiprocessing
import sqlite3
from pathlib import Path

import numpy as np
import pytest

from pipeline.train.features import FeatureCache, hashed

CHANNELS = 8


def vectors(names: list[str], seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {name: rng.random(CHANNELS, np.float32) for name in names}


def same(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> bool:
    return found.keys() == expected.keys() and all(found[name].tobytes() == expected[name].tobytes() for name in expected)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "cache" / "features.sqlite3"


def test_what_is_read_is_what_was_written(path: Path) -> None:
    written = vectors([str(number) for number in range(1200)])
    FeatureCache(path).write("net", written)
    assert same(FeatureCache(path).read("net", list(written)), written)
    assert same(FeatureCache(path).read("net", ["3", "unknown"]), {"3": written["3"]})
    assert FeatureCache(path).read("other net", list(written)) == {}


def test_only_the_owner_may_read_it(path: Path) -> None:
    FeatureCache(path).write("net", vectors(["1"]))
    assert path.stat().st_mode & 0o077 == 0


def test_it_stays_below_its_bound_and_keeps_what_was_used_last(path: Path) -> None:
    many = [str(number) for number in range(200)]
    cache = FeatureCache(path, most_bytes=70_000)
    for name in ("a", "b", "c"):
        cache.write(name, vectors(many))
        assert cache.read("a", many), name
    assert len(cache.read("c", many)) == 200
    assert cache.read("b", many) == {}, "it was used before a and c"
    for number in range(30):
        cache.write(f"more {number}", vectors(many))
    assert path.stat().st_size < 400_000


def write_all(path: Path, number: int) -> None:
    for part in range(5):
        FeatureCache(path).write("net", vectors([f"{number}-{part}-{one}" for one in range(20)], number))


def test_several_processes_may_write_at_once(path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=write_all, args=(path, number)) for number in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    expected = {}
    for number in range(3):
        for part in range(5):
            expected |= vectors([f"{number}-{part}-{one}" for one in range(20)], number)
    assert same(FeatureCache(path).read("net", list(expected)), expected)


def test_a_damaged_file_is_replaced(path: Path) -> None:
    path.parent.mkdir()
    path.write_bytes(b"no database" * 1000)
    written = vectors(["1"])
    cache = FeatureCache(path)
    cache.write("net", written)
    cache.write("net", written)
    assert same(cache.read("net", ["1"]), written), "from memory"
    FeatureCache(path).write("net", written)
    assert same(FeatureCache(path).read("net", ["1"]), written), "from a new file"


def test_a_place_that_cannot_be_written_to_is_no_fault(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    written = vectors(["1"])
    for place in (None, tmp_path / "file" / "features.sqlite3"):
        cache = FeatureCache(place)
        assert cache.read("net", ["1"]) == {}
        cache.write("net", written)
        assert same(cache.read("net", ["1"]), written)


def test_a_writer_that_does_not_let_go_is_no_fault(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.train.features._WAIT_SECONDS", 0.1)
    FeatureCache(path).write("net", vectors(["1"]))
    other = sqlite3.connect(path)
    other.execute("BEGIN EXCLUSIVE")
    cache = FeatureCache(path)
    cache.write("net", vectors(["2"]))
    assert set(cache.read("net", ["1", "2"])) <= {"1", "2"}
    other.rollback()
    other.close()
    assert same(FeatureCache(path).read("net", ["1"]), vectors(["1"])), "it was locked, not damaged"


def test_parts_of_a_hash_are_told_apart() -> None:
    assert hashed("ab", "c") != hashed("a", "bc")
    assert hashed("ab") == hashed(b"ab")
