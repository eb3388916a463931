"""Optimizers and averages through rounds that add tensors, and of models that no tracer takes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

import fxprune
from fxprune import train
from tests.unit.api.nets import image, run, seeded

X = image(4, 3, 10, 10)


def network() -> nn.Module:
    """Half the gammas are 0; the second convolution has no bias and no batch norm, so it gets a bias or a border map."""
    model = seeded(
        nn.Sequential(
            *(nn.Conv2d(3, 12, 3, padding=1, bias=False), nn.BatchNorm2d(12), nn.ReLU()),
            *(nn.Conv2d(12, 12, 3, padding=1, bias=False), nn.ReLU()),
            *(nn.Conv2d(12, 10, 3, padding=1), nn.BatchNorm2d(10), nn.ReLU(), nn.Conv2d(10, 4, 1)),
        )
    )
    for norm in (model[1], model[6]):
        norm.weight.data[::2] = 0  # type: ignore[index, operator]
    return model


def trained(model: nn.Module) -> torch.optim.Optimizer:
    """An optimizer with state; the model stays as it is."""
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, amsgrad=True)
    model(X).square().sum().backward()
    optimizer.step()
    model.load_state_dict(weights)
    return optimizer


@pytest.mark.parametrize("layout", ["coupled", "selection"])
@pytest.mark.parametrize("absorb", [False, True, "exact"])
def test_two_rounds_with_constants(layout: str, absorb: Any) -> None:
    """An average that holds the model's own weights stays the slim model's own, in every round; every parameter's state has its shape."""
    model: nn.Module = network()
    averaged, optimizer = AveragedModel(model, use_buffers=True), trained(model)
    for ratio in (0.2, 0.3):
        slim = fxprune.slim(model, ratio, X, layout=layout, absorb=absorb)
        averaged = train.remap_averaged(averaged, model, slim, X)
        optimizer = train.remap_optimizer(optimizer, model, slim)
        assert {n: p.shape for n, p in averaged.module.named_parameters()} == {n: p.shape for n, p in slim.named_parameters()}
        assert torch.equal(run(averaged.module, X), run(slim, X))
        held = {id(p) for group in optimizer.param_groups for p in group["params"]}
        assert held == {id(p) for p in slim.parameters()}
        for parameter in slim.parameters():
            assert all(t.shape in (parameter.shape, ()) for t in optimizer.state[parameter].values())
        slim(X).square().sum().backward()
        optimizer.step()
        averaged.update_parameters(slim)
        averaged.module.load_state_dict(slim.state_dict())
        model = slim
    assert bool(fxprune.plan_of(slim).added) == bool(absorb)


def test_from_the_original_over_two_rounds() -> None:
    model = network()
    optimizer = trained(model)
    first = fxprune.slim(model, 0.2, X, absorb="exact")
    second = fxprune.slim(first, 0.3, X, absorb="exact")
    at_once = train.remap_optimizer(optimizer, model, second)
    by_steps = train.remap_optimizer(train.remap_optimizer(optimizer, model, first), first, second)
    for parameter in second.parameters():
        one, other = at_once.state.get(parameter, {}), by_steps.state.get(parameter, {})
        assert one.keys() == other.keys()
        assert all(torch.equal(one[key], other[key]) for key in one)


def test_a_model_that_no_tracer_takes() -> None:
    class Deciding(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = network()

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.body(x)
            return y if float(y.detach().sum()) > 0 else -y

    model = Deciding()
    slim: nn.Module = fxprune.slim(model, 0.3, X)
    assert isinstance(slim, Deciding)
    optimizer = train.remap_optimizer(trained(model), model, slim)
    for parameter in slim.parameters():
        assert optimizer.state[parameter]["exp_avg"].shape == parameter.shape
    averaged = train.remap_averaged(AveragedModel(model), model, slim, X)
    assert torch.equal(run(averaged.module, X), run(slim, X))
