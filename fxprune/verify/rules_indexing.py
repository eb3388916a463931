"""Reading and writing at positions along one dimension.

1. Along the indexed dimension existence must not vary: whole lanes of it exist or do not.
2. An index that is a full tensor (``gather``, ``scatter``) is an operand of every lane and must exist as the lanes do; in dead
   lanes it is replaced by zero. An index that is a line must exist in full.
3. What is written must agree with what stands there (clause 4 of ``existence``), in every lane of it.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from fxprune.verify.call import Call, rule
from fxprune.verify.existence import DEAD, Mask, full, has_dead, mark, mask_of, meet, no_semantics
from fxprune.verify.rules_movement import move

WRITES = ("scatter", "scatter_add", "scatter_reduce", "index_add", "index_copy", "index_fill", "index_reduce")


def lanes(value: Tensor, dim: int, name: str) -> Mask:
    """The mask, with size 1 along a dimension in which existence must not vary (clause 1)."""
    mask = mask_of(value)
    if mask is None or mask.shape[dim] == 1:
        return mask
    high = mask.amax(dim, keepdim=True)
    if bool(((mask == DEAD) & (high != DEAD)).any()):
        raise no_semantics(name, "existence varies along the indexed dimension")
    return high


def safe(index: Tensor) -> Tensor:
    """The index, zero where it is dead (clause 2)."""
    mask = mask_of(index)
    return index.masked_fill(full(mask, index) == DEAD, 0) if has_dead(mask) else index


def within(mask: Mask, sizes: Sequence[int]) -> Mask:
    """The mask of the leading part of a value."""
    if mask is not None:
        for d, size in enumerate(sizes):
            mask = mask.narrow(d, 0, min(size, mask.shape[d]))
    return mask


@rule("gather")
def gather(call: Call) -> Tensor:
    """Clauses 1 and 2; by an index that exists in full it is a movement."""
    value, index = call["self"], call["index"]
    if mask_of(index) is None or value.ndim != index.ndim:
        moved: Tensor = move(call)
        return moved
    dim = call["dim"] % max(1, value.ndim)
    sizes = [1 if d == dim else size for d, size in enumerate(index.shape)]
    mask = meet([(within(lanes(value, dim, call.name), sizes), sizes), (mask_of(index), index.shape)])
    return mark(call.run(index=safe(index)), mask)


@rule(*WRITES)
def write_along(call: Call) -> Tensor:
    """Clauses 1 to 3."""
    value, index, written = call["self"], call["index"], call.get("src", "source")
    dim = call["dim"] % max(1, value.ndim)
    sizes = [1 if d == dim else size for d, size in enumerate(value.shape)]
    operands = [value] if written is None else [value, written]
    if call.name.startswith("scatter"):
        operands.append(index)
    elif has_dead(mask_of(index)):
        raise no_semantics(call.name, "its indices vary with the removed channels")
    parts = [lanes(operand, dim, call.name) for operand in operands]
    for d, size in enumerate(value.shape):
        narrow = d != dim and any(operand.shape[d] != size for operand in operands)
        if narrow and any(part is not None and part.shape[d] > 1 for part in parts):
            raise no_semantics(call.name, "it writes to some of the lanes only")
    mask = meet([(part, sizes) for part in parts])
    return mark(call.run(index=safe(index)), mask)
