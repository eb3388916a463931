"""Blocks that repeat are evaluated once while tracing with concrete shapes, and nothing is mistaken for something else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

import fxprune
from fxprune.capture.concrete import ConcreteTracer
from fxprune.capture.inputs import given
from fxprune.capture.tracer import Captured, trace

X = torch.randn(2, 8, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def concrete(model: nn.Module, x: Tensor = X) -> Captured:
    inputs = given(x)
    return trace(model, lambda root: ConcreteTracer(root, inputs, frozenset()), inputs)


class Repeated(nn.Module):
    """Blocks of one kind, whose Python asks for shapes."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(6, 6) for _ in range(depth))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            b, n, c = x.shape
            if n > c:
                x = layer(x).reshape(b, n, 2, c // 2).transpose(-1, -2).reshape(b, n, c)
        return x


def test_a_block_that_repeats_is_evaluated_once(monkeypatch: pytest.MonkeyPatch) -> None:
    runs: list[fx.Node] = []
    run: Callable[..., Any] = ConcreteTracer._run

    def counted(self: Any, node: fx.Node, args: Any, kwargs: Any) -> Any:
        if node.op in ("call_module", "call_method"):
            runs.append(node)
        return run(self, node, args, kwargs)

    monkeypatch.setattr(ConcreteTracer, "_run", counted)
    concrete(Repeated(1).double())
    once = len(runs)
    runs.clear()
    concrete(Repeated(5).double())
    assert len(runs) == once


class Numbers(nn.Module):
    """Constants of one shape that decide two things."""

    def forward(self, x: Tensor) -> Tensor:
        for count in (x.shape[1] // 4, x.shape[2] // 2):  # 2 and 3
            groups = int(torch.tensor(count).item())
            x = x.reshape(x.shape[0], groups, -1).softmax(1).reshape(x.shape)
        return x


class Reshaping(nn.Module):
    """Two tensors that are alike until one of them changes its shape in place."""

    def forward(self, x: Tensor) -> Tensor:
        a, b = x.relu(), x.relu()
        a.unsqueeze_(1)
        if b.dim() == 4:
            return b
        return a.squeeze(1) + b if a.dim() == 4 else x


class Written(nn.Module):
    """Two slices assigned to in a row."""

    def forward(self, x: Tensor) -> Tensor:
        mask = x.new_zeros(x.shape[1:])
        for count, (first, last) in enumerate(((0, 2), (2, 5), (5, 8))):
            mask[first:last] = count
        return F.gelu(x) + mask


@pytest.mark.parametrize("model", [Numbers(), Reshaping(), Written(), Repeated(3).double()], ids=lambda m: type(m).__name__)
def test_the_program_is_the_models(model: nn.Module) -> None:
    captured = concrete(model)
    assert torch.equal(captured.module()(X.clone()), model(X.clone()))


@fx.wrap
def projected(x: Tensor, weight: Tensor, heads: int) -> Tensor:
    """What holds a width that its caller does not see."""
    y = F.linear(x, weight)
    return y.view(y.shape[0], -1, heads, 4).mean(2)


@fx.wrap
def scaled(x: Tensor, by: float) -> Tensor:
    """What only computes."""
    return x * by


class Wrapped(nn.Module):
    """Calls both."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(12, 6, dtype=torch.float64))
        self.inside = nn.Linear(6, 6).double()
        self.out = nn.Linear(4, 2).double()

    def forward(self, x: Tensor) -> Tensor:
        return self.out(projected(scaled(self.inside(x), 2.0), self.weight, 3))


def test_a_hidden_function_is_entered_at_once_where_it_holds_widths(monkeypatch: pytest.MonkeyPatch) -> None:
    studied: list[Any] = []
    study = fxprune.pipeline.study
    monkeypatch.setattr(fxprune.pipeline, "study", lambda *args, **kwargs: studied.append(args) or study(*args, **kwargs))
    slim = fxprune.slim(Wrapped().eval(), 0.3, X)
    targets = {node.target for node in slim.graph.nodes}
    assert scaled in targets
    assert projected not in targets
    assert not studied, "it was captured a second time"
    assert slim(torch.cat([X, X])).shape == (4, 8, 2)
