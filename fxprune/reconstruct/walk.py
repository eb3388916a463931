"""Layer by layer through a network: choose among the input channels, refit what reads them, go on (He et al. 2017).

1. Targets are taken in the order in which the program reads them. Inputs are those of the network as pruned so far; wanted outputs are
   those of the original network.
2. The network as pruned so far has the original's shapes; removed channels are zero columns of their readers. Removal is exactly that
   (targets.py, clause 1), and the plan is made at the end.
3. Per target one pass over the images gives the moments of all its readers; the LASSO or a score chooses; the readers are refitted in
   generations, each later one after a pass of its own, for its inputs have changed.
4. A layer is refitted on the rows of its own outputs that are still alive, over all its columns that are.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import nan, sqrt

import numpy as np
import torch

from fxprune.graph.channels import ChannelGraph
from fxprune.reconstruct.elimination import by_elimination
from fxprune.reconstruct.gather import Cache, Calibration, Site, gather
from fxprune.reconstruct.moments import Moments, Normal
from fxprune.reconstruct.numbers import Array, Mask
from fxprune.reconstruct.program import Program
from fxprune.reconstruct.readers import Reader, affine
from fxprune.reconstruct.refit import refit
from fxprune.reconstruct.report import Layer
from fxprune.reconstruct.select import Problem, by_lasso, by_order
from fxprune.reconstruct.targets import Reading, Target, alive_columns, generations

Tell = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Settings:
    """How layers are treated.

    Attributes:
        values: per target name the importance of every channel, where a score chooses.
        select: "lasso", "elimination", or "" for ``values``.
    """

    images: Calibration
    refit: bool
    slack: float
    refine: int
    ridge: float
    values: Mapping[str, Array]
    select: str


@dataclass(slots=True)
class State:
    """The network as pruned so far (clause 2): ``gone`` is per coupled channel."""

    graph: ChannelGraph
    original: Program
    current: Program
    readers: Mapping[str, Reader]
    gone: Mask
    cache: Cache | None = None

    def atoms(self, name: str, dim: int, count: int) -> Mask:
        """Which atoms of an axis are gone."""
        for axis in self.graph.axes:
            if (axis.name, axis.dim) == (name, dim):
                return self.gone[self.graph.closed.component[axis.start : axis.start + axis.size]]
        return np.zeros(count, np.bool_)

    def site(self, reading: Reading) -> Site:
        """A reader in both programs."""
        rows = np.arange(reading.reader.module.weight.shape[0])
        return Site(reading.reader, self.readers[reading.reader.weight], rows)

    def problem(self, reading: Reading, normal: Normal, weighted: bool) -> Problem:
        """What is known of a reader (clause 4); ``weighted``: an error counts as it arrives behind the batch norm."""
        reader = self.readers[reading.reader.weight]
        weight = reader.module.weight
        columns = alive_columns(reader, self.atoms(reader.weight, 1, reader.blocks * weight.shape[1]))
        rows = ~self.atoms(reader.weight, 0, weight.shape[0]).reshape(reader.blocks, -1)
        counts = worth(reader) if weighted else np.ones(rows.shape)
        return Problem(normal, reader.matrix(weight), reading.channel, columns, rows, bool(reader.bias), counts)


def worth(reader: Reader) -> Array:
    """Squares of what a batch norm multiplies the outputs by, ``(blocks, rows)``: 1 where none follows, or one that silences all."""
    found = [affine(call.norm) for call in reader.calls]
    squares = np.mean([np.square(own[0]) for own in found if own is not None], axis=0) if None not in found else np.zeros(0)
    if not squares.any():
        squares = np.ones(reader.module.weight.shape[0])
    return np.asarray(squares, np.float64).reshape(reader.blocks, -1)


def walk(state: State, chosen: Sequence[tuple[Target, int]], settings: Settings, tell: Tell) -> list[Layer]:
    """Clauses 1 to 4 for targets and the numbers of channels that stay; changes ``state``."""
    rows: list[Layer] = []
    for target, count in chosen:
        tell(target.name)
        rows += _treat(state, target, count, settings)
    return rows


def _treat(state: State, target: Target, count: int, settings: Settings) -> list[Layer]:
    begin = time.process_time()
    parts = generations(target)
    seen: dict[str, Moments] = {}
    if settings.select or settings.refit:
        _look(state, target.readings if settings.select else parts[0], settings, seen)
    penalty = 0.0
    weighted = settings.select == "elimination"
    problems = [state.problem(r, seen[r.reader.weight].normal(), weighted) for r in target.readings] if settings.select else []
    if weighted:
        kept = by_elimination(problems, len(target.group), count, target.cells, settings.ridge)
    elif settings.select:
        kept, penalty = by_lasso(
            problems, len(target.group), count, target.cells, settings.slack, settings.refine, settings.ridge
        )
    else:
        kept = by_order(settings.values[target.name], count, target.cells)
    gone = np.ones(len(target.group), np.bool_)
    gone[kept] = False
    state.gone[target.group.channels[gone]] = True
    found: list[Layer] = []
    for depth, part in enumerate(parts):
        if depth and settings.refit:
            _look(state, part, settings, seen)
        for reading in part:
            own = seen.pop(reading.reader.weight, None)
            found.append(_cut(state, target, reading, own, penalty, settings))
    spent = (time.process_time() - begin) / len(found)
    return [replace(layer, seconds=spent) for layer in found]


def _look(state: State, readings: Sequence[Reading], settings: Settings, seen: dict[str, Moments]) -> None:
    sites = [state.site(reading) for reading in readings]
    moments = gather(state.original, state.current, sites, settings.images, state.cache)
    seen.update({reading.reader.weight: own for reading, own in zip(readings, moments, strict=True)})


def _cut(state: State, target: Target, reading: Reading, seen: Moments | None, penalty: float, settings: Settings) -> Layer:
    """Take a reader's columns away and refit it."""
    reader = state.readers[reading.reader.weight]
    weight = state.current.tensors[reader.weight]
    columns = alive_columns(reader, state.atoms(reader.weight, 1, reader.blocks * weight.shape[1]))
    old = reader.matrix(weight) * columns[:, None, :]
    width = weight.shape[1] * reader.blocks
    left = int(columns[:, :: reader.taps].sum())
    before = after = nan
    shift = np.zeros((reader.blocks, old.shape[1]))
    new = old
    if seen is not None:
        normal = seen.normal()
        before = after = relative(normal, old, shift)
        if settings.refit:
            new, shift = refit(normal, old, columns, intercept=bool(reader.bias), ridge=settings.ridge)
            after = relative(normal, new, shift)
    write(state.current, reader, new, shift)
    if state.cache is not None:
        state.cache.changed(min(state.current.order[call.node] for call in reader.calls))
    note = "" if reader.bias or not settings.refit else "no place for an intercept"
    rows, memory = (seen.count, seen.bytes) if seen is not None else (0, 0)
    return Layer(reader.path, target.name, width, left, before, after, penalty, rows, 0.0, memory, note)


def relative(normal: Normal, weight: Array, shift: Array) -> float:
    """The relative error of a layer (report.py, clause 1)."""
    return sqrt(normal.loss(weight, shift) / normal.spread) if normal.spread > 0 else 0.0


def write(program: Program, reader: Reader, weight: Array, shift: Array) -> None:
    """Put a layer's weights and intercept where they belong (readers.py, clause 3), in place."""
    with torch.no_grad():
        own = program.tensors[reader.weight]
        own.copy_(torch.from_numpy(weight).reshape(own.shape))
        if reader.bias:
            place = program.tensors[reader.bias]
            place.copy_((place.cpu().double() + reader.sign * torch.from_numpy(shift).flatten()).to(place))
