"""What a killed run needs to go on as if nothing had happened: one safetensors file, replaced in one step after each epoch."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import ReduceLROnPlateau

from pipeline.atomic import replacing
from pipeline.model.networks import Network


@dataclass(slots=True)
class Course:
    """How far training has come.

    Parameters
    ----------
    epoch
        Number of epochs that are finished.
    best_epoch
        The one with the lowest tune loss; 0 is the linear head alone.
    best_loss
        Its tune loss.
    history
        One entry an epoch: names and values of its metrics.
    """

    epoch: int = 0
    best_epoch: int = 0
    best_loss: float = float("inf")
    history: list[dict[str, float]] = field(default_factory=list)


@dataclass(slots=True)
class State:
    """Everything that changes while a network is fine-tuned."""

    network: Network
    optimiser: AdamW
    scheduler: ReduceLROnPlateau
    best: dict[str, Tensor]
    course: Course


def trainable(network: nn.Module) -> dict[str, Tensor]:
    """Return copies of the parameters that are being trained."""
    return {name: value.detach().clone() for name, value in network.named_parameters() if value.requires_grad}


def save_checkpoint(path: Path, state: State) -> None:
    """Write the state; a reader finds either the old file or the new one."""
    tensors = {f"network/{name}": value for name, value in trainable(state.network).items()}
    tensors |= {f"best/{name}": value for name, value in state.best.items()}
    optimiser = state.optimiser.state_dict()
    for number, slots in optimiser["state"].items():
        tensors |= {f"optimiser/{number}/{name}": value for name, value in slots.items()}
    scalars = {
        "course": asdict(state.course),
        "groups": optimiser["param_groups"],
        "scheduler": state.scheduler.state_dict(),
    }
    contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
    with replacing(path, durable=True) as draft:
        save_file(contiguous, draft, metadata={"state": json.dumps(scalars)})


def load_checkpoint(path: Path, state: State) -> None:
    """Set `state` to what was saved for the same network and settings."""
    with safe_open(path, framework="pt") as file:
        scalars = json.loads(file.metadata()["state"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    slots: dict[int, dict[str, Tensor]] = {}
    network: dict[str, Tensor] = {}
    for key, value in tensors.items():
        part, name = key.split("/", 1)
        if part == "network":
            network[name] = value
        elif part == "best":
            state.best[name] = value
        else:
            number, slot = name.split("/")
            slots.setdefault(int(number), {})[slot] = value
    state.network.load_state_dict(network, strict=False)
    state.optimiser.load_state_dict({"state": slots, "param_groups": scalars["groups"]})
    state.scheduler.load_state_dict(scalars["scheduler"])
    state.course = Course(**scalars["course"])
