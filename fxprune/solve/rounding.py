"""Widths that are multiples of ``round_to``.

1. The width of a group after a plan is its old one, or a smaller one that is a multiple; none becomes 0.
2. A *part* is what gives up steps one after another: linked cells (by their number), or the single channels of a group (-1). A step of cells may
   hold channels of several groups (queries and values of one attention); then clause 1 is for each of these.
3. Where several parts hold a group whose old width is no multiple, only the part with the most of its channels may thin it. Where it is one, each
   part takes multiples.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np

from fxprune.graph.channels import ChannelGraph
from fxprune.provenance.factor import Ids, Mask


class Widths:
    """After which steps of a part widths are right (clauses 1 to 3)."""

    def __init__(self, graph: ChannelGraph, group_of: Ids, round_to: int) -> None:
        self.group_of, self.round_to = group_of, round_to
        self.width = [len(group) for group in graph.groups]
        self.only: dict[int, int] = {}
        if round_to > 1 and graph.closed.cells:
            part_of = np.full(graph.closed.count, -1)
            for part, cells in enumerate(graph.closed.cells):
                part_of[np.concatenate(cells.cells)] = part
            part_of[graph.closed.owners] = -2  # they go in no part
            for index, group in enumerate(graph.groups):
                parts, many = np.unique(part_of[group.channels], return_counts=True)
                if len(group) % round_to and (parts > -2).sum() > 1:
                    self.only[index] = int(parts[np.where(parts > -2, many, 0).argmax()])

    def after(self, steps: Sequence[Ids], part: int) -> Ids:
        """The numbers of first steps that may go, from 0."""
        fits = np.ones(len(steps) + 1, np.bool_)
        if self.round_to > 1 and len(steps):
            for group, gone in taken(steps, self.group_of).items():
                left = self.width[group] - gone
                fits &= (gone == 0) | (left > 0) & (left % self.round_to == 0) & (self.only.get(group, part) == part)
        return np.flatnonzero(fits)

    def bundled(self, steps: list[Ids], part: int) -> list[Ids]:
        """Consecutive steps, joined so that widths are right after each."""
        if self.round_to == 1:
            return steps
        return [np.concatenate(steps[a:b]) for a, b in pairwise(self.after(steps, part).tolist())]


def taken(steps: Sequence[Ids], group_of: Ids) -> dict[int, Ids]:
    """How many channels of each group are gone after the first 0, 1, ... steps."""
    owner = group_of[np.concatenate(steps)]
    step = np.repeat(np.arange(1, len(steps) + 1), [len(own) for own in steps])
    return {int(g): np.bincount(step[owner == g], minlength=len(steps) + 1).cumsum() for g in np.unique(owner) if g >= 0}


def rounded_to_nothing(graph: ChannelGraph, round_to: int, can: Mask, could: Callable[[], Mask]) -> tuple[str, ...]:
    """A note on groups that ``round_to`` leaves whole.

    Args:
        graph: the groups.
        round_to: the multiple.
        can: the coupled channels that can go, one plan or another.
        could: those that could without rounding.
    """
    whole = [group for group in graph.groups if not can[group.channels].any()] if round_to > 1 else []
    if whole:
        without = could()
        whole = [group for group in whole if without[group.channels].any()]
    if not whole:
        return ()
    names = ", ".join(f"{group.name} ({len(group)})" for group in whole[:3]) + (", ..." if len(whole) > 3 else "")
    told = f"round_to={round_to} leaves {len(whole)} of {len(graph.groups)} groups whole, which have no smaller multiple"
    return (f"{told} that floors and balances allow: {names}",)
