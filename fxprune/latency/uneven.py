"""What odd widths cost more than round ones.

1. The *evenness* of a width is the largest power of two that divides it, up to 8. The original width counts as even, and so does what is
   narrower than two times 8, where a grid holds odd widths as they are.
2. A layer takes as long as its grid says, times a *factor* for each of its axes. Factors are at least 1, and larger for widths that are less even.
   They are fitted to samples with uneven widths: least squares of logarithms.
3. ``alignment`` is the least evenness at which the whole takes at most 3 % longer, were all widths so: its multiples are cheap here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from scipy.optimize import nnls

from fxprune.solve.cost_table import CostEntry

EVEN = 8
CHEAP = 1.03
LESS_EVEN = (4, 2, 1)
Factors = tuple[Mapping[int, float], ...]  # by axis, by evenness


def evenness(width: float, full: float = math.inf) -> int:
    """Clause 1: 1, 2, 4 or 8."""
    if width == full or width < 2 * EVEN:
        return EVEN
    return math.gcd(int(width), EVEN) if float(width).is_integer() else 1


def factor(entry: CostEntry, factors: Factors, widths: Sequence[float]) -> float:
    """Clause 2: what a layer of these widths takes longer than its grid says."""
    own = zip(factors, widths, entry.widths, strict=True)
    return math.prod(by.get(evenness(width, grid[-1]), 1.0) for by, width, grid in own)


def factors(entry: CostEntry, widths: Sequence[Sequence[int]], seconds: Sequence[float]) -> Factors:
    """Clause 2, from samples.

    Args:
        entry: what the layer takes at round widths.
        widths: per sample, one width per axis.
        seconds: per sample.
    """
    rows, logarithms = [], []
    for own, time in zip(widths, seconds, strict=True):
        expected = entry.at(own)
        if expected > 0 and time > 0:
            evens = [evenness(width, grid[-1]) for width, grid in zip(own, entry.widths, strict=True)]
            rows.append([float(even <= less) for even in evens for less in LESS_EVEN])
            logarithms.append(math.log(time / expected))
    if not rows:
        return tuple({} for _ in entry.axes)
    steps, _ = nnls(np.array(rows), np.array(logarithms))
    risen = np.exp(np.cumsum(steps.reshape(len(entry.axes), len(LESS_EVEN)), axis=1))
    return tuple(dict(zip(LESS_EVEN, row.tolist(), strict=True)) for row in risen)


def alignment(entries: Sequence[CostEntry], found: Mapping[str, Factors]) -> int:
    """Clause 3."""
    full = {entry.name: float(entry.costs.flat[-1]) for entry in entries}
    for less in reversed(LESS_EVEN):
        if sum(cost * math.prod(by.get(less, 1.0) for by in found[name]) for name, cost in full.items()) <= CHEAP * sum(
            full.values()
        ):
            return less
    return EVEN
