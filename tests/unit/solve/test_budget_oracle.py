"""The solver's optimum against brute force over all legal plans of small networks.

The oracle looks at every subset of the channels. It knows each network by hand: what is coupled, what makes a subset legal, what the
network costs then, and for how many channels each coupled channel counts. It shares nothing with the analysis or the solver.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import fxprune
from fxprune import Budget, BudgetError
from fxprune.graph.channels import ChannelGroup
from fxprune.solve import optimise as solver
from tests.property.profile import share

Live = dict[str, np.ndarray[Any, np.dtype[np.bool_]]]
PIXELS = 16


class Chain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 3, 3, padding=1), nn.Conv2d(3, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.b(self.a(x).relu()).relu())  # type: ignore[no-any-return]


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 5, 1), nn.Conv2d(5, 4, 3, padding=1), nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x).relu()
        return self.d(x + self.c(self.b(x).relu()))  # type: ignore[no-any-return]


class Grouped(nn.Module):
    """Groups of three inputs and two outputs: both sides balanced, and either group may go as a whole."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 4, 3, padding=1, groups=2), nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.b(self.a(x).relu()).relu())  # type: ignore[no-any-return]


class Depthwise(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 5, 1), nn.Conv2d(5, 5, 3, padding=1, groups=5)
        self.c, self.d = nn.Conv2d(5, 4, 1), nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.d(self.c(self.b(self.a(x).relu()).relu()))  # type: ignore[no-any-return]


class Flattened(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 4, 1), nn.Linear(4 * PIXELS, 5), nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.b(self.a(x).relu().flatten(1)).relu())  # type: ignore[no-any-return]


class Joined(nn.Module):
    """Groups of a convolution that read two layers at once: the second holds channels of both."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 2, 3, padding=1)
        self.c, self.d = nn.Conv2d(6, 4, 3, padding=1, groups=2), nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.d(self.c(torch.cat([self.a(x).relu(), self.b(x).relu()], 1)).relu())  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Known:
    """A network known by hand: widths by the layer that makes them, how often each counts, legality and costs.

    ``mixed``: cells hold channels of several layers. The solver then looks at plans in which every cell loses its lowest scores, brute force at all.
    """

    build: Callable[[], nn.Module]
    widths: dict[str, int]
    times: dict[str, int]
    macs: Callable[[Live], int]
    params: Callable[[Live], int]
    legal: Callable[[Live], bool] = lambda _: True
    mixed: bool = False


def in_groups(live: Live) -> bool:
    """Living groups keep equally many inputs, and equally many outputs; a group that goes goes on both sides."""
    return balanced(live["a"], live["b"])


def joined(live: Live) -> Live:
    """The convolution in groups, with the two layers that it reads as one."""
    return {"a": np.concatenate([live["a"], live["b"]]), "b": live["c"]}


def balanced(read: np.ndarray[Any, Any], made: np.ndarray[Any, Any]) -> bool:
    ins, outs = read.reshape(2, 3).sum(1), made.reshape(2, 2).sum(1)
    there = ins > 0
    return bool(((outs > 0) == there).all() and len(set(ins[there].tolist())) == 1 and len(set(outs[there].tolist())) == 1)


def n(live: Live, name: str) -> int:
    return int(live[name].sum())


def grouped_products(live: Live) -> int:
    return int((live["a"].reshape(2, 3).sum(1) * live["b"].reshape(2, 2).sum(1)).sum())


NETS = {
    "chain": Known(
        Chain,
        {"a": 4, "b": 3},
        {"a": 1, "b": 1},
        lambda v: PIXELS * (3 * n(v, "a") + 9 * n(v, "a") * n(v, "b") + 2 * n(v, "b")),
        lambda v: 3 * n(v, "a") + n(v, "a") + 9 * n(v, "a") * n(v, "b") + n(v, "b") + 2 * n(v, "b") + 2,
    ),
    "residual": Known(
        Residual,
        {"a": 4, "b": 5},
        {"a": 2, "b": 1},
        lambda v: PIXELS * (3 * n(v, "a") + n(v, "a") * n(v, "b") + 9 * n(v, "a") * n(v, "b") + 2 * n(v, "a")),
        lambda v: 4 * n(v, "a") + n(v, "b") * (n(v, "a") + 1) + n(v, "a") * (9 * n(v, "b") + 1) + 2 * n(v, "a") + 2,
    ),
    "grouped": Known(
        Grouped,
        {"a": 6, "b": 4},
        {"a": 1, "b": 1},
        lambda v: PIXELS * (3 * n(v, "a") + 9 * grouped_products(v) + 2 * n(v, "b")),
        lambda v: 4 * n(v, "a") + 9 * grouped_products(v) + n(v, "b") + 2 * n(v, "b") + 2,
        in_groups,
    ),
    "depthwise": Known(
        Depthwise,
        {"a": 5, "c": 4},
        {"a": 2, "c": 1},
        lambda v: PIXELS * (3 * n(v, "a") + 9 * n(v, "a") + n(v, "a") * n(v, "c") + 2 * n(v, "c")),
        lambda v: 4 * n(v, "a") + 10 * n(v, "a") + n(v, "a") * n(v, "c") + n(v, "c") + 2 * n(v, "c") + 2,
    ),
    "flattened": Known(
        Flattened,
        {"a": 4, "b": 5},
        {"a": 1, "b": 1},
        lambda v: PIXELS * 3 * n(v, "a") + PIXELS * n(v, "a") * n(v, "b") + 2 * n(v, "b"),
        lambda v: 4 * n(v, "a") + PIXELS * n(v, "a") * n(v, "b") + n(v, "b") + 2 * n(v, "b") + 2,
    ),
    "joined": Known(
        Joined,
        {"a": 4, "b": 2, "c": 4},
        {"a": 1, "b": 1, "c": 1},
        lambda v: PIXELS * (3 * n(v, "a") + 27 * n(v, "b") + 9 * grouped_products(joined(v)) + 2 * n(v, "c")),
        lambda v: 4 * n(v, "a") + 28 * n(v, "b") + 9 * grouped_products(joined(v)) + n(v, "c") + 2 * n(v, "c") + 2,
        lambda v: balanced(*joined(v).values()),
        mixed=True,
    ),
}
GRAPHS = {name: fxprune.analyze(known.build(), torch.randn(1, 3, 4, 4)) for name, known in NETS.items()}


def subsets(known: Known, floor: float, round_to: int) -> list[Live]:
    """Every legal choice of what lives."""
    each = [[np.array(bits, np.bool_) for bits in itertools.product((False, True), repeat=w)] for w in known.widths.values()]
    found = []
    for combination in itertools.product(*each):
        live = dict(zip(known.widths, combination, strict=True))
        enough = all(own.sum() >= max(1, np.ceil(floor * len(own) - 1e-9)) for own in live.values())
        round_ = all(own.all() or own.sum() % round_to == 0 for own in live.values())
        if enough and round_ and known.legal(live):
            found.append(live)
    return found


def score_of(values: dict[str, list[float]]) -> Callable[[ChannelGroup], Tensor]:
    def score(group: ChannelGroup) -> Tensor:
        makers = [m for m in group.members if not m.reads and m.name.rpartition(".")[0] in values]
        found = torch.zeros(len(group), dtype=torch.float64)
        own = torch.tensor(values[makers[0].name.rpartition(".")[0]], dtype=torch.float64)
        found[torch.from_numpy(makers[0].channel)] = own[torch.from_numpy(makers[0].atom)]
        return found

    return score


def worth(known: Known, values: dict[str, list[float]], live: Live) -> float:
    return sum(known.times[name] * float(np.array(values[name])[own].sum()) for name, own in live.items())


def lives(known: Known, plan: fxprune.Plan) -> Live:
    found = {}
    for name, width in known.widths.items():
        found[name] = np.zeros(width, np.bool_)
        found[name][list(plan.kept[f"{name}.weight"][0])] = True
    return found


@st.composite
def problems(draw: st.DrawFn) -> tuple[str, dict[str, list[float]], dict[str, float]]:
    name = draw(st.sampled_from(sorted(NETS)))
    values = {
        key: draw(st.lists(st.sampled_from([0.0, 0.3, 1.0, 1.7, 2.0, 5.0]) | st.floats(0.01, 9), min_size=w, max_size=w))
        for key, w in NETS[name].widths.items()
    }
    kinds = draw(st.sampled_from([("macs",), ("params",), ("macs", "params")]))
    return name, values, {kind: draw(st.floats(0.08, 0.95)) for kind in kinds}


def best(known: Known, values: dict[str, list[float]], bounds: dict[str, float], choices: Sequence[Live]) -> float | None:
    """The score of the best legal plan; None if there is none."""
    everything = {name: np.ones(w, np.bool_) for name, w in known.widths.items()}
    costs = {"macs": known.macs, "params": known.params}
    most = {kind: share * costs[kind](everything) for kind, share in bounds.items()}
    found = [worth(known, values, live) for live in choices if all(costs[kind](live) <= most[kind] for kind in bounds)]
    return max(found, default=None)


CHOICES: dict[tuple[str, float, int], list[Live]] = {}


def check(problem: Any, floor: float, round_to: int, *, exact: bool, scope: str = "global") -> None:
    name, values, bounds = problem
    known, graph = NETS[name], GRAPHS[name]
    if (name, floor, round_to) not in CHOICES:
        CHOICES[name, floor, round_to] = subsets(known, floor, round_to)
    expected = best(known, values, bounds, CHOICES[name, floor, round_to])
    refused = ""
    try:
        budget = Budget(**bounds)  # type: ignore[arg-type]
        plan = fxprune.plan(graph, budget=budget, score=score_of(values), floor=floor, round_to=round_to, scope=scope)
    except BudgetError as error:
        refused = str(error)
        figures = error.nearest.figures
        assert any(figures[kind]["achieved"] > figures[kind]["asked"] for kind in bounds), "the nearest plan meets the budget"
    if refused or expected is None:
        assert refused, "the solver finds a plan where brute force finds none"
        assert expected is None or known.mixed or scope != "global", f"brute force keeps {expected}, the solver: {refused}"
        return
    live = lives(known, plan)
    everything = {key: np.ones(w, np.bool_) for key, w in known.widths.items()}
    assert known.legal(live)
    assert all(own.sum() >= max(1, np.ceil(floor * len(own) - 1e-9)) for own in live.values())
    for kind, share_ in bounds.items():
        cost = {"macs": known.macs, "params": known.params}[kind]
        assert plan.figures[kind]["achieved"] == cost(live) <= share_ * cost(everything) * (1 + 1e-12)
    kept = worth(known, values, live)
    assert plan.figures["kept score"]["achieved"] == pytest.approx(kept, abs=1e-9)
    assert plan.figures["kept score"]["bound"] >= expected - 1e-9
    if exact and not known.mixed:
        assert kept == pytest.approx(expected, abs=1e-9)
        assert plan.figures["kept score"]["gap"] == pytest.approx(0, abs=1e-12)
    else:
        assert kept <= expected + 1e-9


@share(1.5)
@given(problems(), st.sampled_from([0.0, 0.1, 0.5]), st.sampled_from([1, 1, 1, 2]))
def test_the_optimum_is_that_of_brute_force(problem: Any, floor: float, round_to: int) -> None:
    check(problem, floor, 1 if problem[0] in ("grouped", "joined") else round_to, exact=True)


@share(0.15)
@given(problems(), st.sampled_from([0.0, 0.1, 0.5]))
def test_large_problems_are_searched_and_bounded(problem: Any, floor: float) -> None:
    """The way that large networks go: what it finds is legal, and no plan exceeds its bound."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(solver, "_enumerated", lambda _: None)
        check(problem, floor, 1, exact=False)


@share(0.5)
@given(problems(), st.sampled_from([0.0, 0.1, 0.5]), st.sampled_from(["uniform", "isomorphic", "threshold", "below"]))
def test_other_scopes_are_legal_and_met(problem: Any, floor: float, scope: str) -> None:
    check(problem, floor, 1, exact=False, scope=scope)


@pytest.mark.parametrize("scope", ["uniform", "isomorphic", "threshold", "below"])
def test_what_a_scope_cannot_reach_is_its_own_least(scope: str) -> None:
    """Only scope global takes whole groups of convolutions."""
    budget = Budget(macs=0.15)
    with pytest.raises(BudgetError, match="the scope binds: with scope='global'") as caught:
        fxprune.plan(GRAPHS["grouped"], budget=budget, scope=scope, floor=0)
    figures = caught.value.nearest.figures["macs"]
    assert figures["achieved"] == caught.value.expected > caught.value.got == figures["asked"]  # type: ignore[operator]
    assert fxprune.plan(GRAPHS["grouped"], budget=budget, floor=0).figures["macs"]["achieved"] <= figures["asked"]


def test_the_least_possible_is_the_plan_where_the_search_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(solver, "_enumerated", lambda _: None)
    monkeypatch.setattr(solver, "searched", lambda *_: None)
    plan = fxprune.plan(GRAPHS["chain"], budget=Budget(macs=0.5))
    assert plan.figures["macs"]["achieved"] <= plan.figures["macs"]["asked"]
    assert plan.figures["kept score"]["gap"] > 0.1
    with pytest.raises(BudgetError, match="cannot be met"):
        fxprune.plan(GRAPHS["chain"], budget=Budget(macs=0.01))


def test_the_oracle_sees_a_worse_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = ("chain", {"a": [1.0, 2.0, 3.0, 4.0], "b": [1.0, 2.0, 3.0]}, {"macs": 0.5})
    monkeypatch.setattr(solver, "_enumerated", lambda _: None)
    monkeypatch.setattr(solver, "choices_from", lambda choices: lambda _: choices.last)  # everything goes that may
    with pytest.raises(AssertionError):
        check(problem, 0.1, 1, exact=True)
