"""A hash of the code that reads files, by which stored results show that they are from another version."""

import hashlib
from collections.abc import Iterator
from functools import cache
from importlib import metadata, resources
from importlib.resources.abc import Traversable

_LIBRARIES = ("imagecodecs", "numpy", "pillow", "pydicom", "rapidocr", "scipy", "tifffile")


@cache
def readers_hash() -> str:
    """Return a hash of octray's readers and the libraries they use."""
    digest = hashlib.sha256()
    for module in _modules(resources.files("pipeline.imaging")):
        digest.update(module.read_bytes())
    for name in _LIBRARIES:
        digest.update(f"{name} {_version(name)}\n".encode())
    return digest.hexdigest()


def _modules(folder: Traversable) -> Iterator[Traversable]:
    """Yield the Python files of a package and of the packages in it, always in the same order."""
    for found in sorted(folder.iterdir(), key=lambda one: one.name):
        if found.is_dir():
            yield from _modules(found)
        elif found.name.endswith(".py"):
            yield found


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""
