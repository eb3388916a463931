"""Small networks whose batch norms share what they read."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fxprune


class Branch(nn.Module):
    """BN - ReLU - conv 1x1 on a shared stream."""

    def __init__(self, channels: int, outs: int) -> None:
        super().__init__()
        self.bn, self.conv = nn.BatchNorm2d(channels), nn.Conv2d(channels, outs, 1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv(F.relu(self.bn(x)))
        return y


class Shared(nn.Module):
    """A stem that several branches read; their outputs are joined under a linear layer."""

    def __init__(self, branches: int = 2, width: int = 6) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.branches = nn.ModuleList(Branch(width, 4) for _ in range(branches))
        self.fc = nn.Linear(4 * branches, 3)

    def heads(self, x: Tensor) -> Tensor:
        joined = torch.cat([branch(x) for branch in self.branches], 1).mean((2, 3))
        y: Tensor = self.fc(joined)
        return y

    def forward(self, x: Tensor) -> Tensor:
        return self.heads(self.stem(x))


def with_gammas(model: nn.Module, **gammas: Sequence[float]) -> nn.Module:
    """Set scale factors; ``a__b`` stands for the batch norm ``a.b``."""
    for name, values in gammas.items():
        norm = model.get_submodule(name.replace("__", "."))
        assert isinstance(norm.weight, nn.Parameter)
        norm.weight.data = torch.tensor(values, dtype=norm.weight.dtype)
    return model


def kept(slim: nn.Module, name: str, dim: int = 0) -> tuple[int, ...]:
    """What the plan of a slim module keeps of an axis."""
    return fxprune.plan_of(slim).kept[name][dim]
