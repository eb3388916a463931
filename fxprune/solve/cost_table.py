"""The seam between measuring layers and choosing widths: what a measurement hands to the solver.

1. A *cost table* is a constant (what does not depend on any width: dispatch, pooling, layers that cannot shrink) and entries. The cost of
   a plan is the constant plus the sum of all entries at the plan's widths. It is in seconds; the solver does not look at the unit.
2. An *entry* is one layer, or several that are measured together. Its cost depends on the widths of one, two or three *axes*: dimensions of
   parameters, ``(parameter name, dimension)``, as in ``Plan.kept``: ``("layer1.0.conv1.weight", 0)`` is the number of output channels,
   ``("layer1.0.conv1.weight", 1)`` that of input channels (of a grouped convolution: of all groups together, ``Plan.kept``'s count).
   A dimension that no plan can shrink need not be an axis.
3. ``widths[i]`` is the sampled grid along axis i, ascending, and ends with the original width; ``costs`` has one dimension per axis. Between
   grid points costs are interpolated linearly along each axis (multilinearly over several); below the first they are that of the first.
4. A table may have a third part, ``factor(entry, widths)``: at least 1, how much longer than its grid says an entry takes at whole widths. The
   solver's figures are then products of both; on the way, and in bounds, it looks at grids.
5. A table is for one device, thread count, dtype and input shape; whoever measures keeps those apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from fxprune.errors import BudgetError

Costs = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class CostEntry:
    """The cost of one layer over the widths of its axes (clauses 2 and 3).

    Attributes:
        name: what is measured: a module's or a node's name.
        axes: up to three ``(parameter name, dimension)``.
        widths: the grid along each axis, ascending, original width last.
        costs: shape ``tuple(map(len, widths))``.
    """

    name: str
    axes: tuple[tuple[str, int], ...]
    widths: tuple[tuple[int, ...], ...]
    costs: Costs

    def __post_init__(self) -> None:
        sizes = tuple(len(grid) for grid in self.widths)
        ascending = all(a < b for grid in self.widths for a, b in pairwise(grid))
        if (
            not 1 <= len(self.axes) <= 3
            or len(sizes) != len(self.axes)
            or self.costs.shape != sizes
            or not ascending
            or 0 in sizes
        ):
            raise BudgetError(
                f"cost entry {self.name!r} needs one to three axes, an ascending grid for each, and one cost per grid point; got "
                f"{len(self.axes)} axes, grids {self.widths} and costs of shape {self.costs.shape}.",
                node=self.name,
            )
        if not bool(np.isfinite(self.costs).all()) or bool((self.costs < 0).any()):
            raise BudgetError(f"cost entry {self.name!r} holds costs that are negative or not finite.", node=self.name)

    def at(self, widths: Sequence[float]) -> float:
        """The cost at these widths (clause 3)."""
        costs = self.costs
        for grid, width in zip(self.widths, widths, strict=True):
            right = min(int(np.searchsorted(grid, width)), len(grid) - 1)
            left = max(right - 1, 0)
            span = grid[right] - grid[left]
            share = min(max((width - grid[left]) / span, 0.0), 1.0) if span else 1.0
            costs = (1 - share) * costs[left] + share * costs[right]
        return float(costs)


@runtime_checkable
class CostTable(Protocol):
    """What ``Budget(latency=..., table=...)`` takes: anything with these two (clause 1)."""

    @property
    def constant(self) -> float:
        """What no width changes, in seconds."""
        ...

    @property
    def entries(self) -> Sequence[CostEntry]:
        """One per layer whose cost depends on widths."""
        ...


@dataclass(frozen=True, slots=True)
class MeasuredCosts:
    """The plainest ``CostTable``."""

    constant: float
    entries: tuple[CostEntry, ...]
