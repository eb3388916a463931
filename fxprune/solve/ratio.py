"""The global threshold: one elimination order for all ratios.

1. A *unit* is what goes at once: one coupled channel, a step of cells that are thinned together (closure.py, clause 4), a whole head or
   convolution group (wholes.py), or, with ``round_to``, as many of the first two as make the widths of all their groups multiples.
2. Units are ordered by the mean score of their channels (ties by their rank within their group, so that equal scores are cut evenly
   everywhere, then by first channel). A unit that would leave a group with less than
   its floor is passed over, whatever the ratio; so are later steps of its cells.
   A channel of a step and of a whole goes with whichever is first. A whole that is the last of its tie stays.
3. A ratio takes a prefix of that order: the one whose share of removed channels is closest to what was asked. Hence a larger
   ratio never keeps a channel that a smaller one removes.
4. The share counts batch-norm channels (Liu et al. 2017); a coupled channel without one counts its producers' channels.
5. With floor = 0 a group can be emptied: its best channel then stays, silent (plan.py, clause 4), and is not counted as removed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Real
from typing import Any

import numpy as np
import numpy.typing as npt

from fxprune.errors import BudgetError, NothingToPruneError
from fxprune.graph.channels import ChannelGraph, ChannelGroup
from fxprune.graph.closure import Cells
from fxprune.provenance.factor import Ids, Mask
from fxprune.score.scores import Scored
from fxprune.solve.rounding import Widths, rounded_to_nothing

Numbers = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Solution:
    """Which coupled channels go (a mask over components), and the share that is; ``figures`` as in ``Plan``."""

    removed: Mask
    asked: float
    achieved: float
    notes: tuple[str, ...] = ()
    silent: tuple[int, ...] = ()
    figures: Mapping[str, Mapping[str, float]] = field(default_factory=dict)


def check_ratio(ratio: float) -> float:
    """A ratio in [0, 1).

    Raises:
        BudgetError: anything else, with a guess at what was meant.
    """
    given: Any = ratio
    if isinstance(given, bool) or not isinstance(given, Real):
        raise BudgetError(f"ratio must be a number in [0, 1), got {ratio!r}.", expected="[0, 1)", got=ratio)
    ratio = float(given)
    if math.isnan(ratio) or not 0 <= ratio < 1:
        hint = f" Did you mean {ratio / 100:.2f}?" if 1 < ratio < 100 else " It is the share of channels to REMOVE."
        raise BudgetError(f"ratio must be in [0, 1), got {ratio:g}.{hint}", expected="[0, 1)", got=ratio)
    return ratio


def check_options(floor: float, round_to: int) -> None:
    """A floor in [0, 1] and a positive multiple.

    Raises:
        BudgetError: anything else.
    """
    share: Any = floor
    if isinstance(share, bool) or not isinstance(share, Real) or not 0 <= float(share) <= 1:
        raise BudgetError(
            f"floor must be in [0, 1] (the share of each group that stays), got {floor!r}.", expected="[0, 1]", got=floor
        )
    multiple: Any = round_to
    if not isinstance(multiple, int) or multiple < 1:
        raise BudgetError(f"round_to must be a positive whole number, got {round_to!r}.", got=round_to)


def solve_ratio(graph: ChannelGraph, scored: Scored, ratio: float, floor: float = 0.1, round_to: int = 1) -> Solution:
    """Clauses 1 to 4.

    Raises:
        BudgetError: a ratio outside [0, 1), or one that floors, balances and ``round_to`` do not allow.
        NothingToPruneError: no channel can go at all.
    """
    ratio = check_ratio(ratio)
    check_options(floor, round_to)
    groups = graph.groups
    removed = np.zeros(graph.closed.count, np.bool_)
    weight = channel_weights(graph)
    total = int(sum(weight[g.channels].sum() for g in groups))
    if not groups:
        raise NothingToPruneError(nothing(graph), got=ratio)
    order = _order(graph, scored, floor, round_to)
    sizes = np.add.reduceat(weight[order.channels], order.starts) if len(order) else np.zeros(0, np.int64)
    counts = np.concatenate([[0], sizes.cumsum()])
    target = ratio * total
    take = int(np.abs(counts - target).argmin())
    if ratio > 0 and not len(order):
        raise NothingToPruneError(
            f"no channel can go with floor={floor:g} and round_to={round_to}: every group is already at its least width. "
            "Lower floor or round_to.",
            got=ratio,
        )
    if target > counts[-1] + sizes.max(initial=0) / 2:
        raise BudgetError(
            f"ratio {ratio:g} cannot be reached: floor={floor:g}"
            + (f", round_to={round_to}" if round_to > 1 else "")
            + f" and the balances of the network allow {counts[-1] / total:.3f} at most. Ask for less, or lower floor.",
            expected=float(counts[-1] / total),
            got=ratio,
        )
    removed[order.first(take)] = True
    silent = _silenced(groups, scored, removed)
    removed[silent] = False
    notes = order_rounded_to_nothing(graph, scored, floor, round_to, order)
    if silent:
        notes = (f"{len(silent)} emptied group(s) keep one channel each that nobody hears", *notes)
    gone = sum(int(weight[g.channels][removed[g.channels]].sum()) for g in groups)
    return Solution(removed, ratio, gone / total, notes, tuple(silent))


def order_rounded_to_nothing(graph: ChannelGraph, scored: Scored, floor: float, round_to: int, order: Order) -> tuple[str, ...]:
    """``rounded_to_nothing`` for an elimination order."""

    def listed(order: Order) -> Mask:
        found = np.zeros(graph.closed.count, np.bool_)
        found[order.channels] = True
        return found

    return rounded_to_nothing(graph, round_to, listed(order), lambda: listed(_order(graph, scored, floor, 1)))


def nothing(graph: ChannelGraph) -> str:
    """Why no channel of this graph can go, by the most frequent reasons."""
    reasons = sorted((c for c in graph.constraints if c.kind == "pinned"), key=lambda c: -c.channels)[:3]
    told = "; ".join(f"{', '.join(c.axes[:2]) or 'values'} at node {c.node!r}: {c.reason}" for c in reasons)
    return f"no channel of this model can be removed, so there is nothing to prune. {told or 'It has no layers with channels'}."


def channel_weights(graph: ChannelGraph) -> Ids:
    """How many channels a component counts for (clause 4)."""
    empty = np.zeros(0, np.int64)
    scaled, produced = [empty], [empty]
    for group in graph.groups:
        for member in group.members:
            if member.name in group.gammas:
                scaled.append(group.channels[member.channel])
            elif not member.reads and graph.tensors[member.name].dim() > 1:
                produced.append(group.channels[member.channel])
    weight, producers = (np.bincount(np.concatenate(own), minlength=graph.closed.count) for own in (scaled, produced))
    return np.where(weight > 0, weight, np.maximum(producers, 1))


@dataclass(frozen=True, slots=True)
class Unit:
    """What goes at once; ``chain``: the cells it is a step of, or -1."""

    channels: Ids
    chain: int = -1


@dataclass(frozen=True, slots=True)
class Order:
    """Units one after another: ``channels[starts[i] : starts[i + 1]]`` is the i-th to go."""

    channels: Ids
    starts: Ids

    def __len__(self) -> int:
        return len(self.starts)

    def first(self, count: int) -> Ids:
        """The channels of the first ``count`` units."""
        return self.channels[: self.starts[count]] if count < len(self.starts) else self.channels


def _order(graph: ChannelGraph, scored: Scored, floor: float, round_to: int) -> Order:
    """The elimination order (clause 2): units that can go one after another."""
    value = np.full(graph.closed.count, np.inf)
    group_of = np.full(graph.closed.count, -1, np.int64)
    least = np.zeros(len(graph.groups), np.int64)
    for index, (group, numbers) in enumerate(zip(graph.groups, scored.values, strict=True)):
        value[group.channels] = numbers.numpy()
        group_of[group.channels] = index
        least[index] = 0 if floor == 0 else max(1, math.ceil(floor * len(group) - 1e-9))
    for demand in graph.program.recorder.floors:
        channels = np.unique(graph.closed.component[demand.ids])
        share = math.ceil(demand.least * len(channels) / len(demand.ids))
        owners = np.unique(group_of[channels])
        if len(owners) == 1 and owners[0] >= 0:
            least[owners[0]] = max(least[owners[0]], share)
    widths = Widths(graph, group_of, round_to)
    joint, in_step = _steps(graph, value, widths)
    in_step[graph.closed.owners] = True
    place_in_group = np.zeros(graph.closed.count)
    for cells in graph.closed.cells:
        for cell in cells.cells:
            place_in_group[cell[np.lexsort((cell, value[cell]))]] = np.arange(len(cell)) / len(cell)
    shared = set(np.unique(group_of[in_step]).tolist())
    # Blocks keep equally many, so what is thinned in step is never emptied, whatever the floor.
    least[[g for g in shared if g >= 0]] = np.maximum(least[[g for g in shared if g >= 0]], 1)
    singles = []
    for index, group in enumerate(graph.groups):
        own = group.channels[~in_step[group.channels]]
        ranked = own[np.lexsort((own, value[own]))]
        place_in_group[ranked] = np.arange(len(ranked)) / len(group)
        if round_to == 1 and index not in shared:
            singles.append(ranked[: len(ranked) - least[index]])
        else:
            joint += [Unit(u) for u in widths.bundled([ranked[i : i + 1] for i in range(len(ranked))], -1)]
    if round_to == 1 and graph.closed.families:
        owned = group_of[graph.closed.owners]
        least[owned[owned >= 0]] = np.maximum(least[owned[owned >= 0]], 1)
        joint = joint + _whole(graph, value, group_of)
    keys = _keys(joint, value, group_of, place_in_group)
    accepted, keys = _within_floors(graph, joint, keys, group_of, least)
    alone = np.concatenate([np.zeros(0, np.int64), *singles])
    channels = np.concatenate([alone, *accepted])
    lengths = np.concatenate([np.ones(len(alone), np.int64), np.array([len(u) for u in accepted], np.int64)])
    unit = np.repeat(np.arange(len(lengths)), lengths)
    score, spread = (np.concatenate([own[alone], keys[i]]) for i, own in enumerate((value, place_in_group)))
    first = np.concatenate([alone, keys[2].astype(np.int64)])
    ranks = np.empty(len(lengths), np.int64)
    place = np.lexsort((first, spread, score))
    ranks[place] = np.arange(len(lengths))
    starts = np.concatenate([[0], lengths[place].cumsum()])[:-1].astype(np.int64)
    return Order(channels[np.argsort(ranks[unit], kind="stable")], starts)


def _keys(units: list[Unit], value: Numbers, group_of: Ids, place_in_group: Numbers) -> Numbers:
    """What units are ordered by: mean score, mean place in the group, first channel; shape (3, units). Owners without weights do not count."""
    if not units:
        return np.zeros((3, 0))
    flat, lengths = np.concatenate([unit.channels for unit in units]), np.array([len(unit.channels) for unit in units])
    starts = np.concatenate([[0], lengths.cumsum()])[:-1]
    scored = group_of[flat] >= 0
    counts = np.maximum(np.add.reduceat(scored.astype(np.int64), starts), 1)
    means = np.add.reduceat(np.where(scored, value[flat], 0.0), starts) / counts
    places = np.add.reduceat(np.where(scored, place_in_group[flat], 0.0), starts) / counts
    return np.stack([means, places, np.minimum.reduceat(flat, starts).astype(np.float64)])


def _within_floors(graph: ChannelGraph, units: list[Unit], keys: Numbers, group_of: Ids, least: Ids) -> tuple[list[Ids], Numbers]:
    """The units, in order, that leave every group its floor when all before them have gone, and their keys (clause 2)."""
    left = [len(g) for g in graph.groups]
    lowest = least.tolist()
    demands = _demands(units, group_of)
    gone = np.zeros(graph.closed.count, np.bool_)
    over: set[int] = set()
    accepted, places = [], []
    for index in np.lexsort((keys[2], keys[1], keys[0])).tolist():
        unit, demand, rest = units[index], demands[index], units[index].channels
        if unit.chain in over:
            continue
        if graph.closed.families and gone[rest].any():
            rest = rest[~gone[rest]]
            owner = group_of[rest]
            if len(rest) and (owner == owner[0]).all():
                demand = [(int(owner[0]), len(rest))] if owner[0] >= 0 else []
            else:
                owners, many = np.unique(owner, return_counts=True)
                demand = [(g, n) for g, n in zip(owners.tolist(), many.tolist(), strict=True) if g >= 0]
        if not demand:
            continue
        if all(left[group] - many >= lowest[group] for group, many in demand):
            for group, many in demand:
                left[group] -= many
            gone[rest] = True
            accepted.append(rest)
            places.append(index)
        elif unit.chain >= 0:
            over.add(unit.chain)
    return accepted, keys[:, places]


def _demands(units: list[Unit], group_of: Ids) -> list[list[tuple[int, int]]]:
    """Per unit: how many channels of which groups it takes."""
    found: list[list[tuple[int, int]]] = [[] for _ in units]
    if units:
        owner = group_of[np.concatenate([unit.channels for unit in units])]
        index = np.repeat(np.arange(len(units)), [len(unit.channels) for unit in units])
        width = int(owner.max()) + 2
        pairs, counts = np.unique((index * width + owner)[owner >= 0], return_counts=True)
        for pair, count in zip(pairs.tolist(), counts.tolist(), strict=True):
            found[pair // width].append((pair % width, count))
    return found


def _whole(graph: ChannelGraph, value: Numbers, group_of: Ids) -> list[Unit]:
    """Whole heads and groups, lowest first, as long as every tie keeps one."""
    units = []
    for family in graph.closed.families:
        free = [i for i, whole in enumerate(family.wholes) if not graph.pinned[whole].any()]
        scores = {i: float(value[family.wholes[i]][group_of[family.wholes[i]] >= 0].mean()) for i in free}
        left = [set(tie) for tie in family.ties]
        for i in sorted(free, key=lambda i: (scores[i], i)):
            if np.isfinite(scores[i]) and all(len(tie) > 1 for tie in left if i in tie):
                for tie in left:
                    tie.discard(i)
                units.append(Unit(family.wholes[i]))
    return units


def _steps(graph: ChannelGraph, value: Numbers, widths: Widths) -> tuple[list[Unit], Mask]:
    """Units of cells that are thinned in step, and the channels that go in no other way."""
    units: list[Unit] = []
    in_step = np.zeros(graph.closed.count, np.bool_)
    for chain, cells in enumerate(graph.closed.cells):
        for cell in cells.cells:
            in_step[cell] = True
        units += [Unit(u, chain) for u in widths.bundled(_going(cells, value), chain)]
    return units, in_step


def ranked_steps(cells: Cells, value: Numbers, alive: Mask) -> tuple[Ids, ...]:
    """The steps of linked cells that may go, lowest scores first, among the cells that are there; what has an infinite value stays."""
    there = Cells(tuple(cell for cell in cells.cells if alive[cell].all()), cells.steps)
    if not there.cells:
        return ()
    return tuple(_going(there, value))


def _going(cells: Cells, value: Numbers) -> list[Ids]:
    """The steps before the first one with an infinite value."""
    steps = _ranked(cells, value)
    if not steps:
        return []
    finite = np.isfinite(value[np.stack(steps)]).all(axis=1)
    return steps if finite.all() else steps[: int(finite.argmin())]


def _ranked(cells: Cells, value: Numbers) -> list[Ids]:
    """The steps of linked cells, lowest scores first; the last one stays."""
    if len({len(cell) for cell in cells.cells}) == 1:
        table = np.sort(np.stack(cells.cells), axis=1)
        table = np.take_along_axis(table, np.argsort(value[table], axis=1, kind="stable"), axis=1)
        return list(table.reshape(len(table), cells.steps, -1).swapaxes(0, 1).reshape(cells.steps, -1)[:-1])
    ranked = [cell[np.lexsort((cell, value[cell]))] for cell in cells.cells]
    per_step = [len(own) // cells.steps for own in ranked]
    return [
        np.concatenate([own[step * n : (step + 1) * n] for own, n in zip(ranked, per_step, strict=True)])
        for step in range(cells.steps - 1)
    ]


def _silenced(groups: Sequence[ChannelGroup], scored: Scored, removed: Mask) -> list[int]:
    """The best channel of every group that is emptied (clause 5)."""
    found = []
    for group, values in zip(groups, scored.values, strict=True):
        if removed[group.channels].all():
            found.append(int(group.channels[int(values.argmax())]))
    return found
