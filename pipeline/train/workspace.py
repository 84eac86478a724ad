"""The folder beside a bundle that a killed run resumes from: decoded frames, features and the checkpoint."""

import hashlib
import json
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.atomic import replacing, write_bytes
from pipeline.errors import InputError
from pipeline.frames import FloatArray

STATE = "run.json"
_MEND = "Choose another --out."


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
    def run_id(self) -> str:
        """The MLflow run of this training; empty if there is none."""
        return str(self._state().get("mlflow_run_id", ""))

    @property
    def left_run_id(self) -> str:
        """The MLflow run of a training that was killed here and is not resumed; empty if there is none."""
        return str(self._state().get("left_run_id", ""))

    def of_network(self, number: int) -> "Workspace":
        """Return the place of one of several networks in it."""
        place = self.path / f"network-{number}"
        place.mkdir(exist_ok=True)
        return Workspace(place, self.identity)

    def remember_run(self, run_id: str) -> None:
        """Keep the MLflow run's id for a resumed run."""
        self._write_state({"identity": self.identity, "mlflow_run_id": run_id})

    def array(self, name: str, rows: Iterable[FloatArray], shape: tuple[int, ...]) -> FloatArray:
        """Return an array from disk, writing it on first use; a partial file is never read.

        Parameters
        ----------
        name
            Stem of the `.npy` file.
        rows
            What to write, row by row, if the file does not exist yet; otherwise it is not read.
        shape
            Of the whole array; its type is float32.

        Returns
        -------
        FloatArray
            A read-only memory map.
        """
        target = self.path / f"{name}.npy"
        if not target.is_file():
            with replacing(target) as draft:
                array = np.lib.format.open_memmap(draft, mode="w+", dtype=np.float32, shape=shape)
                for number, row in enumerate(rows):
                    array[number] = row
                array.flush()
        return np.load(target, mmap_mode="r", allow_pickle=False)  # type: ignore[no-any-return]

    def remove(self) -> None:
        """Delete the folder; called when the bundle is complete."""
        shutil.rmtree(self.path)

    def _state(self) -> dict[str, str]:
        try:
            return dict(json.loads((self.path / STATE).read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return {}

    def _write_state(self, state: dict[str, str]) -> None:
        write_bytes(self.path / STATE, json.dumps(state).encode())


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
    place = bundle.resolve()
    if not place.name or (place.exists() and not place.is_dir()):
        raise InputError(f"A bundle cannot be written to {place.name or place.anchor}: it is not a folder of its own. {_MEND}")
    if (place / "index.json").exists():
        raise InputError(f"A bundle cannot be written to {place.name}: it holds an index. {_MEND}")
    workspace = Workspace(place.with_name(f"{place.name}.work"), hashlib.sha256(facts.encode()).hexdigest())
    left = ""
    if not resume:
        left = workspace.run_id or workspace.left_run_id
        shutil.rmtree(workspace.path, ignore_errors=True)
    elif workspace.path.is_dir() and workspace._state().get("identity") != workspace.identity:
        raise InputError(
            f"{workspace.path.name} belongs to a run with another configuration or index. "
            "Give the same ones to resume it, or leave out --resume to start again."
        )
    try:
        workspace.path.mkdir(parents=True, exist_ok=True)
    except OSError:
        raise InputError(f"The folder of {place.name} cannot be written to. {_MEND}") from None
    state = {"identity": workspace.identity, "mlflow_run_id": workspace.run_id, "left_run_id": left or workspace.left_run_id}
    workspace._write_state(state)
    return workspace
