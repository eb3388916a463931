"""Unknown positions, unwritten memory, random numbers: what the verifier does not compare, and what it says instead."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from handmade import channels, merged, plan_for, randomised, sliced
from torch import Tensor, fx, nn

from fxprune.errors import VerificationError
from fxprune.verify import Evidence, verify_slim

KEPT = (0, 2, 3, 6)
IMAGE = (torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1)),)
fx.wrap("fresh")


class Between(nn.Module):
    """Two convolutions and something between them."""

    def __init__(self, between: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 5, 1)
        self.between = between

    def forward(self, x: Tensor) -> Any:
        result = self.between(self.conv1(x))
        return (self.conv2(result[0]), *result[1:]) if isinstance(result, tuple) else self.conv2(result)


def checked(between: Callable[[Tensor], Any]) -> Evidence:
    net = randomised(Between(between))
    kept = merged(channels("conv1", "conv2:in", rows=KEPT))
    return verify_slim(net, sliced(net, kept), plan_for(net, kept), IMAGE)


def fresh(x: Tensor) -> Tensor:
    """Unwritten memory that is surely not equal by chance, as wide as the value."""
    return torch.full_like(x, float("nan")) if x.shape[1] == len(KEPT) else torch.empty_like(x)


def test_positions_that_nobody_reads_are_not_compared() -> None:
    assert checked(lambda x: x * x.max(1, keepdim=True)[0]).max_relative_error < 1e-12
    assert checked(lambda x: x * torch.min(x, 1, True).values).max_relative_error < 1e-12


def test_positions_must_not_be_returned() -> None:
    def returned(x: Tensor) -> tuple[Tensor, Tensor]:
        best = x.max(1)
        return x, best[1]

    with pytest.raises(VerificationError, match="an output tells positions"):
        checked(returned)


def test_positions_must_not_be_read() -> None:
    with pytest.raises(VerificationError, match="positions that were found among removed channels"):
        checked(lambda x: x + x.max(1, keepdim=True)[1])


def test_positions_over_space_are_compared() -> None:
    assert checked(lambda x: x + x.max(3, keepdim=True)[1]).max_relative_error < 1e-12


@pytest.mark.parametrize(
    "between",
    [
        lambda x: fresh(x).copy_(x),
        lambda x: fresh(x).view(-1).fill_(2.0).view_as(x) * x,
        lambda x: fresh(x).transpose(1, 2).zero_().transpose(1, 2) + x,
        lambda x: fresh(x).unsqueeze_(0).squeeze_(0).copy_(x),
    ],
)
def test_unwritten_memory_is_not_compared(between: Callable[[Tensor], Tensor]) -> None:
    evidence = checked(between)
    assert evidence.max_relative_error < 1e-12
    assert "fresh" in evidence.nodes_skipped


def test_memory_is_compared_once_it_is_written() -> None:
    evidence = checked(lambda x: fresh(x).copy_(x))
    assert "copy_" not in evidence.nodes_skipped


def test_equally_many_random_numbers_are_the_same_ones() -> None:
    def noisy(x: Tensor) -> Tensor:
        x = x + torch.rand_like(x[:, :1])
        return x * torch.bernoulli(x.mean(1, keepdim=True).sigmoid())

    assert checked(noisy).max_relative_error < 1e-12


@pytest.mark.parametrize(
    "noise",
    [
        torch.randn_like,
        torch.rand_like,
        lambda x: torch.empty_like(x).normal_(),
        lambda x: nn.functional.dropout(x, 0.5, True),
        lambda x: nn.functional.rrelu(x, training=True),
    ],
)
def test_noise_as_wide_as_removed_channels_is_named(noise: Callable[[Tensor], Tensor]) -> None:
    with pytest.raises(VerificationError, match=r"draws random numbers \(first at node '\w+'\).*verify=False"):
        checked(lambda x: x + noise(x))


def test_operators_that_could_draw_and_do_not_are_no_excuse() -> None:
    """A wrong value behind a dropout that is switched off is told as what it is."""
    net = randomised(Between(lambda x: torch.ops.aten.native_dropout(x, 0.5, False)[0]))
    kept = merged(channels("conv1", "conv2:in", rows=KEPT))
    slim = sliced(net, kept)
    slim.conv2.weight.data += 1.0
    with pytest.raises(VerificationError, match="the slim value differs from the masked original"):
        verify_slim(net, slim, plan_for(net, kept), IMAGE)
