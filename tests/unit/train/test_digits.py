"""What sparse training is for, on handwritten digits: channels that can go without a loss, before any fine-tuning."""

from __future__ import annotations

import warnings
from functools import cache

import pytest
import torch
import torch.nn.functional as F

import fxprune
from fxprune import train, zoo
from fxprune.data import Split, digits
from fxprune.errors import FxpruneWarning

BATCH = 64


@cache
def trained(seed: int, *, proximal: bool) -> tuple[zoo.VGG, Split]:
    """A small VGG after sparse training of some 3 CPU seconds, and the held-out digits."""
    torch.manual_seed(seed)
    learn, test = digits(seed=seed)
    model = zoo.tiny_vgg()
    epochs, strength = (12, 0.3) if proximal else (14, 0.03)
    sparsity = train.GammaL1(model, strength, init=0.5)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=epochs * -(-len(learn) // BATCH))
    for epoch in range(epochs):
        for images, labels in learn.batches(BATCH, seed=seed * 1000 + epoch):
            optimizer.zero_grad()
            F.cross_entropy(model(images), labels).backward()
            if not proximal:
                sparsity.add_gradient()
            optimizer.step()
            if proximal:
                sparsity.shrink(optimizer)
            schedule.step()
    return model.eval(), test


@torch.no_grad()
def accuracy(model: torch.nn.Module, test: Split) -> float:
    images, labels = test.batch(torch.arange(len(test)))
    return float((model(images).argmax(1) == labels).double().mean())


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_60_percent_of_the_channels_go_for_less_than_a_point(seed: int) -> None:
    model, test = trained(seed, proximal=False)
    assert train.readiness(model).spare > 0.6
    with warnings.catch_warnings():
        warnings.simplefilter("error", FxpruneWarning)
        slim = fxprune.slim(model, 0.6, test.read(torch.arange(2)), absorb=True)
    assert fxprune.plan_of(slim).achieved == pytest.approx(0.6, abs=0.01)
    assert accuracy(model, test) > 0.97
    assert accuracy(slim, test) >= accuracy(model, test) - 0.01
    with pytest.warns(FxpruneWarning, match=r"the ratio 0\.85 cuts into large"):
        fxprune.slim(model, 0.85, test.read(torch.arange(2)), absorb=True)


def zeros(model: zoo.VGG) -> dict[str, set[int]]:
    return {name: set((gamma == 0).nonzero().flatten().tolist()) for name, gamma in train.gammas(model).items()}


def test_proximal_steps_name_the_channels_that_go() -> None:
    model, test = trained(0, proximal=True)
    gone = zeros(model)
    share = sum(map(len, gone.values())) / 192
    assert share > 0.6
    plan = fxprune.plan_of(fxprune.slim(model, share, test.read(torch.arange(2)), floor=0))
    assert {name: set(plan.removed(name, 0)) for name in gone} == gone


def test_removing_exactly_the_zero_channels_loses_nothing() -> None:
    """The network's convolutions pad with zeros, so border maps are needed; without absorption it would be another network."""
    model, test = trained(0, proximal=True)
    images = test.read(torch.arange(len(test)))
    share = sum(map(len, zeros(model).values())) / 192
    slim = fxprune.slim(model, share, images[:2], floor=0, absorb="exact")
    dropped = fxprune.slim(model, share, images[:2], floor=0, absorb=False)
    assert fxprune.absorption_of(slim).exact
    with torch.no_grad():
        torch.testing.assert_close(slim(images), model(images), rtol=1e-5, atol=1e-5)
        assert float((dropped(images) - model(images)).abs().max()) > 0.1
