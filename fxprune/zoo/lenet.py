"""Small networks for 28x28 grey images: the LeNets of the pruning literature and plain perceptrons.

``lenet5`` and ``lenet300`` are LeNet-5 in its Caffe form and LeNet-300-100, 431 and 267 thousand parameters (Han et al. 2015,
arXiv:1506.02626). ``mlp(784, 500, 300, 10)`` is the network of Network Slimming's MNIST table (Liu et al. 2017,
arXiv:1708.06519), with batch norm, since it is batch norm's scale that is ranked there.
"""

from __future__ import annotations

import math
from itertools import pairwise

from torch import Tensor, nn


class MLP(nn.Module):
    """Linear layers with ReLU, and batch norm if asked for, between them.

    Attributes:
        input_size: channels, height and width of one image; inputs are flattened, so ``(n, features)`` works too.
    """

    def __init__(self, *widths: int, batch_norm: bool = True) -> None:
        super().__init__()
        if len(widths) < 2:
            raise ValueError(f"a perceptron has at least input and output widths, got {widths}.")
        side = math.isqrt(widths[0])
        self.input_size = (1, side, side) if side * side == widths[0] else (widths[0], 1, 1)
        layers: list[nn.Module] = []
        for inputs, outputs in pairwise(widths[:-1]):
            layers.append(nn.Linear(inputs, outputs))
            if batch_norm:
                layers.append(nn.BatchNorm1d(outputs))
            layers.append(nn.ReLU(inplace=True))
        self.hidden = nn.Sequential(*layers)
        self.classifier = nn.Linear(widths[-2], widths[-1])

    def forward(self, x: Tensor) -> Tensor:
        """``(n, c, h, w)`` or ``(n, features)`` to logits ``(n, classes)``."""
        logits: Tensor = self.classifier(self.hidden(x.flatten(1)))
        return logits


class LeNet5(nn.Module):
    """Two 5x5 convolutions with max pooling, flattened into a hidden layer of 500.

    Attributes:
        input_size: channels, height and width of one image.
    """

    def __init__(self, num_classes: int = 10, *, batch_norm: bool = False) -> None:
        super().__init__()
        self.input_size = (1, 28, 28)
        self.conv1 = nn.Conv2d(1, 20, 5)
        self.norm1 = nn.BatchNorm2d(20) if batch_norm else nn.Identity()
        self.conv2 = nn.Conv2d(20, 50, 5)
        self.norm2 = nn.BatchNorm2d(50) if batch_norm else nn.Identity()
        self.fc1 = nn.Linear(50 * 4 * 4, 500)
        self.fc2 = nn.Linear(500, num_classes)
        self.pool = nn.MaxPool2d(2)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """``(n, 1, 28, 28)`` to logits ``(n, num_classes)``."""
        x = self.pool(self.norm1(self.conv1(x)))
        x = self.pool(self.norm2(self.conv2(x)))
        logits: Tensor = self.fc2(self.relu(self.fc1(x.flatten(1))))
        return logits


def mlp(*widths: int, batch_norm: bool = True) -> MLP:
    """A perceptron of the given widths, input and classes included: ``mlp(784, 500, 300, 10)``."""
    return MLP(*widths, batch_norm=batch_norm)


def lenet300(num_classes: int = 10, *, batch_norm: bool = False) -> MLP:
    """LeNet-300-100: 266,610 parameters."""
    return MLP(784, 300, 100, num_classes, batch_norm=batch_norm)


def lenet5(num_classes: int = 10, *, batch_norm: bool = False) -> LeNet5:
    """LeNet-5 (Caffe): 431,080 parameters. As there, only the hidden linear layer has a ReLU."""
    return LeNet5(num_classes, batch_norm=batch_norm)
