"""Small networks with randomised batch norms, in float64."""

from __future__ import annotations

from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Model = TypeVar("Model", bound=nn.Module)


def ready(model: Model, seed: int = 0) -> Model:
    """Float64, evaluation mode, every batch norm with scale, shift and statistics of its own."""
    torch.manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.3)
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.normal_(std=0.3)
            module.running_var.uniform_(0.5, 2)
    return model.double().eval()


def pictures(count: int = 64, channels: int = 3, side: int = 8, seed: int = 1) -> list[Tensor]:
    """Batches of 16 random images."""
    generator = torch.Generator().manual_seed(seed)
    return list(torch.randn(count, channels, side, side, generator=generator, dtype=torch.float64).split(16))


def conv(inputs: int, outputs: int, kernel: int = 3, groups: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, groups=groups, bias=False)


class Chain(nn.Module):
    """conv-BN-ReLU, conv-BN-ReLU, pooling, linear."""

    def __init__(self, width: int = 12) -> None:
        super().__init__()
        self.conv1, self.bn1 = conv(3, width), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = conv(width, 10), nn.BatchNorm2d(10)
        self.fc = nn.Linear(10 * 4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = F.adaptive_avg_pool2d(F.relu(self.bn2(self.conv2(x))), 2)
        return self.fc(x.flatten(1))


class Residual(nn.Module):
    """A stem and two residual blocks."""

    def __init__(self, width: int = 8, inner: int = 10) -> None:
        super().__init__()
        self.stem, self.norm = conv(3, width), nn.BatchNorm2d(width)
        self.a1, self.n1 = conv(width, inner), nn.BatchNorm2d(inner)
        self.a2, self.n2 = conv(inner, width), nn.BatchNorm2d(width)
        self.b1, self.m1 = conv(width, inner), nn.BatchNorm2d(inner)
        self.b2, self.m2 = conv(inner, width), nn.BatchNorm2d(width)
        self.fc = nn.Linear(width, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.stem(x)))
        x = F.relu(x + self.n2(self.a2(F.relu(self.n1(self.a1(x))))))
        y = self.m2(self.b2(F.relu(self.m1(self.b1(x)))))
        y += x
        return self.fc(F.relu(y).mean((2, 3)))


class Shared(nn.Module):
    """Two convolutions of different stride read one; another is called twice; a depthwise one stands between."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = conv(3, 12), nn.BatchNorm2d(12)
        self.depthwise = conv(12, 12, groups=12)
        self.left, self.right = conv(12, 6), nn.Conv2d(12, 5, 3, 2, 1)
        self.twice = nn.Conv2d(6, 6, 1)
        self.fc = nn.Linear(11, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.depthwise(F.relu(self.norm(self.first(x)))))
        left = self.twice(F.relu(self.twice(F.relu(self.left(x)))))
        return self.fc(torch.cat([left.mean((2, 3)), F.relu(self.right(x)).mean((2, 3))], 1))


class Grouped(nn.Module):
    """ResNeXt's bottleneck: a convolution with groups between two without."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.n = conv(3, 12, 1), nn.BatchNorm2d(12)
        self.b, self.m = conv(12, 18, 3, groups=3), nn.BatchNorm2d(18)
        self.c = nn.Conv2d(18, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(F.relu(self.m(self.b(F.relu(self.n(self.a(x))))))).mean((2, 3))


class Dense(nn.Module):
    """Each layer reads the concatenation of all before it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv(3, 8)
        self.norms = nn.ModuleList([nn.BatchNorm2d(8), nn.BatchNorm2d(14), nn.BatchNorm2d(20)])
        self.convs = nn.ModuleList([conv(8, 6), conv(14, 6)])
        self.fc = nn.Linear(20, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for norm, layer in zip(self.norms, self.convs, strict=False):
            x = torch.cat([x, layer(F.relu(norm(x)))], 1)
        return self.fc(F.relu(self.norms[2](x)).mean((2, 3)))


class Tokens(nn.Module):
    """A transformer's MLP under a layer norm, on tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(6, 8)
        self.norm = nn.LayerNorm(8)
        self.up, self.down = nn.Linear(8, 16), nn.Linear(16, 8)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        x = x + self.down(F.gelu(self.up(self.norm(x))))
        return self.head(x.mean(1))


def outputs(model: nn.Module, batches: list[Tensor]) -> Tensor:
    with torch.no_grad():
        return torch.cat([model(batch) for batch in batches])
