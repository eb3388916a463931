"""The networks of the compile-time benchmark, with random weights and randomised batch norms."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torchvision import models


def torchvision_network(name: str) -> tuple[nn.Module, Tensor]:
    """A torchvision classifier in eval mode and one image for it."""
    options = {"init_weights": False} if name in {"inception_v3", "googlenet"} else {}
    model = randomise(models.get_model(name, weights=None, **options))
    side = 299 if name == "inception_v3" else 224
    return model, torch.randn(1, 3, side, side)


def randomise(model: nn.Module) -> nn.Module:
    """Draw scale, shift and statistics of every batch norm, in place, so that no two channels are alike; eval mode."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.1, 2)
            nn.init.normal_(module.bias, std=0.1)
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 2)
    return model.eval()


class DenseStack(nn.Module):
    """``layers`` times BN-ReLU-conv, each reading the concatenation of all before it."""

    def __init__(self, layers: int, growth: int = 12, stem: int = 24, classes: int = 10) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, stem, 3, padding=1, bias=False)
        widths = [stem + i * growth for i in range(layers)]
        self.norms = nn.ModuleList(nn.BatchNorm2d(width) for width in widths)
        self.convs = nn.ModuleList(nn.Conv2d(width, growth, 3, padding=1, bias=False) for width in widths)
        self.classifier = nn.Linear(stem + layers * growth, classes)

    def forward(self, x: Tensor) -> Tensor:
        """``(n, 3, h, w)`` to ``(n, classes)``."""
        x = self.stem(x)
        for norm, conv in zip(self.norms, self.convs, strict=True):
            x = torch.cat((x, conv(torch.relu(norm(x)))), 1)
        return self.classifier(x.mean((2, 3)))


def chain(layers: int, width: int = 16, classes: int = 10) -> nn.Module:
    """``layers`` times conv-BN-ReLU in a row, then pooling and a linear layer."""
    parts: list[nn.Module] = []
    channels = 3
    for _ in range(layers):
        parts += [nn.Conv2d(channels, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
        channels = width
    return nn.Sequential(*parts, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, classes))


# Sizes to grow through; all with 8x8 images, since only the structure is compiled.
FAMILIES: dict[str, tuple[Callable[[int], nn.Module], tuple[int, ...]]] = {
    "chain": (chain, (100, 1_000, 5_000)),
    "dense": (DenseStack, (50, 100, 200)),
}
