"""Pre-activation bottleneck ResNet for 32x32 images (He et al. 2016, arXiv:1603.05027).

As in the reference implementation of Network Slimming (Liu et al. 2017, arXiv:1708.06519), whose state-dict keys it has, but
without that implementation's channel selection layers: fxprune inserts its own where a plan asks for them. Depth is 9n + 2;
ResNet-164 with 10 classes has 1.70 M parameters. Where a stage changes the number of channels, the shortcut is a 1x1
convolution of the block's raw input, without a norm.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from fxprune.zoo.weights import he_init

EXPANSION = 4


class PreActBottleneck(nn.Module):
    """BN-ReLU-conv three times (1x1, 3x3, 1x1) beside the identity or a 1x1 convolution."""

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        outputs = width * EXPANSION
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv1 = nn.Conv2d(channels, width, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, outputs, 1, bias=False)
        self.relu = nn.ReLU(inplace=True)
        self.downsample: nn.Module | None = None
        if stride != 1 or channels != outputs:
            self.downsample = nn.Sequential(nn.Conv2d(channels, outputs, 1, stride, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        """``(n, channels, h, w)`` to ``(n, 4 * width, h / stride, w / stride)``."""
        y = self.conv1(self.relu(self.bn1(x)))
        y = self.conv2(self.relu(self.bn2(y)))
        y = self.conv3(self.relu(self.bn3(y)))
        shortcut: Tensor = x if self.downsample is None else self.downsample(x)
        result: Tensor = y + shortcut
        return result


class PreActResNet(nn.Module):
    """Pre-activation ResNet with ``blocks`` bottlenecks in each of three stages.

    Attributes:
        input_size: channels, height and width of one image. Other heights and widths work too.
    """

    def __init__(self, blocks: int, num_classes: int = 10) -> None:
        super().__init__()
        self.input_size = (3, 32, 32)
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.layer1 = _stage(16, 16, blocks, stride=1)
        self.layer2 = _stage(64, 32, blocks, stride=2)
        self.layer3 = _stage(128, 64, blocks, stride=2)
        self.bn = nn.BatchNorm2d(256)
        self.relu = nn.ReLU(inplace=True)
        self.fc = nn.Linear(256, num_classes)
        he_init(self)

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``(n, num_classes)``."""
        x = self.layer3(self.layer2(self.layer1(self.conv1(x))))
        x = self.relu(self.bn(x))
        logits: Tensor = self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))
        return logits


def _stage(channels: int, width: int, blocks: int, stride: int) -> nn.Sequential:
    first = PreActBottleneck(channels, width, stride)
    return nn.Sequential(first, *(PreActBottleneck(width * EXPANSION, width, 1) for _ in range(blocks - 1)))


def preresnet(depth: int = 164, num_classes: int = 10) -> PreActResNet:
    """Pre-activation bottleneck ResNet of depth 9n + 2."""
    blocks, rest = divmod(depth - 2, 9)
    if rest or blocks < 1:
        raise ValueError(f"depth must be 9n + 2 with n >= 1, such as 29, 56, 110 or 164, got {depth}.")
    return PreActResNet(blocks, num_classes)


def resnet164(num_classes: int = 10) -> PreActResNet:
    """ResNet-164 of the Network Slimming paper: 1.70 M parameters with 10 classes."""
    return preresnet(164, num_classes)
