"""Backward elimination: which channels readers can lose if their weights are refitted for those that stay.

1. With least-squares weights W over all living columns, and H the inverse of the inputs' moments, taking the columns of channel i away and
   refitting the others raises the squared error by ``tr((H_ii)^-1 W_i' O W_i)``. (The structured form of Hassibi and Stork 1993, optimal
   brain surgeon; for a linear layer it is exact.) O weighs the outputs by the square of what a batch norm behind the reader multiplies
   them by: an error counts as it arrives behind the norm.
2. The channel that raises it least, added up over the readers, goes; H and W become those of the other columns (a Schur complement). So it
   goes on to the wanted number.
3. ``ridge``, or ``LEAST`` where it is smaller, times the mean of the diagonal is added to the moments, so that the inverse exists.
4. Channels under a balance: the later one goes, the more it is worth; every cell keeps its best.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fxprune.reconstruct.numbers import Array, Ids
from fxprune.reconstruct.select import Problem, by_order

LEAST = 1e-8


@dataclass(slots=True)
class _Block:
    """A block of a reader: H, W, the channel of every column (-1: not among those that may go), the weight of every output."""

    inverse: Array
    weight: Array
    channel: Ids
    worth: Array

    def rises(self, channels: int) -> Array:
        """Clause 1, for every channel."""
        found = np.zeros(channels)
        own = np.flatnonzero(self.channel >= 0)
        order = own[np.argsort(self.channel[own], kind="stable")]
        present, counts = np.unique(self.channel[order], return_counts=True)
        starts = np.cumsum(counts) - counts
        for size in np.unique(counts):
            which = np.flatnonzero(counts == size)
            columns = order[starts[which][:, None] + np.arange(size)]  # (channels, size)
            inverse = self.inverse[columns[:, :, None], columns[:, None, :]]
            weight = self.weight[:, columns].transpose(1, 2, 0)  # (channels, size, outputs)
            spread = (weight * self.worth) @ weight.transpose(0, 2, 1)
            found[present[which]] = np.linalg.solve(inverse, spread).trace(axis1=1, axis2=2)
        return found

    def without(self, channel: int) -> None:
        """Clause 2."""
        gone, left = np.flatnonzero(self.channel == channel), np.flatnonzero(self.channel != channel)
        if not len(gone):
            return
        step = np.linalg.solve(self.inverse[np.ix_(gone, gone)], self.inverse[np.ix_(gone, left)])
        self.weight = self.weight[:, left] - self.weight[:, gone] @ step
        self.inverse = self.inverse[np.ix_(left, left)] - self.inverse[np.ix_(left, gone)] @ step
        self.channel = self.channel[left]


def by_elimination(problems: Sequence[Problem], channels: int, count: int, cells: Sequence[Ids], ridge: float) -> Ids:
    """The channels that stay, ascending (clauses 1 to 4)."""
    blocks = [block for problem in problems for block in _blocks(problem, ridge)]
    left = np.ones(channels, np.bool_)
    gone_at = np.full(channels, channels, np.float64)
    for step in range(channels - (1 if cells else count)):
        rises = np.sum([block.rises(channels) for block in blocks], axis=0, initial=0.0) if blocks else np.zeros(channels)
        worst = int(np.where(left, rises, np.inf).argmin())
        left[worst] = False
        gone_at[worst] = step
        for block in blocks:
            block.without(worst)
    return by_order(gone_at, count, cells) if cells else np.flatnonzero(left)


def _blocks(problem: Problem, ridge: float) -> list[_Block]:
    xx, xy = problem.normal.about(problem.intercept)
    found = []
    for block, alive in enumerate(problem.alive):
        columns, rows = np.flatnonzero(alive), np.flatnonzero(problem.rows[block])
        if not len(columns) or not len(rows):
            continue
        moments = xx[block][np.ix_(columns, columns)]
        diagonal = np.arange(len(columns))
        pull = max(ridge, LEAST) * max(float(np.trace(moments)) / len(columns), 1e-300)
        moments[diagonal, diagonal] += pull
        # where the pull counts, it is towards the weights as they were (refit.py, clause 3)
        right = xy[block][np.ix_(columns, rows)] + pull * problem.weight[block][np.ix_(rows, columns)].T
        inverse = np.linalg.inv(moments)
        found.append(_Block(inverse, (inverse @ right).T, problem.channel[block][columns], problem.worth[block][rows]))
    return found
