"""Absorption at convolutions in blocks: grouped, transposed and depthwise ones."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import fxprune
from tests.reference.compare import relative_error
from tests.unit.api.nets import run, seeded

X = torch.randn(2, 3, 5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def network(reader: nn.Module, out: int) -> nn.Module:
    """A producer of 8 channels, every other one with gamma = 0, and a reader with a batch norm behind it."""
    model = seeded(
        nn.Sequential(
            *(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.ReLU()),
            *(reader, nn.BatchNorm2d(out), nn.ReLU(), nn.Conv2d(out, 3, 1)),
        )
    )
    model[1].weight.data[::2] = 0  # type: ignore[index, operator]
    model[1].bias.data.abs_().add_(0.5)  # type: ignore[index, operator]
    model[4].weight.data.abs_().add_(1)  # type: ignore[index, operator]
    return model


@pytest.mark.parametrize("layout", ["coupled", "selection"])
@pytest.mark.parametrize("absorb", [True, "exact"])
@pytest.mark.parametrize(("form", "out"), [(nn.ConvTranspose2d, 2), (nn.ConvTranspose2d, 4), (nn.Conv2d, 2), (nn.Conv2d, 4)])
def test_readers_in_blocks(form: Any, out: int, absorb: Any, layout: str) -> None:
    """Blocks with one output channel each have no axis of their own in a transposed convolution's weight."""
    model = network(form(8, out, 2, 2, padding=1, groups=2, bias=False), out)
    slim = fxprune.slim(model, 4 / (8 + out) - 0.01, X, layout=layout, absorb=absorb, strict=True)
    fxprune.verify(model, slim, X)
    assert fxprune.absorption_of(slim).folds
    apart = relative_error(run(slim, X), run(model, X))
    assert apart <= (1e-9 if absorb == "exact" else 1)


@pytest.mark.parametrize("layout", ["coupled", "selection"])
@pytest.mark.parametrize("absorb", [True, "exact"])
@pytest.mark.parametrize("form", [nn.ConvTranspose2d, nn.Conv2d])
def test_a_depthwise_convolution_reads_nothing_of_what_goes_with_it(form: Any, absorb: Any, layout: str) -> None:
    model = network(form(8, 8, 2, 2, groups=8, bias=False), 8)
    model[4].weight.data[::2] = 0  # type: ignore[index, operator]
    slim = fxprune.slim(model, 0.49, X, layout=layout, absorb=absorb, strict=True)
    assert slim.get_submodule("3").groups == 4
    assert {fold.node for fold in fxprune.absorption_of(slim).folds} == {"_6"}
    assert relative_error(run(slim, X), run(model, X)) <= 1e-9


@pytest.mark.parametrize("layout", ["coupled", "selection"])
@pytest.mark.parametrize("form", ["view", "view_as"])
def test_constants_go_through_a_channel_shuffle(form: str, layout: str) -> None:
    """Views of what does not vary over pixels: its strides are not those of the values."""

    class Shuffle(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            n, c, h, w = x.shape
            y = x.view(n, 2, c // 2, h, w).transpose(1, 2).contiguous()
            return y.view(n, c, h, w) if form == "view" else y.view_as(x)

    model = network(nn.Sequential(Shuffle(), nn.Conv2d(8, 4, 3, padding=1, bias=False)), 4)
    model[1].weight.data = torch.tensor([0.0, 1, 0, 1, 0, 1, 0, 1]).double()  # type: ignore[index, operator]
    slim = fxprune.slim(model, 4 / 12 - 0.01, X, layout=layout, absorb="exact", strict=True)
    absorption = fxprune.absorption_of(slim)
    assert absorption.exact
    assert not absorption.losses
    assert sum(len(fold.atoms) for fold in absorption.folds) == 4
    assert relative_error(run(slim, X), run(model, X)) <= 1e-9
