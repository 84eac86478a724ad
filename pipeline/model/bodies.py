"""Networks that timm does not have: LeNet-5, the flat perceptron, torchvision's AlexNet and GoogLeNet, and own ones."""

from typing import Any

import torch
from torch import Tensor, nn
from torchvision import models

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
MOST_CELLS, FEWEST_CELLS = 16, 4
"""Most and fewest rows of the grid on which the flat perceptron is explained."""


class NetworkBody(nn.Module):
    """What octray needs of a network that timm does not have; the networks of plug-ins are subclasses.

    A subclass builds its layers, the linear classifier last, and defines `forward_features`. If something other than the mean
    over the cells of the feature map goes into the classifier, it defines `pool` as well.

    Attributes
    ----------
    default_cfg
        `mean` and `std` of the input, one number for each input channel (frames have one channel, which is repeated), and
        `input_size`, the (channels, rows, columns) for which it was designed.
    """

    default_cfg: dict[str, Any] = {"mean": (0.5,), "std": (0.5,), "input_size": (1, 224, 224)}  # noqa: RUF012 - as in timm

    def forward_features(self, pixels: Tensor) -> Tensor:
        """Return the last feature map, of shape (n, channels, rows, columns), for n normalised frames."""
        raise NotImplementedError

    def pool(self, features: Tensor) -> Tensor:
        """Return the input of the classifier for a feature map, of shape (n, classifier inputs)."""
        return features.mean((2, 3))

    def forward_head(self, features: Tensor, pre_logits: bool = False) -> Tensor:
        """Return logits for a feature map, or the input of the classifier."""
        pooled = self.pool(features)
        if pre_logits:
            return pooled
        logits: Tensor = self.get_classifier()(pooled)
        return logits

    def forward(self, pixels: Tensor) -> Tensor:
        """Return logits of shape (n, labels)."""
        return self.forward_head(self.forward_features(pixels))

    def get_classifier(self) -> nn.Module:
        """Return the classifier: the linear layer that was added last."""
        return [module for module in self.modules() if isinstance(module, nn.Linear)][-1]


class LeNet(NetworkBody):
    """LeNet-5 (LeCun et al. 1998, doi 10.1109/5.726791), with every map connected in the second convolution.

    At 32 x 32 pixels it is the network of the paper; a larger input makes its first dense layer larger.

    Parameters
    ----------
    labels
        Number of outputs.
    size
        Side of the input in pixels, at least 16.
    """

    default_cfg = {"mean": (0.5,), "std": (0.5,), "input_size": (1, 32, 32)}  # noqa: RUF012 - as in timm

    def __init__(self, labels: int, size: int = 32) -> None:
        super().__init__()
        cells = ((size - 4) // 2 - 4) // 2
        self.conv1, self.pool1 = nn.Conv2d(1, 6, 5), nn.AvgPool2d(2)
        self.conv2, self.pool2 = nn.Conv2d(6, 16, 5), nn.AvgPool2d(2)
        self.dense1, self.dense2 = nn.Linear(16 * cells * cells, 120), nn.Linear(120, 84)
        self.classifier = nn.Linear(84, labels)

    def forward_features(self, pixels: Tensor) -> Tensor:
        """Return the 16 maps of the second pooling layer."""
        first = self.pool1(torch.tanh(self.conv1(pixels)))
        features: Tensor = self.pool2(torch.tanh(self.conv2(first)))
        return features

    def pool(self, features: Tensor) -> Tensor:
        """Return the 84 outputs of the second dense layer."""
        return torch.tanh(self.dense2(torch.tanh(self.dense1(features.flatten(1)))))


class DensePixels(nn.Linear):
    """A dense layer on all pixels whose output is kept apart for each cell of a grid: the sum over the cells is the layer's."""

    def forward(self, cells: Tensor) -> Tensor:
        """Return (n, outputs, cells) for pixels of shape (n, cells, pixels of a cell); without the bias."""
        return torch.einsum("ncp,hcp->nhc", cells, self.weight.view(self.out_features, *cells.shape[1:]))


class FlatPerceptron(NetworkBody):
    """A flat multi-layer perceptron: every pixel is an input of its own, whatever lies beside it. The baseline.

    Its features are what each cell of a grid adds to the hidden units, before their bias. All later layers see only the sum
    over the cells, so that the gradient times the feature, summed over the units, is the gradient times the input, summed over
    the pixels of the cell: Grad-CAM and HiResCAM on these features are input times gradient (Shrikumar et al. 2016, arXiv
    1605.01713).

    Parameters
    ----------
    labels
        Number of outputs.
    size
        Side of the input in pixels; the grid has its largest divisor up to 16 as rows and columns.
    """

    def __init__(self, labels: int, size: int = 224) -> None:
        super().__init__()
        self.rows = max(rows for rows in range(1, MOST_CELLS + 1) if size % rows == 0)
        self.pixels = DensePixels(size * size, 256)
        self.hidden = nn.Linear(256, 128)
        self.classifier = nn.Linear(128, labels)

    def forward_features(self, pixels: Tensor) -> Tensor:
        """Return what each cell adds to each of the 256 hidden units, of shape (n, 256, rows, rows)."""
        side = pixels.shape[-1] // self.rows
        blocks = pixels.reshape(-1, self.rows, side, self.rows, side).transpose(2, 3)
        parts: Tensor = self.pixels(blocks.reshape(-1, self.rows**2, side**2))
        return parts.reshape(parts.shape[0], -1, self.rows, self.rows)

    def pool(self, features: Tensor) -> Tensor:
        """Return the 128 outputs of the second hidden layer."""
        return torch.relu(self.hidden(torch.relu(features.sum((2, 3)) + self.pixels.bias)))


class AlexNet(NetworkBody, models.AlexNet):  # type: ignore[misc]
    """AlexNet (Krizhevsky et al. 2012; here the one column of arXiv 1404.5997), from torchvision."""

    default_cfg = {"mean": IMAGENET_MEAN, "std": IMAGENET_STD, "input_size": (3, 224, 224)}  # noqa: RUF012 - as in timm

    def __init__(self, labels: int, size: int = 224) -> None:
        models.AlexNet.__init__(self, labels)

    def forward_features(self, pixels: Tensor) -> Tensor:
        """Return the 256 maps of the last pooling layer."""
        layers: Any = self.features
        features: Tensor = layers(pixels)
        return features

    def pool(self, features: Tensor) -> Tensor:
        """Return the 4,096 outputs of the second dense layer."""
        body: Any = self
        pooled: Tensor = body.classifier[:-1](body.avgpool(features).flatten(1))
        return pooled

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Return how timm tells the groups of parameters apart: by layer."""
        return {"features": r"^features\.(\d+)", "dense": r"^classifier\.(\d+)"}


class GoogLeNet(NetworkBody, models.GoogLeNet):  # type: ignore[misc]
    """GoogLeNet, or Inception v1 (Szegedy et al. 2015, arXiv 1409.4842), from torchvision, without auxiliary heads."""

    default_cfg = {"mean": (0.5,) * 3, "std": (0.5,) * 3, "input_size": (3, 224, 224)}  # noqa: RUF012 - as in timm

    def __init__(self, labels: int, size: int = 224) -> None:
        models.GoogLeNet.__init__(self, labels, aux_logits=False, init_weights=False)

    def forward_features(self, pixels: Tensor) -> Tensor:
        """Return the 1,024 maps of the last Inception module."""
        for name, module in self.named_children():
            if name == "avgpool":
                break
            pixels = module(pixels)
        return pixels

    def pool(self, features: Tensor) -> Tensor:
        """Return the mean of each map."""
        dropout: Any = self.dropout
        pooled: Tensor = dropout(features.mean((2, 3)))
        return pooled


BODIES: dict[str, type[NetworkBody]] = {"alexnet": AlexNet, "googlenet": GoogLeNet, "lenet5": LeNet, "mlp": FlatPerceptron}
"""By the name for `model.architecture`."""


def unfit_size(architecture: str, size: int) -> str:
    """Return why one of `BODIES` cannot be built for an input of a size; empty if it can."""
    if architecture == "lenet5" and size < 16:
        return "it needs at least 16 pixels"
    if architecture == "mlp" and max(rows for rows in range(1, MOST_CELLS + 1) if size % rows == 0) < FEWEST_CELLS:
        near = next(other for other in range(size, 2 * size) if other % 8 == 0)
        return f"its map needs a side that can be divided into {FEWEST_CELLS} to {MOST_CELLS} parts, such as {near}"
    return ""
