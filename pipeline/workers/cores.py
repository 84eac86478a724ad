"""Counts the processor cores that octray uses: all that this process may use, unless the user sets another number."""

import math
import os
from collections.abc import Iterator
from pathlib import Path

from pipeline.errors import InputError

CORES = "OCTRAY_CORES"
_GROUPS, _OWN_GROUPS = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")


def usable_cores() -> int:
    """Return how many cores octray uses: OCTRAY_CORES if it is set, otherwise all that this process may use.

    Those are the cores of its affinity, limited by its control group and the groups around it, which is how container
    engines, systemd and batch systems limit them; a fraction of a core counts as one.

    Raises
    ------
    InputError
        If OCTRAY_CORES is not a whole number from 1 on.
    """
    if told := os.environ.get(CORES, "").strip():
        if not (told.isascii() and told.isdigit() and int(told)):
            raise InputError(f"{CORES} must be a whole number, 1 or more. Got {told[:20]} instead.")
        return int(told)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min([cores, *map(math.ceil, _shares())]))


def _shares() -> Iterator[float]:
    """Yield the cores that each control group of this process may use, if it has a limit (cgroups(7); versions 2 and 1)."""
    try:
        lines = _OWN_GROUPS.read_text().splitlines()
    except OSError:
        lines = []
    for line in (*lines, "0::/"):  # in a container the own group may be mounted as the root, whatever the line says
        _, controllers, path = line.split(":", 2)
        top = _GROUPS / controllers if controllers else _GROUPS
        if controllers and "cpu" not in controllers.split(","):
            continue
        group = top / path.strip("/")
        for folder in (group, *group.parents):
            if folder.is_relative_to(top):
                yield from _share(folder)


def _share(group: Path) -> Iterator[float]:
    try:
        if (group / "cpu.max").exists():
            quota, period = (group / "cpu.max").read_text().split()
        else:
            quota, period = ((group / f"cpu.cfs_{name}_us").read_text().strip() for name in ("quota", "period"))
        if int(quota) > 0:
            yield int(quota) / int(period)
    except (OSError, ValueError, ZeroDivisionError):  # no limit: "max", -1 or no such file
        return
