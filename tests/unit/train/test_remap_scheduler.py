"""Learning-rate schedules go on with the optimizer of a slim model."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, Optimizer
from torch.optim import lr_scheduler as schedules

import fxprune
from fxprune import train
from fxprune.errors import FxpruneError
from tests.unit.api.nets import Chain, image, seeded


class Aux(nn.Module):
    """An output for training only, which no slim model has, with a parameter group of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.aux = Chain(), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.body(x)
        return y


MAKERS: dict[str, Callable[[Optimizer], Any]] = {
    "multi-step": lambda o: schedules.MultiStepLR(o, [2, 4]),
    "cosine": lambda o: schedules.CosineAnnealingLR(o, 8),
    "lambda": lambda o: schedules.LambdaLR(o, [lambda e: 0.9**e, lambda e: 1 / (1 + e)]),
    "warm-up": lambda o: schedules.LinearLR(o, 0.1, total_iters=5),
    "one cycle": lambda o: schedules.OneCycleLR(o, [0.5, 0.1], total_steps=12),
    "sequential": lambda o: schedules.SequentialLR(
        o, [schedules.LinearLR(o, 0.1, total_iters=2), schedules.CosineAnnealingLR(o, 6)], milestones=[2]
    ),
    "chained": lambda o: schedules.ChainedScheduler([schedules.ConstantLR(o, 0.5, 3), schedules.ExponentialLR(o, 0.9)]),
    "cyclic": lambda o: schedules.CyclicLR(o, 0.01, [0.1, 0.2], step_size_up=3),
}


def optimizer_of(model: Aux) -> SGD:
    return SGD([{"params": model.aux.parameters(), "lr": 1.0}, {"params": model.body.parameters()}], lr=0.1, momentum=0.9)


def rates(optimizer: Optimizer) -> list[float]:
    return [float(group["lr"]) for group in optimizer.param_groups]


@pytest.mark.parametrize("done", [0, 3])
@pytest.mark.parametrize("kind", MAKERS)
def test_rates_go_on_as_they_would_have(kind: str, done: int) -> None:
    model = seeded(Aux())
    optimizer = optimizer_of(model)
    schedule = MAKERS[kind](optimizer)
    for _ in range(done):
        optimizer.step()
        schedule.step()
    slim = fxprune.slim(model, 0.3, image())
    tuner = train.remap_optimizer(optimizer, model, slim)
    again = train.remap_scheduler(schedule, tuner)
    assert rates(tuner) == rates(optimizer)
    for _ in range(5):
        for own, plan in ((optimizer, schedule), (tuner, again)):
            own.step()
            plan.step()
        assert rates(tuner) == rates(optimizer)
    assert [len(group["params"]) for group in tuner.param_groups] == [0, len(list(slim.parameters()))]


def test_plateaus() -> None:
    model = seeded(Aux())
    optimizer = optimizer_of(model)
    schedule = schedules.ReduceLROnPlateau(optimizer, patience=1)
    for loss in (1.0, 2.0):
        schedule.step(loss)
    slim = fxprune.slim(model, 0.3, image())
    tuner = train.remap_optimizer(optimizer, model, slim)
    train.remap_scheduler(schedule, tuner).step(3.0)
    assert rates(optimizer) == [1.0, 0.1]
    assert rates(tuner) == pytest.approx([0.1, 0.01])


def test_another_optimizer_is_refused() -> None:
    model = seeded(Aux())
    schedule = schedules.StepLR(optimizer_of(model), 1)
    with pytest.raises(FxpruneError, match="schedules 2 parameter groups, and the optimizer has 1"):
        train.remap_scheduler(schedule, SGD(model.parameters(), lr=0.1))


def test_states_can_be_saved() -> None:
    model = seeded(Aux())
    optimizer = optimizer_of(model)
    slim = fxprune.slim(model, 0.3, image())
    tuner = train.remap_optimizer(optimizer, model, slim)
    again = train.remap_scheduler(schedules.StepLR(optimizer, 2), tuner)
    for part in (tuner, again):
        assert pickle.loads(pickle.dumps(part.state_dict()))  # noqa: S301  # its own bytes
    slim(image()).square().sum().backward()
    tuner.step()
    assert all(torch.isfinite(p).all() for p in slim.parameters())
