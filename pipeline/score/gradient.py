"""Heatmaps for bundles whose head has no closed form: the network is built again, and torch runs its head backwards."""

from threading import Lock

from safetensors import SafetensorError
from safetensors.torch import load

from pipeline.errors import BundleError, ConfigError
from pipeline.frames import FloatArray
from pipeline.model.bundle import WEIGHTS, Bundle
from pipeline.model.gradient_maps import gradient_maps
from pipeline.model.networks import create_network


class GradientMaps:
    """The head of a bundle's network; may be called from several threads, which wait for each other.

    Parameters
    ----------
    bundle
        As `load_bundle` gives it; nothing is downloaded.

    Raises
    ------
    BundleError
        If its weights are not those of its architecture.
    """

    def __init__(self, bundle: Bundle) -> None:
        self._method = bundle.manifest.heatmap.method
        self._lock = Lock()
        try:
            self._network = create_network(bundle.manifest.architecture, len(bundle.manifest.labels)).eval()
            self._network.body.load_state_dict(load(bundle.read(WEIGHTS)))
        except (ConfigError, SafetensorError, RuntimeError):
            raise BundleError(
                f"The weights of bundle {bundle.path.name} do not fit the network {bundle.manifest.architecture} that its "
                "heatmaps need. Train the bundle again, or score it with the timm version that its manifest names."
            ) from None

    def __call__(self, features: FloatArray) -> FloatArray:
        """Return maps of shape (n, labels, map_rows, map_columns), not negative, in logits, for the last feature map."""
        with self._lock:
            return gradient_maps(self._network, features, self._method)
