"""Backward elimination: which channels readers can lose if their weights are refitted for those that stay.

1. With least-squares weights W over all living columns, and H the inverse of the inputs' moments, taking the columns of channel i away and
   refitting the others raises the squared error by ``tr((H_ii)^-1 W_i' O W_i)``. (The structured form of Hassibi and Stork 1993, optimal
   brain surgeon; for a linear layer it is exact.) O weighs the outputs by the square of what a batch norm behind the reader multiplies
   them by: an error counts as it arrives behind the norm.
2. The channel that raises it least, added up over the readers, goes; H and W become those of the other columns (a Schur complement). So it
   goes on to the wanted number.
3. ``ridge``, or ``LEAST`` where it is smaller, times the mean of the diagonal is added to the moments, so that the inverse exists.
4. With n columns that costs ``n^3`` operations for the inverse, and one step as many as a product of an ``(n, n)`` matrix with as many columns as a
   channel has; memory is that of two matrices ``(n, n)``.
5. Channels under a balance: the later one goes, the more it is worth; every cell keeps its best.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.linalg import solve_triangular
from scipy.linalg.lapack import dpotrf, dpotri

from fxprune.reconstruct.numbers import Array, Ids
from fxprune.reconstruct.select import Problem, by_order

LEAST = 1e-8


class _Block:
    """A block of a reader (clauses 1 and 2).

    H is kept as ``base - F F'``, with columns added to F for every channel that goes, so that a step costs no pass over the whole matrix. What
    clause 1 needs of H and W is kept per channel: the diagonal blocks of H, and ``W_i' O W_i``, ``(channels, columns, columns)``; channels
    of fewer columns than others have zeros there, and ones on H's diagonal.
    """

    def __init__(self, inverse: Array, weight: Array, channel: Ids, worth: Array) -> None:
        self.base, self.weight, self.worth = inverse, np.ascontiguousarray(weight), worth
        order = np.flatnonzero(channel >= 0)
        order = order[np.argsort(channel[order], kind="stable")]
        self.names, starts, counts = np.unique(channel[order], return_index=True, return_counts=True)
        width = int(counts.max(initial=0))
        self.real = np.arange(width) < counts[:, None]
        self.columns = np.where(
            self.real, np.append(order, 0)[np.minimum(starts[:, None] + np.arange(width), len(order))], len(channel)
        )
        self.factors = np.zeros((len(channel), len(order)))
        self.used = 0
        both = self.real[:, :, None] & self.real[:, None, :]
        inside = np.where(self.real, self.columns, 0)
        self.diagonal = np.where(both, inverse[inside[:, :, None], inside[:, None, :]], np.eye(width))
        own = np.where(self.real, weight[:, inside], 0).transpose(1, 2, 0)
        self.spread = (own * worth) @ own.transpose(0, 2, 1)

    def rises(self, channels: int) -> Array:
        """Clause 1, for every channel; 0 for those that are gone, and for those that the block does not read."""
        found = np.zeros(channels)
        if len(self.names):
            found[self.names] = np.linalg.solve(self.diagonal, self.spread).trace(axis1=1, axis2=2)
        return found

    def without(self, channel: int) -> None:
        """Clause 2."""
        (place,) = np.flatnonzero(self.names == channel) if (self.names == channel).any() else (-1,)
        if place < 0:
            return
        gone = self.columns[place][self.real[place]]
        mine = self.base[:, gone] - self.factors[:, : self.used] @ self.factors[gone, : self.used].T
        root = _root(mine[gone])
        new = solve_triangular(root, mine.T, lower=True, check_finite=False).T
        moved = solve_triangular(root, self.weight[:, gone].T, lower=True, check_finite=False).T
        weighed = moved * self.worth[:, None]
        met = self._per_channel(self.weight.T @ weighed)
        self.weight -= moved @ new.T
        step = self._per_channel(new)
        mixed = step @ met.transpose(0, 2, 1)
        self.spread += step @ (moved.T @ weighed) @ step.transpose(0, 2, 1) - mixed - mixed.transpose(0, 2, 1)
        self.diagonal -= step @ step.transpose(0, 2, 1)
        self.factors[:, self.used : self.used + len(gone)] = new
        self.used += len(gone)
        self.diagonal[place], self.spread[place] = np.eye(len(self.real[place])), 0

    def _per_channel(self, rows: Array) -> Array:
        """Rows ``(columns, k)`` as ``(channels, columns of one, k)``."""
        found: Array = np.concatenate([rows, np.zeros((1, rows.shape[1]))])[self.columns]
        return found


def _root(matrix: Array) -> Array:
    """The lower Cholesky factor; rounding may have made the matrix indefinite."""
    even = (matrix + matrix.T) / 2
    try:
        return np.asarray(np.linalg.cholesky(even), np.float64)
    except np.linalg.LinAlgError:
        values, vectors = np.linalg.eigh(even)
        values = np.maximum(values, LEAST * max(float(np.abs(values).max()), 1e-300))
        return np.asarray(np.linalg.cholesky((vectors * values) @ vectors.T), np.float64)


def _inverse(matrix: Array) -> Array:
    """Of a symmetric positive definite matrix."""
    factor, wrong = dpotrf(matrix, lower=1)
    found, worse = dpotri(factor, lower=1)
    if wrong or worse:
        return np.asarray(np.linalg.inv(matrix), np.float64)
    return np.asarray(np.tril(found) + np.tril(found, -1).T, np.float64)


def by_elimination(problems: Sequence[Problem], channels: int, count: int, cells: Sequence[Ids], ridge: float) -> Ids:
    """The channels that stay, ascending (clauses 1 to 5)."""
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
        inverse = _inverse(moments)
        found.append(_Block(inverse, (inverse @ right).T, problem.channel[block][columns], problem.worth[block][rows]))
    return found
