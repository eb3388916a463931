"""ChannelGraph: what can go, in which units, and why the rest cannot.

1. A *coupled channel* is a class of atoms that live and die together. It is free unless one of its atoms is pinned, or no
   parameter produces it (a padded zero that is only read stays).
2. A *group* holds the free coupled channels of one kind: the same set of axes, and the same parts of values.
3. ``ChannelGraph`` is immutable; ``keep`` and the fail-safe make new ones with more pins.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from fxprune.capture.inputs import Inputs
from fxprune.graph.closure import Closed, close
from fxprune.provenance.cuts import Cut
from fxprune.provenance.factor import Ids, Mask
from fxprune.provenance.interpret import Interpreted
from fxprune.provenance.ledger import Axis

if TYPE_CHECKING:
    import networkx


@dataclass(frozen=True, slots=True)
class Member:
    """One axis of a group: which atoms of ``name``'s dimension ``dim`` belong to which channel of the group.

    ``atom[i]`` (an index along the axis, plan.py clause 3) belongs to channel ``channel[i]`` of the group.
    """

    name: str
    dim: int
    channel: Ids
    atom: Ids
    reads: bool
    blocks: int = 1


@dataclass(frozen=True, slots=True)
class ChannelGroup:
    """The free coupled channels of one kind.

    Attributes:
        name: the axis that names the group: its first producer.
        channels: component number of each channel.
        members: the axes the channels have atoms in.
        tensors: the model's parameters and buffers by name (for scores).
        gammas: names of the batch-norm weights among the members.
    """

    name: str
    channels: Ids
    members: tuple[Member, ...]
    tensors: Mapping[str, Tensor] = field(repr=False)
    gammas: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.channels)

    def per_channel(self, member: Member, values: Tensor) -> Tensor:
        """The mean over each channel's atoms in one member of per-atom ``values`` (shape (atoms,)); shape (channels,)."""
        channel = torch.from_numpy(member.channel).to(values.device)
        total = torch.zeros(len(self), dtype=values.dtype, device=values.device)
        picked = values[torch.from_numpy(member.atom).to(values.device)]
        total.index_add_(0, channel, picked)
        counts = torch.from_numpy(np.bincount(member.channel, minlength=len(self))).to(values.device)
        return total / counts.clamp(min=1)


@dataclass(frozen=True, slots=True)
class Constraint:
    """A demand other than coupling: ``kind`` is pinned, balance, block or floor."""

    kind: str
    node: str
    reason: str
    axes: tuple[str, ...]
    channels: int


@dataclass(frozen=True, slots=True)
class Selection:
    """What the selection layout adds to a graph.

    Attributes:
        cuts: where layers drop channels of what they read (provenance/cuts.py).
        closed: cuts whose two sides are coupled again (graph/selection.py).
        heard: atoms that something else than columns of weights hears.
    """

    cuts: tuple[Cut, ...]
    closed: tuple[Cut, ...]
    heard: Ids


@dataclass(frozen=True, repr=False)
class ChannelGraph:
    """Provenance of every node, coupled channels, constraints and groups of one captured model.

    Attributes:
        program: the captured program and its recorded interpretation.
        closed: components, balances, cells.
        tensors: parameters and buffers of the model, by name.
        gammas: names of weights of batch norms.
        kept: names that the user asked to keep.
        barred: atoms that the fail-safe or ``keep`` pinned, with node and reason.
        notes: what a user should know.
        inputs: the example inputs.
        selection: cuts in front of layers and what else hears channels, for the selection layout (graph/selection.py).
    """

    program: Interpreted
    closed: Closed
    tensors: Mapping[str, Tensor]
    gammas: frozenset[str]
    barred: tuple[tuple[Ids, str, str], ...] = ()
    notes: tuple[str, ...] = ()
    inputs: Inputs | None = None
    selection: Selection | None = None

    def __repr__(self) -> str:
        free, whole = self.prunable()
        own = f"{len(self.groups)} groups, {free} of {whole} channels can go"
        return f"<{type(self).__name__} of {self.program.captured.name}: {own}; explain(name) tells why>"

    @property
    def axes(self) -> Sequence[Axis]:
        return self.program.recorder.axes

    @property
    def nodes(self) -> Mapping[str, Any]:
        """What each node computes; tensors as ``Value``s."""
        return self.program.nodes

    @cached_property
    def pinned(self) -> Mask:
        """Per component: can never go."""
        pinned = np.zeros(self.closed.count, np.bool_)
        pinned[self.closed.component[0]] = True
        recorder = self.program.recorder
        for pin in recorder.pins:
            pinned[self.closed.component[pin.ids]] = True
        for components, _, _ in self.closed.rigid:
            pinned[components] = True
        for ids, _, _ in self.barred:
            pinned[self.closed.component[ids]] = True
        return pinned

    @cached_property
    def _table(self) -> tuple[Ids, Ids]:
        """Component and axis number of every parameter atom."""
        component = self.closed.component
        if not self.axes:
            return np.zeros(0, np.int64), np.zeros(0, np.int64)
        comps = np.concatenate([component[a.start : a.start + a.size] for a in self.axes])
        numbers = np.repeat(np.arange(len(self.axes)), [a.size for a in self.axes])
        return comps, numbers

    @cached_property
    def reading(self) -> Mask:
        """Per axis: it is the input side of a contraction."""
        atoms = np.zeros(self.program.recorder.atoms, np.bool_)
        for ids in self.program.recorder.readers:
            atoms[ids] = True
        for ids in self.program.recorder.writers:
            atoms[ids] = False
        return np.array([bool(atoms[a.start : a.start + a.size].any()) for a in self.axes], np.bool_)

    @cached_property
    def groups(self) -> tuple[ChannelGroup, ...]:
        """The free coupled channels by kind, in the order in which the program first meets them."""
        closed = self.closed
        produced = np.zeros(closed.count, np.bool_)
        for axis, reads in zip(self.axes, self.reading, strict=True):
            if not reads:
                produced[closed.component[axis.start : axis.start + axis.size]] = True
        for cut in self.selection.cuts if self.selection is not None else ():
            produced[closed.component[cut.own]] = True  # by the select
        free = produced & ~self.pinned
        kind = self._kinds()
        channels = np.flatnonzero(free)
        if not len(channels):
            return ()
        _, which = np.unique(kind[channels], return_inverse=True)
        order = np.argsort(which, kind="stable")
        pieces = np.split(channels[order], np.flatnonzero(np.diff(which[order])) + 1)
        group_of = np.full(closed.count, -1, np.int64)
        place = np.zeros(closed.count, np.int64)
        for index, piece in enumerate(pieces):
            group_of[piece] = index
            place[piece] = np.arange(len(piece))
        members: list[list[Member]] = [[] for _ in pieces]
        reading = self.reading
        for number, axis in enumerate(self.axes):
            own = closed.component[axis.start : axis.start + axis.size]
            owners = group_of[own]
            for index, atom in _runs(owners):
                members[index].append(Member(axis.name, axis.dim, place[own[atom]], atom, bool(reading[number]), axis.blocks))
        found = [self._group(piece, own) for piece, own in zip(pieces, members, strict=True)]
        first = {axis.label: number for number, axis in reversed(list(enumerate(self.axes)))}
        return tuple(sorted(found, key=lambda g: (min(first[f"{m.name}[{m.dim}]"] for m in g.members), int(g.channels[0]))))

    def _group(self, channels: Ids, members: list[Member]) -> ChannelGroup:
        producers = [m for m in members if not m.reads and self.tensors[m.name].dim() > 1] or members
        gammas = tuple(m.name for m in members if m.name in self.gammas)
        return ChannelGroup(producers[0].name, channels, tuple(members), self.tensors, gammas)

    def _kinds(self) -> Ids:
        """A hash per component of the set of axes and parts it has atoms in (clause 2)."""
        recorder = self.program.recorder
        component = self.closed.component
        random = np.random.default_rng(0)
        weights = random.integers(1, 2**62, len(self.axes) + len(recorder.parts), dtype=np.int64)
        kind = np.zeros(self.closed.count, np.int64)
        # Indexed assignment adds once per component, however many of its atoms an axis has.
        for weight, axis in zip(weights, self.axes, strict=False):
            kind[component[axis.start : axis.start + axis.size]] += weight
        for weight, (_, ids) in zip(weights[len(self.axes) :], recorder.parts, strict=True):
            kind[component[ids]] += weight
        return kind

    @cached_property
    def _block_labels(self) -> list[Ids]:
        """Per balance: the block of every component, 0 outside."""
        labels = []
        for balance in self.closed.balances:
            label = np.zeros(self.closed.count, np.int64)
            label[balance.blocks] = np.arange(1, len(balance.blocks) + 1)[:, None]
            labels.append(label)
        return labels

    def within_blocks(self, ids: Ids) -> list[int]:
        """The dimensions of a factor along which it stays within one block of some balance."""
        components = self.closed.component[ids]
        for label in self._block_labels:
            blocks = label[components]
            if (blocks > 0).all():
                fixed = [d for d in range(ids.ndim) if ids.shape[d] > 1 and (blocks == blocks.take([0], axis=d)).all()]
                if fixed and len(fixed) < sum(s > 1 for s in ids.shape):
                    return fixed
        return []

    @cached_property
    def constraints(self) -> tuple[Constraint, ...]:
        """Every constraint with its reason, one per node and reason."""
        found: dict[tuple[str, str, str], set[int]] = {}
        component = self.closed.component
        for pin in self.program.recorder.pins:
            found.setdefault(("pinned", pin.node, pin.reason), set()).update(component[pin.ids].tolist())
        for components, node, reason in self.closed.rigid:
            found.setdefault(("pinned", node, reason), set()).update(components.tolist())
        for ids, node, reason in self.barred:
            found.setdefault(("pinned", node, reason), set()).update(self.closed.component[ids].tolist())
        result = [
            Constraint(kind, node, reason, self.axes_of(comps), len(comps)) for (kind, node, reason), comps in found.items()
        ]
        for floor in self.program.recorder.floors:
            channels = np.unique(component[floor.ids]).tolist()
            result.append(
                Constraint(
                    "floor", floor.node, f"at least {floor.least} stay: {floor.reason}", self.axes_of(channels), len(channels)
                )
            )
        for family in self.closed.families:
            going = [whole for whole in family.wholes if not self.pinned[whole].any()]
            if len(going) > 1:
                channels = sorted({c for whole in going for c in whole.tolist()})
                reason = f"each of {len(going)} blocks can go as a whole; one of them stays"
                result.append(Constraint("block", family.node, reason, self.axes_of(channels), len(channels)))
        for balance in self.closed.balances:
            blocks, size = balance.blocks.shape
            reason = f"{blocks} blocks of {size} keep equally many"
            result.append(
                Constraint("balance", balance.node, reason, self.axes_of(balance.blocks.ravel().tolist()), balance.blocks.size)
            )
        return tuple(result)

    def axes_of(self, components: Sequence[int] | set[int]) -> tuple[str, ...]:
        """Labels of the axes in which these coupled channels have atoms."""
        comps, numbers = self._table
        wanted = np.zeros(self.closed.count, np.bool_)
        wanted[list(components)] = True
        return tuple(self.axes[i].label for i in np.unique(numbers[wanted[comps]]))

    @property
    def operators_without_rule(self) -> Mapping[str, Sequence[str]]:
        """ATen operators that had no transfer rule, and the nodes that called them."""
        return self.program.recorder.no_rule

    def prunable(self) -> tuple[int, int]:
        """Free and all producer-side channels (atoms of axes that are not read from, of parameters with two dimensions or more)."""
        free = total = 0
        for number, axis in enumerate(self.axes):
            tensor = self.tensors[axis.name]
            if not self.reading[number] and tensor.dim() > 1 and isinstance(tensor, nn.Parameter):
                own = self.closed.component[axis.start : axis.start + axis.size]
                free += int((~self.pinned[own]).sum())
                total += axis.size
        return free, total

    def bar(self, components: Ids, node: str, reason: str) -> ChannelGraph:
        """The same graph with these coupled channels pinned."""
        ids = np.flatnonzero(np.isin(self.closed.component, components))
        return replace(self, barred=(*self.barred, (ids, node, reason)))

    def uniform(self, components: Ids) -> ChannelGraph:
        """The same graph with every balance over these channels made uniform (closure.py, clause 3)."""
        touched = set(components.tolist())
        recorder = self.program.recorder
        more = {
            index
            for index, split in enumerate(recorder.splits)
            if touched.intersection(self.closed.component[split.ids].ravel().tolist())
        }
        return replace(self, closed=close(recorder, self.closed.uniform | frozenset(more)))

    def to_networkx(self) -> networkx.MultiGraph[str]:
        """Axes as nodes, couplings as edges between the axes they join (``node``: where in the program)."""
        from fxprune.graph.view import to_networkx

        return to_networkx(self)

    def explain(self, name: str) -> str:
        """In words: with whom the channels of a module or parameter are coupled, through which nodes, and why they are pinned."""
        from fxprune.graph.view import explain

        return explain(self, name)


def _runs(owners: Ids) -> list[tuple[int, Ids]]:
    """The positions of every group number >= 0, ascending."""
    first = int(owners[0])
    if (owners == first).all():
        return [(first, np.arange(len(owners)))] if first >= 0 else []
    order = np.argsort(owners, kind="stable")
    ends = np.flatnonzero(np.diff(owners[order])) + 1
    return [(int(owners[piece[0]]), piece) for piece in np.split(order, ends) if owners[piece[0]] >= 0]


def build(program: Interpreted, tensors: Mapping[str, Tensor], gammas: frozenset[str]) -> ChannelGraph:
    """Close the couplings of an interpreted program."""
    return ChannelGraph(program, close(program.recorder), tensors, gammas, notes=program.captured.notes)
