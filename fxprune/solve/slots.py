"""The choices of a budget: how many channels of each kind go.

1. A *slot* is a run of coupled channels of which the lowest scored go first: the channels of a group that cost the same, or the steps of
   cells (closure.py, clause 4). A decision is one whole number per slot: how many of its steps go.
2. What a slot loses is convex in that number, for its steps ascend in score. What it costs falls by the same amounts with each step, form by
   form (polynomial.py): channels whose forms differ are in different slots. Not so where a cell holds channels of several groups, or a group
   with ``round_to`` channels that cost different amounts: the steps of such a *mixed* slot differ (landscape.py, clause 4).
3. ``most`` is what floors leave: each group keeps its floor (at least one channel; with ``floor=0`` too, since an emptied group would keep a
   silent one that costs as much). Groups with several slots share a floor: a *cap*. In a cell, channels of groups that keep all stay.
4. ``allowed``: with ``round_to``, the numbers of steps after which the widths of all its groups are multiples, and none.
5. Wholes (heads, groups of convolutions) that go are given: their channels are dead and in no slot.
"""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from fxprune.errors import BudgetError
from fxprune.graph.channels import ChannelGraph, ChannelGroup
from fxprune.graph.cost import matches
from fxprune.provenance.factor import Ids, Mask
from fxprune.score.scores import Scored
from fxprune.solve.ratio import channel_weights, ranked_steps
from fxprune.solve.rounding import Widths, taken

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

Numbers = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Slot:
    """A run of steps, lowest scores first (clause 1).

    Attributes:
        steps: the coupled channels of each step.
        lost: the score of each step.
        groups: group -> how many of its channels are gone after 0, 1, ... all steps.
        allowed: numbers of steps that may go, ascending, from 0 (clause 4).
        chain: the cells it thins, or -1.
        mixed: whether its steps differ in what they cost or whose channels they hold (clause 2).
    """

    steps: tuple[Ids, ...]
    lost: Numbers
    groups: Mapping[int, Ids]
    allowed: Ids
    chain: int = -1
    mixed: bool = False

    def __len__(self) -> int:
        return len(self.steps)

    @cached_property
    def loss(self) -> Numbers:
        """What is lost when the first k steps go, for k = 0 ... all."""
        return np.concatenate([[0.0], np.cumsum(self.lost)])


@dataclass(frozen=True, eq=False)
class Slots:
    """All choices of one graph (clauses 1 to 5).

    Attributes:
        slots: the choices.
        alive: the coupled channels that are there before any choice.
        caps: per group with several slots: at most so many of its channels go.
        kept: the score of everything that is alive.
        values: the score per coupled channel; 0 where there is none.
        mixed: whether slots are, or would be if floors left them any step.
    """

    slots: tuple[Slot, ...]
    alive: Mask
    caps: tuple[tuple[int, int], ...]
    kept: float
    values: Numbers
    mixed: bool = False

    def removed(self, numbers: Sequence[int] | Ids) -> Mask:
        """The coupled channels that are gone when so many steps of each slot are."""
        gone = ~self.alive
        for slot, number in zip(self.slots, numbers, strict=True):
            for step in slot.steps[: int(number)]:
                gone[step] = True
        return gone

    def loss(self, numbers: Sequence[int] | Ids) -> float:
        """The score that is lost with them."""
        return float(sum(slot.loss[int(n)] for slot, n in zip(self.slots, numbers, strict=True)))


def score_values(graph: ChannelGraph, scored: Scored) -> Numbers:
    """What each coupled channel is worth: its score times the channels it stands for (ratio.py, clause 4), unless scores are totals.

    For gamma that is the sum of |gamma| over its batch norms. Scores below zero are shifted, so that nothing is better gone than kept for free.
    """
    value = np.zeros(graph.closed.count)
    weight = channel_weights(graph).astype(np.float64)
    lowest = min((float(own.min()) for own in scored.values if len(own)), default=0.0)
    for group, own in zip(graph.groups, scored.values, strict=True):
        times = 1.0 if scored.totals else weight[group.channels]
        value[group.channels] = (own.numpy() - min(lowest, 0.0)) * times
    return value


def leasts(graph: ChannelGraph, floor: float, floors: Mapping[str, float]) -> Ids:
    """How many channels each group keeps at least (clause 3).

    Raises:
        BudgetError: a floor for what matches no group.
    """
    group_of = np.full(graph.closed.count, -1, np.int64)
    least = np.zeros(len(graph.groups), np.int64)
    used: set[str] = set()
    for index, group in enumerate(graph.groups):
        group_of[group.channels] = index
        own = [share for glob, share in floors.items() if _produced_by(group, glob)]
        used |= {glob for glob in floors if _produced_by(group, glob)}
        least[index] = max(1, math.ceil((max(own) if own else floor) * len(group) - 1e-9))
    missing = [glob for glob in floors if glob not in used]
    if missing:
        names = ", ".join(repr(g.name) for g in graph.groups[:3])
        raise BudgetError(
            f"floors: {missing[0]!r} matches no group of channels. Groups are named after weights: {names}, ...", got=missing[0]
        )
    for demand in graph.program.recorder.floors:
        channels = np.unique(graph.closed.component[demand.ids])
        owners = np.unique(group_of[channels])
        if len(owners) == 1 and owners[0] >= 0:
            least[owners[0]] = max(least[owners[0]], math.ceil(demand.least * len(channels) / len(demand.ids)))
    return least


def _produced_by(group: ChannelGroup, glob: str) -> bool:
    makers = [m.name for m in group.members if not m.reads]
    return any(matches(glob, name, name.rpartition(".")[0]) or fnmatch.fnmatchcase(name, glob) for name in makers)


def make_slots(
    graph: ChannelGraph,
    values: Numbers,
    least: Ids,
    round_to: int,
    forms: csr_matrix,
    dead: Mask | None = None,
    *,
    ranks: Numbers | None = None,
    loose: bool = False,
) -> Slots:
    """The choices that are left when ``dead`` is gone.

    ``ranks``: what the channels of a slot are ordered by, where that is not ``values``. Losses are then not convex.

    ``loose``: channels of cells that are mixed, or whose wholes may go, are chosen one by one, and nothing is rounded. No plan may do so; what is
    best then bounds all plans.
    """
    closed = graph.closed
    alive = np.ones(closed.count, np.bool_) if dead is None else ~dead
    group_of = np.full(closed.count, -1, np.int64)
    for index, group in enumerate(graph.groups):
        group_of[group.channels] = index
    round_to = 1 if loose else round_to
    marks, widths = _marks(forms, group_of), Widths(graph, group_of, round_to)
    full = [int(alive[group.channels].sum()) <= n for group, n in zip(graph.groups, least.tolist(), strict=True)]
    ranks = values if ranks is None else ranks
    barred = np.where(np.array([*full, True])[group_of], np.inf, ranks)
    mixed = False
    slots: list[Slot] = []
    stepped = np.zeros(closed.count, np.bool_)
    stepped[closed.owners] = True
    in_wholes = np.zeros(closed.count, np.bool_)
    for family in closed.families:
        in_wholes[np.concatenate(family.wholes)] = True
    for chain, cells in enumerate(closed.cells):
        uneven = any(len(np.unique(marks[cell[group_of[cell] >= 0]])) > 1 for cell in cells.cells)
        mixed = mixed or uneven
        if loose and (uneven or any(in_wholes[cell].any() for cell in cells.cells)):
            continue
        for cell in cells.cells:
            stepped[cell] = True
        steps = ranked_steps(cells, barred, alive)
        if steps:
            slots.append(_slot(steps, values, marks, widths, chain))
    for group in graph.groups:
        own = group.channels[~stepped[group.channels] & alive[group.channels]]
        for piece in _alike(own, marks, together=round_to > 1):
            order = piece[np.lexsort((piece, ranks[piece]))]
            slots.append(_slot(tuple(order[i : i + 1] for i in range(len(order))), values, marks, widths, -1))
    return _capped(graph, slots, alive, least, values, mixed or any(slot.mixed for slot in slots))


def _marks(forms: csr_matrix, group_of: Ids) -> Ids:
    """Equal for channels of one group with equal forms: sets are hashed as sums of random numbers."""
    random = np.random.default_rng(0)
    marks: Ids = forms.T @ random.integers(1, 2**40, forms.shape[0], dtype=np.int64)
    return marks + random.integers(1, 2**40, int(group_of.max(initial=0)) + 2, dtype=np.int64)[group_of]


def _alike(own: Ids, marks: Ids, *, together: bool) -> list[Ids]:
    """Channels with equal forms (clause 2); with ``round_to`` a group stays one slot."""
    if together or not len(own):
        return [own] if len(own) else []
    _, first, which = np.unique(marks[own], return_index=True, return_inverse=True)
    return [own[which == k] for k in np.argsort(first)]


def _slot(steps: tuple[Ids, ...], values: Numbers, marks: Ids, widths: Widths, chain: int) -> Slot:
    lost = np.array([values[step].sum() for step in steps])
    first = marks[steps[0]].sum()
    mixed = any(marks[step].sum() != first for step in steps)
    return Slot(steps, lost, taken(steps, widths.group_of), widths.after(steps, chain), chain, mixed)


def _capped(graph: ChannelGraph, slots: list[Slot], alive: Mask, least: Ids, values: Numbers, mixed: bool) -> Slots:
    """Clause 3: what floors leave of each slot."""
    holders: dict[int, list[int]] = {}
    for number, slot in enumerate(slots):
        for group in slot.groups:
            holders.setdefault(group, []).append(number)
    most = [len(slot) for slot in slots]
    caps: list[tuple[int, int]] = []
    for group, own in holders.items():
        present = int(alive[graph.groups[group].channels].sum())
        room = max(0, present - int(least[group]))
        for number in own:
            most[number] = min(most[number], int(np.searchsorted(slots[number].groups[group], room, side="right")) - 1)
        if len(own) > 1:
            caps.append((group, room))
    cut = [_first(slot, number) for slot, number in zip(slots, most, strict=True)]
    return Slots(tuple(s for s in cut if len(s.allowed) > 1), alive, tuple(caps), float(values[alive].sum()), values, mixed)


def _first(slot: Slot, number: int) -> Slot:
    """A slot of which at most so many steps may go."""
    groups = {group: gone[: number + 1] for group, gone in slot.groups.items()}
    return replace(
        slot, steps=slot.steps[:number], lost=slot.lost[:number], groups=groups, allowed=slot.allowed[slot.allowed <= number]
    )
