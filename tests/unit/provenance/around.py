"""A network around one operator: a stem of eight channels, the operator, a layer that reads it, a head."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.unit.api.nets import seeded

WIDTH = 8
CONVS = {3: nn.Conv1d, 4: nn.Conv2d, 5: nn.Conv3d}
# Inputs by kind; "flat" and "rows" have a linear stem, "rows" with channels last.
INPUTS = {"line": (2, 3, 12), "image": (2, 3, 6, 6), "volume": (2, 3, 4, 4, 4), "flat": (3, 5), "rows": (2, 6, 5)}


@dataclass(frozen=True)
class Case:
    """One operator at work: ``op(net, x)``, on which kind of value, with which modules; ``free``: the stem's channels can go."""

    op: Callable[[Any, Tensor], Tensor]
    kind: str = "image"
    free: bool = True
    modules: Mapping[str, Callable[[], nn.Module]] = field(default_factory=dict)
    parameters: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    buffers: Mapping[str, Tensor] = field(default_factory=dict)
    open: str = ""


class Around(nn.Module):
    """The network of a case, float64."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        shape = INPUTS[case.kind]
        linear = case.kind in ("flat", "rows")
        self.stem = nn.Linear(shape[-1], WIDTH) if linear else CONVS[len(shape)](3, WIDTH, 1)
        for name, make in case.modules.items():
            self.add_module(name, make())
        for name, size in case.parameters.items():
            self.register_parameter(name, nn.Parameter(torch.zeros(size)))
        for name, value in case.buffers.items():
            self.register_buffer(name, value)
        self.op = case.op
        seeded(self)
        with torch.no_grad():
            y = case.op(copy.deepcopy(self), F.softplus(self.stem(example(case))))
        last = case.kind == "rows" or y.dim() == 2
        self.mid = nn.Linear(y.shape[-1], 6) if last else CONVS[y.dim()](y.shape[1], 6, 1)
        self.head = nn.Linear(6, 2) if last else CONVS[y.dim()](6, 2, 1)
        seeded(self)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.mid(self.op(self, F.softplus(self.stem(x))))))


def example(case: Case) -> Tensor:
    return torch.randn(INPUTS[case.kind], generator=torch.Generator().manual_seed(5), dtype=torch.float64)
