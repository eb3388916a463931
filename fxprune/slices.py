"""One tensor, cut as a plan says: whole, or by ranges of rows.

1. Rows (dimension 0) and columns (the others) that stay are taken in the order in which the plan lists them.
2. Where a dimension has m times as many atoms as entries (plan.py, clause 3), every row takes the columns that its block keeps. All
   blocks that have rows left keep equally many.
3. Entries that read silent atoms (plan.py, clause 4) are zero.
4. ``rows(fetch, start, stop)`` needs of the original only what ``fetch(a, b)``, its rows a to b - 1, gives; consecutive calls with
   ascending rows fetch every row once at most. So a tensor can be cut that does not fit into memory.

This shares no code with the rewriter, which cuts by the atoms of a channel graph (rewrite/slicing.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from fxprune.errors import PlanMismatchError

Fetch = Callable[[int, int], Tensor]
Atoms = Mapping[int, Sequence[int]]

WHOLE = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # by bytes: bits to be moved, whatever they mean
SPARSE = 4  # rows that lie further apart than this, on average, are fetched one by one


@dataclass(frozen=True, slots=True)
class Slices:
    """How one tensor is cut.

    Attributes:
        shape: shape of what is left.
        taken: original number of every row; () for a tensor without dimensions.
        columns: per dimension from 1 on, the columns that stay, where not all do.
        inner: per dimension with blocks, the columns of every row; shape (rows, columns).
        silent: per dimension, what is set to zero: positions; of a dimension with blocks, a mask (rows, columns).
    """

    shape: tuple[int, ...]
    taken: tuple[int, ...] = ()
    columns: Mapping[int, Tensor] = field(default_factory=dict)
    inner: Mapping[int, Tensor] = field(default_factory=dict)
    silent: Mapping[int, Tensor] = field(default_factory=dict)

    def whole(self, tensor: Tensor) -> Tensor:
        """The slim tensor, without storage of the original."""
        return self.rows(lambda a, b: tensor[a:b], 0, self.shape[0]) if self.shape else tensor.clone()

    def rows(self, fetch: Fetch, start: int, stop: int) -> Tensor:
        """Rows ``start`` to ``stop - 1`` of the slim tensor (clause 4)."""
        taken = self.taken[start:stop]
        low, high = (min(taken), max(taken) + 1) if taken else (0, 0)
        if high - low > SPARSE * len(taken):
            part = torch.cat([fetch(row, row + 1) for row in taken])
        else:
            part = fetch(low, high)
            all_of_them = taken == tuple(range(low, high))
            part = part.clone() if all_of_them else part.index_select(0, torch.tensor(taken, device=part.device) - low)
        for dim, columns in self.columns.items():
            part = _picked(part, dim, columns)
        for dim, inner in self.inner.items():
            part = part.gather(dim, _spread(inner[start:stop], dim, part))
        for dim, dead in self.silent.items():
            if dim in self.inner:
                part.masked_fill_(_spread(dead[start:stop], dim, part), 0)
            elif dim:
                part.index_fill_(dim, dead.to(part.device), 0)
            else:
                here = dead[(dead >= start) & (dead < stop)] - start
                part.index_fill_(0, here.to(part.device), 0)
        return part

    def ranges(self, row_bytes: int, limit: int) -> Iterator[tuple[int, int]]:
        """Ranges of slim rows whose originals take about ``limit`` bytes, fetched with what lies between them."""
        start = 0
        for stop in range(1, len(self.taken) + 1):
            last = stop == len(self.taken)
            if last or (abs(self.taken[stop] - self.taken[start]) + 1) * row_bytes > limit:
                yield start, stop
                start = stop


def _picked(part: Tensor, dim: int, columns: Tensor) -> Tensor:
    """``index_select``; on the CPU by numpy, which is several times faster along the last dimension."""
    whole = WHOLE.get(part.element_size())
    if part.device.type != "cpu" or whole is None:
        return part.index_select(dim, columns.to(part.device))
    return torch.from_numpy(np.take(part.contiguous().view(whole).numpy(), columns.numpy(), axis=dim)).view(part.dtype)


def _spread(values: Tensor, dim: int, like: Tensor) -> Tensor:
    """(rows, columns) along dimensions 0 and ``dim`` of a tensor."""
    shape = [1] * like.dim()
    shape[0], shape[dim] = values.shape
    sizes = list(like.shape)
    sizes[dim] = values.shape[1]
    return values.to(like.device).reshape(shape).expand(sizes)


def slices(name: str, shape: Sequence[int], kept: Atoms, sizes: Mapping[int, int], silent: Atoms) -> Slices:
    """How a tensor of this shape is cut: ``kept``, ``sizes`` and ``silent`` are the plan's for this name.

    Raises:
        PlanMismatchError: the plan is for a tensor of another shape.
    """
    for dim, size in sizes.items():
        blocks = _blocks(shape, dim, size)
        if not blocks or any(not 0 <= atom < size for atom in kept[dim]):
            found = shape[dim] if dim < len(shape) else f"{len(shape)} dimensions"
            raise PlanMismatchError(
                f"the plan has {size} channels for {name!r}, dimension {dim}; the tensor has {found} (its shape is {tuple(shape)}).",
                node=name,
                expected=size,
                got=found,
            )
    if not shape:
        return Slices(())
    taken = tuple(kept.get(0, range(shape[0])))
    left, columns, inner, zero = [len(taken), *shape[1:]], {}, {}, {}
    for dim, rows in kept.items():
        blocks = _blocks(shape, dim, sizes[dim])
        dead = frozenset(silent.get(dim, ()))
        if blocks > 1:
            atoms = _inner(name, shape, dim, blocks, rows, taken)
            inner[dim] = atoms % shape[dim]
            left[dim] = atoms.shape[1]
            mask = torch.isin(atoms, torch.tensor(sorted(dead), dtype=torch.int64, device="cpu"))
        else:
            left[dim] = len(rows)
            if dim and tuple(rows) != tuple(range(shape[dim])):
                columns[dim] = torch.tensor(rows, dtype=torch.int64, device="cpu")
            mask = torch.tensor([i for i, atom in enumerate(rows) if atom in dead], dtype=torch.int64, device="cpu")
        if dead:
            zero[dim] = mask
    return Slices(tuple(left), taken, columns, inner, zero)


def _blocks(shape: Sequence[int], dim: int, size: int) -> int:
    """Blocks of rows of a dimension with ``size`` atoms; 0 where that cannot be."""
    if dim >= len(shape) or shape[dim] == 0 or size % shape[dim]:
        return 0
    blocks = size // shape[dim]
    return blocks if blocks == 1 or (dim > 0 and shape[0] % blocks == 0) else 0


def _inner(name: str, shape: Sequence[int], dim: int, blocks: int, atoms: Sequence[int], taken: Sequence[int]) -> Tensor:
    """The atoms that every row that stays reads; shape (rows, columns)."""
    own: list[list[int]] = [[] for _ in range(blocks)]
    for atom in atoms:
        own[atom // shape[dim]].append(atom)
    rows = [own[row // (shape[0] // blocks)] for row in taken]
    if len({len(row) for row in rows}) > 1:
        raise PlanMismatchError(
            f"the plan does not fit {name!r} of shape {tuple(shape)}: the blocks of dimension {dim} would keep unequal numbers of channels.",
            node=name,
        )
    return torch.tensor(rows, dtype=torch.int64, device="cpu").reshape(len(rows), -1)
