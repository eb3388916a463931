"""Small networks that unit tests share, and random weights for them."""

from __future__ import annotations

from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Net = TypeVar("Net", bound=nn.Module)


def seeded(model: Net, seed: int = 0, dtype: torch.dtype = torch.float64) -> Net:
    """Random weights and statistics everywhere; float64 and eval mode unless told."""
    generator = torch.Generator().manual_seed(seed)
    model.to(dtype)
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if tensor.is_floating_point():
                noise = torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
                tensor.copy_(noise.abs() + 0.5 if name.endswith("running_var") else noise * (0.4 if tensor.dim() > 1 else 1.0))
    return model.eval()


def image(*shape: int, seed: int = 7, dtype: torch.dtype = torch.float64) -> Tensor:
    """A random batch; 2 x 3 x 8 x 8 unless told."""
    return torch.randn(shape or (2, 3, 8, 8), generator=torch.Generator().manual_seed(seed), dtype=dtype)


def run(model: nn.Module, *inputs: Tensor) -> Any:
    """Output without gradients."""
    with torch.no_grad():
        return model(*inputs)


class Chain(nn.Module):
    """conv1 (8) - bn1 - conv2 (10) - bn2 - fc."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, width, 3, padding=1), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, 10, 3, padding=1), nn.BatchNorm2d(10)
        self.fc = nn.Linear(10, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = F.relu(self.bn2(self.conv2(x)))
        return self.fc(x.mean((2, 3)))


class Residual(nn.Module):
    """stem (8) and conv2 are added; conv1 (6) is free."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.bn0 = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.conv1, self.bn1 = nn.Conv2d(8, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6)
        self.conv2, self.bn2 = nn.Conv2d(6, 8, 1, bias=False), nn.BatchNorm2d(8)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn0(self.stem(x)))
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return self.head(F.relu(x + y).mean((2, 3)))
