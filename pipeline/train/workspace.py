"""The folder beside a bundle that a killed run resumes from: prepared frames and checkpoints."""

import errno
import hashlib
import json
import math
import os
import secrets
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray
from safetensors import SafetensorError

from pipeline.atomic import remove_leftovers, replacing, write_bytes
from pipeline.errors import InputError
from pipeline.frames import FloatArray
from pipeline.imaging.preprocess import grey_levels, grey_values

STATE = "run.json"
_MEND = "Choose another --out."
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


class StoredFrames:
    """Prepared frames on disk, as whole numbers of 16 bits: half the size of 32-bit numbers, and nothing is lost.

    A copy for another process holds the name of the file only.

    Parameters
    ----------
    path
        A file that `Workspace.frames` wrote.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._levels: NDArray[np.uint16] = np.load(path, mmap_mode="r", allow_pickle=False)

    def __len__(self) -> int:
        return len(self._levels)

    def __getitem__(self, rows: int | slice | NDArray[np.int64]) -> FloatArray:
        """Return some frames as float32 in [0, 1], of shape (n, 1, size, size), or a single one of shape (1, size, size)."""
        return grey_values(self._levels[rows])

    def __reduce__(self) -> tuple[type["StoredFrames"], tuple[Path]]:
        return type(self), (self._path,)


PreparedFrames = FloatArray | StoredFrames
"""Frames on the network's grid: `frames[rows]` gives float32 of shape (n, 1, size, size) in [0, 1]."""


@dataclass(frozen=True, slots=True)
class Workspace:
    """One folder, tied to one configuration and one index by `identity`."""

    path: Path
    identity: str

    @property
    def checkpoint(self) -> Path:
        """The file in which fine-tuning keeps its state."""
        return self.path / "checkpoint.safetensors"

    @property
    def run_key(self) -> str:
        """The identity of this training, which it keeps when it is resumed."""
        return str(self._state().get("run_key", ""))

    def of_network(self, number: int) -> "Workspace":
        """Return the place of one of several networks in it."""
        place = self.path / f"network-{number}"
        place.mkdir(exist_ok=True)
        return Workspace(place, self.identity)

    def frames(self, rows: Iterable[FloatArray], shape: tuple[int, ...]) -> StoredFrames:
        """Return the prepared frames from disk, writing them on first use; a partial file is never read.

        Parameters
        ----------
        rows
            Frame by frame, float32 of shape (1, size, size) in [0, 1]; not read if the file exists.
        shape
            Of all frames.

        Raises
        ------
        InputError
            If the disk has too little room for all of them; found before the first one is read.
        """
        path = self.path / "frames.npy"
        stored_array(path, map(grey_levels, rows), shape, np.uint16)
        return StoredFrames(path)

    def remove(self) -> None:
        """Delete the folder; called when the bundle is complete.

        What says to which run it belongs goes last, so that a run that is killed here is resumed, too.
        """
        for place in self.path.iterdir():
            if place.is_dir():
                shutil.rmtree(place)
            elif place.name != STATE:
                place.unlink()
        (self.path / STATE).unlink(missing_ok=True)
        self.path.rmdir()

    def _is_begun(self) -> bool:
        return self.path.is_dir() and any(self.path.iterdir())

    def _state(self) -> dict[str, str]:
        try:
            return dict(json.loads((self.path / STATE).read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return {}

    def _write_state(self, state: dict[str, str]) -> None:
        write_bytes(self.path / STATE, json.dumps(state).encode())


def stored_array(path: Path, rows: Iterable[NDArray[Any]], shape: tuple[int, ...], kind: DTypeLike) -> NDArray[Any]:
    """Return an array from disk, as a read-only map, writing it on first use; a partial file is never read.

    Parameters
    ----------
    path
        The `.npy` file.
    rows
        What to write, row by row, if the file does not exist yet; otherwise they are not read.
    shape, kind
        Of the whole array.

    Raises
    ------
    InputError
        If the disk has too little room for the whole array; found before the first row is computed.
    """
    if not path.is_file():
        remove_leftovers(path)
        kind = np.dtype(kind)
        size = math.prod(shape) * kind.itemsize
        with disk_room(path, size), replacing(path) as draft, draft.open("wb") as file:
            header = {"descr": np.lib.format.dtype_to_descr(kind), "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(file, header)
            file.flush()
            if hasattr(os, "posix_fallocate"):  # macOS has none; there a full disk is noticed when it is full
                os.posix_fallocate(file.fileno(), 0, file.tell() + size)
            for row in rows:  # written, not mapped: writing to a map ends in SIGBUS if the disk is full
                file.write(np.ascontiguousarray(row, kind).data)
    return np.load(path, mmap_mode="r", allow_pickle=False)  # type: ignore[no-any-return]


@contextmanager
def disk_room(path: Path, size: int = 0) -> Iterator[None]:
    """Turn what libraries raise on a full disk into a sentence.

    Parameters
    ----------
    path
        The file that is written in the block, through `replacing`, so that the one before it stays whole.
    size
        Its bytes, if they are known.

    Raises
    ------
    InputError
        If there is no room for the file.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        full = error.errno in _FULL if isinstance(error, OSError) else any(os.strerror(code) in str(error) for code in _FULL)
        if not full:
            raise
        needed = f"{size / 1e9:,.3f} GB are needed and " if size else ""
        free = shutil.disk_usage(path.parent).free
        raise InputError(
            f"There is no room for {path.name} in {path.parent.name}: {needed}{free / 1e9:,.3f} GB are free. "
            "Free some space and start again with --resume, or choose another --out."
        ) from None


def bundle_place(bundle: Path) -> Path:
    """Return the folder that a bundle is to be written to, without links.

    Raises
    ------
    InputError
        If its place is taken by a file or an index.
    """
    place = bundle.resolve()
    if not place.name or (place.exists() and not place.is_dir()):
        raise InputError(f"A bundle cannot be written to {place.name or place.anchor}: it is not a folder of its own. {_MEND}")
    if (place / "index.json").exists():
        raise InputError(f"A bundle cannot be written to {place.name}: it holds an index. {_MEND}")
    return place


def open_workspace(bundle: Path, facts: str, resume: bool) -> Workspace:
    """Return the workspace of a bundle to be written.

    Parameters
    ----------
    bundle
        The bundle's folder; the workspace is its neighbour.
    facts
        Everything that must be the same for a run to be resumed; its hash is the workspace's identity.
    resume
        Go on with what is there; otherwise start from nothing.

    Raises
    ------
    InputError
        If the workspace belongs to another run or cannot be made, or the bundle's place is taken by a file or an index.
    """
    place = bundle_place(bundle)
    workspace = Workspace(place.with_name(f"{place.name}.work"), hashlib.sha256(facts.encode()).hexdigest())
    if not resume:
        shutil.rmtree(workspace.path, ignore_errors=True)
    elif workspace._is_begun() and workspace._state().get("identity") != workspace.identity:
        raise InputError(
            f"{workspace.path.name} belongs to a run with another configuration, index or file of weights. "
            "Give the same ones to resume it, or leave out --resume to start again."
        )
    try:
        workspace.path.mkdir(parents=True, exist_ok=True)
    except OSError:
        raise InputError(f"The folder of {place.name} cannot be written to. {_MEND}") from None
    workspace._write_state({"identity": workspace.identity, "run_key": workspace.run_key or secrets.token_hex(16)})
    return workspace
