"""Which channels of a group stay: the LASSO's problem, set up from moments, or the order of a score.

1. Channel i of a group contributes ``Z_i = X_i W_i'`` to what a reader puts out, over all its columns of that reader (several where
   features were flattened or concatenated with themselves). Reader by reader and block by block, ``G_ij = <Z_i, Z_j>`` is the sum of ``xx
   * (W'W)`` over the columns of i and j, and ``h_i = <Z_i, R>`` that of ``W' * (xy - xx_o W_o')``: the outputs wanted, less what the
   reader's other living columns ``o`` give. Readers of one group have their outputs stacked: their G and h add up.
2. Where a reader takes an intercept, moments are centred: both steps of He et al. 2017 then have the same loss.
3. Channels that are free of each other: ``lasso.choose``. Channels under a balance go in step: every cell keeps its best, by
   ``lasso.ranking``, the same share of each.
4. ``refine`` alternates (He et al. 2017, section 3.1): on the way to the wanted number, as many times, the LASSO leaves a part, the
   weights are refitted on it, and the next LASSO goes on from there.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.sparse import csr_matrix

from fxprune.reconstruct.lasso import choose, ranking
from fxprune.reconstruct.moments import Normal
from fxprune.reconstruct.numbers import Array, Ids, Mask
from fxprune.reconstruct.refit import refit


@dataclass(frozen=True, slots=True, eq=False)
class Problem:
    """One reader's part of a choice.

    Attributes:
        normal: its moments.
        weight: ``(blocks, rows, columns)``.
        channel: ``(blocks, columns)``: the group's channel of every column, -1 for others.
        alive: ``(blocks, columns)``: columns that are not gone yet.
        rows: ``(blocks, rows)``: outputs that are not gone yet.
        intercept: it takes one.
        worth: ``(blocks, rows)``: what the squared error of an output counts. 1 for the LASSO, as in the paper.
    """

    normal: Normal
    weight: Array
    channel: Ids
    alive: Mask
    rows: Mask
    intercept: bool
    worth: Array

    def gram(self, channels: int) -> tuple[Array, Array]:
        """Clauses 1 and 2: ``G (channels, channels)`` and ``h (channels,)``."""
        xx, xy = self.normal.about(self.intercept)
        whole, cross = np.zeros((channels, channels)), np.zeros(channels)
        for block, channel in enumerate(self.channel):
            own = np.flatnonzero((channel >= 0) & self.alive[block])
            other = np.flatnonzero((channel < 0) & self.alive[block])
            if not len(own):
                continue
            weight, out = self.weight[block][self.rows[block]], np.flatnonzero(self.rows[block])
            fold = csr_matrix((np.ones(len(own)), (channel[own], np.arange(len(own)))), shape=(channels, len(own)))
            missing = xy[block][np.ix_(own, out)]
            if len(other):
                missing = missing - xx[block][np.ix_(own, other)] @ weight[:, other].T
            worth = self.worth[block][self.rows[block]]
            mixed = xx[block][np.ix_(own, own)] * ((weight[:, own].T * worth) @ weight[:, own])
            whole += fold @ (fold @ mixed).T
            cross += fold @ (missing * weight[:, own].T) @ worth
        return whole, cross

    def without(self, kept: Ids) -> Mask:
        """The columns that are alive if of the group only these channels stay."""
        return self.alive & ((self.channel < 0) | np.isin(self.channel, kept))


def by_lasso(
    problems: Sequence[Problem], channels: int, count: int, cells: Sequence[Ids], slack: float, refine: int, ridge: float
) -> tuple[Ids, float]:
    """Clauses 1 to 4: the channels that stay, ascending, and the last penalty (0 under balances)."""
    left = np.arange(channels)
    stages = [round(channels * (count / channels) ** (step / (refine + 1))) for step in range(1, refine + 1)]
    penalty = 0.0
    for wanted in (*stages, count):
        parts = [problem.gram(channels) for problem in problems]
        gram, cross = (np.asarray(sum(part[i] for part in parts))[left] for i in (0, 1))
        gram = gram[:, left]
        if cells:
            values = np.full(channels, -1.0)
            values[left] = ranking(gram, cross)
            left = by_order(values, wanted, cells)
        else:
            choice = choose(gram, cross, wanted, slack if wanted == count else 0.0)
            left, penalty = left[choice.kept], choice.penalty
        if wanted != count:
            problems = [_refitted(problem, left, ridge) for problem in problems]
    return left, penalty


def _refitted(problem: Problem, left: Ids, ridge: float) -> Problem:
    """Clause 4."""
    alive = problem.without(left)
    weight, _ = refit(problem.normal, problem.weight, alive, intercept=problem.intercept, ridge=ridge)
    return Problem(problem.normal, weight, problem.channel, alive, problem.rows, problem.intercept, problem.worth)


def by_order(values: Array, count: int, cells: Sequence[Ids] = ()) -> Ids:
    """The ``count`` channels of largest value (the first of equals), ascending; under balances, the same share of every cell, at least one step."""
    if not cells:
        return np.sort(np.lexsort((np.arange(len(values)), -values))[:count])
    steps = math.gcd(*(len(cell) for cell in cells))
    total = sum(len(cell) for cell in cells)
    stay = min(steps, max(1, round(count * steps / total)))
    best = [cell[np.lexsort((cell, -values[cell]))][: stay * len(cell) // steps] for cell in cells]
    return np.sort(np.concatenate(best))
