"""Batch norm over a global batch, here of one process: what the module itself computes (two: test_recipe_processes.py)."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn
from torch import distributed as dist

from fxprune.train.recipe.synced import _normalized, synchronized
from tests.unit.api.nets import image, seeded


@pytest.fixture
def alone() -> Iterator[None]:
    """A group of one process."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


CASES: list[tuple[nn.Module, Tensor]] = [
    (nn.BatchNorm2d(3), image(4, 3, 5, 5)),
    (nn.BatchNorm1d(3, momentum=None), image(6, 3)),
    (nn.BatchNorm1d(3, affine=False), image(6, 3, 4)),
    (nn.BatchNorm2d(3, track_running_stats=False), image(4, 3, 2, 2)),
]


@pytest.mark.parametrize(("norm", "x"), CASES, ids=str)
def test_it_is_batch_norm(alone: None, norm: nn.Module, x: Tensor) -> None:
    ours, theirs = seeded(copy.deepcopy(norm)).train(), seeded(copy.deepcopy(norm)).train()
    weight = image(*x.shape, seed=1)
    gradients = []
    for step in range(3):
        one, two = (x + step).requires_grad_(), (x + step).requires_grad_()
        found, expected = _normalized(ours, one), theirs(two)
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)
        (found * weight).sum().backward()
        (expected * weight).sum().backward()
        gradients.append((one.grad, two.grad))
    gradients += [(a.grad, b.grad) for a, b in zip(ours.parameters(), theirs.parameters(), strict=True)]
    for got, want in gradients:
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(dict(ours.state_dict()), dict(theirs.state_dict()), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(_normalized(ours.eval(), x), theirs.eval()(x), rtol=1e-12, atol=0)


def test_one_process_is_left_alone() -> None:
    model = nn.Sequential(nn.BatchNorm1d(3))
    with synchronized(model):
        assert "forward" not in model[0].__dict__
