"""Recalibration of batch norms, and distillation."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fxprune import train
from tests.unit.api.nets import Chain, image, seeded


def test_recalibration_averages_the_statistics_of_batches() -> None:
    model = seeded(nn.Sequential(nn.BatchNorm2d(3), nn.Dropout(0.5), nn.BatchNorm2d(3, affine=False)))
    batches = [image(5, 3, 4, 4, seed=seed) * (seed + 1) for seed in range(3)]
    momentum = model[0].momentum
    model[1].train()
    modes = [module.training for module in model.modules()]
    assert train.recalibrate(model, [(batch, None) for batch in batches]) == 3
    assert [module.training for module in model.modules()] == modes
    assert model[0].momentum == momentum
    mean = torch.stack([b.mean((0, 2, 3)) for b in batches]).mean(0)
    var = torch.stack([b.var((0, 2, 3)) for b in batches]).mean(0)
    torch.testing.assert_close(model[0].running_mean, mean, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(model[0].running_var, var, rtol=1e-9, atol=1e-12)
    inner = torch.stack([F.batch_norm(b, None, None, model[0].weight, model[0].bias, True).mean((0, 2, 3)) for b in batches])
    torch.testing.assert_close(model[2].running_mean, inner.mean(0), rtol=1e-9, atol=1e-12)  # no dropout in between


def test_recalibration_takes_tensors_and_dicts_and_a_number_of_batches() -> None:
    one, two = seeded(Chain()), seeded(Chain())
    batches = [image(4, 3, 8, 8, seed=seed) for seed in range(4)]
    assert train.recalibrate(one, batches, batches=2) == 2
    assert train.recalibrate(two, ({"x": batch} for batch in batches[:2])) == 2
    torch.testing.assert_close(dict(one.state_dict()), dict(two.state_dict()))
    assert train.recalibrate(nn.Linear(2, 2), []) == 0


@pytest.mark.parametrize("loader", [[], [image(2, 5, 8, 8)], [image(2, 3, 8, 8), image(2, 5, 8, 8)]])
def test_a_failed_recalibration_leaves_everything_as_it_was(loader: list[torch.Tensor]) -> None:
    model = seeded(Chain())
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises((ValueError, RuntimeError)):
        train.recalibrate(model, loader)
    torch.testing.assert_close(dict(model.state_dict()), before)
    assert not any(module.training for module in model.modules())
    assert model.bn1.momentum == 0.1


def test_distillation_by_hand() -> None:
    student, teacher = torch.tensor([[0.0, 0.0]]), torch.tensor([[2.0, 0.0]], requires_grad=True)
    p = 1 / (1 + math.exp(-1))  # teacher at temperature 2
    divergence = p * math.log(2 * p) + (1 - p) * math.log(2 * (1 - p))
    soft = train.distillation(student, teacher, temperature=2)
    assert soft.item() == pytest.approx(4 * divergence)
    both = train.distillation(student.requires_grad_(), teacher, torch.tensor([1]), temperature=2, weight=0.25)
    assert both.item() == pytest.approx(0.25 * 4 * divergence + 0.75 * math.log(2))
    both.backward()
    assert teacher.grad is None
    assert train.distillation(teacher, teacher).item() == pytest.approx(0, abs=1e-6)


def test_distillation_refuses_what_makes_no_sense() -> None:
    logits = torch.zeros(2, 3)
    with pytest.raises(ValueError, match="temperature must be positive, got 0"):
        train.distillation(logits, logits, temperature=0)
    with pytest.raises(ValueError, match=r"weight must be in \[0, 1\], got 2"):
        train.distillation(logits, logits, weight=2)
    with pytest.raises(ValueError, match=r"one shape, got \(2, 3\) and \(2, 4\)"):
        train.distillation(logits, torch.zeros(2, 4))
