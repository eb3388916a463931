"""Slim networks to time: widths drawn so that every layer meets every combination of its input and output widths.

1. A *level* is a share of a group's channels that stays: ``LEVELS``, of which there are five. A width is the nearest multiple of 8 from 16 on, as
   runtimes like it, and at least one channel.
2. Groups that meet in a layer (one is read, the other made) get different *columns* of an orthogonal array with 25 runs, 5 levels and strength 2: in
   25 samples any two columns take all 25 pairs of levels. There are 6 columns; where a graph needs more, some pairs coincide.
3. Odd widths cost more than round ones. What counts is a width's evenness (uneven.py). In 16 more samples widths have 0, 4, 2 or 1 channels less,
   by an orthogonal array with 16 runs, 4 levels, strength 2 and 5 columns: a layer meets all 16 pairs of evenness of its two widths. They lie
   around three quarters or a half of the channels.
4. Channels that balances thin in step lose a share of steps, the same in every cell. Heads and groups of convolutions never go as wholes.
"""

from __future__ import annotations

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
LESS = (0, 4, 2, 1)


def array() -> list[tuple[int, ...]]:
    """The orthogonal array of clause 2: 25 rows of 6 levels (Bose 1938, over the field of 5 elements); the first row is all zeros."""
    return [(i, j, *((i + k * j) % 5 for k in range(1, 5))) for i in range(5) for j in range(5)]


def uneven() -> list[tuple[tuple[float, int], ...]]:
    """Level and channels less, by column, for the samples of clause 3 (Bose 1938, over the field of 4 elements)."""
    times = ((0, 1, 2, 3), (0, 2, 3, 1), (0, 3, 1, 2))
    rows = [(i, j, *(i ^ own[j] for own in times)) for i in range(4) for j in range(4)]
    return [tuple(((0.75, 0.5)[number // 2 % 2], LESS[less]) for less in row) for number, row in enumerate(rows)]


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
    return [colours[index] for index in range(len(graph.groups))]


def width(full: int, level: float, less: int = 0) -> int:
    """Clauses 1 and 3."""
    wanted = full * level
    return round(wanted / EVEN) * EVEN - less if full > wanted >= 2 * EVEN else max(1, round(wanted))


def samples(graph: ChannelGraph) -> list[Plan]:
    """25 plans, the first of which removes nothing, and those of clause 3."""
    column = columns(graph)
    rows = [[(LEVELS[row[own % COLUMNS]], 0) for own in column] for row in array()]
    rows += [[row[own % len(row)] for own in column] for row in uneven()]
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
