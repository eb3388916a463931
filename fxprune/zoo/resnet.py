"""ResNet for 32x32 images (He et al. 2016, section 4.2, arXiv:1512.03385).

Depth 6n + 2: a 3x3 convolution, three stages of n basic blocks with 16, 32 and 64 channels, global average pooling, a linear
layer. Shortcuts are option A: where a stage halves the resolution and doubles the channels, the identity is subsampled with
stride 2 and padded with zero channels; it has no parameters. State-dict keys are conv1, bn1,
layer{1,2,3}.{i}.{conv1,bn1,conv2,bn2}, linear: those of the widely used checkpoints of Y. Idelbayev.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from fxprune.zoo.weights import he_init


class PaddedShortcut(nn.Module):
    """Option A: keep every second pixel, add ``extra`` zero channels, half of them before and the rest after."""

    def __init__(self, extra: int) -> None:
        super().__init__()
        self.before = extra // 2
        self.after = extra - extra // 2

    def forward(self, x: Tensor) -> Tensor:
        """``(n, c, h, w)`` to ``(n, c + extra, ceil(h / 2), ceil(w / 2))``."""
        return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.before, self.after))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut without parameters."""

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.shortcut = nn.Identity() if stride == 1 else PaddedShortcut(width - channels)

    def forward(self, x: Tensor) -> Tensor:
        """``(n, channels, h, w)`` to ``(n, width, h / stride, w / stride)``."""
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return F.relu(y + self.shortcut(x))


class ResNet(nn.Module):
    """CIFAR ResNet with ``blocks`` basic blocks per stage.

    Attributes:
        input_size: channels, height and width of one image. Other heights and widths work too.
    """

    def __init__(self, blocks: int, num_classes: int = 10) -> None:
        super().__init__()
        self.input_size = (3, 32, 32)
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = _stage(16, 16, blocks, stride=1)
        self.layer2 = _stage(16, 32, blocks, stride=2)
        self.layer3 = _stage(32, 64, blocks, stride=2)
        self.linear = nn.Linear(64, num_classes)
        he_init(self)

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``(n, num_classes)``."""
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        logits: Tensor = self.linear(F.adaptive_avg_pool2d(x, 1).flatten(1))
        return logits


def _stage(channels: int, width: int, blocks: int, stride: int) -> nn.Sequential:
    first = BasicBlock(channels, width, stride)
    return nn.Sequential(first, *(BasicBlock(width, width, 1) for _ in range(blocks - 1)))


def resnet20(num_classes: int = 10) -> ResNet:
    """0.27 M parameters with 10 classes."""
    return ResNet(3, num_classes)


def resnet32(num_classes: int = 10) -> ResNet:
    """0.46 M parameters with 10 classes."""
    return ResNet(5, num_classes)


def resnet44(num_classes: int = 10) -> ResNet:
    """0.66 M parameters with 10 classes."""
    return ResNet(7, num_classes)


def resnet56(num_classes: int = 10) -> ResNet:
    """0.85 M parameters with 10 classes."""
    return ResNet(9, num_classes)


def resnet110(num_classes: int = 10) -> ResNet:
    """1.7 M parameters with 10 classes."""
    return ResNet(18, num_classes)
