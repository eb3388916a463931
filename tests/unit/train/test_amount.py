"""How much one of several passes removes: the paper's rule, in networks with and without couplings."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import fxprune
from fxprune import zoo
from fxprune.train import gammas
from fxprune.train.recipe.amount import below_quantile


def drawn(model: nn.Module, seed: int = 0) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for number, gamma in enumerate(gammas(model).values()):
            gamma.copy_(torch.rand(len(gamma), generator=generator) * (1 + number))
    return model.eval()


def layers_of(model: nn.Module) -> list[Tensor]:
    return [gamma.detach().abs() for gamma in gammas(model).values()]


def left(model: nn.Module) -> list[int]:
    return [len(gamma) for gamma in gammas(model).values()]


@pytest.mark.parametrize(("widths", "seed"), [((20, 12), 0), ((21, 13, 7), 1), ((5, 3), 2)])
def test_it_is_the_papers_rule_where_nothing_is_coupled(widths: tuple[int, ...], seed: int) -> None:
    model, images = drawn(zoo.mlp(16, *widths, 4), seed), torch.randn(2, 1, 4, 4)
    layers = layers_of(model)
    median = torch.cat(layers).median()
    goes = [min(int((gamma < median).sum()), len(gamma) // 2) for gamma in layers]
    ratio = below_quantile(fxprune.analyze(model, images), 0.5, floor=0.5)
    assert ratio * sum(widths) == pytest.approx(sum(goes), abs=1e-9)
    assert left(fxprune.slim(model, ratio, images, floor=0.5)) == [n - gone for n, gone in zip(widths, goes, strict=True)]


def test_small_factors_crowded_in_one_layer_leave_the_others_alone() -> None:
    model, images = zoo.mlp(16, 20, 20, 4).eval(), torch.randn(2, 1, 4, 4)
    with torch.no_grad():
        for scale, gamma in zip((0.01, 1.0), gammas(model).values(), strict=True):
            gamma.copy_(scale * torch.linspace(1, 2, len(gamma)))
    graph = fxprune.analyze(model, images)
    assert below_quantile(graph, 0.5, floor=0.5) == 10 / 40
    assert below_quantile(graph, 0.5, floor=0.2) == 16 / 40
    assert below_quantile(graph, 0.2, floor=0.5) == 7 / 40
    assert below_quantile(graph, 0.0, floor=0.5) == 0


def test_equal_factors_go_evenly() -> None:
    model, images = zoo.mlp(16, 20, 20, 4).eval(), torch.randn(2, 1, 4, 4)
    ratio = below_quantile(fxprune.analyze(model, images), 0.5, floor=0.1)
    assert ratio == 19 / 40
    assert sorted(left(fxprune.slim(model, ratio, images))) == [10, 11]


@pytest.mark.parametrize("layout", ["coupled", "selection"])
def test_coupled_networks_reach_it_pass_after_pass(layout: str) -> None:
    model, images = drawn(zoo.resnet20()), torch.randn(2, 3, 16, 16)
    for seed in range(2):
        ratio = below_quantile(fxprune.analyze(model, images), 0.5, 0.5, layout)
        assert 0 < ratio <= 0.5
        before = left(model)
        slim = fxprune.slim(model, ratio, images, floor=0.5, layout=layout, verify=False)
        assert fxprune.plan_of(slim).asked == pytest.approx(ratio)
        assert all(2 * after >= n for after, n in zip(left(slim), before, strict=True))
        model = drawn(slim, seed)
