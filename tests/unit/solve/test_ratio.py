"""The solver against a brute-force reference, and its laws."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import fxprune
from fxprune.errors import BudgetError, NothingToPruneError
from fxprune.graph.channels import ChannelGraph, ChannelGroup
from tests.property.profile import share
from tests.unit.api.nets import Chain, Residual, image, seeded


class Mixed(nn.Module):
    """A norm over two groups at once, a group without a norm, a pinned one."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.norm = nn.Conv2d(3, 5, 1), nn.Conv2d(3, 4, 1), nn.BatchNorm2d(9)
        self.c, self.d = nn.Conv2d(9, 7, 1), nn.Conv2d(7, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.d(F.relu(self.c(F.relu(self.norm(torch.cat([self.a(x), self.b(x)], 1))))))


class Doubled(nn.Module):
    """A channel that counts twice: its norm sees it twice."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm, self.body = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(8), nn.Conv2d(8, 5, 1)
        self.norm2, self.head = nn.BatchNorm2d(5), nn.Conv2d(5, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head(F.relu(self.norm2(self.body(F.relu(self.norm(torch.cat([x, x], 1)))))))


GRAPHS = {build.__name__: fxprune.analyze(seeded(build()), image()) for build in (Chain, Residual, Mixed, Doubled)}


def counted(graph: ChannelGraph, group: ChannelGroup) -> list[int]:
    """How many channels of norms (or else of producers) each channel of a group stands for."""
    norms, producers = [0] * len(group), [0] * len(group)
    for member in group.members:
        for channel in member.channel.tolist():
            if member.name in group.gammas:
                norms[channel] += 1
            elif not member.reads and graph.tensors[member.name].dim() > 1:
                producers[channel] += 1
    return [n or p or 1 for n, p in zip(norms, producers, strict=True)]


def reference(graph: ChannelGraph, values: list[list[float]], ratio: float, floor: float) -> tuple[set[tuple[int, int]], float]:
    """Which channels (group, index) go, and what share that is: one after another, by score, then by rank in the group, then by number."""
    everything = []
    for g, (group, own) in enumerate(zip(graph.groups, values, strict=True)):
        ranked = sorted(range(len(own)), key=lambda i: (own[i], int(group.channels[i])))
        everything += [(own[i], place / len(own), int(group.channels[i]), g, i) for place, i in enumerate(ranked)]
    everything.sort()
    left = [len(group) for group in graph.groups]
    order = []
    for *_, g, i in everything:
        least = 0 if floor == 0 else max(1, math.ceil(floor * len(graph.groups[g]) - 1e-9))
        if left[g] > least:
            left[g] -= 1
            order.append((g, i))
    weights = [counted(graph, group) for group in graph.groups]
    total = sum(map(sum, weights))
    shares = [0]
    for g, i in order:
        shares.append(shares[-1] + weights[g][i])
    best = min(range(len(shares)), key=lambda k: (abs(shares[k] - ratio * total), k))
    return set(order[:best]), shares[best] / total


def solved(
    graph: ChannelGraph, values: list[list[float]], ratio: float, **options: Any
) -> tuple[set[tuple[int, int]], fxprune.Plan]:
    plan = fxprune.plan(graph, ratio, score=given_values(graph, values), **options)
    gone = set()
    for g, group in enumerate(graph.groups):
        member = next(m for m in group.members if m.name == group.name and not m.reads)
        alive = set(plan.kept[member.name][member.dim])
        gone |= {(g, c) for c, atom in zip(member.channel.tolist(), member.atom.tolist(), strict=True) if atom not in alive}
    return gone, plan


def given_values(graph: ChannelGraph, values: list[list[float]]) -> Callable[[ChannelGroup], Tensor]:
    names = [group.channels.tobytes() for group in graph.groups]

    def score(group: ChannelGroup) -> Tensor:
        return torch.tensor(values[names.index(group.channels.tobytes())], dtype=torch.float64)

    return score


@st.composite
def problems(draw: st.DrawFn) -> tuple[ChannelGraph, list[list[float]]]:
    """A graph and scores with ties."""
    graph = GRAPHS[draw(st.sampled_from(sorted(GRAPHS)))]
    values = [draw(st.lists(st.integers(0, 6).map(float), min_size=len(g), max_size=len(g))) for g in graph.groups]
    return graph, values


@share(3)
@given(problems(), st.floats(0, 0.6), st.sampled_from([0.1, 0.3, 0.01]))
def test_the_solver_takes_what_the_reference_takes(
    problem: tuple[ChannelGraph, list[list[float]]], ratio: float, floor: float
) -> None:
    graph, values = problem
    gone, plan = solved(graph, values, ratio, floor=floor)
    expected, achieved = reference(graph, values, ratio, floor)
    assert gone == expected
    assert plan.achieved == pytest.approx(achieved, abs=1e-12)
    assert plan.asked == ratio


@share(1)
@given(problems(), st.lists(st.floats(0, 0.6), min_size=2, max_size=4))
def test_larger_ratios_remove_more(problem: tuple[ChannelGraph, list[list[float]]], ratios: list[float]) -> None:
    graph, values = problem
    taken = [solved(graph, values, ratio)[0] for ratio in sorted(ratios)]
    assert all(a <= b for a, b in pairwise(taken))


@share(1)
@given(problems(), st.floats(0, 0.6), st.floats(0.1, 10), st.floats(0.1, 3))
def test_only_the_order_of_scores_matters(
    problem: tuple[ChannelGraph, list[list[float]]], ratio: float, scale: float, power: float
) -> None:
    """Any increasing function of the scores gives the same plan where units are single channels."""
    graph, values = problem
    bent = [[scale * (v + 1) ** power for v in own] for own in values]
    assert solved(graph, values, ratio)[0] == solved(graph, bent, ratio)[0]


@share(1)
@given(problems(), st.floats(0.05, 0.6), st.sampled_from([0.0, 0.1, 0.25, 0.5]))
def test_floors_hold(problem: tuple[ChannelGraph, list[list[float]]], ratio: float, floor: float) -> None:
    graph, values = problem
    try:
        gone, plan = solved(graph, values, ratio, floor=floor)
    except BudgetError:
        assert floor > 0.25
        return
    for g, group in enumerate(graph.groups):
        left = len(group) - sum(1 for which, _ in gone if which == g)
        assert left >= max(1, math.ceil(floor * len(group) - 1e-9))  # an emptied group keeps one that is silent
    assert plan.achieved <= 1 - floor + 1e-9


@share(1)
@given(problems(), st.floats(0.1, 0.6), st.sampled_from([2, 3]))
def test_widths_are_multiples_of_round_to_or_untouched(
    problem: tuple[ChannelGraph, list[list[float]]], ratio: float, round_to: int
) -> None:
    graph, values = problem
    try:
        gone, _ = solved(graph, values, ratio, round_to=round_to)
    except BudgetError:
        return
    for g, group in enumerate(graph.groups):
        lost = sum(1 for which, _ in gone if which == g)
        assert lost == 0 or (len(group) - lost) % round_to == 0
        own = sorted((values[g][i], int(group.channels[i]), i) for i in range(len(group)))
        assert {i for which, i in gone if which == g} == {i for _, _, i in own[:lost]}


@pytest.mark.parametrize("name", sorted(GRAPHS))
def test_determinism(name: str) -> None:
    graph = GRAPHS[name]
    flat = [[1.0] * len(group) for group in graph.groups]
    assert solved(graph, flat, 0.4)[1].to_json() == solved(graph, flat, 0.4)[1].to_json()


def test_ties_are_cut_evenly_from_all_groups() -> None:
    """An untrained network, all of whose gammas are 1, loses the same share of every layer."""
    gone, _ = solved(GRAPHS["Chain"], [[1.0] * 8, [1.0] * 10], 9 / 18)
    assert sorted(g for g, _ in gone) == [0] * 4 + [1] * 5


def test_the_share_counts_norm_channels() -> None:
    """Two channels of ``stem`` stand for four of its norm's eight; ``body`` has five."""
    gone, plan = solved(GRAPHS["Doubled"], [[1.0, 2.0, 3.0, 4.0], [9.0] * 5], 4 / 13)
    assert gone == {(0, 0), (0, 1)}
    assert plan.achieved == pytest.approx(4 / 13)


def test_the_share_counts_producers_where_there_is_no_norm() -> None:
    model = seeded(nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 2)))
    plan = fxprune.plan(fxprune.analyze(model, image(2, 3)), 0.5)
    gone = len(plan.removed("0.weight", 0)) + len(plan.removed("2.weight", 0))
    assert plan.achieved == gone / 10 == 0.5
    assert plan.score == "magnitude"


@pytest.mark.parametrize(
    ("ratio", "expected"), [(0.0, 0), (0.02, 0), (0.03, 1), (1 / 18, 1), (1.4 / 18, 1), (1.6 / 18, 2), (0.5, 9)]
)
def test_the_closest_prefix(ratio: float, expected: int) -> None:
    gone, _ = solved(GRAPHS["Chain"], [[float(i) for i in range(8)], [float(i) + 0.5 for i in range(10)]], ratio)
    assert len(gone) == expected


def test_a_ratio_just_beyond_the_floors_takes_all_there_is() -> None:
    """The nearest prefix is the last one; only what is farther than half a unit from it is refused."""
    values = [[1.0] * 8, [1.0] * 10]
    assert len(solved(GRAPHS["Chain"], values, 16.4 / 18, floor=0.01)[0]) == 16
    with pytest.raises(BudgetError, match="cannot be reached") as caught:
        solved(GRAPHS["Chain"], values, 16.6 / 18, floor=0.01)
    assert caught.value.expected == pytest.approx(16 / 18)


# -- channels that are thinned in step ---------------------------------------------------------------------------------


class Grouped(nn.Module):
    """A grouped convolution between two others, and a shuffle behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 24, 1), nn.BatchNorm2d(24)
        self.body, self.norm2 = nn.Conv2d(24, 24, 3, groups=3, padding=1), nn.BatchNorm2d(24)
        self.head = nn.Conv2d(24, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.stem(x)))
        return self.head(F.channel_shuffle(F.relu(self.norm2(self.body(x))), 2))


@pytest.mark.parametrize("round_to", [1, 2, 6])
@pytest.mark.parametrize("ratio", [0.2, 0.6])
def test_blocks_keep_equally_many(ratio: float, round_to: int) -> None:
    graph = fxprune.analyze(seeded(Grouped()), image())
    plan = fxprune.plan(graph, ratio, score="random", round_to=round_to)
    for name, blocks in (("stem.weight", (3,)), ("body.weight", (3, 2))):
        kept = plan.kept[name][0]
        for parts in blocks:
            counts = {sum(1 for i in kept if i * parts // 24 == block) for block in range(parts)}
            assert len(counts) == 1, f"{name} in {parts} blocks: {counts}"
        assert len(kept) % round_to == 0
    assert not plan.empty


def test_blocks_that_no_multiple_fits_are_told() -> None:
    """24 channels in 3 blocks keep 3, 6, ... 21; behind the shuffle, in 6 cells, 6, 12 or 18."""
    graph = fxprune.analyze(seeded(Grouped()), image())
    with pytest.raises(NothingToPruneError, match="round_to=16"):
        fxprune.plan(graph, 0.3, round_to=16)
    plan = fxprune.plan(graph, 0.2, round_to=15)
    assert [note for note in plan.notes if "round_to" in note] == [
        "round_to=15 leaves 1 of 2 groups whole, which have no smaller multiple that floors and balances allow: body.weight (24)"
    ]


class Fused(nn.Module):
    """Attention with queries, keys and values from one layer: two groups, thinned in step."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.qkv, self.out, self.head = nn.Linear(6, 12), nn.Linear(12, 288), nn.Linear(96, 12), nn.Linear(12, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        q, k, v = self.qkv(x).reshape(x.shape[0], x.shape[1], 3, 3, 32).permute(2, 0, 3, 1, 4)
        weights = (q @ k.transpose(-2, -1)).softmax(-1)
        return self.head(x + self.out((weights @ v).transpose(1, 2).reshape(x.shape[0], x.shape[1], 96)))


@pytest.mark.parametrize("asked", [{"ratio": 0.1}, {"ratio": 0.4}, {"budget": fxprune.Budget(params=0.8)}])
@pytest.mark.parametrize("scope", ["global", "uniform", "threshold", "below"])
def test_every_group_of_a_step_ends_at_a_multiple(asked: dict[str, Any], scope: str) -> None:
    graph = fxprune.analyze(seeded(Fused()), image(2, 5, 6))
    plan = fxprune.plan(graph, **asked, round_to=8, scope=scope)
    kept = plan.kept["qkv.weight"][0]
    thirds = [sum(1 for row in kept if row // 96 == part) for part in range(3)]
    assert min(thirds) > 0
    assert all(count % 8 == 0 for count in thirds), thirds


def test_blocks_lose_their_own_least_important_channels() -> None:
    graph = fxprune.analyze(seeded(Grouped()), image())
    kept = fxprune.plan(graph, 0.3).kept["stem.weight"][0]
    gammas = graph.tensors["norm.weight"].abs().tolist()
    for block in range(3):
        own = range(8 * block, 8 * block + 8)
        stay = [i for i in own if i in kept]
        assert min(gammas[i] for i in stay) >= max((gammas[i] for i in own if i not in stay), default=0.0)


@pytest.mark.parametrize("score", ["gamma", "random"])
def test_plans_of_networks_with_balances_are_nested(score: str) -> None:
    graph = fxprune.analyze(seeded(Grouped()), image())
    last: dict[str, set[int]] = {}
    for ratio in (0.1, 0.25, 0.4, 0.55, 0.7):
        plan = fxprune.plan(graph, ratio, score=score)
        for name in ("stem.weight", "body.weight"):
            kept = set(plan.kept[name][0])
            assert kept <= last.get(name, kept)
            last[name] = kept


# -- nothing, and everything -------------------------------------------------------------------------------------------


def test_nothing_to_prune_tells_the_commonest_reasons() -> None:
    graph = fxprune.analyze(seeded(nn.Linear(40, 3)), image(2, 40))
    with pytest.raises(NothingToPruneError, match=r"weight\[1\] at node 'linear': contracted with"):
        fxprune.plan(graph, 0.3)


def test_floor_zero_may_empty_a_group_but_never_its_last_channel() -> None:
    graph = GRAPHS["Chain"]
    gone, plan = solved(graph, [[0.0] * 7 + [0.5], [5.0] * 10], 8 / 18, floor=0)
    assert {i for g, i in gone if g == 0} == set(range(7))
    assert plan.silent["conv2.weight"][1] == (7,)
    assert any("emptied" in note for note in plan.notes)
    assert plan.achieved == pytest.approx(7 / 18, abs=1e-12)
