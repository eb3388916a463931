"""Generic slicing: every parameter and buffer by the live atoms of each of its axes.

1. ``order[axis]`` lists the surviving atoms of an axis in the order in which they stand in the slim tensor; by default ascending.
2. An axis with several blocks of rows (plan.py, clause 3) keeps equally many atoms in each block that lives; rows gather their own
   block's. A block without atoms has no rows either.
3. Only survivors are copied: tensors of more than ``chunk`` bytes are gathered by ranges of rows, or in runs of neighbours with an index of
   at most that size, so the peak stays close to the slim tensor's own size. Nothing of the result shares storage with the original.
4. Silent atoms (plan.py, clause 4) are zeroed in the tensors that read them.
5. Denormal numbers become zeros: a weight decay leaves them behind, and a CPU multiplies by them a hundred times slower. Only float32 and float64;
   the smallest numbers of shorter types are numbers like others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from fxprune.provenance.factor import Ids
from fxprune.provenance.ledger import Axis

SMALLEST_CHUNK, LARGEST_CHUNK = 1 << 16, 1 << 24
SHORTEST_RUN = 32  # bytes
STATISTICS = ("running_mean", "running_var")  # buffers that are computed with as weights are


def slim_shape(shape: Sequence[int], axes: Sequence[Axis], order: Mapping[Axis, Ids]) -> tuple[int, ...]:
    """The shape of a slim tensor."""
    sizes = list(shape)
    for axis in axes:
        if axis.blocks == 1:
            sizes[axis.dim] = len(order[axis])
        elif shape[axis.dim] > 1:
            sizes[axis.dim] = len(order[axis]) // len(live_blocks(axis, order))
    return tuple(sizes)


def live_blocks(axis: Axis, order: Mapping[Axis, Ids]) -> Ids:
    """The blocks of an axis that keep atoms, ascending (clause 2)."""
    return np.unique(order[axis] // (axis.size // axis.blocks))


def living(
    originals: Sequence[tuple[str, nn.Module]], by_name: Mapping[str, Sequence[Axis]], order: Mapping[Axis, Ids]
) -> dict[str, int]:
    """How many groups live, by the names of grouped convolutions and affine group norms."""
    found = {}
    for name, module in originals:
        norm = module.num_groups if isinstance(module, nn.GroupNorm) else 1
        for axis in by_name.get(f"{name}.weight" if name else "weight", ()):
            if norm > 1:
                found[name] = len(np.unique(order[axis] // (axis.size // norm)))
            elif axis.blocks > 1:
                found[name] = len(live_blocks(axis, order))
    return found


def slim_factors(shape: Sequence[int], axes: Sequence[Axis], order: Mapping[Axis, Ids]) -> list[Ids]:
    """The factors of a slim tensor: the original atoms that stand along each of its dimensions."""
    rank, factors = len(shape), []
    for axis in axes:
        ids = axis.start + order[axis]
        if axis.blocks > 1:
            blocks = _row_blocks(shape, axes, order, axis)
            rows = ids.reshape(len(live_blocks(axis, order)), -1)[blocks]
            factors.append(rows.reshape(rows.shape + (1,) * (rank - 2)))
        else:
            factors.append(ids.reshape((1,) * axis.dim + (-1,) + (1,) * (rank - axis.dim - 1)))
    return factors


def _row_blocks(shape: Sequence[int], axes: Sequence[Axis], order: Mapping[Axis, Ids], axis: Axis) -> Ids:
    """Which of the live blocks each surviving row belongs to."""
    rows = next((order[a] for a in axes if a.dim == 0), np.arange(shape[0]))
    return np.searchsorted(live_blocks(axis, order), rows // (shape[0] // axis.blocks))


Indices = dict[tuple[int, torch.device], Tensor]


def _index(rows: Ids, device: torch.device, indices: Indices) -> Tensor:
    key = (id(rows), device)
    found = indices.get(key)
    if found is None:
        found = indices[key] = torch.from_numpy(np.ascontiguousarray(rows)).to(device)
    return found


def take(
    tensor: Tensor, axes: Sequence[Axis], order: Mapping[Axis, Ids], chunk: int = LARGEST_CHUNK, indices: Indices | None = None
) -> Tensor:
    """The slim tensor (clauses 1 to 3), on the original's device and in its dtype and memory format.

    ``indices`` remembers what axes with one array of survivors (the same object, which must outlive it) are gathered by.
    """
    source = tensor.detach()
    memory: Indices = {} if indices is None else indices
    if len(axes) == 1 and source.dim() == 1:
        rows = order[axes[0]]
        whole = len(rows) == axes[0].size and bool((rows[1:] > rows[:-1]).all())
        return source.clone() if whole else source.index_select(0, _index(rows, source.device, memory))
    index: list[Tensor | None] = [None] * source.dim()
    blocked: tuple[Ids, Ids] | None = None
    for axis in axes:
        rows = order[axis]
        if axis.blocks > 1 and tensor.shape[axis.dim] == 1:
            continue  # depthwise: a row has the one input that goes with it
        if axis.blocks > 1:
            inner = rows.reshape(len(live_blocks(axis, order)), -1) % tensor.shape[axis.dim]
            blocked = (inner, _row_blocks(tensor.shape, axes, order, axis))
        elif len(rows) != axis.size or not np.array_equal(rows, np.arange(axis.size)):
            index[axis.dim] = _index(rows, source.device, memory)
    if (
        blocked is not None
        and blocked[0].shape[1] == tensor.shape[1]
        and np.array_equal(blocked[0], np.broadcast_to(np.arange(tensor.shape[1]), blocked[0].shape))
    ):
        blocked = None
    if source.numel() == 0 or source.dim() == 0 or (blocked is None and all(i is None for i in index)):
        return source.clone(memory_format=torch.preserve_format)
    shape = slim_shape(tensor.shape, axes, order)
    result = torch.empty(shape, dtype=source.dtype, device=source.device)
    if source.dim() == 4 and source.is_contiguous(memory_format=torch.channels_last) and not source.is_contiguous():
        result = result.contiguous(memory_format=torch.channels_last)
    if blocked is None and source.is_contiguous() and source.dim() > 1 and _in_runs(source, index, result, chunk):
        return result
    step = max(1, chunk // max(1, source[0].numel() * source.element_size()))
    for start in range(0, shape[0], step):
        stop = min(shape[0], start + step)
        first = index[0]
        part = source.index_select(0, first[start:stop]) if first is not None else source[start:stop]
        if blocked is not None:
            inner, blocks = blocked
            columns = torch.from_numpy(inner[blocks[start:stop]]).to(source.device)
            columns = columns.reshape(columns.shape + (1,) * (part.dim() - 2)).expand(-1, -1, *part.shape[2:])
            part = part.gather(1, columns)
        for dim in range(1, source.dim()):
            chosen = index[dim]
            if chosen is not None:
                part = part.index_select(dim, chosen)
        result[start:stop] = part
    return result


def _in_runs(source: Tensor, index: Sequence[Tensor | None], result: Tensor, chunk: int) -> bool:
    """Gather rows and columns at once, in runs of neighbouring numbers; False where runs are too short for that to be cheaper."""
    rows, columns = index[0], index[1]
    if columns is None or any(i is not None for i in index[2:]) or source.device.type != "cpu":
        return False
    wide, inner = source.shape[1], source[0, 0].numel() if source.numel() else 0
    run = _run(columns.numpy(), wide)
    if run * inner * source.element_size() < SHORTEST_RUN:
        return False
    blocks = columns[::run] // run
    flat, into = source.view(-1, run * inner), result.view(-1, run * inner)
    step = max(1, chunk // (8 * len(blocks)))
    for start in range(0, result.shape[0], step):
        stop = min(result.shape[0], start + step)
        chosen = torch.arange(start, stop, device="cpu") if rows is None else rows[start:stop]
        places = (chosen[:, None] * (wide // run) + blocks).view(-1)
        torch.index_select(flat, 0, places, out=into[start * len(blocks) : stop * len(blocks)])
    return True


def _run(columns: Ids, wide: int) -> int:
    """The greatest length that divides all runs of neighbours among these columns, their beginnings and ``wide``."""
    starts = np.flatnonzero(np.diff(columns, prepend=-2) != 1)
    return int(np.gcd.reduce(np.concatenate([[wide, len(columns)], starts, columns[starts]])))


def silence(
    tensor: Tensor, shape: Sequence[int], axes: Sequence[Axis], order: Mapping[Axis, Ids], silent: Mapping[int, Sequence[int]]
) -> None:
    """Zero the entries of a slim tensor, cut from one of the given shape, that read silent atoms (clause 4), in place."""
    for axis in axes:
        dead = silent.get(axis.dim)
        if dead is None:
            continue
        places = np.isin(order[axis], dead)
        if axis.blocks > 1:
            rows = places.reshape(len(live_blocks(axis, order)), -1)[_row_blocks(shape, axes, order, axis)]
            tensor.masked_fill_(torch.from_numpy(rows.reshape(rows.shape + (1,) * (tensor.dim() - 2))).to(tensor.device), 0)
        else:
            tensor.index_fill_(axis.dim, torch.from_numpy(np.flatnonzero(places)).to(tensor.device), 0)


def flush(tensor: Tensor) -> None:
    """Clause 5, in place."""
    if tensor.dtype in (torch.float32, torch.float64) and tensor.numel():
        torch.hardshrink(tensor, _largest_denormal(tensor.dtype), out=tensor)


def _largest_denormal(dtype: torch.dtype) -> float:
    info = torch.finfo(dtype)
    return float(info.tiny) * (1 - float(info.eps))


def like(old: Tensor, new: Tensor) -> Tensor:
    """``new`` as a parameter if ``old`` is one, with the same requires_grad."""
    if isinstance(old, nn.Parameter):
        return nn.Parameter(new, requires_grad=old.requires_grad)
    return new.requires_grad_(old.requires_grad)
