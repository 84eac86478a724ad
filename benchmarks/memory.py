"""How much memory `octray score` takes, all its processes together: for ten radiographs, and for many.

`python -m benchmarks.memory [COUNT [BUNDLE]]` (1000 unless told otherwise, at least 100) writes as many radiographs of 224
pixels as JPEG, each a study of its own, and trains a bundle on some of them, unless the folder of one is given. What counts is
the proportional set size of the process and its descendants, looked at twice a second: what several of them share counts once.
"""

import csv
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from benchmarks.processes import SIZE, check_refused, first_of, octray, train_on, write_small

FEW = 10
_SECONDS = 0.5
_MIB = 2**20


@dataclass(frozen=True, slots=True)
class Found:
    """What one run took: the most memory in bytes, and time; and how many of its files were scored and refused."""

    most: int
    seconds: float
    scored: int
    refused: int


def main(arguments: list[str]) -> int:
    """Print what each run took, one line a run, and the ratio."""
    count = max(100, int(arguments[0])) if arguments else 1000
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        many = write_small(root / "small", count)
        few = first_of(many, root, FEW)
        bundle = Path(arguments[1]) if arguments[1:] else train_on((many,), root)
        print(f"Radiographs of {SIZE} px as JPEG, each a study of its own; octray score with heatmaps, all its processes:")
        first, last = (_show(folder, bundle, root) for folder in (few, many))
    more = f"{(last.most - first.most) / _MIB:,.0f} MiB more, {last.most / first.most:.2f} times as much"
    print(f"  {count:,} radiographs against {FEW}: {more}")
    return 0


def _show(folder: Path, bundle: Path, root: Path) -> Found:
    found = _measure(folder, bundle, Path(tempfile.mkdtemp(dir=root)) / "results")
    count = found.scored + found.refused
    print(
        f"  {count:,} radiographs: at most {found.most / _MIB:,.0f} MiB; {found.seconds:.1f} s, {count / found.seconds:.1f} a "
        f"second, start and report included; {found.scored:,} scored, {found.refused:,} refused",
        flush=True,
    )
    return found


def _measure(folder: Path, bundle: Path, out: Path) -> Found:
    """Score the files of a folder, and see that each of them came out once."""
    command = octray("score", str(folder), "--bundle", str(bundle), "--out", str(out))
    most, start = 0, time.perf_counter()
    with tempfile.TemporaryFile("w+") as said, subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=said) as process:
        while process.poll() is None:
            most = max(most, sum(map(_proportional_set_size, _family(process.pid))))
            with suppress(subprocess.TimeoutExpired):
                process.wait(_SECONDS)
        seconds = time.perf_counter() - start
        if process.returncode > 1:
            said.seek(0)
            raise SystemExit(said.read()[-2000:])
    scored, refused = (_sources(out / name) for name in ("predictions.csv", "failures.csv"))
    given = sorted(path.name for path in folder.iterdir())
    if sorted([*set(scored), *refused]) != given:
        raise SystemExit(f"Of {len(given)} files {len(set(scored))} were scored and {len(refused)} refused.")
    check_refused(folder, len(refused))
    return Found(most, seconds, len(set(scored)), len(refused))


def _sources(table: Path) -> list[str]:
    """Return the file that each row of a table is about."""
    with table.open(encoding="utf-8", newline="") as file:
        return [row["source"] for row in csv.DictReader(file)]


def _family(process: int) -> Iterator[int]:
    """Yield a process and its descendants."""
    children: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # it has ended meanwhile
            parent = path.read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()[1]
            children.setdefault(int(parent), []).append(int(path.parent.name))
    rest = [process]
    while rest:
        yield (one := rest.pop())
        rest += children.get(one, [])


def _proportional_set_size(process: int) -> int:
    """Return it in bytes; 0 where the process has ended meanwhile."""
    with suppress(OSError):
        for line in Path(f"/proc/{process}/smaps_rollup").read_text(encoding="ascii").splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
