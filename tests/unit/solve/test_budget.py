"""Budgets as people write them: amounts, globs, floors, errors in words, scopes, tables of measured costs."""

from __future__ import annotations

import math
import pickle
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import fxprune
from fxprune import Budget, BudgetError, zoo
from fxprune.graph.cost import Cost
from fxprune.latency.table import LatencyTable
from fxprune.score.scores import Scored
from fxprune.solve import optimise as solver
from fxprune.solve.budget import amount
from fxprune.solve.cost_table import CostEntry, MeasuredCosts
from fxprune.solve.landscape import Landscape
from fxprune.solve.limits import limits
from fxprune.solve.measured import meet_latency
from fxprune.solve.plans import removed_channels
from fxprune.solve.scopes import Shares
from fxprune.solve.search import Choices
from fxprune.solve.slots import Slot, Slots
from tests.property.program import randomise
from tests.property.test_cost import counted
from tests.unit.api.nets import seeded


class Two(nn.Module):
    """Two stages of equal structure, with batch norms."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU())
        self.one = nn.Sequential(nn.Conv2d(16, 24, 3, padding=1), nn.BatchNorm2d(24), nn.ReLU())
        self.two = nn.Sequential(nn.Conv2d(24, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU())
        self.head = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.two(self.one(self.stem(x))).mean((2, 3)))  # type: ignore[no-any-return]


def network() -> tuple[nn.Module, tuple[Tensor]]:
    model = seeded(Two()).eval()
    torch.manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.1, 1)
    return model, (torch.randn(2, 3, 8, 8, dtype=torch.float64),)


def widths(plan: fxprune.Plan) -> list[int]:
    return [len(plan.kept[f"{name}.0.weight"][0]) for name in ("stem", "one", "two")]


@pytest.mark.parametrize(
    ("kind", "given", "value", "share"),
    [
        ("macs", 0.5, 0.5, True),
        ("macs", "50%", 0.5, True),
        ("macs", 1.0, 1.0, True),
        ("params", 2_000_000, 2e6, False),
        ("params", "2M", 2e6, False),
        ("params", "50", 50, False),
        ("macs", "1.8G", 1.8e9, False),
        ("macs", 2e9, 2e9, False),
        ("activation_bytes", "10MB", 1e7, False),
        ("activation_bytes", "1MiB", 2**20, False),
        ("latency", "12ms", 0.012, False),
        ("latency", "800us", 0.0008, False),
        ("latency", 0.5, 0.5, True),
        ("macs", "0.5", 0.5, True),
        ("latency", ".5", 0.5, True),
        ("macs", "5e-1", 0.5, True),
        ("macs", "1e0", 1.0, True),
        ("macs", "5e8", 5e8, False),
        ("params", "1", 1, False),
        ("params", "2_000_000", 2e6, False),
        ("macs", np.float32(0.5), 0.5, True),
        ("params", np.int64(2000), 2000, False),
    ],
)
def test_amounts(kind: str, given: Any, value: float, share: bool) -> None:
    found = amount(kind, given)
    assert (found.value, found.share) == (pytest.approx(value), share)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({}, "bounds nothing"),
        ({"macs": 50}, r"Did you mean 0\.5\?"),
        ({"macs": 1}, r"Did you mean 1\.0\?"),
        ({"macs": "1,5G"}, "got '1,5G'"),
        ({"macs": 40.0}, r"Did you mean 0\.4\?"),
        ({"macs": -1}, "what REMAINS"),
        ({"macs": 0}, "what REMAINS"),
        ({"macs": float("nan")}, "what REMAINS"),
        ({"macs": True}, "got True"),
        ({"macs": "fast"}, "got 'fast'"),
        ({"macs": "150%"}, "got '150%'"),
        ({"params": "10MB"}, "Units of params"),
        ({"latency": 120}, "without a unit"),
        ({"latency": "12"}, "Units of latency: s, ms"),
        ({"bounds": {"layer1": {"width": 3}}}, r"bounds\['layer1'\] must be a dict"),
        (
            {"macs": 0.5, "bounds": {"*": {"macs": 0.9}}},
            r"bounds\['\*'\] and macs= both bound the macs of the whole model: give one",
        ),
        ({"macs": 0.5, "floors": {"layer1": 2}}, r"floors\['layer1'\]"),
        ({"macs": 0.5, "table": 3}, "table must have"),
    ],
)
def test_what_makes_no_sense(fields: dict[str, Any], says: str) -> None:
    with pytest.raises(BudgetError, match=says):
        Budget(**fields)


def test_a_budget_is_a_value() -> None:
    budget = Budget(macs=0.5, params="2M", floors={"stem": 0.5})
    assert budget == Budget(macs=0.5, params="2M", floors={"stem": 0.5}) != Budget(macs=0.5)
    assert pickle.loads(pickle.dumps(budget)) == budget  # noqa: S301 - our own bytes
    assert repr(budget) == "Budget(params='2M', macs=0.5, floors={'stem': 0.5})"


@pytest.mark.parametrize("amounts", [{"macs": 0.5}, {"params": 0.4}, {"activation_bytes": 0.6}, {"macs": 0.6, "params": "4k"}])
def test_a_budget_is_met_and_used(amounts: dict[str, Any]) -> None:
    model, inputs = network()
    slim = fxprune.slim(model, None, inputs, budget=Budget(**amounts))
    figures, costs = fxprune.plan_of(slim).figures, counted(slim, inputs, model)
    assert all(figures[kind]["achieved"] == costs[kind] <= figures[kind]["asked"] for kind in amounts)
    assert max(figures[kind]["achieved"] / figures[kind]["asked"] for kind in amounts) > 0.98
    assert figures["kept score"]["gap"] < 0.02
    assert "budget" in str(fxprune.summary(slim, inputs))
    assert any("no plan for this budget keeps more" in note for note in fxprune.plan_of(slim).notes)


class Wide(nn.Module):
    """Two layers of 64 channels: a step of 32 is half of the costs."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 64, 1), nn.Conv2d(64, 64, 3), nn.Conv2d(64, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.b(self.a(x).relu()).relu())  # type: ignore[no-any-return]


def test_what_is_left_of_a_budget_is_told_with_what_binds() -> None:
    torch.manual_seed(0)
    graph = fxprune.analyze(Wide(), torch.randn(1, 3, 8, 8))

    def told(**options: Any) -> str:
        plan = fxprune.plan(graph, budget=Budget(macs=0.45), **options)
        figures = plan.figures["macs"]
        notes = [note for note in plan.notes if "not all of the budget" in note]
        assert bool(notes) == (figures["achieved"] < 0.99 * figures["asked"])
        assert all(f"{figures['achieved'] / figures['asked']:.1%} of macs is used" in note for note in notes)
        return "".join(notes)

    assert not told()
    assert "round_to=32 binds; the next step back, 32 of " in told(round_to=32)
    assert "would cost more than is left" in told(round_to=32)
    assert "round_to=8 binds; the next step back, 8 of " in told(scope="uniform", round_to=8)
    small = fxprune.analyze(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3)), torch.randn(1, 3, 8, 8))
    plan = fxprune.plan(small, budget=Budget(macs=0.7))
    (note,) = [note for note in plan.notes if "not all of the budget" in note]
    assert note.endswith(": the next step back, 1 of 0.weight, would cost more than is left")
    model, inputs = network()
    plan = fxprune.plan(fxprune.analyze(model, inputs), budget=Budget(macs=0.2, params=0.5), scope="threshold", round_to=4)
    (note,) = [note for note in plan.notes if "not all of the budget" in note]
    assert ", of others less: the scope binds; the next step back, 4 of " in note
    assert note.endswith(", would fit")


def test_bounds_on_counts_are_whole_numbers() -> None:
    model, inputs = network()
    graph = fxprune.analyze(model, inputs)
    cost = Cost(graph)
    (half,) = limits(graph, cost, Budget(macs=0.5))
    original = half.original
    assert half.bound == original // 2
    hairs = [n for n in range(1, int(original)) if n / original * original < n]
    assert hairs, "shares of whole numbers that floating point makes a hair smaller"
    for n in hairs[:: len(hairs) // 20 + 1]:
        (limit,) = limits(graph, cost, Budget(macs=n / original))
        assert limit.bound == n
    (tiny,) = limits(graph, cost, Budget(macs=0.1 / original))
    assert 0 < tiny.bound < 1


def test_parts_have_bounds_and_floors_of_their_own() -> None:
    model, inputs = network()
    graph = fxprune.analyze(model, inputs)
    free = fxprune.plan(graph, budget=Budget(macs=0.6))
    bound = fxprune.plan(graph, budget=Budget(macs=0.6, bounds={"two": {"params": 0.2}}))
    assert bound.figures["params of 'two'"]["original"] == 32 * (24 * 9 + 1 + 2)
    assert (
        bound.figures["params of 'two'"]["achieved"] <= 0.2 * 32 * (24 * 9 + 1 + 2) < bound.figures["params of 'two'"]["original"]
    )
    assert widths(bound) != widths(free)
    held = fxprune.plan(graph, budget=Budget(macs=0.3, floors={"one*": 1.0}))
    assert widths(held)[1] == 24
    with pytest.raises(BudgetError, match=r"floors: 'tow' matches no group"):
        fxprune.plan(graph, budget=Budget(macs=0.3, floors={"tow": 1.0}))
    with pytest.raises(BudgetError, match=r"bounds: 'tow' matches nothing that has macs"):
        fxprune.plan(graph, budget=Budget(bounds={"tow": {"macs": 0.5}}))


def test_what_cannot_be_met_says_what_binds_and_the_least_possible() -> None:
    model, inputs = network()
    graph = fxprune.analyze(model, inputs)
    with pytest.raises(BudgetError, match=r"floor=0\.5 binds") as caught:
        fxprune.plan(graph, budget=Budget(macs=0.1), floor=0.5)
    nearest = caught.value.nearest
    assert widths(nearest) == [8, 12, 16]
    assert nearest.figures["macs"]["achieved"] == caught.value.expected > caught.value.got  # type: ignore[operator]
    with pytest.raises(BudgetError, match="round_to=16 binds"):
        fxprune.plan(graph, budget=Budget(macs=0.1), floor=0, round_to=16)
    with pytest.raises(BudgetError, match="model output keeps its shape"):
        fxprune.plan(graph, budget=Budget(params=0.001), floor=0)


def test_ratio_or_budget_but_one_of_them() -> None:
    model, inputs = network()
    with pytest.raises(BudgetError, match="not both"):
        fxprune.slim(model, 0.5, inputs, budget=Budget(macs=0.5))
    with pytest.raises(BudgetError, match="ratio is missing"):
        fxprune.slim(model, None, inputs)
    with pytest.raises(BudgetError, match=r"must be a fxprune\.Budget"):
        fxprune.slim(model, None, inputs, budget=0.5)


def test_a_budget_that_is_met_already_changes_nothing_and_says_so() -> None:
    model, inputs = network()
    plan = fxprune.plan(fxprune.analyze(model, inputs), budget=Budget(params="1G"))
    assert plan.empty
    assert "nothing goes" in plan.notes[0]


@pytest.mark.parametrize("asked", [{"ratio": 0.5}, {"budget": Budget(macs=0.4)}])
def test_scopes(asked: dict[str, Any]) -> None:
    model, inputs = network()
    graph = fxprune.analyze(model, inputs)
    nn.init.constant_(model.one[1].weight, 0.01)  # type: ignore[index, arg-type]
    shares = {
        scope: [
            1 - w / n for w, n in zip(widths(fxprune.plan(graph, **asked, score="gamma", scope=scope)), (16, 24, 32), strict=True)
        ]
        for scope in ("global", "uniform", "isomorphic", "threshold", "below")
    }
    assert max(shares["uniform"]) - min(shares["uniform"]) < 0.08
    assert shares["global"][1] > 0.6
    assert shares["isomorphic"][1] > shares["uniform"][1]  # stem and one are ranked together
    with pytest.raises(BudgetError, match="scope must be one of"):
        fxprune.plan(graph, **asked, scope="local")


def test_isomorphic_groups_are_ranked_among_themselves() -> None:
    model, inputs = network()
    graph = fxprune.analyze(model, inputs)
    nn.init.constant_(model.two[1].weight, 0.01)  # type: ignore[index, arg-type]
    plan = fxprune.plan(graph, 0.5, scope="isomorphic")
    # stem and one are read by convolutions and are ranked together; two is read by a linear layer and loses half of its own
    assert widths(plan)[2] == 16
    assert sum(widths(plan)[:2]) == 20


def test_a_threshold_takes_the_lowest_scores_whatever_they_cost_or_stand_for() -> None:
    """The rule of Network Slimming, brought to a budget: a prefix of one ranking, where no floor is in the way."""
    torch.manual_seed(3)
    model = randomise(zoo.resnet20()).float().eval()
    graph = fxprune.analyze(model, torch.randn(1, 3, 32, 32))
    plan = fxprune.plan(graph, budget=Budget(macs=0.6), scope="threshold", floor=0.05)
    assert plan.score == "gamma"  # not gamma:log, which other scopes take for a budget
    gone = removed_channels(graph, plan)
    assert all((~gone[g.channels]).sum() > math.ceil(0.05 * len(g)) for g in graph.groups)
    values = np.concatenate([fxprune.score.gamma(g).numpy() for g in graph.groups])
    went = np.concatenate([gone[g.channels] for g in graph.groups])
    assert 0 < values[went].max() <= values[~went].min()
    achieved = plan.figures["macs"]
    assert 0.97 * achieved["asked"] < achieved["achieved"] <= achieved["asked"]
    assert fxprune.plan(graph, plan.achieved, scope="threshold", floor=0.05).kept == plan.kept


@pytest.mark.parametrize("options", [{"floor": 0.6}, {"round_to": 4}, {"floor": 0.25, "round_to": 6}])
@pytest.mark.parametrize("score", ["l1", "below zero"])
def test_a_threshold_is_the_rule_of_ratios(options: dict[str, Any], score: str) -> None:
    """Floors in the way, widths rounded, no scale factors, negative scores: what goes for a budget is what goes for the ratio that it comes to."""
    torch.manual_seed(1)
    layers = [
        nn.Conv2d(3, 12, 3),
        nn.ReLU(),
        nn.Conv2d(12, 24, 3),
        nn.ReLU(),
        nn.Conv2d(24, 18, 1),
        nn.ReLU(),
        nn.Conv2d(18, 2, 1),
    ]
    graph = fxprune.analyze(nn.Sequential(*layers), torch.randn(1, 3, 9, 9))
    given = {group.name: torch.randn(len(group), dtype=torch.float64) - 1 for group in graph.groups}
    how: Any = score if score == "l1" else lambda group: given[group.name]
    plan = fxprune.plan(graph, budget=Budget(macs=0.6), scope="threshold", score=how, **options)
    assert not plan.empty
    assert plan.kept == fxprune.plan(graph, plan.achieved, score=how, **options).kept
    assert plan.figures["kept score"]["achieved"] <= plan.figures["kept score"]["bound"]


@pytest.mark.parametrize("asked", [{"budget": Budget(macs=0.6)}, {"ratio": 0.4}])
@pytest.mark.parametrize("seed", range(3))
def test_below_a_threshold_the_lowest_of_a_step_decides(seed: int, asked: dict[str, Any]) -> None:
    torch.manual_seed(seed)
    widths, multiple = (12, 24, 18), 4
    convs = [nn.Conv2d(a, b, 1) for a, b in zip((3, *widths), (*widths, 2), strict=True)]
    graph = fxprune.analyze(nn.Sequential(*(layer for conv in convs for layer in (conv, nn.ReLU()))), torch.randn(1, 3, 9, 9))
    given = {group.name: torch.rand(len(group), dtype=torch.float64) for group in graph.groups}
    options: dict[str, Any] = {**asked, "score": lambda group: given[group.name], "floor": 0.05}
    plan = fxprune.plan(graph, scope="below", round_to=multiple, **options)
    gone, stay = [], []
    for group in graph.groups:
        values = sorted(given[group.name].tolist())
        kept = len(plan.kept.get(group.name, {}).get(0, values))
        assert kept == len(group) or kept % multiple == 0
        first = len(group) % multiple or multiple
        starts = [0, *range(first, len(group) - multiple + 1, multiple)]  # the last multiple stays
        ends = [*starts[1:], len(group)]
        assert len(group) - kept in starts
        for start, end in zip(starts[:-1], ends[:-1], strict=True):
            (gone if end <= len(group) - kept else stay).append(values[start])
    assert gone
    assert max(gone) < min(stay)
    even = {scope: fxprune.plan(graph, scope=scope, **options).kept for scope in ("threshold", "below")}
    assert even["threshold"] == even["below"]  # widths as they fall: nothing to round


def test_one_low_score_takes_a_whole_step_below_a_threshold() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 8, 1), nn.ReLU(), nn.Conv2d(8, 2, 1))
    graph = fxprune.analyze(model, torch.randn(1, 3, 5, 5))
    given = {"0.weight": torch.tensor([0.0] + [1.0] * 7), "2.weight": torch.full((8,), 0.5)}
    widths = {}
    for scope in ("threshold", "below"):
        plan = fxprune.plan(graph, 0.25, scope=scope, score=lambda group: given[group.name], round_to=4)
        widths[scope] = [len(plan.kept.get(name, {}).get(0, range(8))) for name in given]
    assert widths == {"threshold": [8, 4], "below": [4, 8]}


class Streams(nn.Module):
    """Groups of a convolution read two layers at once. The channels of one pass two norms, those of the other one."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.n, self.b, self.m = nn.Conv2d(3, 6, 1), nn.BatchNorm2d(6), nn.Conv2d(6, 6, 1), nn.BatchNorm2d(6)
        self.c, self.k = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)
        self.d, self.e = nn.Conv2d(10, 6, 3, groups=2), nn.Conv2d(6, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.n(self.a(x)).relu()
        y = y + self.m(self.b(y))
        return self.e(self.d(torch.cat([y, self.k(self.c(x))], 1)).relu())  # type: ignore[no-any-return]


@pytest.mark.parametrize("seed", range(4))
def test_a_threshold_takes_the_lowest_of_each_cell(seed: int) -> None:
    graph = fxprune.analyze(Streams().eval(), torch.randn(1, 3, 6, 6))
    torch.manual_seed(seed)
    given = {group.name: torch.rand(len(group), dtype=torch.float64) + 1 for group in graph.groups}
    plan = fxprune.plan(graph, budget=Budget(macs=0.7), scope="threshold", score=lambda group: given[group.name])
    scores = torch.cat([given["a.weight"], given["c.weight"]])
    live = {*plan.kept["a.weight"][0], *(6 + row for row in plan.kept["c.weight"][0])}
    for block in (range(5), range(5, 10)):
        gone = [float(scores[i]) for i in block if i not in live]
        assert max(gone, default=0.0) < min(float(scores[i]) for i in block if i in live)
    assert len(live) < 10


def test_a_threshold_keeps_the_highest_where_slots_share_a_floor() -> None:
    """Of 3 + 5 channels of one group 4 may go: the lowest, and not as large a share of either slot as of the other."""
    model, inputs = network()
    graph = fxprune.analyze(model, inputs)
    two = next(group for group in graph.groups if group.name.startswith("two"))
    runs = two.channels[:3], two.channels[3:8]
    worth = np.zeros(graph.closed.count)
    worth[two.channels] = np.arange(len(two))
    slots = tuple(Slot(tuple(run[:, None]), worth[run], {2: np.arange(len(run) + 1)}, np.arange(len(run) + 1)) for run in runs)
    alive = np.ones(graph.closed.count, np.bool_)
    choices = Choices(Landscape(Slots(slots, alive, ((2, 4),), worth.sum(), worth), (), np.zeros(1), np.zeros((1, 2))))
    scored = Scored("given", tuple(torch.from_numpy(worth[group.channels]) for group in graph.groups))
    assert Shares(graph, choices, "threshold", scored).at(1.0).tolist() == [3, 1]
    assert Shares(graph, choices, "isomorphic", scored).at(1.0).tolist() == [1, 3]


def table(factor: float = 1.0) -> MeasuredCosts:
    """Costs that fall in steps of eight channels, as vector units do."""
    grid = tuple(range(1, 25))
    cost = np.ceil(np.array(grid) / 8)[:, None] * np.ceil(np.arange(1, 17) / 8)[None, :] * factor
    one = CostEntry("one", (("one.0.weight", 0), ("one.0.weight", 1)), (grid, tuple(range(1, 17))), cost)
    two = CostEntry("two", (("two.0.weight", 0),), ((8, 16, 32),), np.array([1.0, 2.0, 4.0]) * factor)
    return MeasuredCosts(0.5 * factor, (one, two))


def test_latency_by_a_table() -> None:
    model, inputs = network()
    graph = fxprune.analyze(model, inputs)
    plan = fxprune.plan(graph, budget=Budget(latency=0.7, table=table(1e-3)))
    figures = plan.figures["latency"]
    assert figures["original"] == pytest.approx((0.5 + 3 * 2 + 4) * 1e-3)
    assert figures["achieved"] <= 0.7 * figures["original"]
    stem, one, two = widths(plan)
    predicted = 0.5 + np.ceil(one / 8) * np.ceil(stem / 8) + np.interp(two, [8, 16, 32], [1, 2, 4])
    assert figures["achieved"] == pytest.approx(predicted * 1e-3)
    assert plan.figures["kept score"]["gap"] < 0.1
    both = fxprune.plan(graph, budget=Budget(latency="9ms", macs=0.5, table=table(1e-3)))
    assert both.figures["latency"]["achieved"] <= 9e-3
    assert both.figures["macs"]["achieved"] <= both.figures["macs"]["asked"]


@pytest.mark.parametrize("round_to", [1, 2, 8])
def test_figures_are_the_seconds_of_the_table(round_to: int) -> None:
    """What odd widths cost more is in both."""
    model, inputs = network()
    graph = fxprune.analyze(model, inputs)
    given = table(1e-3)
    odd = {entry.name: tuple({4: 1.1, 2: 1.3, 1: 1.6} for _ in entry.axes) for entry in given.entries}
    costs = LatencyTable(given.constant, given.entries, 0.01, 1.0, 8, odd, "given", {})
    for budget in (Budget(latency=0.7, table=costs), Budget(latency=0.8, macs=0.6, table=costs)):
        plan = fxprune.plan(graph, budget=budget, round_to=round_to)
        figures = plan.figures["latency"]
        assert figures["achieved"] == pytest.approx(costs.seconds(plan), rel=1e-12)
        assert figures["achieved"] <= figures["asked"] * (1 + 1e-12)
        assert figures["original"] == pytest.approx(costs.seconds(), rel=1e-12)
        assert plan.figures["kept score"]["achieved"] <= plan.figures["kept score"]["bound"]


def test_latency_without_a_table_or_with_that_of_another_model() -> None:
    model, inputs = network()
    graph = fxprune.analyze(model, inputs)
    with pytest.raises(BudgetError, match="needs measurements"):
        limits(graph, Cost(graph), Budget(latency="1ms"))
    other = MeasuredCosts(0.0, (CostEntry("x", (("one.0.weight", 0),), ((8, 20),), np.array([1.0, 2.0])),))
    with pytest.raises(BudgetError, match="does not belong to this model"):
        fxprune.plan(graph, budget=Budget(latency=0.5, table=other))
    with pytest.raises(BudgetError, match="ascending grid"):
        CostEntry("x", (("w", 0),), ((8, 8),), np.array([1.0, 2.0]))


def test_budgets_survive_saving(tmp_path: Any) -> None:
    model, inputs = network()
    slim = fxprune.slim(model, None, inputs, budget=Budget(macs=0.5))
    fxprune.save(slim, tmp_path / "slim.safetensors")
    assert fxprune.plan_of(fxprune.load(Two(), tmp_path / "slim.safetensors")).figures == fxprune.plan_of(slim).figures


class Decides(nn.Module):
    """What no tracer takes: Python decides upon numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 24, 3), nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x).relu()
        if x.sum() > 0:
            x = x * 2
        return self.c(self.b(x).mean((2, 3)))  # type: ignore[no-any-return]


def test_eager_modules_meet_budgets() -> None:
    model, x = Decides().eval(), torch.randn(2, 3, 9, 9)
    slim = fxprune.slim(model, None, x, budget=Budget(macs=0.5, bounds={"b": {"macs": 0.3}}))
    figures = fxprune.plan_of(slim).figures
    assert isinstance(slim, Decides)
    assert fxprune.summary(slim, x).macs == figures["macs"]["achieved"] <= figures["macs"]["asked"]
    assert figures["macs of 'b'"]["achieved"] == 2 * 25 * 9 * slim.a.out_channels * slim.b.out_channels
    with pytest.raises(BudgetError, match="without a graph"):
        fxprune.slim(model, None, x, budget=Budget(activation_bytes=0.5))


class Attends(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.i, self.o = nn.Linear(10, 32), nn.Linear(32, 3)
        self.att = nn.MultiheadAttention(32, 4, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.i(x)
        return self.o(x + self.att(x, x, x, need_weights=False)[0])  # type: ignore[no-any-return]


@pytest.mark.parametrize("enumerated", [True, False])
def test_heads_that_do_little_go_whole(enumerated: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not enumerated:
        monkeypatch.setattr(solver, "_enumerated", lambda _: None)
    torch.manual_seed(0)
    model, x = Attends().eval(), torch.randn(2, 6, 10)
    with torch.no_grad():
        model.att.in_proj_weight.view(3, 4, 8, 32)[:, [1, 3]] *= 0.01
        model.att.out_proj.weight.view(32, 4, 8)[:, [1, 3]] *= 0.01
    slim = fxprune.slim(model, None, x, budget=Budget(params=0.5))
    plan = fxprune.plan_of(slim)
    assert sum(p.numel() for p in slim.parameters()) == plan.figures["params"]["achieved"] <= plan.figures["params"]["asked"]
    assert {row % 32 // 8 for row in plan.kept["att.in_proj_weight"][0]} == {0, 2}
    assert plan.figures["kept score"]["achieved"] <= plan.figures["kept score"]["bound"]


@pytest.mark.parametrize("truth", [0.8, 1.0, 1.25])
def test_a_latency_budget_is_met_by_the_clock(truth: float) -> None:
    """A machine that is slower or faster than its table says: the aim is corrected until the clock agrees."""
    model, inputs = network()
    graph = fxprune.analyze(model, inputs)
    costs = table(1e-3)

    def clock(plan: fxprune.Plan) -> float:
        return truth * plan.figures["latency"]["achieved"]

    budget = Budget(latency="8ms", table=costs)
    found = meet_latency(budget, lambda b: fxprune.plan(graph, budget=b), lambda plan: plan, clock)
    assert found.seconds <= 8e-3
    assert found.seconds > 0.85 * 8e-3
    assert found.plan.figures["latency"]["measured"] == found.seconds
    assert found.plan.figures["latency"]["asked"] == 8e-3
    assert fxprune.Plan.from_json(found.plan.to_json()) == found.plan


def test_a_clock_that_never_agrees_is_an_error() -> None:
    model, inputs = network()
    graph = fxprune.analyze(model, inputs)
    budget = Budget(latency="8ms", table=table(1e-3))
    with pytest.raises(BudgetError, match=r"was not met in \d rounds: the fastest model took 1e"):
        meet_latency(budget, lambda b: fxprune.plan(graph, budget=b), lambda plan: plan, lambda _: 1.0)
    with pytest.raises(BudgetError, match="bounds no latency"):
        meet_latency(Budget(macs=0.5), lambda b: fxprune.plan(graph, budget=b), lambda plan: plan, lambda _: 1.0)


@pytest.mark.parametrize(
    "asked",
    [
        {"ratio": 0.3},
        {"budget": Budget(macs=0.6)},
        *({"ratio": 0.3, "scope": scope} for scope in ("uniform", "isomorphic", "threshold", "below")),
        {"budget": Budget(macs=0.6), "scope": "uniform"},
        {"ratio": 0.3, "layout": "selection"},
    ],
)
def test_rounding_to_nothing_is_told(asked: dict[str, Any]) -> None:
    model, inputs = network()
    graph = fxprune.analyze(model, inputs)
    plan = fxprune.plan(graph, **asked, round_to=16)
    told = "groups whole, which have no smaller multiple that floors and balances allow:"
    assert f"round_to=16 leaves 1 of 3 {told} stem.0.weight (16)" in plan.notes
    assert not any("groups whole" in note for note in fxprune.plan(graph, **asked, round_to=4).notes)
    less = {**asked, **({"ratio": 0.1} if "ratio" in asked else {"budget": Budget(macs=0.9)})}
    held = fxprune.plan(graph, **less, round_to=8, floor=0.7)  # 16 and 24 wide: 8 and 16 are below the floors
    assert f"round_to=8 leaves 2 of 3 {told} stem.0.weight (16), one.0.weight (24)" in held.notes
    whole = fxprune.plan(graph, **less, round_to=1, floor=0.7)
    assert not any("groups whole" in note for note in whole.notes)


def test_by_default_a_budget_keeps_shares_of_layers() -> None:
    model, inputs = network()
    graph = fxprune.analyze(model, inputs)
    assert fxprune.plan(graph, budget=Budget(macs=0.5)).score == "gamma:log"
    assert fxprune.plan(graph, 0.5).score == "gamma"
    least = {
        score: min(
            w / n for w, n in zip(widths(fxprune.plan(graph, budget=Budget(macs=0.3), score=score)), (16, 24, 32), strict=True)
        )
        for score in ("auto", "gamma")
    }
    assert least["auto"] >= least["gamma"]


class Biased(nn.Module):
    """Attention with a bias per head, which goes with its head or not at all."""

    def __init__(self) -> None:
        super().__init__()
        self.i, self.qkv, self.o = nn.Linear(6, 12), nn.Linear(12, 96), nn.Linear(32, 2)
        self.bias = nn.Parameter(torch.randn(4, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        q, k, v = self.qkv(self.i(x).relu()).reshape(b, n, 3, 4, 8).permute(2, 0, 3, 1, 4)
        weights = (q @ k.transpose(-2, -1) + self.bias).softmax(-1)
        return self.o((weights @ v).transpose(1, 2).reshape(b, n, 32))  # type: ignore[no-any-return]


@pytest.mark.parametrize("asked", [{"ratio": 0.3}, {"budget": Budget(params=0.7)}])
def test_heads_that_rounding_keeps_are_told_where_heads_could_go(asked: dict[str, Any]) -> None:
    torch.manual_seed(0)
    graph = fxprune.analyze(Biased().eval(), torch.randn(2, 5, 6))
    notes = {scope: "".join(fxprune.plan(graph, **asked, round_to=4, scope=scope).notes) for scope in ("global", "uniform")}
    assert "round_to=4 leaves 1 of 4 groups whole" in notes["global"]
    assert "bias (4)" in notes["global"]
    assert "groups whole" not in notes["uniform"]
