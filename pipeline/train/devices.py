"""Where a network is trained: the device, the precision and the other processes of the run; the only place that knows."""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch import distributed as processes

from pipeline.config import TrainSection
from pipeline.errors import ConfigError, TrainingError
from pipeline.workers.cores import usable_cores

T = TypeVar("T")
_WAIT = timedelta(days=30)
"""The other processes wait while the first one reads files, fits heads and writes; a lost process is noticed at once."""
_PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class Compute:
    """The device of this process, and the way to the other processes of the run.

    Parameters
    ----------
    device
        `auto` takes CUDA, else MPS, else the processor.
    precision
        `auto` computes in bfloat16 (float16 if the GPU has none) on CUDA, and in float32 elsewhere. Weights, optimiser and loss
        are always float32.
    rank, world
        The number of this process, and how many there are. Only number 0 reads files, measures and writes; the others help with
        the training steps.

    Raises
    ------
    ConfigError
        If this machine has no such device.
    """

    def __init__(self, device: str = "cpu", precision: str = "float32", rank: int = 0, world: int = 1) -> None:
        self.rank, self.world = rank, world
        self.device = torch.device(_chosen_device(device))
        if self.device.type == "cuda":
            self.device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
            torch.cuda.set_device(self.device)
            torch.backends.cudnn.benchmark = False
            torch.use_deterministic_algorithms(True, warn_only=True)
        if precision == "auto":
            has_bfloat16 = self.device.type == "cuda" and torch.cuda.is_bf16_supported()
            precision = "bfloat16" if has_bfloat16 else "float16" if self.device.type == "cuda" else "float32"
        self._precision = _PRECISIONS[precision]

    @property
    def is_reduced(self) -> bool:
        """Whether the network computes in 16 bits."""
        return self._precision is not torch.float32

    def autocast(self) -> AbstractContextManager[object]:
        """Compute what follows in the precision that was chosen."""
        return torch.autocast(self.device.type, self._precision) if self.is_reduced else nullcontext()

    def scaler(self) -> torch.amp.GradScaler:
        """Return what keeps small gradients from vanishing in float16; it does nothing in other precisions."""
        return torch.amp.GradScaler(self.device.type, enabled=self._precision is torch.float16)

    def place(self, network: nn.Module) -> None:
        """Move a network to the device, with its channels last: other layouts make depthwise convolutions slow."""
        network.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]

    def load(self, tensor: Tensor) -> Tensor:
        """Return a batch on the device."""
        return tensor.to(self.device, non_blocking=True)

    def loading_processes(self, workers: str | int) -> int:
        """Return how many processes load frames: none on a processor, whose cores train already, unless a number is set."""
        if workers != "auto":
            return int(workers)
        return 0 if self.device.type == "cpu" else max(1, min(8, usable_cores() // self.world - 1))

    def sum(self, tensors: Sequence[Tensor]) -> None:
        """Add up each tensor over all processes, in place; all are float32 and on the device."""
        if self.world == 1 or not tensors:
            return
        together = torch.cat([tensor.reshape(-1) for tensor in tensors])
        self._speak(lambda: processes.all_reduce(together))
        for tensor, part in zip(tensors, together.split_with_sizes([tensor.numel() for tensor in tensors]), strict=True):
            tensor.copy_(part.view_as(tensor))

    def share(self, value: T) -> T:
        """Return what process 0 gives, in every process; it must be known to pickle, since it passes between processes."""
        if self.world == 1:
            return value
        box: list[Any] = [value]
        self._speak(lambda: processes.broadcast_object_list(box, src=0, device=torch.device("cpu")))
        return box[0]  # type: ignore[no-any-return]

    def _speak(self, talk: Callable[[], object]) -> None:
        try:
            talk()
        except RuntimeError:  # gloo and NCCL raise no other kind if the connection to a process is lost
            raise TrainingError(
                "Another process of this run has ended. Start the same command again with --resume to go on after the last "
                "finished epoch."
            ) from None


def process_rank() -> int:
    """Return the number of this process among those that `torchrun` started; 0 if there is only one."""
    return int(os.environ.get("RANK", "0")) if processes.is_torchelastic_launched() else 0


@contextmanager
def open_compute(settings: TrainSection) -> Iterator[Compute]:
    """Choose the device and join the other processes, if `torchrun` started several.

    The cores of the machine are divided among its processes.
    """
    world, here = (
        int(os.environ.get(name, "1")) if processes.is_torchelastic_launched() else 1
        for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE")
    )
    torch.set_num_threads(max(1, (settings.threads or usable_cores()) // here))
    compute = Compute(settings.device, settings.precision, process_rank(), world)
    if world == 1:
        yield compute
        return
    processes.init_process_group("cpu:gloo,cuda:nccl" if compute.device.type == "cuda" else "gloo", timeout=_WAIT)
    try:
        yield compute
    finally:
        processes.destroy_process_group()


def _chosen_device(device: str) -> str:
    found = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if device == "auto":
        return "cuda" if found["cuda"] else "mps" if found["mps"] else "cpu"
    if not found[device]:
        raise ConfigError(
            [f"train.device: this machine has no {device} device that the installed torch can use. Set train.device=auto."]
        )
    return device
