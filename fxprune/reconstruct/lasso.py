"""LASSO on a Gram matrix, and the search for a penalty that leaves as many channels as wanted.

1. ``lasso`` minimises ``beta' G beta / 2 - h' beta + lambda sum |beta|``. With ``G = Z'Z / N`` and ``h = Z'y / N`` that is ``||y - Z
   beta||^2 / (2N) + lambda ||beta||_1`` up to a constant (He et al. 2017, eq. 2; scikit-learn's ``Lasso``), at a cost that does not
   depend on N.
2. It is solved by cyclic coordinate descent (Friedman et al. 2010), over all coordinates and then over those that are not zero. In turn
   with that, the equations of the support, ``G_AA beta_A = h_A - lambda sign(beta_A)``, are solved outright, and ``beta`` goes towards
   their solution until a coefficient becomes zero (Lee et al. 2007). Both steps descend; where the support is right, the second ends at
   the minimum.
3. ``choose`` follows the reference implementation of He et al., who double lambda until few enough coefficients are left and then bisect.
   Here the same bracket is found from above, by halving: supports are small there, and every solution starts from the one before. It is
   bisected until just ``count`` are left; where no penalty leaves just so many, the fewest seen are taken that are a share of ``slack``
   more at most. Where the support jumps over that range, the ``count`` coefficients that carry most, ``|beta_i| sqrt(G_ii)``, are taken
   from the solution above it; where not even a vanishing penalty leaves enough (channels that are always zero, copies of others), those of
   largest ``G_ii`` are added.
4. ``ranking`` orders channels by the largest lambda at which they take part, ties by what they carry: for channels that may go only in
   step.

Written here and not imported: scikit-learn's public solvers on a Gram matrix are least-angle steps, which lose their way among channels
that depend on each other exactly, which is the case this is for; its coordinate descent wants the N rows. The tests hold this one against
it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy.linalg import LinAlgError, cho_factor, cho_solve

from fxprune.reconstruct.numbers import Array, Ids

SWEEPS = 5  # of coordinate descent, before the equations of the support are solved
ROUNDS = 200
STEPS = 40
LEAST = 1e-9  # the smallest penalty, as a share of the one that leaves nothing
SMALLEST = 1e-4  # the same, for a ranking
FINEST = 1e-9
GRID = 60  # penalties that a ranking tells apart


@dataclass(frozen=True, slots=True)
class Choice:
    """Which channels stay (ascending), with their coefficients and the penalty that chose them."""

    kept: Ids
    beta: Array
    penalty: float


def lasso(gram: Array, cross: Array, penalty: float, start: Array | None = None, tolerance: float = 1e-9) -> Array:
    """Clauses 1 and 2: the coefficients ``(c,)``; ``start`` is where to begin.

    The gradient is optimal to ``tolerance`` times the largest correlation, or as near as ``ROUNDS`` rounds come.
    """
    beta = np.zeros(len(cross)) if start is None else start.copy()
    allowed = tolerance * max(float(np.abs(cross).max(initial=0)), 1e-300)
    diagonal = np.diag(gram).copy()
    live = np.flatnonzero(diagonal > 0)
    beta[diagonal <= 0] = 0
    for _ in range(ROUNDS):
        slope = cross - gram @ beta
        for sweep in range(SWEEPS):
            if not _sweep(gram, diagonal, beta, slope, penalty, live if sweep == 0 else np.flatnonzero(beta)):
                break
        beta = _on_support(gram, cross, penalty, beta)
        if _violation(gram, cross, penalty, beta) <= allowed:
            break
    return beta


def _sweep(gram: Array, diagonal: Array, beta: Array, slope: Array, penalty: float, order: Ids) -> bool:
    """One round of coordinate descent, in place; ``slope`` is ``h - G beta``. True if something moved."""
    moved = False
    for i in order.tolist():
        old = beta[i]
        pull = slope[i] + diagonal[i] * old
        new = math.copysign(max(abs(pull) - penalty, 0.0), pull) / diagonal[i]
        if new != old:
            beta[i] = new
            slope -= gram[:, i] * (new - old)
            moved = True
    return moved


def _on_support(gram: Array, cross: Array, penalty: float, beta: Array) -> Array:
    """Towards the minimum over the signs that ``beta`` has; a coefficient that would change its sign on the way becomes zero."""
    support = np.flatnonzero(beta)
    while len(support):
        old, signs = beta[support], np.sign(beta[support])
        try:
            factor = cho_factor(gram[np.ix_(support, support)], lower=True, check_finite=False)
        except LinAlgError:
            break
        new = cho_solve(factor, cross[support] - penalty * signs, check_finite=False)
        if not np.isfinite(new).all():
            break
        crossing = np.flatnonzero(new * signs <= 0)
        steps = old[crossing] / (old[crossing] - new[crossing])
        beta = beta.copy()
        beta[support] = old + steps.min(initial=1.0) * (new - old)
        if not len(crossing):
            break
        beta[support[crossing[steps == steps.min()]]] = 0
        support = np.flatnonzero(beta)
    return beta


def _violation(gram: Array, cross: Array, penalty: float, beta: Array) -> float:
    """How far the gradient is from an optimal one."""
    slope = cross - gram @ beta
    off = np.where(beta != 0, np.abs(slope - penalty * np.sign(beta)), np.maximum(np.abs(slope) - penalty, 0))
    return float(off.max(initial=0))


def choose(gram: Array, cross: Array, count: int, slack: float = 0.1) -> Choice:
    """Clause 3: at least ``count`` channels and at most a share of ``slack`` more."""
    if count >= len(cross):
        return Choice(np.arange(len(cross)), np.ones(len(cross)), 0.0)
    most = math.floor(count * (1 + slack) + 1e-9)
    top = float(np.abs(cross).max(initial=0))
    best: Choice | None = None
    above, beta = np.zeros(len(cross)), np.zeros(len(cross))

    def left(penalty: float) -> int:
        nonlocal best, above, beta
        beta = lasso(gram, cross, penalty, beta)
        support = np.flatnonzero(beta)
        if count <= len(support) <= most and (best is None or len(support) < len(best.kept)):
            best = Choice(support, beta, penalty)
        if len(support) >= count:
            above = beta
        return len(support)

    low = right = top
    while low > LEAST * top and left(low) <= count:
        low, right = low / 2, low
    for _ in range(STEPS):
        if low <= LEAST * top or (best is not None and len(best.kept) == count) or right - low <= FINEST * right:
            break
        middle = (low + right) / 2
        low, right = (middle, right) if left(middle) > count else (low, middle)
    if best is not None:
        return best
    carried = np.abs(above if above.any() else beta) * np.sqrt(np.maximum(np.diag(gram), 0))
    order = np.lexsort((np.arange(len(cross)), -np.diag(gram), -carried))
    return Choice(np.sort(order[:count]), above if above.any() else beta, low)


def ranking(gram: Array, cross: Array) -> Array:
    """Clause 4: importances ``(c,)``, larger for what stays longer."""
    top = float(np.abs(cross).max(initial=0))
    scale = np.sqrt(np.maximum(np.diag(gram), 0))
    entered, beta = np.zeros(len(cross)), np.zeros(len(cross))
    carried = np.zeros(len(cross))
    for penalty in top * np.geomspace(1, SMALLEST, GRID):
        beta = lasso(gram, cross, float(penalty), beta, tolerance=1e-6)
        new = (beta != 0) & (entered == 0)
        entered[new] = penalty
        carried = np.abs(beta) * scale
    places = np.empty(len(cross))
    places[np.lexsort((-np.arange(len(cross)), scale, carried, entered))] = np.arange(len(cross))
    return places
