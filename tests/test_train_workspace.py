"""The folder beside a bundle: what a second start finds there, and what it never trusts."""

import pickle
import resource
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from pipeline.errors import InputError
from pipeline.frames import FloatArray
from pipeline.train.workspace import STATE, open_workspace, stored_array


def rows(count: int = 3) -> Iterator[FloatArray]:
    yield from np.arange(count * 4, dtype=np.float32).reshape(count, 2, 2)


def refuse() -> Iterator[FloatArray]:
    raise AssertionError("rows were taken although the array is there")
    yield


def test_an_array_is_computed_once(tmp_path: Path) -> None:
    first = stored_array(tmp_path / "a.npy", rows(), (3, 2, 2), np.float16)
    np.testing.assert_array_equal(first, np.arange(12).reshape(3, 2, 2))
    assert (first.flags.writeable, first.dtype) == (False, np.float16)
    again = stored_array(tmp_path / "a.npy", refuse(), (3, 2, 2), np.float16)
    np.testing.assert_array_equal(again, first)


def test_frames_come_back_within_half_a_step_of_16_bits(tmp_path: Path) -> None:
    frames = np.random.default_rng(0).random((5, 1, 8, 8), np.float32)
    frames[0, 0, 0, :2] = 0, 1
    stored = open_workspace(tmp_path / "bundle", "facts", resume=False).frames(iter(frames), frames.shape)
    assert len(stored) == 5
    assert stored[:].dtype == np.float32
    assert np.abs(stored[:] - frames).max() <= 1 / 130000
    assert stored[:][0, 0, 0, :2].tolist() == [0, 1]
    np.testing.assert_array_equal(stored[np.array([3, 1])], stored[:][[3, 1]])
    np.testing.assert_array_equal(stored[2], stored[:][2])
    again = open_workspace(tmp_path / "bundle", "facts", resume=True).frames(refuse(), frames.shape)
    np.testing.assert_array_equal(again[:], stored[:])
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(stored))[:], stored[:])  # noqa: S301 - our own
    assert len(pickle.dumps(stored)) < 1000


def test_no_room_for_an_array_is_found_before_its_rows_are_read(tmp_path: Path) -> None:
    workspace = open_workspace(tmp_path / "bundle", "facts", resume=False)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))  # what a full disk does to the process, without filling one
    try:
        with pytest.raises(InputError, match=r"^There is no room for frames\.npy in bundle\.work: 0\.002 GB are needed and "):
            workspace.frames(refuse(), (1000, 1, 32, 32))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [path.name for path in workspace.path.iterdir()] == [STATE]


def test_a_run_that_was_killed_while_its_folder_was_deleted_is_resumed(tmp_path: Path) -> None:
    workspace = open_workspace(tmp_path / "bundle", "facts", resume=False)
    workspace.frames((row / 11 for row in rows()), (3, 2, 2))
    (workspace.of_network(1).path / "checkpoint.safetensors").touch()
    key, left = workspace.run_key, []

    def look(event: str, arguments: tuple[object, ...]) -> None:
        if event == "os.remove" and looking and Path(str(arguments[0])).name == STATE:
            left.append(sorted(path.name for path in workspace.path.iterdir()))

    looking = True
    sys.addaudithook(look)
    workspace.remove()
    looking = False
    assert left == [[STATE]], "what says to which run the folder belongs goes last"
    assert not workspace.path.exists()
    workspace.path.mkdir()
    assert open_workspace(tmp_path / "bundle", "other facts", resume=True).run_key != key


def test_what_a_killed_run_left_is_deleted(tmp_path: Path) -> None:
    workspace = open_workspace(tmp_path / "bundle", "facts", resume=False)
    (workspace.path / ".frames.npy.0123abcd.part").write_bytes(bytes(100))
    workspace.frames((row / 11 for row in rows()), (3, 2, 2))
    assert sorted(path.name for path in workspace.path.iterdir()) == ["frames.npy", STATE]


def test_what_is_half_written_is_written_anew(tmp_path: Path) -> None:
    def stopped() -> Iterator[FloatArray]:
        yield from rows(2)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stored_array(tmp_path / "a.npy", stopped(), (3, 2, 2), np.float32)
    assert list(tmp_path.iterdir()) == []
    again = stored_array(tmp_path / "a.npy", rows(), (3, 2, 2), np.float32)
    np.testing.assert_array_equal(again, np.arange(12).reshape(3, 2, 2))


def test_only_a_resumed_run_keeps_arrays_and_mlflow_run(tmp_path: Path) -> None:
    workspace = open_workspace(tmp_path / "bundle", "facts", resume=False)
    key = workspace.run_key
    assert len(key) == 32
    workspace.frames((row / 11 for row in rows()), (3, 2, 2))
    assert open_workspace(tmp_path / "bundle", "facts", resume=True).run_key == key
    anew = open_workspace(tmp_path / "bundle", "other facts", resume=False)
    assert anew.run_key not in ("", key)
    assert [path.name for path in anew.path.iterdir()] == [STATE]


def test_nothing_to_resume_is_a_new_run(tmp_path: Path) -> None:
    assert open_workspace(tmp_path / "bundle", "facts", resume=True).path.is_dir()


@pytest.mark.parametrize("state", [None, "{}", "not JSON", "5"])
def test_another_run_is_not_resumed(state: str | None, tmp_path: Path) -> None:
    workspace = open_workspace(tmp_path / "bundle", "facts", resume=False)
    if state is not None:
        (workspace.path / STATE).write_text(state)
    with pytest.raises(
        InputError, match=r"^bundle\.work belongs to a run with another configuration, index or file of weights\. Give the same"
    ):
        open_workspace(tmp_path / "bundle", "facts" if state else "other facts", resume=True)


def test_it_stands_beside_the_bundle_wherever_that_is_named_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bundle").mkdir()
    monkeypatch.chdir(tmp_path / "bundle")
    assert open_workspace(Path(), "facts", resume=False).path == tmp_path / "bundle.work"


@pytest.mark.parametrize(
    ("place", "sentence"),
    [
        ("taken", "A bundle cannot be written to taken: it is not a folder of its own. Choose another --out."),
        ("/", "A bundle cannot be written to /: it is not a folder of its own. Choose another --out."),
        ("index", "A bundle cannot be written to index: it holds an index. Choose another --out."),
        ("taken/bundle", "The folder of bundle cannot be written to. Choose another --out."),
    ],
)
def test_a_place_that_cannot_be_used_is_said(place: str, sentence: str, tmp_path: Path) -> None:
    (tmp_path / "taken").touch()
    (tmp_path / "index").mkdir()
    (tmp_path / "index" / "index.json").touch()
    with pytest.raises(InputError) as caught:
        open_workspace(tmp_path / place, "facts", resume=False)
    assert str(caught.value) == sentence


def test_it_can_be_removed(tmp_path: Path) -> None:
    workspace = open_workspace(tmp_path / "bundle", "facts", resume=False)
    workspace.frames((row / 11 for row in rows()), (3, 2, 2))
    workspace.remove()
    assert list(tmp_path.iterdir()) == []
