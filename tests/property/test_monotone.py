"""Property 3: a larger ratio never keeps more, and the achieved ratio is reported."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import fxprune
from fxprune.errors import BudgetError
from fxprune.plan import Plan
from tests.property.compiling import network, options
from tests.property.profile import share
from tests.property.program import randomise
from tests.property.strategies import Case, cases


def subset(smaller: Plan, larger: Plan) -> list[str]:
    """The axes on which ``smaller`` keeps something that ``larger`` has removed."""
    return [
        f"{name}[{dim}]"
        for name, dims in larger.kept.items()
        for dim, rows in dims.items()
        if not set(smaller.kept.get(name, {}).get(dim, range(larger.sizes[name][dim]))) <= set(rows)
    ]


@share(1.2)
@given(cases(), st.lists(st.floats(0.0, 0.95), min_size=2, max_size=4))
def test_a_larger_ratio_keeps_a_subset(case: Case, ratios: list[float]) -> None:
    model, inputs = network(case)
    wanted = options(case)
    graph = fxprune.analyze(model, inputs, keep=wanted.pop("keep"))
    plans = []
    for ratio in sorted(ratios):
        try:
            plans.append(fxprune.plan(graph, ratio, **wanted))
        except BudgetError:
            break
        assert plans[-1].asked == ratio
        assert 0.0 <= plans[-1].achieved < 1.0 or case.floor == 0.0
    for mild, strong in itertools.pairwise(plans):
        assert not subset(strong, mild)
        assert strong.achieved >= mild.achieved
        assert strong.empty <= mild.empty


@share(0.6)
@given(cases())
def test_solving_is_deterministic(case: Case) -> None:
    plans = []
    for _ in range(2):
        model, inputs = network(case)
        wanted = options(case)
        graph = fxprune.analyze(model, inputs, keep=wanted.pop("keep"))
        try:
            plans.append(fxprune.plan(graph, case.ratio, **wanted))
        except BudgetError as error:
            plans.append(str(error))
    assert plans[0] == plans[1]


@share(0.6)
@given(cases())
def test_what_is_kept_stays(case: Case) -> None:
    model, inputs = network(case)
    wanted = options(case)
    keep = wanted.pop("keep")
    graph = fxprune.analyze(model, inputs, keep=keep)
    try:
        plan = fxprune.plan(graph, case.ratio, **wanted)
    except BudgetError:
        return
    for name in keep:
        for suffix in ("weight", "bias"):
            assert not plan.removed(f"{name}.{suffix}", 0)


@share(0.6)
@given(st.lists(st.integers(2, 12), min_size=1, max_size=5), st.floats(0.05, 0.9), st.integers(0, 99))
def test_a_chain_loses_the_smallest_gammas(widths: list[int], ratio: float, seed: int) -> None:
    """In a plain chain a coupling class is one gamma: what goes are the globally smallest, as many as were asked for."""
    layers: list[nn.Module] = []
    for before, width in zip([3, *widths], widths, strict=False):
        layers += [nn.Conv2d(before, width, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
    model = nn.Sequential(*layers, nn.Conv2d(widths[-1], 2, 1))
    randomise(model, seed)
    x = torch.randn(1, 3, 4, 4, dtype=torch.float64)
    plan = fxprune.plan(fxprune.analyze(model, x), ratio, floor=0.0)
    norms = {f"{i}.weight": m.weight for i, m in enumerate(model) if isinstance(m, nn.BatchNorm2d)}
    gone = [norms[name][i].abs().item() for name in norms for i in plan.removed(name, 0)]
    everything = sorted(g for w in norms.values() for g in w.abs().tolist())
    total = len(everything)
    assert sorted(gone) == everything[: len(gone)] or min(len(set(plan.kept[n][0])) for n in norms if n in plan.kept) == 1
    assert plan.achieved == pytest.approx(len(gone) / total)
    assert abs(len(gone) - ratio * total) <= len(widths) + 1
