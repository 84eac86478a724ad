"""The closed form of Grad-CAM against the `grad-cam` library, which runs a backward pass."""

import numpy as np
import pytest
import timm
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pytorch_grad_cam import GradCAM
from pytorch_grad_cam.utils.image import scale_cam_image
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

from pipeline.model.engine import Engine, closed_form_maps
from pipeline.model.export import export_graph
from pipeline.model.networks import Network

SIZE = 96
LABELS = 3


def grad_cams(features: np.ndarray, weights: np.ndarray) -> np.ndarray:
    return closed_form_maps(features, weights, "grad-cam")


def grad_cam(features: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """The map of one label in one frame."""
    return np.asarray(grad_cams(features[None], weight[None])[0, 0])


def make_pictures(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Noise with a bright square whose place tells the label."""
    targets = torch.arange(count) % LABELS
    pictures = torch.rand(count, 1, SIZE, SIZE, generator=torch.Generator().manual_seed(seed)) / 2
    for picture, target in zip(pictures, targets.tolist(), strict=True):
        picture[0, 32 * target : 32 * target + 32, 32:64] += 0.5
    return pictures, targets


@pytest.fixture(scope="module")
def network() -> torch.nn.Module:
    """A small ResNet after some steps of training, on one thread: more would only wait for each other."""
    torch.manual_seed(0)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    model = timm.create_model("resnet10t", num_classes=LABELS, in_chans=1)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 0.5
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    pixels, targets = make_pictures(9, seed=0)
    for _ in range(12):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(pixels), targets).backward()
        optimizer.step()
    torch.set_num_threads(threads)
    return model.eval()


@pytest.fixture(scope="module")
def pixels() -> torch.Tensor:
    return make_pictures(2 * LABELS, seed=1)[0]


@pytest.fixture(scope="module")
def maps(network: torch.nn.Module, pixels: torch.Tensor) -> np.ndarray:
    """The closed form on what ONNX Runtime computes, as in scoring."""
    graph = export_graph(Network(network, mean=(0.0,), std=(1.0,)), SIZE)
    _, features = Engine(graph).run(pixels.numpy())
    return grad_cams(features, network.get_classifier().weight.detach().numpy())


@pytest.mark.parametrize("label", range(LABELS))
def test_it_equals_the_library_in_logits(network: torch.nn.Module, pixels: torch.Tensor, maps: np.ndarray, label: int) -> None:
    targets = [ClassifierOutputTarget(label)] * len(pixels)
    with GradCAM(network, [network.layer4[-1]]) as library:
        library(pixels, targets)
        activations = library.activations_and_grads.activations[0].detach().numpy()
        gradients = library.activations_and_grads.gradients[0].detach().numpy()
        expected = library.get_cam_image(pixels, network.layer4[-1], targets, activations, gradients)
    assert maps[:, label].max() > 0.1
    np.testing.assert_allclose(maps[:, label], np.maximum(expected, 0), atol=1e-5)


@pytest.mark.parametrize("label", range(LABELS))
def test_it_equals_the_library_as_scaled_there(
    network: torch.nn.Module, pixels: torch.Tensor, maps: np.ndarray, label: int
) -> None:
    with GradCAM(network, [network.layer4[-1]]) as library:
        expected = library(pixels, [ClassifierOutputTarget(label)] * len(pixels))
    found = scale_cam_image(scale_cam_image(maps[:, label], (SIZE, SIZE)))
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_without_the_cut_the_cells_add_up_to_the_logit_less_its_bias() -> None:
    rng = np.random.default_rng(0)
    features, weight = rng.random((8, 5, 7), dtype=np.float32), rng.random(8, dtype=np.float32)
    assert grad_cam(features, weight).sum() == pytest.approx(float(weight @ features.mean((1, 2))), rel=1e-5)


def test_a_label_that_nothing_speaks_for_has_an_empty_map() -> None:
    assert not grad_cam(np.ones((3, 4, 4), np.float32), -np.ones(3, np.float32)).any()


values = st.floats(-10, 10, width=32)


@given(arrays(np.float32, (2, 3, 4, 5), elements=values), arrays(np.float32, (6, 3), elements=values))
def test_a_batch_is_its_frames_one_by_one(features: np.ndarray, weights: np.ndarray) -> None:
    batch = grad_cams(features, weights)
    assert batch.dtype == np.float32
    assert batch.min() >= 0
    for frame in range(2):
        for label in range(6):
            np.testing.assert_allclose(batch[frame, label], grad_cam(features[frame], weights[label]), atol=1e-5)
