"""Heatmaps by a backward pass, with `grad-cam`, on the absolute scale that the library discards."""

from threading import Lock
from typing import Any

import numpy as np
import torch
from pytorch_grad_cam import GradCAM, GradCAMPlusPlus, HiResCAM, LayerCAM
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor, nn

from pipeline.errors import BundleError, ConfigError
from pipeline.frames import FloatArray
from pipeline.model.bundle import Bundle, Member
from pipeline.model.networks import GLOBAL_HEAD, LAST_LAYER, Network, create_network, is_known
from pipeline.plugins import load_plugins
from pipeline.predictions import HeatmapMethod


class _Head(nn.Module):
    """The part of a network after its last feature map, with a layer at which the library can read that map."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network
        self.tap = nn.Identity()

    def forward(self, features: Tensor) -> Tensor:
        return self.network.head(self.tap(features))


class _Logits(nn.Module):
    """A whole network without its feature map."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network

    def forward(self, pixels: Tensor) -> Tensor:
        logits: Tensor = self.network(pixels)[0]
        return logits


class _Unscaled:
    """Skips the library's last steps: enlarging a map, and scaling it to its own maximum."""

    def compute_cam_per_layer(self, pixels: Tensor, targets: list[Any], eigen_smooth: bool) -> list[FloatArray]:
        library: Any = self
        seen = library.activations_and_grads
        activations, gradients = (found[0].detach().numpy() for found in (seen.activations, seen.gradients))
        return [library.get_cam_image(pixels, library.target_layers[0], targets, activations, gradients, eigen_smooth)]

    def aggregate_multi_layers(self, maps: list[FloatArray]) -> FloatArray:
        return maps[0]


class _GradCAM(_Unscaled, GradCAM):  # type: ignore[misc]
    pass


class _GradCAMPlusPlus(_Unscaled, GradCAMPlusPlus):  # type: ignore[misc]
    pass


class _LayerCAM(_Unscaled, LayerCAM):  # type: ignore[misc]
    pass


class _HiResCAM(_Unscaled, HiResCAM):  # type: ignore[misc]
    pass


_METHODS: dict[HeatmapMethod, Any] = {
    "grad-cam": _GradCAM,
    "grad-cam++": _GradCAMPlusPlus,
    "layercam": _LayerCAM,
    "hirescam": _HiResCAM,
}


def gradient_maps(
    network: Network,
    features: FloatArray,
    method: HeatmapMethod,
    *,
    layer: str = LAST_LAYER,
    pixels: FloatArray | None = None,
    is_signed: bool = False,
) -> FloatArray:
    """Return the map of every label in every frame; must not be called from two threads with the same network.

    Parameters
    ----------
    network
        With its trained classifier.
    features
        Its last feature map, float32 of shape (n, channels, map_rows, map_columns).
    method
        Which map; Grad-CAM++ is a mean over the cells, as in `closed_form_maps`.
    layer
        The feature map: the last one, or the output of a module of the body, for which the whole network is run.
    pixels
        What the last feature map was made from, float32 of shape (n, 1, size, size) in [0, 1]; needed for another layer alone.
    is_signed
        As there.

    Returns
    -------
    FloatArray
        float32 array of shape (n, labels, map_rows, map_columns), in logits, not scaled to its maximum.
    """
    model: nn.Module
    if layer == LAST_LAYER:
        head = _Head(network)
        model, tap, given = head.eval(), head.tap, features
    else:
        assert pixels is not None  # noqa: S101 - as documented
        model, tap, given = _Logits(network).eval(), network.body.get_submodule(layer), pixels
    with torch.enable_grad(), _METHODS[method](model, [tap]) as library:
        maps = [_map(library, given, label) for label in range(network.classifier.out_features)]
    model.zero_grad()
    area = maps[0][0].size if method == "grad-cam++" else 1
    found = np.ascontiguousarray(np.stack(maps, axis=1) / area, np.float32)
    return found if is_signed else np.maximum(found, 0)


def _map(library: Any, given: FloatArray, label: int) -> FloatArray:
    seen = torch.from_numpy(given).clone().requires_grad_()
    found: FloatArray = library(seen, [ClassifierOutputTarget(label)] * len(given))
    return found


class GradientMaps:
    """A network of a bundle, built again for its maps; may be called from several threads, which wait for each other.

    The network of a plug-in is only needed for maps: if no such plug-in is installed, the bundle can be scored without them.

    Parameters
    ----------
    bundle
        As `load_bundle` gives it; nothing is downloaded.
    member
        Which of its networks.

    Raises
    ------
    BundleError
        If its weights are not those of its architecture.
    """

    def __init__(self, bundle: Bundle, member: Member) -> None:
        self._bundle, self._architecture = bundle.path.name, member.architecture
        self._method, self._layer = bundle.manifest.heatmap.method, member.maps.layer
        self._lock = Lock()
        load_plugins()
        self._network = rebuild_network(bundle, member) if is_known(member.architecture) else None

    def __call__(self, features: FloatArray, pixels: FloatArray) -> FloatArray:
        """Return maps of shape (n, labels, map_rows, map_columns), signed, in logits, for frames and their last feature map.

        Raises
        ------
        BundleError
            If there is no network of that name.
        """
        if self._network is None:
            raise BundleError(
                f"The heatmaps of bundle {self._bundle} need the network {self._architecture} of a plug-in that is not "
                "installed here. Install the package that has it, or score without heatmaps (--no-heatmaps)."
            )
        with self._lock:
            return gradient_maps(self._network, features, self._method, layer=self._layer, pixels=pixels, is_signed=True)


def rebuild_network(bundle: Bundle, member: Member) -> Network:
    """Return a network of a bundle as it was when its graph was exported: it takes the frames of the bundle.

    Raises
    ------
    BundleError
        If its weights are not those of its architecture.
    """
    manifest = bundle.manifest
    try:
        network = create_network(
            member.architecture,
            len(manifest.labels),
            member.size,
            global_pool=member.maps.classifier == f"{GLOBAL_HEAD}.weight",
            blocks=member.blocks,
        )
        network.body.load_state_dict(load(bundle.read(member.weights)))
        for buffer, values in ((network.mean, member.normalisation.mean), (network.std, member.normalisation.std)):
            buffer.copy_(torch.tensor(values).view_as(buffer))
        if member.maps.layer != LAST_LAYER:
            network.body.get_submodule(member.maps.layer)
    except (ConfigError, SafetensorError, RuntimeError, AttributeError):
        raise BundleError(
            f"The weights of bundle {bundle.path.name} do not fit the network {member.architecture} that its "
            "heatmaps need. Train the bundle again, or score it with the timm version that its manifest names."
        ) from None
    network.resize_frames(manifest.preprocessing.size, member.size)
    return network.eval()
