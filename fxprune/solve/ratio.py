"""The global threshold: one elimination order for all ratios.

1. A *unit* is what goes at once: one coupled channel, or a step of cells that are thinned together (closure.py, clause 4), or, with
   ``round_to``, as many of these as keep the group's width a multiple.
2. Units are ordered by the mean score of their channels (ties by first channel). A unit that would leave a group with less than
   its floor is passed over, whatever the ratio.
3. A ratio takes a prefix of that order: the one whose share of removed channels is closest to what was asked. Hence a larger
   ratio never keeps a channel that a smaller one removes.
4. The share counts batch-norm channels (Liu et al. 2017); a coupled channel without one counts its producers' channels.
5. With floor = 0 a group can be emptied: its best channel then stays, silent (plan.py, clause 4), and is not counted as removed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fxprune.errors import BudgetError, NothingToPruneError
from fxprune.graph.channels import ChannelGraph, ChannelGroup
from fxprune.provenance.factor import Ids, Mask
from fxprune.score.scores import Scored


@dataclass(frozen=True, slots=True)
class Solution:
    """Which coupled channels go (a mask over components), and the share that is."""

    removed: Mask
    asked: float
    achieved: float
    notes: tuple[str, ...] = ()
    silent: tuple[int, ...] = ()


def check_ratio(ratio: float) -> float:
    """A ratio in [0, 1).

    Raises:
        BudgetError: anything else, with a guess at what was meant.
    """
    if isinstance(ratio, bool) or not isinstance(ratio, (int, float)):
        raise BudgetError(f"ratio must be a number in [0, 1), got {ratio!r}.", expected="[0, 1)", got=ratio)
    if math.isnan(ratio) or not 0 <= ratio < 1:
        hint = f" Did you mean {ratio / 100:.2f}?" if 1 < ratio < 100 else " It is the share of channels to REMOVE."
        raise BudgetError(f"ratio must be in [0, 1), got {ratio:g}.{hint}", expected="[0, 1)", got=ratio)
    return float(ratio)


def solve_ratio(graph: ChannelGraph, scored: Scored, ratio: float, floor: float = 0.1, round_to: int = 1) -> Solution:
    """Clauses 1 to 4.

    Raises:
        BudgetError: a ratio outside [0, 1), or one that floors, balances and ``round_to`` do not allow.
        NothingToPruneError: no channel can go at all.
    """
    ratio = check_ratio(ratio)
    if not 0 <= floor <= 1:
        raise BudgetError(f"floor must be in [0, 1] (the share of each group that stays), got {floor!r}.", expected="[0, 1]", got=floor)
    if not isinstance(round_to, int) or round_to < 1:
        raise BudgetError(f"round_to must be a positive whole number, got {round_to!r}.", got=round_to)
    groups = graph.groups
    removed = np.zeros(graph.closed.count, np.bool_)
    weight = _weights(graph)
    total = int(sum(weight[g.channels].sum() for g in groups))
    if not groups:
        raise NothingToPruneError(nothing(graph))
    order = _order(graph, scored, floor, round_to)
    counts = np.array([0, *(int(weight[unit].sum()) for unit in order)]).cumsum()
    target = ratio * total
    take = int(np.abs(counts - target).argmin())
    if ratio > 0 and not order:
        raise NothingToPruneError(
            f"no channel can go with floor={floor:g} and round_to={round_to}: every group is already at its least width. "
            "Lower floor or round_to.",
            got=ratio,
        )
    granule = max((int(weight[unit].sum()) for unit in order), default=0)
    if target > counts[-1] + granule / 2:
        raise BudgetError(
            f"ratio {ratio:g} cannot be reached: floor={floor:g}"
            + (f", round_to={round_to}" if round_to > 1 else "")
            + f" and the balances of the network allow {counts[-1] / total:.3f} at most. Ask for less, or lower floor.",
            expected=counts[-1] / total,
            got=ratio,
        )
    for unit in order[:take]:
        removed[unit] = True
    silent = _silenced(groups, scored, removed)
    removed[silent] = False
    notes = (f"{len(silent)} emptied group(s) keep one channel each that nobody hears",) if silent else ()
    gone = sum(int(weight[g.channels][removed[g.channels]].sum()) for g in groups)
    return Solution(removed, ratio, gone / total, notes, tuple(silent))


def nothing(graph: ChannelGraph) -> str:
    """Why no channel of this graph can go, by the most frequent reasons."""
    reasons = sorted((c for c in graph.constraints if c.kind == "pinned"), key=lambda c: -c.channels)[:3]
    told = "; ".join(f"{', '.join(c.axes[:2]) or 'values'} at node {c.node!r}: {c.reason}" for c in reasons)
    return f"no channel of this model can be removed, so there is nothing to prune. {told or 'It has no layers with channels'}."


def _weights(graph: ChannelGraph) -> Ids:
    """How many channels a component counts for (clause 4)."""
    weight = np.zeros(graph.closed.count, np.int64)
    producers = np.zeros(graph.closed.count, np.int64)
    for group in graph.groups:
        for member in group.members:
            own = group.channels[member.channel]
            if member.name in group.gammas:
                np.add.at(weight, own, 1)
            elif not member.reads and graph.tensors[member.name].dim() > 1:
                np.add.at(producers, own, 1)
    return np.where(weight > 0, weight, np.maximum(producers, 1))


def _order(graph: ChannelGraph, scored: Scored, floor: float, round_to: int) -> list[Ids]:
    """The elimination order (clause 2): units that can go one after another."""
    value = np.full(graph.closed.count, np.inf)
    group_of = np.full(graph.closed.count, -1, np.int64)
    least = []
    for index, (group, numbers) in enumerate(zip(graph.groups, scored.values, strict=True)):
        value[group.channels] = numbers.numpy()
        group_of[group.channels] = index
        # The floor is a share of the whole width: pinned channels of the same axes are no part of the group.
        least.append(0 if floor == 0 else max(1, math.ceil(floor * len(group) - 1e-9)))
    units = _units(graph, value, group_of, round_to, least)
    units.sort(key=lambda unit: (float(value[unit].mean()), int(unit.min())))
    left = np.array([len(g) for g in graph.groups])
    order = []
    for unit in units:
        touched, many = np.unique(group_of[unit], return_counts=True)
        if all(left[g] - m >= least[g] for g, m in zip(touched, many, strict=True)):
            left[touched] -= many
            order.append(unit)
    return order


def _units(graph: ChannelGraph, value: np.ndarray, group_of: Ids, round_to: int, least: list[int]) -> list[Ids]:
    units: list[Ids] = []
    in_step = np.zeros(graph.closed.count, np.bool_)
    for cells in graph.closed.cells:
        for cell in cells.cells:
            in_step[cell] = True
        steps = []
        ranked = [cell[np.lexsort((cell, value[cell]))] for cell in cells.cells]
        for step in range(cells.steps - 1):
            parts = [own[step * (len(own) // cells.steps) : (step + 1) * (len(own) // cells.steps)] for own in ranked]
            unit = np.concatenate(parts)
            if not np.isfinite(value[unit]).all():
                break
            steps.append(unit)
        units += _bundled(steps, cells.steps, sum(len(c) for c in cells.cells) // cells.steps, round_to)
    for group in graph.groups:
        single = group.channels[~in_step[group.channels]]
        ranked = single[np.lexsort((single, value[single]))]
        units += _bundled([np.array([c]) for c in ranked], len(ranked), 1, round_to)
    return units


def _bundled(steps: list[Ids], count: int, size: int, round_to: int) -> list[Ids]:
    """Join consecutive steps so that what stays is a multiple of ``round_to`` after every bundle."""
    if round_to == 1:
        return steps
    bundles, start = [], 0
    for taken in range(1, len(steps) + 1):
        if (count - taken) * size % round_to == 0 and taken < count:
            bundles.append(np.concatenate(steps[start:taken]))
            start = taken
    return bundles


def _silenced(groups: Sequence[ChannelGroup], scored: Scored, removed: Mask) -> list[int]:
    """The best channel of every group that is emptied (clause 5)."""
    found = []
    for group, values in zip(groups, scored.values, strict=True):
        if removed[group.channels].all():
            found.append(int(group.channels[int(values.argmax())]))
    return found
