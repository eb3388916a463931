"""From times of one layer at scattered widths to a table over a grid.

1. A layer that meets few different widths along each of its axes has them as its grid; a point is the mean of the times seen there.
2. A layer that meets many (what reads a concatenation) has five widths per axis as its grid, between the smallest and the full one.
3. A point of the grid that no sample has seen, and every point under clause 2, is that of the surface a + b w1 + c w2 + d w1 w2 with coefficients
   that are not negative, fitted to the samples with weights 1 / time (relative errors count).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from scipy.optimize import nnls

from fxprune.solve.cost_table import CostEntry

MOST_WIDTHS = 8


def fitted(
    name: str, axes: Sequence[tuple[str, int]], full: Sequence[int], widths: Sequence[Sequence[int]], seconds: Sequence[float]
) -> CostEntry:
    """A cost entry from samples (clauses 1 to 3).

    Args:
        name: of the layer.
        axes: what ``widths`` are widths of.
        full: the original width of each axis.
        widths: per sample, one width per axis.
        seconds: per sample.
    """
    seen = np.array(widths, np.int64).reshape(len(seconds), len(axes))
    times = np.array(seconds, np.float64)
    grids = [_grid(np.unique(np.append(column, most)), most) for column, most in zip(seen.T, full, strict=True)]
    weights = 1 / np.maximum(times, 1e-12)
    scale = np.array(full, np.float64)
    coefficients, _ = nnls(_terms(seen / scale) * weights[:, None], times * weights)
    costs = np.empty([len(grid) for grid in grids])
    for place in itertools.product(*(range(len(grid)) for grid in grids)):
        point = np.array([grid[i] for grid, i in zip(grids, place, strict=True)])
        here = (seen == point).all(axis=1)
        costs[place] = times[here].mean() if here.any() else float((_terms(point[None] / scale) @ coefficients)[0])
    return CostEntry(name, tuple(axes), tuple(grids), costs)


def _grid(found: npt.NDArray[np.int64], full: int) -> tuple[int, ...]:
    if len(found) <= MOST_WIDTHS:
        return tuple(int(w) for w in found)
    return tuple(sorted({round(w) for w in np.linspace(found[0], full, 5)}))


def _terms(shares: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """1, every share, and every product of two."""
    columns = [np.ones(len(shares)), *shares.T]
    columns += [a * b for a, b in itertools.combinations(shares.T, 2)]
    return np.stack(columns, axis=1)
