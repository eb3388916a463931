"""Least squares: the weights of a layer that loses some of its inputs, refitted to what the layer put out before.

1. ``refit`` minimises ``mean ||y - W x - b||^2`` over the columns of ``W`` that are alive, with ``b`` or without (He et al. 2017, section 3.1), from
   moments. The other columns become zero.
2. It solves for the change: ``D xx = xy' - W xx`` with ``W`` as it was. Where the samples determine the answer, that is the least-squares solution;
   where they do not (fewer rows than columns, inputs that depend on each other), it is the solution nearest to the weights as they
   were: what the samples do not tell stays.
3. ``ridge`` adds that share of the mean of ``xx``'s diagonal to it: a pull towards the weights as they were. 0 is plain least squares.
4. Eigenvalues below ``RANK`` times the largest count as zero. A Cholesky factorisation is tried first; where its condition is worse than that,
   the eigenvectors are worked out.
"""

from __future__ import annotations

import numpy as np
from scipy.linalg import LinAlgError, cho_factor, cho_solve, eigh
from scipy.linalg.lapack import dpocon

from fxprune.reconstruct.moments import Normal
from fxprune.reconstruct.numbers import Array, Mask

RANK = 1e-12


def refit(normal: Normal, weight: Array, alive: Mask, *, intercept: bool, ridge: float = 0.0) -> tuple[Array, Array]:
    """Clauses 1 to 3.

    Args:
        normal: the moments.
        weight: the weights as they were, ``(blocks, rows, columns)``.
        alive: ``(blocks, columns)``.
        intercept: fit one; otherwise it is zero.
        ridge: clause 3.

    Returns:
        New weights and the intercept, ``(blocks, rows)``.
    """
    xx, xy = normal.about(intercept)
    new = np.zeros_like(weight)
    for block, columns in enumerate(alive):
        picked = np.flatnonzero(columns)
        old = weight[block][:, picked]
        own = xx[block][np.ix_(picked, picked)]
        missing = xy[block][picked] - own @ old.T
        if ridge:
            own = own + ridge * (np.trace(own) / max(1, len(picked))) * np.eye(len(picked))
        new[block][:, picked] = old + solve(own, missing).T
    shift = normal.mean_y - (new @ normal.mean_x[:, :, None])[:, :, 0] if intercept else np.zeros_like(normal.mean_y)
    return new, shift


def solve(matrix: Array, right: Array) -> Array:
    """The smallest solution of ``matrix @ x = right`` for a positive semidefinite matrix (clause 4)."""
    if not len(matrix):
        return np.zeros_like(right)
    diagonal = np.diag(matrix)
    live = np.flatnonzero(diagonal > RANK * RANK * diagonal.max(initial=0))
    if len(live) < len(matrix):  # inputs that are constant: a rectifier that never opens
        whole = np.zeros_like(right)
        whole[live] = solve(matrix[np.ix_(live, live)], right[live]) if len(live) else 0
        return whole
    try:
        factor = cho_factor(matrix, lower=True, check_finite=False)
        reciprocal, _ = dpocon(factor[0], np.abs(matrix).sum(0).max(), uplo="L")
        if reciprocal > RANK:
            found: Array = cho_solve(factor, right, check_finite=False)
            return found
    except LinAlgError:
        pass
    values, vectors = eigh(matrix, check_finite=False)
    large = values > RANK * max(float(values[-1]), 0.0)
    basis = vectors[:, large]
    result: Array = basis @ ((basis.T @ right) / values[large][:, None])
    return result
