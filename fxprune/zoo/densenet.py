"""DenseNet for 32x32 images (Huang et al. 2017, arXiv:1608.06993), without bottlenecks and without compression.

DenseNet-40 with growth 12 in two forms. With the paper's stem of 16 channels it has 1.02 M parameters and 2.65e8 MACs (the
5.3e8 FLOPs of Network Slimming's table). The PyTorch port of Network Slimming starts with 24 channels: 1.06 M parameters;
state-dict keys are those of that port.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fxprune.zoo.weights import he_init


class DenseLayer(nn.Module):
    """BN-ReLU-conv 3x3, whose ``growth`` new channels are appended to the input."""

    def __init__(self, channels: int, growth: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)
        self.conv1 = nn.Conv2d(channels, growth, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """``(n, channels, h, w)`` to ``(n, channels + growth, h, w)``."""
        return torch.cat((x, self.conv1(self.relu(self.bn1(x)))), 1)


class Transition(nn.Module):
    """BN-ReLU-conv 1x1 and an average pooling of 2."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)
        self.conv1 = nn.Conv2d(channels, channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """``(n, channels, h, w)`` to ``(n, channels, h / 2, w / 2)``."""
        return F.avg_pool2d(self.conv1(self.relu(self.bn1(x))), 2)


class DenseNet(nn.Module):
    """Three dense blocks of ``layers`` layers each, with transitions between them.

    Attributes:
        input_size: channels, height and width of one image. Other heights and widths work too.
    """

    def __init__(self, layers: int, growth: int, stem: int, num_classes: int = 10) -> None:
        super().__init__()
        self.input_size = (3, 32, 32)
        added = layers * growth
        self.conv1 = nn.Conv2d(3, stem, 3, padding=1, bias=False)
        self.dense1 = _dense_block(stem, layers, growth)
        self.trans1 = Transition(stem + added)
        self.dense2 = _dense_block(stem + added, layers, growth)
        self.trans2 = Transition(stem + 2 * added)
        self.dense3 = _dense_block(stem + 2 * added, layers, growth)
        self.bn = nn.BatchNorm2d(stem + 3 * added)
        self.relu = nn.ReLU(inplace=True)
        self.fc = nn.Linear(stem + 3 * added, num_classes)
        he_init(self)

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``(n, num_classes)``."""
        x = self.trans1(self.dense1(self.conv1(x)))
        x = self.trans2(self.dense2(x))
        x = self.relu(self.bn(self.dense3(x)))
        logits: Tensor = self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))
        return logits


def _dense_block(channels: int, layers: int, growth: int) -> nn.Sequential:
    return nn.Sequential(*(DenseLayer(channels + i * growth, growth) for i in range(layers)))


def densenet40(growth: int = 12, stem: int = 16, num_classes: int = 10) -> DenseNet:
    """DenseNet-40: ``stem=16`` as in the paper (1.02 M parameters at growth 12), 24 as in its PyTorch port (1.06 M)."""
    return DenseNet(12, growth, stem, num_classes)
