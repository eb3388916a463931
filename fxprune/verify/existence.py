"""Which elements of a tensor exist: the three-valued algebra of the masked interpreter.

1. An element is *dead* (0: removed by the plan), *alive* (2), or *wild* (1: its value is known, but whether it exists is for a
   later partner to say: padding, freshly filled constants). The order dead < wild < alive is used.
2. A *mask* is an int8 tensor with as many dimensions as its value; each dimension has the value's size or, where existence
   does not vary, size 1. ``None`` is the mask of a value all of whose elements are alive. Masks are never written to.
3. ``join(a, b)``, both must exist: dead if either is dead, else alive if either is alive, else wild.
4. Operands that meet elementwise must agree: an alive element whose join is dead is an illegal plan. An operand of size 1 along
   a dimension that is longer in the result is broadcast there and does not count along it: it is held against the greatest
   state of the row it meets, and against nothing at all where the whole result is dead. A dimension of stride 0
   has size 1 here.
5. A plan's axes give a parameter its mask: the join over its dimensions. An axis with m times as many atoms as the dimension has
   entries lays m blocks of rows along dimension 0, each with its own entries (clause 3 of ``fxprune.plan``).
6. Two flags ride beside the mask. A value is *unknown* if the masked program cannot tell it (positions among elements of which
   some are dead): nothing may read or return it. It is *unwritten* if it shows memory that nothing has written to.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from fxprune.errors import PlanMismatchError, VerificationError

DEAD, WILD, ALIVE = 0, 1, 2
Mask = Tensor | None
_ATTRIBUTE = "_fxprune_existence"
_UNKNOWN = "_fxprune_unknown"
_UNWRITTEN = "_fxprune_unwritten"


def mask_of(value: Tensor) -> Mask:
    """The mask of a tensor; it rides on the tensor object itself."""
    mask: Mask = getattr(value, _ATTRIBUTE, None)
    return mask


def mark(value: Tensor, mask: Mask) -> Tensor:
    """Give a tensor its mask (compacted, on the tensor's device) and return the tensor."""
    mask = compact(mask)
    mask = None if mask is None else mask.to(value.device)
    if mask is not None or mask_of(value) is not None:
        setattr(value, _ATTRIBUTE, mask)
    return value


def mark_unknown(value: Tensor) -> Tensor:
    """Say that the masked program cannot tell this value (clause 6)."""
    setattr(value, _UNKNOWN, True)
    return value


def is_unknown(value: Tensor) -> bool:
    """True for a value that the masked program cannot tell (clause 6)."""
    return getattr(value, _UNKNOWN, False)


def mark_unwritten(value: Tensor, unwritten: bool) -> Tensor:
    """Say whether a value shows memory that nothing has written to (clause 6)."""
    if unwritten or is_unwritten(value):
        setattr(value, _UNWRITTEN, unwritten)
    return value


def is_unwritten(value: Tensor) -> bool:
    """True for a value in memory that nothing has written to (clause 6)."""
    return getattr(value, _UNWRITTEN, False)


def uniform(state: int, ndim: int, device: torch.device) -> Tensor:
    """The compact mask of a value all of whose elements are in one state."""
    return torch.full((1,) * ndim, state, dtype=torch.int8, device=device)


def full(mask: Mask, value: Tensor) -> Tensor:
    """The mask at the value's full shape; stride 0 where existence does not vary."""
    return (uniform(ALIVE, value.ndim, value.device) if mask is None else mask).expand(value.shape)


def extent(value: Tensor) -> tuple[int, ...]:
    """The shape, with size 1 along the dimensions in which the value is broadcast (clause 4)."""
    return tuple(1 if stride == 0 else size for size, stride in zip(value.shape, value.stride(), strict=True))


def compact(mask: Mask) -> Mask:
    """Shrink every dimension along which existence does not vary to size 1; None if all is alive (clause 2)."""
    if mask is None or mask.numel() == 0:
        return None
    if mask.dtype != torch.int8:
        mask = mask.to(torch.int8)
    for dim in range(mask.ndim):
        if mask.shape[dim] > 1 and mask.stride(dim) == 0:
            mask = mask.narrow(dim, 0, 1)
    for dim in range(mask.ndim):
        if mask.shape[dim] > 1:
            first = mask.narrow(dim, 0, 1)
            if bool((mask == first).all()):
                mask = first
    if mask.numel() == 1 and int(mask) == ALIVE:
        return None
    return mask.clone(memory_format=torch.contiguous_format)


def has_dead(mask: Mask) -> bool:
    """True if some element is dead."""
    return mask is not None and bool((mask == DEAD).any())


def exists(mask: Tensor) -> Tensor:
    """Boolean: alive or wild."""
    return mask != DEAD


def same_mask(left: Mask, right: Mask) -> bool:
    """True if two compact masks of one value say the same."""
    if left is None or right is None:
        return left is right
    return left is right or (left.shape == right.shape and torch.equal(left, right))


def join(left: Mask, right: Mask) -> Mask:
    """Clause 3, with broadcasting."""
    if left is None or right is None:
        other = right if left is None else left
        return None if other is None else torch.where(other == DEAD, other, ALIVE).to(torch.int8)
    return torch.maximum(left, right) * exists(torch.minimum(left, right)).to(torch.int8)


def meet(parts: Sequence[tuple[Mask, Sequence[int]]]) -> Mask:
    """The mask of an elementwise result from its operands' masks and extents (clause 4).

    Raises:
        VerificationError: the operands do not agree; without a node, which the interpreter fills in.
    """
    if all(mask is None for mask, _ in parts):
        return None
    shape = torch.broadcast_shapes(*(tuple(size) for _, size in parts))
    if 0 in shape:
        return None  # there are no elements to disagree
    aligned = [(_align(mask, len(shape)), size) for mask, size in parts]
    result = aligned[0][0]
    for mask, _ in aligned[1:]:
        result = join(result, mask)
    if not has_dead(result):
        return result
    assert result is not None
    nothing = not bool(exists(result).any())
    for mask, size in aligned:
        own = (1,) * (len(shape) - len(size)) + tuple(size)
        free = [d for d in range(len(shape)) if own[d] == 1 and shape[d] != 1]
        if free and nothing:
            continue
        seen = result.amax(free, keepdim=True) if free else result
        alone = seen == DEAD if mask is None else (seen == DEAD) & (mask == ALIVE)
        if bool(alone.any()):
            raise disagreement(int(alone.sum()))
    return result


def in_storage(values: Iterable[Tensor]) -> Tensor:
    """The masks of values that share one storage, written into a flat mask of that storage; what none covers is alive."""
    states: Tensor | None = None
    for value in values:
        if states is None:
            size = value.untyped_storage().nbytes() // value.element_size()
            states = torch.full((size,), ALIVE, dtype=torch.int8, device=value.device)
        once = tuple(slice(0, size) for size in extent(value))
        from_storage(states, value)[once].copy_(full(mask_of(value), value)[once])
    assert states is not None
    return states


def from_storage(states: Tensor, value: Tensor) -> Tensor:
    """The part of a flat mask that a value covers."""
    return states.as_strided(value.size(), value.stride(), value.storage_offset())


def disagreement(count: int, where: str = "operands that meet elementwise") -> VerificationError:
    """The error of an illegal plan (clause 4)."""
    return VerificationError(
        f"the plan removes channels on one side only: {count} positions exist in one of the {where} and not in the other",
        expected="the same channels on both sides",
        got=f"{count} positions on one side only",
    )


def no_semantics(name: str, why: str = "it has no rule") -> VerificationError:
    """The error of an operator that meets dead elements and does not know what to do with them."""
    return VerificationError(
        f"the operator {name} has no masked semantics here: {why}; its channels must be kept, or the operator needs a rule in "
        "fxprune/verify",
        expected="no removed channel in its operands",
        got=name,
    )


def plan_mask(name: str, tensor: Tensor, kept: Mapping[int, Sequence[int]], sizes: Mapping[int, int]) -> Mask:
    """The mask of a parameter or buffer under a plan (clause 5).

    Raises:
        PlanMismatchError: an axis of the plan does not fit the tensor.
    """
    mask: Mask = None
    for dim, rows in kept.items():
        length = tensor.shape[dim] if dim < tensor.ndim else 0
        blocks, rest = divmod(sizes[dim], length) if length else (1, sizes[dim])
        if rest or (blocks > 1 and (dim == 0 or tensor.shape[0] % blocks)) or any(not 0 <= i < sizes[dim] for i in rows):
            raise PlanMismatchError(
                f"the plan does not belong to this model: {name!r} has shape {tuple(tensor.shape)}, and the plan has "
                f"{sizes[dim]} atoms in its dimension {dim}.",
                node=name,
                expected=length,
                got=sizes[dim],
            )
        atoms = torch.zeros(sizes[dim], dtype=torch.int8, device=tensor.device)
        atoms[list(rows)] = ALIVE
        shape = [1] * tensor.ndim
        shape[dim] = length
        if blocks > 1:
            shape[0] = tensor.shape[0]
            atoms = atoms.view(blocks, length).repeat_interleave(tensor.shape[0] // blocks, dim=0)
        mask = join(mask, atoms.view(shape))
    return mask


def _align(mask: Mask, ndim: int) -> Mask:
    return None if mask is None else mask.reshape((1,) * (ndim - mask.ndim) + tuple(mask.shape))
