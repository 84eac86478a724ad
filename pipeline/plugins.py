"""Plug-ins: networks, transforms and losses of other people, under names that a configuration can use.

A plug-in is a Python module that registers what it adds when it is imported:

    from octray import register_plugin

    @register_plugin("network", "tiny")
    def build(labels, size): ...

An installed package announces such a module by an entry point of the group `octray`; any other module is named in the
configuration (`plugins`) or on the command line (`octray train --plugin`). A plug-in is code that runs with your rights.
"""

import importlib
import importlib.util
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Literal, TypeVar

from pipeline.errors import ConfigError

PluginKind = Literal["network", "transform", "loss"]
Maker = TypeVar("Maker", bound=Callable[..., Any])
GROUP = "octray"

_REGISTERED: dict[PluginKind, dict[str, Callable[..., Any]]] = {"network": {}, "transform": {}, "loss": {}}
_INSTALLED: list[str] = []
"""The entry points that have been imported; empty until `load_plugins` is first called."""


def register_plugin(kind: PluginKind, name: str) -> Callable[[Maker], Maker]:
    """Return a decorator that registers a function under a name for configurations.

    Parameters
    ----------
    kind
        `network`: a function of the number of labels and the side of the input in pixels, which returns a
        `NetworkBody`; its name goes into `model.architecture`. `transform`: a function of one training frame (float32
        array of shape (1, size, size) in [0, 1]) and a `numpy.random.Generator`, which returns an array of the same shape.
        `loss`: a function of logits and targets (tensors of shape (n, labels)), which returns one loss for each frame (n,)
        or for each label (n, labels).
    name
        How configurations call it.

    Raises
    ------
    ConfigError
        If another function has that name.
    """

    def register(maker: Maker) -> Maker:
        known = _REGISTERED[kind].get(name)
        if known is not None and (known.__module__, known.__qualname__) != (maker.__module__, maker.__qualname__):
            raise ConfigError(
                [f"plugins: {maker.__module__} and {known.__module__} both register the {kind} {name}. Rename one."]
            )
        _REGISTERED[kind][name] = maker
        return maker

    return register


def find_plugin(kind: PluginKind, name: str) -> Callable[..., Any] | None:
    """Return what is registered under a name; None if nothing is."""
    return _REGISTERED[kind].get(name)


def plugin_names(kind: PluginKind) -> list[str]:
    """Return the registered names of one kind, in alphabetical order."""
    return sorted(_REGISTERED[kind])


def load_plugins(modules: Sequence[str] = ()) -> None:
    """Import the plug-ins of all installed packages, and some named modules; each is imported once.

    Parameters
    ----------
    modules
        Names of modules that Python can import, or paths of Python files.

    Raises
    ------
    ConfigError
        With one sentence for each that cannot be imported.
    """
    faults = []
    for point in entry_points(group=GROUP):
        if point.value in _INSTALLED:
            continue
        try:
            point.load()
        except Exception as error:  # whatever the code of others raises
            faults.append(
                f"plugins: the plug-in {point.name} of an installed package cannot be imported: {_first_line(error)} "
                "Update or remove that package."
            )
        else:
            _INSTALLED.append(point.value)
    for name in modules:
        try:
            _import(name)
        except ConfigError as error:
            faults += error.faults
        except Exception as error:  # whatever the code of others raises
            faults.append(f"plugins: {name} cannot be imported: {_first_line(error)} Correct it, or name another module.")
    if faults:
        raise ConfigError(faults)


def _import(name: str) -> None:
    if not name.endswith(".py"):
        importlib.import_module(name)
        return
    path = Path(name).absolute()
    if not path.is_file():
        raise ConfigError([f"plugins: there is no file {name}. Give the path of a Python file, or the name of a module."])
    known = sys.modules.get(path.stem)
    if known is not None:
        if getattr(known, "__file__", None) != str(path):
            raise ConfigError([f"plugins: {name} has the name of another module, {path.stem}. Rename the file."])
        return
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None  # noqa: S101 - the name ends in .py
    assert spec.loader is not None  # noqa: S101
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[path.stem]
        raise


def _first_line(error: Exception) -> str:
    lines = str(error).splitlines()
    return f"{lines[0].rstrip('.') if lines else type(error).__name__}."
