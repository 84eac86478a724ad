"""Counts the types of octray that one run passes through, and how deep it calls: `python -m benchmarks.types score ...`.

The arguments are those of `octray`. A profile function in the command and in its worker processes notes the type of each
instance that is created or has a method called, and the longest chain of our own functions from `main` to `write_bytes`.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

_HOOK = """
import os, sys, threading
_ROOMS, _seen, _deepest = ("pipeline.", "services."), set(), [0]
def _note(text):
    with open(os.environ["OCTRAY_TYPES"], "a") as file:
        file.write(text + "\\n")
def _profile(frame, event, _):
    if event != "call":
        return
    if "self" in frame.f_locals:
        kind = type(frame.f_locals["self"])
        if kind not in _seen:
            _seen.add(kind)
            if kind.__module__.startswith(_ROOMS):
                _note(f"type {kind.__module__}.{kind.__qualname__}")
    if frame.f_code.co_name in ("write_bytes", "write_whole") and frame.f_globals.get("__name__", "").startswith(_ROOMS):
        path = str(next(iter(frame.f_locals.values()), ""))
        chain = []
        while frame:
            name = frame.f_globals.get("__name__", "")
            if name.startswith(_ROOMS) and not frame.f_code.co_name.startswith("<"):
                chain.append(f"{name}.{frame.f_code.co_name}")
            frame = frame.f_back
        if "/heatmaps/" in path and len(chain) > _deepest[0]:
            _deepest[0] = len(chain)
            _note("chain " + " > ".join(reversed(chain)))
sys.setprofile(_profile)
threading.setprofile(_profile)
"""


def main(arguments: list[str]) -> int:
    """Run a command of octray, and print what it passed through."""
    with tempfile.TemporaryDirectory() as name:
        found = Path(name) / "found"
        found.touch()
        (Path(name) / "sitecustomize.py").write_text(_HOOK)
        paths = os.pathsep.join([name, os.getcwd(), os.environ.get("PYTHONPATH", "")])  # noqa: PTH109
        environment = os.environ | {"PYTHONPATH": paths, "OCTRAY_TYPES": str(found)}
        code = subprocess.run([sys.executable, "-m", "pipeline.cli.main", *arguments], env=environment, check=False).returncode
        lines = found.read_text().splitlines()
    types = sorted({line.removeprefix("type ") for line in lines if line.startswith("type ")})
    chains = [line.removeprefix("chain ").split(" > ") for line in lines if line.startswith("chain ")]
    print("\n".join(types))
    print(f"{len(types)} types")
    if chains:
        deepest = max(chains, key=len)
        print(f"{len(deepest)} calls through {len({call.rpartition('.')[0] for call in deepest})} files: {' > '.join(deepest)}")
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
