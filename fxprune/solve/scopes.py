"""What is ranked against what.

1. ``global``: all groups against each other.
2. ``uniform``: every slot (slots.py) loses the same share.
3. ``isomorphic`` (Fang et al. 2024, arXiv:2407.04616): groups of equal structure are ranked against each other, and every class of them loses the
   same share. Structure is the set of the group's members: kind of module, tensor, dimension, window, side, and whether it is grouped.
   Slots of cells that run through several groups belong to one class with all of these.
4. ``threshold``: one ranking of all channels by their scores (coupled means), whatever they cost and however many channels they stand for,
   within slots as between them: the rule of Network Slimming (Liu et al. 2017). Where slots share a floor, the lowest scores go. With a ratio that
   is what ``global`` does, too (ratio.py).
5. ``below``: ``threshold`` with widths rounded down. Of the channels that go together, such as ``round_to`` of them, the lowest score decides and
   not the mean: what is below the threshold goes, and takes others with it. Widths are evener, as few channels decide about many.
6. For a budget the share is the least one that meets it; then channels come back while they fit: per slot one at most (uniform), or in the order in
   which the class gave them up (isomorphic, threshold, below). In these four scopes no whole heads or groups of convolutions go.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from fxprune.errors import BudgetError
from fxprune.graph.channels import ChannelGraph, ChannelGroup
from fxprune.provenance.factor import Ids
from fxprune.score.scores import Scored
from fxprune.solve.search import Choices, Numbers

SCOPES = ("global", "uniform", "isomorphic", "threshold", "below")
ONE = ("threshold", "below")  # one ranking of plain scores
RANKING = ("global", "threshold")  # which are the same for a ratio


def check_scope(scope: str) -> str:
    """A known scope.

    Raises:
        BudgetError: any other.
    """
    if scope not in SCOPES:
        raise BudgetError(f"scope must be one of {SCOPES}, got {scope!r}.", expected=SCOPES, got=scope)
    return scope


def structure(graph: ChannelGraph, group: ChannelGroup) -> tuple[object, ...]:
    """What groups of one class have in common (clause 3)."""
    kinds = {name: type(module).__name__ for name, module in graph.program.captured.modules}
    found = set()
    for member in group.members:
        owner, _, leaf = member.name.rpartition(".")
        tensor = graph.tensors[member.name]
        window = tuple(tensor.shape[2:])
        depthwise = tensor.dim() > 2 and tensor.shape[1] == 1
        found.add((kinds.get(owner, ""), leaf, member.dim, window, member.reads, member.blocks > 1, depthwise))
    return tuple(sorted(found))


def classes(graph: ChannelGraph, choices: Choices, scope: str) -> list[list[int]]:
    """The slots that are ranked against each other, class by class."""
    slots = choices.land.slots.slots
    if scope == "uniform":
        return [[s] for s in range(len(slots))]
    if scope in ONE:
        return [list(range(len(slots)))]
    kinds = [structure(graph, group) for group in graph.groups]
    found: dict[object, int] = {}
    label: dict[int, int] = {}
    for group, kind in enumerate(kinds):
        label[group] = found.setdefault(kind, len(found))
    parent = list(range(len(found)))

    def root(i: int) -> int:
        while parent[i] != i:
            i = parent[i]
        return i

    for slot in slots:
        own = sorted({root(label[g]) for g in slot.groups})
        for other in own[1:]:
            parent[other] = own[0]
    members: dict[int, list[int]] = {}
    for s, slot in enumerate(slots):
        members.setdefault(root(label[min(slot.groups)]), []).append(s)
    return list(members.values())


def giving_up(choices: Choices, members: list[int], worth: Numbers | None = None, *, lowest: bool = False) -> tuple[Ids, Ids]:
    """The order in which the slots of a class give up steps, the lowest mean scores first: slots, and the channels gone after each.

    ``worth``: per channel, what is ranked instead of what the plan loses; ``lowest``: the least of it in each step instead of the mean.
    """
    owners, keys, sizes = [], [], []
    for s in members:
        slot = choices.land.slots.slots[s]
        steps = np.diff(slot.allowed)
        size = np.diff(sum(slot.groups.values(), np.zeros(len(slot) + 1, np.int64))[slot.allowed])
        loss = slot.loss if worth is None else np.cumsum([0.0, *(worth[step].sum() for step in slot.steps)])
        ranks = np.diff(loss[slot.allowed]) / np.maximum(size, 1)
        if lowest and worth is not None:
            single = [float(worth[step].mean()) for step in slot.steps]
            ranks = np.array([min(single[a:b]) for a, b in pairwise(slot.allowed.tolist())])
        ranks = np.maximum.accumulate(ranks)  # bundles stay in order
        owners += [s] * len(steps)
        keys += list(zip(ranks.tolist(), (np.arange(len(steps)) / max(len(steps), 1)).tolist(), strict=True))
        sizes += size.tolist()
    order = sorted(range(len(owners)), key=lambda i: (*keys[i], i))
    return np.array([owners[i] for i in order], np.int64), np.cumsum([sizes[i] for i in order], dtype=np.int64)


def plain(graph: ChannelGraph, scored: Scored) -> Numbers:
    """The score of every coupled channel as it is (clause 4); 0 for what is in no group."""
    worth = np.zeros(graph.closed.count)
    for group, values in zip(graph.groups, scored.values, strict=True):
        worth[group.channels] = values.numpy()
    return worth


class Shares:
    """Decisions of a scope by the share that every class loses."""

    def __init__(self, graph: ChannelGraph, choices: Choices, scope: str, scored: Scored) -> None:
        self.choices = choices
        worth = plain(graph, scored) if scope in ONE else None
        self.orders = [giving_up(choices, own, worth, lowest=scope == "below") for own in classes(graph, choices, scope)]
        self.dear = self._places(self.orders[0][0]) if worth is not None and self.orders else None
        self.totals = []
        for slots, _ in self.orders:
            groups = {g for s in set(slots.tolist()) for g in choices.land.slots.slots[s].groups}
            self.totals.append(sum(len(graph.groups[g]) for g in groups))

    def _places(self, order: Ids) -> Ids:
        """When each slot takes each of its steps, in one order of all; shape (slots, places)."""
        found = np.full(self.choices.numbers.shape, -1, np.int64)
        for slot in range(len(found)):
            when = np.flatnonzero(order == slot)
            found[slot, 1 : len(when) + 1] = when
        return found

    def at(self, share: float) -> Ids:
        """The decision nearest to this share, class by class; as much as floors allow."""
        places = np.zeros(len(self.choices.last), np.int64)
        for (slots, gone), total in zip(self.orders, self.totals, strict=True):
            counts = np.concatenate([[0], gone])
            take = int(np.abs(counts - share * total).argmin())
            np.add.at(places, slots[:take], 1)
        return self.choices.back(places, self.dear)

    def within(self) -> Ids | None:
        """Clause 5: the least share that meets all limits, and what still fits; None if none does."""
        low, high = 0.0, 1.0
        if not self.choices.met(self.at(1.0)):
            return None
        for _ in range(40):
            middle = (low + high) / 2
            low, high = (low, middle) if self.choices.met(self.at(middle)) else (middle, high)
        return self._back(self.at(high))

    def _back(self, places: Ids) -> Ids:
        places = places.copy()
        for slots, _ in self.orders:
            seen = np.zeros(len(places), np.int64)
            given = []
            for s in slots.tolist():
                seen[s] += 1
                if seen[s] <= places[s]:
                    given.append(s)
            alone = len(set(given)) == 1
            for s in reversed(given[-1:] if alone else given):
                places[s] -= 1
                if not self.choices.met(places):
                    places[s] += 1
                    break
        return places
