"""Scores of the weights against their definitions, written out."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

import fxprune
from fxprune.errors import BudgetError
from fxprune.graph.channels import ChannelGroup
from fxprune.score import NAMED, fpgm, gamma_norm, l1, l2, lamp, magnitude, normalised
from tests.unit.api.nets import Chain, Residual, image, seeded


def groups(model: nn.Module, x: Tensor | None = None) -> dict[str, ChannelGroup]:
    return {group.name: group for group in fxprune.analyze(model, image() if x is None else x).groups}


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)


def test_norms_of_a_filter() -> None:
    model = seeded(Chain())
    group, rows = groups(model)["conv1.weight"], model.conv1.weight.detach().flatten(1)
    close(l1(group), rows.abs().sum(1))
    close(l2(group), rows.norm(dim=1))


def test_a_coupling_class_has_the_mean_of_its_producers() -> None:
    model = seeded(Residual())
    group = groups(model)["stem.weight"]
    parts = [w.detach().flatten(1).abs().sum(1) for w in (model.stem.weight, model.conv2.weight)]
    close(l1(group), torch.stack(parts).mean(0))


@pytest.mark.parametrize("conv", [nn.ConvTranspose2d(4, 6, 3), nn.ConvTranspose2d(4, 6, 3, groups=2)])
def test_rows_of_transposed_convolutions(conv: nn.ConvTranspose2d) -> None:
    model = seeded(nn.Sequential(nn.Conv2d(3, 4, 1), conv, nn.Conv2d(6, 2, 1)))
    weight = conv.weight.detach()
    each = 6 // conv.groups
    rows = [weight[c // each * (4 // conv.groups) : (c // each + 1) * (4 // conv.groups), c % each] for c in range(6)]
    group = groups(model)["1.weight"]
    close(l1(group), torch.stack([row.abs().sum() for row in rows]))
    close(fpgm(group), torch.stack([sum((a - b).norm() for b in rows) for a in rows]))


def test_distances_to_all_other_filters() -> None:
    model = seeded(Chain())
    rows = model.conv2.weight.detach().flatten(1)
    expected = [math.fsum(math.dist(a.tolist(), b.tolist()) for b in rows) for a in rows]
    close(fpgm(groups(model)["conv2.weight"]), torch.tensor(expected, dtype=torch.float64))


def test_lamp_is_the_share_of_what_is_at_least_as_large() -> None:
    model = seeded(Residual())
    group = groups(model)["stem.weight"]
    squares = sum(w.detach().flatten(1).square().sum(1) for w in (model.stem.weight, model.conv2.weight))
    expected = [s / sum(other for other in squares if other >= s) for s in squares]
    found = lamp(group)
    close(found, torch.stack(expected))
    assert float(found.max()) == 1.0
    assert found.argsort().tolist() == squares.argsort().tolist()


def test_lamp_of_zero_weights_is_finite() -> None:
    model = seeded(Chain())
    nn.init.zeros_(model.conv1.weight)
    assert lamp(groups(model)["conv1.weight"]).tolist() == [0.0] * 8


def test_gamma_times_norm() -> None:
    model = seeded(Chain())
    group = groups(model)["conv1.weight"]
    close(gamma_norm(group), model.bn1.weight.detach().abs() * magnitude(group))


def test_normalisations() -> None:
    group = groups(seeded(Chain()))["conv2.weight"]
    s = l1(group)
    close(normalised("l1", "none")(group), s)
    close(normalised(l1, "mean")(group), s / s.mean())
    close(normalised("l1", "max")(group), s / s.max())
    close(normalised("l1", "l2")(group), s / s.square().sum().sqrt())
    close(normalised("l1", "size")(group), s / (8 * 9))
    close(normalised("l1", "standard")(group), (s - s.mean()) / s.std(correction=0))
    close(normalised("l2", "mean")(group), magnitude(group))


def test_log_prices_channels_by_what_is_left() -> None:
    group = groups(seeded(Chain()))["conv2.weight"]
    s = l1(group)
    logs = normalised("l1", "log")(group)
    order = s.argsort()
    assert (logs.argsort() == order).all()
    for count in range(1, len(s)):  # what goes from the smallest up costs the logarithm of what is kept
        close(logs[order[:count]].sum(), -(s[order[count:]].sum() / s.sum()).log())
    close(logs.max(), torch.tensor(4.0, dtype=torch.float64).log())
    some_dead = normalised(lambda g: torch.arange(len(g)) - 2.0, "log")(group)
    assert some_dead[:3].tolist() == [0, 0, 0]
    assert bool((some_dead[3:] > 0).all())


def test_log_keeps_a_budget_from_emptying_expensive_layers() -> None:
    """Scores are equal in all layers; channels of the second cost most."""
    model = nn.Sequential(
        *(nn.Conv2d(3, 32, 3, padding=1), nn.ReLU()),
        *(nn.Conv2d(32, 32, 3, padding=1), nn.ReLU()),
        *(nn.Conv2d(32, 64, 3, stride=2, padding=1), nn.ReLU()),
        *(nn.Conv2d(64, 64, 3, padding=1), nn.ReLU()),
        nn.Conv2d(64, 4, 3, padding=1),
    )
    graph, budget = fxprune.analyze(model, torch.zeros(1, 3, 16, 16)), fxprune.Budget(macs=0.4)
    left = {}
    for by in ("none", "log"):
        score = normalised(lambda group: 1 + torch.linspace(0, 0.1, len(group)), by)
        left[by] = len(fxprune.plan(graph, budget=budget, score=score, floor=0.05).kept["2.weight"][0])
    assert left["none"] <= 4  # the floor is 2 of 32
    assert left["log"] >= 8


def test_a_layer_of_equal_scores_stays_finite() -> None:
    group = groups(seeded(Chain()))["conv1.weight"]
    for by in ("mean", "max", "l2", "size", "standard", "log"):
        for constant in (0.0, 2.0):
            assert bool(torch.isfinite(normalised(lambda g, c=constant: torch.full((len(g),), c), by)(group)).all())


@pytest.mark.parametrize("name", [*sorted(NAMED), "l1:mean", "fpgm:max", "lamp:standard", "gamma:size", "gamma:log"])
def test_every_name_makes_a_plan(name: str) -> None:
    graph = fxprune.analyze(seeded(Residual()), image())
    plan = fxprune.plan(graph, 0.4, score=name)
    assert plan.score == name.partition(":")[0] + name[len(name.partition(":")[0]) :]
    assert 0.2 < plan.achieved < 0.6


def test_unknown_names() -> None:
    group = groups(seeded(Chain()))["conv1.weight"]
    with pytest.raises(BudgetError, match="'l3:mean'"):
        fxprune.plan(fxprune.analyze(seeded(Chain()), image()), 0.4, score="l3:mean")
    with pytest.raises(BudgetError, match=r"none, mean, max, l2, size, standard, log, got 'median'"):
        normalised("l1", "median")(group)
    with pytest.raises(BudgetError, match="median"):
        fxprune.plan(fxprune.analyze(seeded(Chain()), image()), 0.4, score="l1:median")
