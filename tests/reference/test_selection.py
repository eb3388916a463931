"""The selection layout against the reference scripts of Network Slimming (slimming.py): kept channels, outputs, parameters."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxprune
from fxprune import zoo
from tests.property.program import randomise
from tests.reference import slimming
from tests.reference.compare import parameters, relative_error


@dataclass(frozen=True)
class Network:
    """A network of the paper, scaled down, and the script that prunes it."""

    build: Callable[[], nn.Module]
    script: Callable[[Any, Tensor, slimming.Masks], slimming.Pruned]


NETWORKS = {
    "preresnet": Network(lambda: zoo.preresnet(29), slimming.resnet),
    "densenet": Network(lambda: zoo.DenseNet(4, 8, 16), slimming.densenet),
    "densenet with the stem of the port": Network(lambda: zoo.DenseNet(3, 12, 24), slimming.densenet),
    "vgg": Network(lambda: zoo.vgg_bn(11, width=0.25), slimming.vgg),
}


def uniform(count: int, rng: torch.Generator) -> Tensor:
    return torch.rand(count, generator=rng, dtype=torch.float64)


def heavy(count: int, rng: torch.Generator) -> Tensor:
    """As after sparse training: most near zero, with a level per layer."""
    level = torch.randn(1, generator=rng, dtype=torch.float64)
    return (level + 1.5 * torch.randn(count, generator=rng, dtype=torch.float64)).exp() * 0.1


def tied(count: int, rng: torch.Generator) -> Tensor:
    """Few different values, so that many stand exactly at the threshold."""
    return torch.randint(0, 12, (count,), generator=rng) / 10.0


def network(name: str, draw: Callable[[int, torch.Generator], Tensor], seed: int) -> nn.Module:
    model = randomise(NETWORKS[name].build(), seed)
    rng = torch.Generator().manual_seed(seed)
    for m in model.modules():
        if isinstance(m, nn.BatchNorm2d):
            sign = torch.sign(torch.rand(m.num_features, generator=rng, dtype=torch.float64) - 0.2)
            m.weight.data = draw(m.num_features, rng) * sign
    return model


X = torch.randn(2, 3, 32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("draw", "ratio"), [(uniform, 0.4), (heavy, 0.7), (tied, 0.4), (uniform, 0.7)])
@pytest.mark.parametrize("name", NETWORKS)
def test_the_reference_rule_to_the_letter(name: str, draw: Any, ratio: float) -> None:
    model = network(name, draw, seed=1)
    kept = slimming.masks(model, ratio)
    x = X if name != "vgg" else X[:, :, : model.input_size[1], : model.input_size[2]]
    with torch.no_grad():
        wanted = NETWORKS[name].script(model, x, kept)
    slim = fxprune.slim(model, ratio, x, layout="selection", floor=0, absorb=False)
    plan = fxprune.plan_of(slim)
    emptied = 0
    for norm, mask in kept.items():
        rows, wanted_rows = set(plan.kept[f"{norm}.weight"][0]), set(mask.nonzero().ravel().tolist())
        emptied += not wanted_rows
        # What feeds an emptied or unread layer goes down to one silent channel; everywhere else both keep the same.
        assert rows == wanted_rows or (plan.silent and (rows <= wanted_rows or len(rows) == 1)), norm
    with torch.no_grad():
        assert relative_error(slim(x), wanted.output) <= 1e-9
    assert parameters(slim) <= wanted.parameters or emptied
    gone = sum(int((~mask).sum()) for mask in kept.values())
    total = sum(len(mask) for mask in kept.values())
    assert plan.achieved >= (gone - emptied) / total - 1e-12
