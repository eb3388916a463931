"""The ledger of a slim program: atoms that must be coupled have to arrive side by side.

1. The slim program is run like the original, with the ORIGINAL atoms as ids. Where the analysis coupled two runs of atoms, their
   coupled channels must now be equal, position by position.
2. If they differ only in order, and one of them is a parameter's own axis that nothing has used yet, that axis takes the order of the
   other (its weights are gathered in the order in which elements arrive). Otherwise it is an ``OrderConflictError``.
3. A channel that was taken out of a value alone is remembered for the node that takes it: no factor of a result tells which it is.
4. Atoms without a producer get the original's surviving ones, matched by their number. What is left of a block must arrive beside the
   owner that it had.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from fxprune.errors import RewriteError
from fxprune.provenance.factor import Ids, Mask, Value
from fxprune.provenance.ledger import SINGLE, Axis, Block


class OrderConflictError(RewriteError):
    """Channels arrive in an order that no choice of weights can mend. ``components`` are the coupled channels concerned."""

    def __init__(self, message: str, node: str, components: Ids) -> None:
        super().__init__(message, node=node)
        self.components = components


@dataclass(slots=True)
class Arrival:
    """Checks what ``Recorder`` writes down (clauses 1 to 4). ``singles``: coupled channels that the current node took alone."""

    component: Ids
    alive: Mask
    created: Mapping[tuple[str, int], Ids]
    order: dict[Axis, Ids]
    blocks: Mapping[str, list[Block]] = field(default_factory=dict)
    unproduced: set[int] = field(default_factory=set)
    node: str = ""
    roots: dict[int, tuple[Axis, Ids]] = field(default_factory=dict)
    used: set[Axis] = field(default_factory=set)
    reordered: bool = False
    singles: set[int] = field(default_factory=set)
    _taken: dict[str, int] = field(default_factory=dict)

    def enter(self, axis: Axis, ids: Ids) -> None:
        """``ids`` is the array under which a parameter's axis enters the run."""
        self.roots[_address(ids)] = (axis, ids)

    def begin(self, node: str) -> None:
        self.node = node
        self.singles.clear()
        self._taken.pop(node, None)

    def couple(self, a: Ids, b: Ids) -> None:
        if a is b:
            return
        left, right = np.broadcast_arrays(self.component[a], self.component[b])
        if np.array_equal(left, right):
            self._use(a)
            self._use(b)
            return
        known = (np.broadcast_to(a, left.shape) > 0) & (np.broadcast_to(b, left.shape) > 0)
        if np.array_equal(left[known], right[known]):
            return
        if self._reorder(b, left) or self._reorder(a, right):
            self.couple(a, b)
            return
        differing = np.unique(np.concatenate([left[left != right], right[left != right]]))
        raise OrderConflictError(
            f"at node {self.node!r} channels that belong together arrive in different orders ({len(differing)} channels).",
            self.node,
            differing,
        )

    def _use(self, ids: Ids) -> None:
        found = self.roots.get(_address(ids))
        if found is not None:
            self.used.add(found[0])

    def _reorder(self, ids: Ids, wanted: Ids) -> bool:
        """Clause 2: let the axis behind ``ids`` take the order of the coupled channels ``wanted``."""
        found = self.roots.get(_address(ids))
        if found is None or found[0] in self.used or ids.size != wanted.size:
            return False
        axis, root = found
        if axis.blocks == 1 and root.size != ids.size:
            return False
        own, target = self.order[axis] + axis.start, wanted.ravel()
        if len(own) != len(target):
            return False
        have = np.argsort(self.component[own], kind="stable")
        want = np.argsort(target, kind="stable")
        if not np.array_equal(self.component[own][have], target[want]):
            return False
        permutation = np.empty_like(have)
        permutation[want] = have
        new = own[permutation]
        if axis.blocks > 1:
            blocks = len(np.unique(self.order[axis] // (axis.size // axis.blocks)))
            rows = (own.reshape(blocks, -1), new.reshape(blocks, -1))
            if not np.array_equal(np.sort(rows[0], axis=1), np.sort(rows[1], axis=1)):
                return False
            lookup = dict(zip(rows[0][:, 0].tolist(), range(blocks), strict=True))
            flat = root.reshape(root.shape[0], root.shape[1])
            which = [lookup[int(first)] for first in flat[:, 0]]
            flat[...] = rows[1][which]
        else:
            root.reshape(-1)[...] = new
        self.order[axis] = new - axis.start
        self.used.add(axis)
        self.reordered = True
        return True

    def fresh(self, count: int) -> Ids:
        start = self._taken.get(self.node, 0)
        while (self.node, start) in self.created:
            ids = self.created[(self.node, start)]
            start += 1
            live = ids[self.alive[ids]]
            if len(live) == count:
                self._taken[self.node] = start
                return live
        return np.zeros(count, np.int64)

    def interleave(self) -> None:
        """Seen in what arrives."""

    def in_blocks(self) -> bool:
        """As the analysis wrote down."""
        return self.node in self.blocks

    def is_fresh(self, ids: Ids) -> bool:
        return int(ids.flat[0]) in self.unproduced

    def pin(self, ids: Ids, reason: str) -> None:
        """Nothing that is pinned has gone; clause 3."""
        if reason == SINGLE:
            self.singles.update(self.component[ids].ravel().tolist())

    def split(self, ids: Ids) -> None:
        """Balances were met by the solver; the shapes show it."""

    def block(self, rows: Ids, owner: Ids | None = None) -> Ids:
        """Clause 3."""
        found = self.fresh(len(rows)) if owner is None else owner
        self._use(found)
        self._use(rows)
        known = self.blocks.get(self.node, ())
        if rows.shape[1] > 1 and known and (found > 0).any():
            stride = len(self.component)
            pairs = np.concatenate([(b.rows * stride + self.component[b.owner][:, None]).ravel() for b in known])
            here = rows * stride + self.component[found][:, None]
            strange = ~np.isin(here, pairs) & (rows > 0) & (found > 0)[:, None]
            if strange.any():
                raise OrderConflictError(
                    f"at node {self.node!r} blocks of channels arrive beside what belongs to other blocks.",
                    self.node,
                    np.unique(self.component[rows[strange]]),
                )
        return found

    def part(self, ids: Ids, token: str) -> None:
        """Kinds matter to the solver only."""

    def floor(self, ids: Ids, least: int, reason: str) -> None:
        """The solver has seen to it."""

    def reads(self, ids: Ids) -> None:
        """Known from the analysis."""

    def writes(self, ids: Ids) -> None:
        """Known from the analysis."""

    def product(self, space: Value) -> None:
        """What it costs was known before."""

    def missing(self, operator: str, ids: list[Ids]) -> None:
        """What it touches was pinned by the analysis."""


def by_node(blocks: Sequence[Block]) -> dict[str, list[Block]]:
    """The blocks that each node wrote down."""
    found: dict[str, list[Block]] = {}
    for block in blocks:
        found.setdefault(block.node, []).append(block)
    return found


def _address(ids: Ids) -> int:
    return int(ids.__array_interface__["data"][0])
