"""What the transfer functions write down: atoms, couplings, pins and splits.

1. ``couple(a, b)``: elementwise after broadcasting, these atoms live and die together.
2. ``pin(ids, reason)``: these atoms can never go.
3. ``split(ids)``: a view laid one run of channels out in several dimensions; all but the last are blocks, and every block must
   keep equally many (decided after closing the couplings, since dimensions along which the coupled channels do not vary
   are no blocks). A *rigid* split has (blocks, channels per block), and is written down by ``block``.
4. ``part(ids, token)``: these atoms are the channels of a strict part of a value; channels of different parts are different kinds.
5. ``floor(ids, least)``: at least so many of these channels stay.
6. ``fresh(n)``: n atoms without a producer (zero padding, constants, expanded dimensions).
7. ``block(rows, owner)``: ``owner[i]`` lives as long as one atom of ``rows[i]`` does: what is left of a run of channels after they were
   added up (the scores of an attention head), or the group of a convolution. A block goes as a whole, together with whatever its
   owner is coupled with. ``ALIVE`` as the owner: the operator fixes the number of blocks.
8. ``product(space)``: a contraction multiplies once per element of this value, whose dimensions are those of both operands and of the result
   together: what it costs under any plan.

Couplings are gathered raw and closed once (graph/closure.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from fxprune.provenance.factor import ALIVE, Ids, Value

SINGLE = "a single channel is taken out of a value"


@dataclass(frozen=True, slots=True, eq=False)
class Axis:
    """One dimension of one parameter or buffer, and its atoms ``start .. start + size - 1``.

    ``size`` is ``blocks * shape[dim]``: the second dimension of a grouped convolution's weight has one run of atoms per
    block of rows (plan.py, clause 3).
    """

    name: str
    dim: int
    start: int
    size: int
    blocks: int = 1

    @property
    def label(self) -> str:
        return f"{self.name}[{self.dim}]"


@dataclass(frozen=True, slots=True)
class Pin:
    """Atoms that can never go, where that was found, and why."""

    ids: Ids
    node: str
    reason: str


@dataclass(frozen=True, slots=True)
class Coupling:
    """Two equally long runs of atoms that live and die together, and the node that demands it."""

    left: Ids
    right: Ids
    node: str


@dataclass(frozen=True, slots=True)
class Split:
    """Channels laid out in blocks (clause 3)."""

    ids: Ids
    node: str
    rigid: bool = False


@dataclass(frozen=True, slots=True)
class Block:
    """Runs of atoms (one per row) and the atoms that live as long as something of them does (clause 7)."""

    rows: Ids
    owner: Ids
    node: str


@dataclass(frozen=True, slots=True)
class Floor:
    """At least ``least`` of these channels stay (clause 5)."""

    ids: Ids
    least: int
    node: str
    reason: str


@dataclass(frozen=True, slots=True)
class Product:
    """One multiply-add per element of ``space``, and the node that makes them (clause 8)."""

    space: Value
    node: str


class Ledger(Protocol):
    """What a transfer function may ask for. ``Recorder`` writes it down; rewrite/arrival.py checks it instead."""

    node: str
    unproduced: set[int]

    def couple(self, a: Ids, b: Ids) -> None: ...
    def pin(self, ids: Ids, reason: str) -> None: ...
    def split(self, ids: Ids) -> None: ...
    def block(self, rows: Ids, owner: Ids | None = None) -> Ids: ...
    def part(self, ids: Ids, token: str) -> None: ...
    def floor(self, ids: Ids, least: int, reason: str) -> None: ...
    def fresh(self, count: int) -> Ids: ...
    def is_fresh(self, ids: Ids) -> bool: ...
    def in_blocks(self) -> bool: ...
    def interleave(self) -> None: ...
    def reads(self, ids: Ids) -> None: ...
    def writes(self, ids: Ids) -> None: ...
    def missing(self, operator: str, ids: list[Ids]) -> None: ...
    def product(self, space: Value) -> None: ...


@dataclass(slots=True)
class Recorder:
    """The ledger of an analysis."""

    node: str = ""
    atoms: int = 1
    axes: list[Axis] = field(default_factory=list)
    couplings: list[Coupling] = field(default_factory=list)
    pins: list[Pin] = field(default_factory=list)
    splits: list[Split] = field(default_factory=list)
    blocks: list[Block] = field(default_factory=list)
    parts: list[tuple[str, Ids]] = field(default_factory=list)
    floors: list[Floor] = field(default_factory=list)
    created: dict[tuple[str, int], Ids] = field(default_factory=dict)
    unproduced: set[int] = field(default_factory=set)
    readers: list[Ids] = field(default_factory=list)
    writers: list[Ids] = field(default_factory=list)
    products: list[Product] = field(default_factory=list)
    no_rule: dict[str, list[str]] = field(default_factory=dict)
    interleaved: bool = False
    _count: dict[str, int] = field(default_factory=dict)

    def axis(self, name: str, dim: int, size: int, blocks: int = 1) -> Ids:
        """Fresh atoms for a dimension of a parameter or buffer."""
        self.axes.append(Axis(name, dim, self.atoms, size * blocks, blocks))
        return self.take(size * blocks)

    def take(self, count: int) -> Ids:
        """Atoms that are nobody's yet."""
        ids = np.arange(self.atoms, self.atoms + count, dtype=np.int64)
        self.atoms += count
        return ids

    def _create(self, count: int) -> Ids:
        ids = self.take(count)
        index = self._count.get(self.node, 0)
        self._count[self.node] = index + 1
        self.created[(self.node, index)] = ids
        return ids

    def fresh(self, count: int) -> Ids:
        ids = self._create(count)
        self.unproduced.update(ids.tolist())
        return ids

    def interleave(self) -> None:
        """The order of blocks and of what is in them was exchanged somewhere."""
        self.interleaved = True

    def in_blocks(self) -> bool:
        """The node had blocks of several channels before it was made smaller."""
        return False

    def is_fresh(self, ids: Ids) -> bool:
        return int(ids.flat[0]) in self.unproduced

    def couple(self, a: Ids, b: Ids) -> None:
        if a is b:
            return
        if a.shape != b.shape:
            a, b = np.broadcast_arrays(a, b)
        self.couplings.append(Coupling(a.ravel(), b.ravel(), self.node))

    def pin(self, ids: Ids, reason: str) -> None:
        self.pins.append(Pin(ids.ravel(), self.node, reason))

    def split(self, ids: Ids) -> None:
        self.splits.append(Split(ids, self.node))

    def block(self, rows: Ids, owner: Ids | None = None) -> Ids:
        owner = self._create(len(rows)) if owner is None else owner
        if rows.shape[1] == 1:
            self.couple(owner, rows[:, 0])
        else:
            self.blocks.append(Block(rows, owner, self.node))
            self.splits.append(Split(rows, self.node, True))
        return owner

    def part(self, ids: Ids, token: str) -> None:
        self.parts.append((f"{self.node}:{token}", ids.ravel()))

    def floor(self, ids: Ids, least: int, reason: str) -> None:
        self.floors.append(Floor(ids.ravel(), least, self.node, reason))

    def reads(self, ids: Ids) -> None:
        """These atoms are the input side of a contraction: what a removed channel is read by."""
        self.readers.append(ids.ravel())

    def writes(self, ids: Ids) -> None:
        """These atoms are carried out of a contraction or a lookup: what produces them is no reader, whatever contracts them later."""
        self.writers.append(ids.ravel())

    def product(self, space: Value) -> None:
        self.products.append(Product(space, self.node))

    def missing(self, operator: str, ids: list[Ids]) -> None:
        self.no_rule.setdefault(operator, []).append(self.node)
        for factor in ids:
            self.pin(factor, f"{operator} has no transfer rule")


def is_alive(ids: Ids) -> bool:
    """True if no atom stands behind these ids."""
    return bool((ids == ALIVE).all())


Created = Mapping[tuple[str, int], Ids]
