"""``layout="auto"``: the faster of both layouts, by interleaved calls."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxprune
from fxprune import layouts
from fxprune.capture.inputs import given
from tests.unit.api.nets import image, seeded
from tests.unit.selection.nets import Shared


class Clock:
    """Time that passes only where somebody lets it."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Slow(nn.Module):
    """Takes so many seconds, more in its first call, and notes who is called when, and how."""

    def __init__(self, clock: Clock, seconds: float, log: list[Any]) -> None:
        super().__init__()
        self.clock, self.seconds, self.log = clock, seconds, log

    def forward(self, x: Tensor) -> Tensor:
        self.clock.now += self.seconds * (1 if self.log.count((self.seconds, False)) else 10)
        self.log.append((self.seconds, self.training))
        x.add_(1)
        return x


@pytest.mark.parametrize(("times", "taken"), [((2.0, 1.0), "selection"), ((1.0, 2.0), "coupled"), ((1.0, 0.99), "coupled")])
def test_the_faster_layout_is_taken_and_both_times_are_told(monkeypatch: Any, times: tuple[float, float], taken: str) -> None:
    monkeypatch.setattr(layouts, "interleaved", lambda *_: times)
    model = seeded(Shared(branches=3, width=12))
    slim = fxprune.slim(model, 0.4, image(), layout="auto", absorb=False)
    plan = fxprune.plan_of(slim)
    assert plan.layout == taken
    assert [f"{seconds * 1e3:.3g} ms" in plan.notes[0] for seconds in times] == [True, True]
    assert fxprune.plan(fxprune.analyze(model, image()), 0.4, layout="auto").layout == taken
    alone = fxprune.plan_of(fxprune.slim(model, 0.4, image(), layout=taken, absorb=False))
    assert alone.kept == plan.kept


def test_calls_are_interleaved_and_the_least_of_them_counts() -> None:
    clock, log = Clock(), list[Any]()
    first, second = Slow(clock, 0.25, log), Slow(clock, 0.5, log).train()
    x = torch.zeros(2)
    assert layouts.interleaved(first, second, given(x), clock) == (0.25, 0.5)
    assert log == [(0.25, False), (0.5, False)] * (len(log) // 2)
    assert len(log) // 2 == layouts.LEAST_CALLS + 1
    assert (first.training, second.training) == (True, True)
    assert torch.equal(x, torch.zeros(2))


def test_where_one_layout_cannot_be_had_the_other_is_taken() -> None:
    model = seeded(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 1)))
    plan = fxprune.plan_of(fxprune.slim(model, 0.5, image(), layout="auto", absorb=False))
    assert plan.layout == "coupled"
    assert "'selection' cannot be had: layout='selection' needs batch norms" in plan.notes[0]


def test_where_neither_can_be_had_the_reason_of_the_coupled_layout_is_told() -> None:
    model = seeded(Shared())
    with pytest.raises(fxprune.FxpruneError, match="ratio must be"):
        fxprune.slim(model, 40, image(), layout="auto")
    with pytest.raises(fxprune.FxpruneError, match="layout must be 'coupled', 'selection' or 'auto'"):
        fxprune.slim(model, 0.4, image(), layout="narrow")
