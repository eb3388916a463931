"""VGG for 32x32 images, with batch norm and one linear classifier.

Simonyan and Zisserman 2015 (arXiv:1409.1556), reduced to CIFAR as in the reference implementation of Network Slimming
(Liu et al. 2017, arXiv:1708.06519): the last max pooling becomes an average pooling of 2, convolutions have no bias.
State-dict keys are those of that implementation. VGG-19 with 10 classes has 20.04 M parameters.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from fxprune.zoo.weights import he_init

POOL = 0  # in a list of widths: a max pooling of 2

WIDTHS: dict[int, tuple[int, ...]] = {
    11: (64, POOL, 128, POOL, 256, 256, POOL, 512, 512, POOL, 512, 512),
    13: (64, 64, POOL, 128, 128, POOL, 256, 256, POOL, 512, 512, POOL, 512, 512),
    16: (64, 64, POOL, 128, 128, POOL, 256, 256, 256, POOL, 512, 512, 512, POOL, 512, 512, 512),
    19: (64, 64, POOL, 128, 128, POOL, 256, 256, 256, 256, POOL, 512, 512, 512, 512, POOL, 512, 512, 512, 512),
}


class VGG(nn.Module):
    """A chain of conv-BN-ReLU and pooling layers under one linear classifier.

    Maps ``(n, c, h, w)`` to ``(n, num_classes)``, where h and w are 2 ** (number of poolings + 1).

    Attributes:
        input_size: channels, height and width of one image.
    """

    def __init__(self, widths: Sequence[int], num_classes: int = 10, in_channels: int = 3) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = in_channels
        for width in widths:
            if width == POOL:
                layers.append(nn.MaxPool2d(2))
                continue
            layers += [nn.Conv2d(channels, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
            channels = width
        self.feature = nn.Sequential(*layers)
        self.pool = nn.AvgPool2d(2)
        self.classifier = nn.Linear(channels, num_classes)
        side = 2 ** (list(widths).count(POOL) + 1)
        self.input_size = (in_channels, side, side)
        he_init(self)

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``(n, num_classes)``."""
        features: Tensor = self.pool(self.feature(x)).flatten(1)
        logits: Tensor = self.classifier(features)
        return logits


def vgg_bn(depth: int = 19, num_classes: int = 10, width: float = 1.0, in_channels: int = 3) -> VGG:
    """VGG of depth 11, 13, 16 or 19 with every layer's number of channels multiplied by ``width``, at least one."""
    if depth not in WIDTHS:
        raise ValueError(f"depth must be one of {', '.join(map(str, WIDTHS))}, got {depth}.")
    widths = [POOL if base == POOL else max(1, round(base * width)) for base in WIDTHS[depth]]
    return VGG(widths, num_classes, in_channels)


def vgg11_bn(num_classes: int = 10, width: float = 1.0) -> VGG:
    """VGG-11 for 32x32 images."""
    return vgg_bn(11, num_classes, width)


def vgg13_bn(num_classes: int = 10, width: float = 1.0) -> VGG:
    """VGG-13 for 32x32 images."""
    return vgg_bn(13, num_classes, width)


def vgg16_bn(num_classes: int = 10, width: float = 1.0) -> VGG:
    """VGG-16 for 32x32 images."""
    return vgg_bn(16, num_classes, width)


def vgg19_bn(num_classes: int = 10, width: float = 1.0) -> VGG:
    """VGG-19 for 32x32 images: 20.04 M parameters with 10 classes."""
    return vgg_bn(19, num_classes, width)


def tiny_vgg(in_channels: int = 1, num_classes: int = 10) -> VGG:
    """Four conv-BN layers for 8x8 images such as scikit-learn's digits: 66 thousand parameters, trained in seconds."""
    return VGG((32, 32, POOL, 64, 64, POOL), num_classes, in_channels)
