"""Slim networks to time: widths drawn so that every layer meets every combination of its input and output widths.

1. A *level* is a share of a group's channels that stays: ``LEVELS``, of which there are five. A width is the nearest multiple of 8 from 16 on, as
   runtimes like it, and at least one channel.
2. Groups that meet in a layer (one is read, the other made) get different *columns* of an orthogonal array with 25 runs, 5 levels and strength 2: in
   25 samples any two columns take all 25 pairs of levels. There are 6 columns; where a graph needs more, some pairs coincide.
3. Odd widths cost more than round ones. ``UNEVEN`` samples have all groups at one level, less 1, 2 or 4 channels: widths whose *evenness*, the
   largest power of two that divides them, up to 8, is 1, 2 or 4.
4. Channels that balances thin in step lose a share of steps, the same in every cell. Heads and groups of convolutions never go as wholes.
"""

from __future__ import annotations

import math

import networkx
import numpy as np
import numpy.typing as npt

from fxprune.graph.channels import ChannelGraph
from fxprune.plan import Plan
from fxprune.provenance.factor import Mask
from fxprune.solve.plans import to_plan
from fxprune.solve.ratio import Solution

LEVELS = (1.0, 0.75, 0.5, 0.25, 0.125)
COLUMNS = 6
EVEN = 8
UNEVEN = tuple((level, less) for less in (4, 2, 1) for level in (0.75, 0.5))


def array() -> list[tuple[int, ...]]:
    """The orthogonal array of clause 2: 25 rows of 6 levels (Bose 1938, over the field of 5 elements); the first row is all zeros."""
    return [(i, j, *((i + k * j) % 5 for k in range(1, 5))) for i in range(5) for j in range(5)]


def columns(graph: ChannelGraph) -> list[int]:
    """A column for every group (clause 2)."""
    meeting: networkx.Graph[int] = networkx.Graph()
    meeting.add_nodes_from(range(len(graph.groups)))
    layers: dict[str, list[int]] = {}
    for index, group in enumerate(graph.groups):
        for name in {member.name for member in group.members if graph.tensors[member.name].dim() > 1}:
            layers.setdefault(name, []).append(index)
    for together in layers.values():
        meeting.add_edges_from((a, b) for a in together for b in together if a < b)
    colours: dict[int, int] = networkx.greedy_color(meeting, "largest_first")
    return [colours[index] % COLUMNS for index in range(len(graph.groups))]


def width(full: int, level: float, less: int = 0) -> int:
    """Clauses 1 and 3."""
    wanted = full * level
    return round(wanted / EVEN) * EVEN - less if full > wanted >= 2 * EVEN else max(1, round(wanted))


def evenness(width: float) -> int:
    """Clause 3: 1, 2, 4 or 8."""
    return math.gcd(int(width), EVEN) if float(width).is_integer() else 1


def samples(graph: ChannelGraph) -> list[Plan]:
    """25 plans, the first of which removes nothing, and those of ``UNEVEN``."""
    column = columns(graph)
    rows = [[(LEVELS[row[own]], 0) for own in column] for row in array()]
    rows += [[chosen] * len(column) for chosen in UNEVEN]
    in_step = np.zeros(graph.closed.count, np.bool_)
    in_step[graph.closed.owners] = True
    for cells in graph.closed.cells:
        for cell in cells.cells:
            in_step[cell] = True
    found = []
    for row in rows:
        removed = np.zeros(graph.closed.count, np.bool_)
        levels = np.ones(graph.closed.count)
        for group, (level, less) in zip(graph.groups, row, strict=True):
            levels[group.channels] = level
            alone = group.channels[~in_step[group.channels]]
            removed[alone[width(len(alone), level, less) :]] = True
        _thin_cells(graph, levels, removed)
        found.append(to_plan(graph, Solution(removed, 0.0, 0.0), "a sample"))
    return found


def _thin_cells(graph: ChannelGraph, levels: npt.NDArray[np.float64], removed: Mask) -> None:
    """Clause 4."""
    for cells in graph.closed.cells:
        free = min(int((~graph.pinned[cell]).sum()) * cells.steps // len(cell) for cell in cells.cells)
        share = float(min(levels[cell].max() for cell in cells.cells))
        steps = min(cells.steps - max(1, round(cells.steps * share)), free)
        for cell in cells.cells:
            candidates = cell[~graph.pinned[cell]]
            removed[candidates[: steps * (len(cell) // cells.steps)]] = True
