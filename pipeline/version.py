"""Says when results change: a number that is raised by hand, and the versions of the libraries that results depend on.

Stored results (the journal of an ingest, the ledger of a job, the list of de-identified files) are used again only if these are
the same. A change that alters pixels, tensors, probabilities, heatmaps, index rows or de-identified files raises
`RESULTS_VERSION`; `tests/test_results_version.py` fails until it does.
"""

import platform
from collections.abc import Iterable, Mapping
from functools import cache
from importlib import metadata
from types import MappingProxyType

RESULTS_VERSION = 2

_READING = ("imagecodecs", "numpy", "pillow", "pydicom", "rapidocr", "scipy", "tifffile")
_SCORING = (*_READING, "grad-cam", "highdicom", "onnxruntime", "timm", "torch")


@cache
def reading_versions() -> Mapping[str, str]:
    """Return the versions that decide what is read of a file, by name."""
    return MappingProxyType({"results": str(RESULTS_VERSION), **_versions(_READING)})


@cache
def scoring_versions() -> Mapping[str, str]:
    """Return the versions that decide what a bundle says of a file, by name."""
    python = platform.python_version()
    return MappingProxyType({"results": str(RESULTS_VERSION), "python": python, **_versions(_SCORING)})


@cache
def software_versions() -> Mapping[str, str]:
    """Return `scoring_versions`, and the version of octray itself if it is installed."""
    return MappingProxyType({"octray": "", **_versions(["octray"]), **scoring_versions()})


def _versions(names: Iterable[str]) -> dict[str, str]:
    found = {}
    for name in sorted(names):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:  # an optional one
            continue
    return found
