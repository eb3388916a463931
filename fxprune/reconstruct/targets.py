"""Groups of coupled channels among which reconstruction can choose, and why not among others.

1. A *target* is a group of which every reading axis is the input side of a reader (readers.py). Removing channels of it is then removing
   columns of the readers' weights: all else that goes with them (the producer's rows, batch norms, depthwise convolutions) is heard by
   nobody. That this is so is seen on a float64 run: with the columns of half of its channels zero, what produces these channels is
   replaced by large random numbers, and no output may move. So channels that a norm, a softmax or a product mixes with others are no
   target, whatever the operator is called.
2. A group in which several producers meet in a sum is a *stream*. It is a target, of which all readers drop the same channels, only if it is
   asked for by name. What a convolution selects of a stream (branches.py) is a *branch*, a target of its own.
3. Channels under a balance go in step with their siblings. Cells must lie within the group.
4. ``generations``: readers of one target that depend on each other (a dense network's) are refitted one after another, the others
   together.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from fxprune.capture.inputs import Inputs
from fxprune.graph.channels import ChannelGraph, ChannelGroup
from fxprune.precision import doubled
from fxprune.reconstruct.branches import stream_channels
from fxprune.reconstruct.numbers import Ids, Mask
from fxprune.reconstruct.program import Program
from fxprune.reconstruct.readers import Reader, ancestors
from fxprune.sparse.neurons import apart, write_atoms

LOUD = 1e3
SAME = 1e-12
STREAM = (
    "it is a sum of several layers (a residual stream) and stays whole; with layout='selection' the first convolutions of its branches read "
    "a part of it each. Named in ratios=, it loses the same channels for all its readers"
)
MIXED = "something other than convolutions and linear layers hears its channels (a norm over channels, a softmax, a product)"


@dataclass(frozen=True, slots=True, eq=False)
class Reading:
    """A reader and, per column ``(blocks, columns)``, the group's channel it multiplies; -1 for channels of other groups."""

    reader: Reader
    channel: Ids


@dataclass(frozen=True, slots=True, eq=False)
class Target:
    """Clauses 1 to 3.

    Attributes:
        group: the coupled channels.
        producers: names of the modules that make them.
        readings: who reads them, in the program's order.
        cells: channels that go in step, as positions in the group; () if all are free of each other.
        stream: clause 2.
        branch: clause 2.
        least: how many stay at least.
    """

    group: ChannelGroup
    producers: tuple[str, ...]
    readings: tuple[Reading, ...]
    cells: tuple[Ids, ...]
    stream: bool
    branch: bool
    least: int

    @property
    def name(self) -> str:
        if self.branch:
            return f"stream -> {self.readings[0].reader.path}"
        return self.producers[0] if self.producers else self.group.name

    def called(self, name: str) -> bool:
        """It is known under this name: that of a producing module, or of its weight."""
        return name in self.producers or name.removesuffix(".weight") in self.producers


@dataclass(frozen=True, slots=True)
class Skipped:
    """A group that is no target, under the names of its producers, and why."""

    names: tuple[str, ...]
    channels: int
    reason: str


def targets(
    graph: ChannelGraph, program: Program, known: Mapping[str, Reader | str], inputs: Inputs
) -> tuple[list[Target], list[Skipped]]:
    """Clauses 1 to 3; targets in the order in which the program first reads them."""
    streams, branches = stream_channels(graph), _behind_selects(graph)
    found: list[Target] = []
    skipped: list[Skipped] = []
    for group in graph.groups:
        producers = producing(graph, group)
        reason = _refused(graph, group, known) or _unstepped(graph, group)
        if reason:
            skipped.append(Skipped(producers or (group.name,), len(group), reason))
            continue
        readings = tuple(sorted(_readings(group, known), key=lambda r: program.order[r.reader.calls[0].node]))
        stream, branch = bool(streams[group.channels].any()) and len(producers) > 1, bool(branches[group.channels].all())
        found.append(Target(group, producers, readings, _cells(graph, group), stream, branch, _least(graph, group)))
    loud = heard(program, found, inputs)
    skipped += [Skipped(t.producers or (t.group.name,), len(t.group), MIXED) for i, t in enumerate(found) if i in loud]
    quiet = [t for i, t in enumerate(found) if i not in loud]
    return sorted(quiet, key=lambda t: program.order[t.readings[0].reader.calls[0].node]), skipped


def producing(graph: ChannelGraph, group: ChannelGroup) -> tuple[str, ...]:
    """Names of the modules whose weights make a group's channels; depthwise convolutions pass them on."""
    modules = dict(graph.program.captured.modules)
    names = []
    for member in group.members:
        owner, _, leaf = member.name.rpartition(".")
        module = modules.get(owner)
        if member.reads or member.dim != 0 or graph.tensors[member.name].dim() < 2 or module is None or leaf != "weight":
            continue
        if not 1 < getattr(module, "groups", 1) == getattr(module, "in_channels", 0):
            names.append(owner)
    return tuple(names)


def _refused(graph: ChannelGraph, group: ChannelGroup, known: Mapping[str, Reader | str]) -> str:
    reads = [member for member in group.members if member.reads]
    if len(group) < 2:
        return "it has one channel"
    if not reads:
        return "no convolution or linear layer reads it"
    for member in reads:
        reader = known.get(member.name, "it is read by something else than a layer that is called as a module")
        if isinstance(reader, str):
            return f"{member.name}: {reader}"
        if member.dim != 1:
            return f"{member.name} reads it along dimension {member.dim}"
    if np.isin(group.channels, graph.closed.owners).any():
        return "its channels stand for blocks of others (attention heads, groups)"
    return ""


def _unstepped(graph: ChannelGraph, group: ChannelGroup) -> str:
    """Clause 3."""
    cells = _linked(graph, group)
    if not cells:
        return ""
    inside = np.concatenate(cells)
    if len(inside) != len(group) or not np.isin(inside, group.channels).all():
        return "its channels go in step with those of other groups"
    return ""


def _linked(graph: ChannelGraph, group: ChannelGroup) -> list[Ids]:
    return [
        cell
        for cells in graph.closed.cells
        if any(np.isin(cell, group.channels).any() for cell in cells.cells)
        for cell in cells.cells
    ]


def _cells(graph: ChannelGraph, group: ChannelGroup) -> tuple[Ids, ...]:
    place = {int(channel): i for i, channel in enumerate(group.channels)}
    return tuple(np.array([place[int(c)] for c in cell], np.int64) for cell in _linked(graph, group))


def _least(graph: ChannelGraph, group: ChannelGroup) -> int:
    least = 1
    for floor in graph.program.recorder.floors:
        channels = np.unique(graph.closed.component[floor.ids])
        own = int(np.isin(channels, group.channels).sum())
        if own:
            least = max(least, min(own, floor.least - (len(channels) - own)))
    return least


def _readings(group: ChannelGroup, known: Mapping[str, Reader | str]) -> Iterable[Reading]:
    channels: dict[str, Ids] = {}
    for member in group.members:
        reader = known.get(member.name)
        if member.reads and isinstance(reader, Reader):
            columns = channels.setdefault(member.name, np.full(reader.blocks * reader.module.weight.shape[1], -1, np.int64))
            columns[member.atom] = member.channel
    for name, columns in channels.items():
        reader = known[name]
        assert isinstance(reader, Reader)
        yield Reading(reader, np.repeat(columns.reshape(reader.blocks, -1), reader.taps, axis=1))


def _behind_selects(graph: ChannelGraph) -> Mask:
    """Per coupled channel: a cut selects it."""
    found = np.zeros(graph.closed.count, np.bool_)
    for cut in graph.selection.cuts if graph.selection is not None else ():
        found[graph.closed.component[cut.own]] = True
    return found


def generations(target: Target) -> list[list[Reading]]:
    """Clause 4."""
    level: dict[int, int] = {}
    for place, reading in enumerate(target.readings):
        above = set().union(*(ancestors(call.node) for call in reading.reader.calls))
        earlier = [
            level[other] for other in range(place) if any(call.node in above for call in target.readings[other].reader.calls)
        ]
        level[place] = max(earlier, default=-1) + 1
    return [[r for i, r in enumerate(target.readings) if level[i] == depth] for depth in range(max(level.values()) + 1)]


def heard(program: Program, found: Sequence[Target], inputs: Inputs) -> set[int]:
    """Clause 1: the targets whose channels something else hears, by halves."""
    everything = list(range(len(found)))
    call = inputs.map(doubled)

    def outputs(chosen: Sequence[int], noise: bool) -> list[Tensor]:
        twin = Program.of(program.graph, program.root, dtype=torch.float64)
        for index in chosen:
            _silence(twin, found[index], noise)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            leaves = torch.utils._pytree.tree_leaves(twin.run(call.map(torch.clone)))
        return [leaf for leaf in leaves if isinstance(leaf, Tensor)]

    def search(chosen: Sequence[int]) -> set[int]:
        if not chosen or apart(outputs(chosen, False), outputs(chosen, True)) <= SAME:
            return set()
        if len(chosen) == 1:
            return set(chosen)
        middle = len(chosen) // 2
        return search(chosen[:middle]) | search(chosen[middle:])

    return search(everything)


def _silence(program: Program, target: Target, noise: bool) -> None:
    """The readers' columns of half of the channels become zero; with ``noise``, what produces these becomes large random numbers.

    Behind a select that is a batch norm's scale and shift.
    """
    generator = torch.Generator().manual_seed(0)
    half = torch.randperm(len(target.group), generator=generator, device="cpu")[: max(1, len(target.group) // 2)].numpy()
    for member in target.group.members:
        tensor = program.tensors[member.name]
        atoms = member.atom[np.isin(member.channel, half)]
        if not len(atoms) or not tensor.is_floating_point():
            continue
        if member.reads:
            write_atoms(tensor, member, atoms, torch.zeros_like)
        elif noise and (tensor.dim() > 1 or (target.branch and isinstance(tensor, nn.Parameter))):
            write_atoms(
                tensor,
                member,
                atoms,
                lambda old: LOUD * torch.randn(old.shape, generator=generator, dtype=torch.float64, device="cpu").to(old),
            )


def alive_columns(reader: Reader, gone: Mask) -> Mask:
    """``(blocks, columns)``, from a mask over the atoms of a reader's input axis."""
    return np.repeat(~gone.reshape(reader.blocks, -1), reader.taps, axis=1)
