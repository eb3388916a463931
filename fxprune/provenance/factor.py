"""The abstract domain: factors of a provenance. Pure, and ignorant of torch operators.

1. An *atom* is a positive integer. 0 (``ALIVE``) stands for "always there".
2. A *factor* of a value of shape ``s`` is an integer array of the same rank whose size in dimension d is ``s[d]``, or 1 where
   the ids do not vary along d. Its *support* is the tuple of dimensions along which it varies.
3. An element of the value exists iff its id in EVERY factor of the value is alive.
4. A factor is *canonical* if no dimension of size > 1 repeats one slice. All factors of a ``Value`` are canonical and have a
   non-empty support: an atom that stands alone in a value cannot be removed from it and is pinned by whoever produces it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod

import numpy as np
import numpy.typing as npt

Ids = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]
ALIVE = 0


@dataclass(frozen=True, slots=True)
class Value:
    """Shape and provenance of one tensor value."""

    shape: tuple[int, ...]
    factors: tuple[Ids, ...] = ()


def support(ids: Ids | Mask) -> tuple[int, ...]:
    """The dimensions along which ``ids`` varies (clause 2; exact for canonical factors)."""
    return tuple([d for d, size in enumerate(ids.shape) if size > 1])


def compress(ids: Ids) -> Ids:
    """The canonical form (clause 4). Dimensions with stride 0 cost nothing; others are compared once."""
    for dim in range(ids.ndim):
        if ids.shape[dim] > 1 and ids.strides[dim] == 0:
            ids = ids[(slice(None),) * dim + (slice(0, 1),)]
    for dim in range(ids.ndim):
        if ids.shape[dim] > 1:
            first = ids[(slice(None),) * dim + (slice(0, 1),)]
            second = ids[(slice(None),) * dim + (slice(1, 2),)]
            if np.array_equal(first, second) and bool((ids == first).all()):
                ids = first
    return ids


def align(ids: Ids, rank: int) -> Ids:
    """``ids`` with leading dimensions of size 1, as broadcasting aligns operands."""
    return ids if ids.ndim == rank else ids.reshape((1,) * (rank - ids.ndim) + ids.shape)


def along(ids: Ids, dim: int, rank: int) -> Ids:
    """A one-dimensional array of ids laid along dimension ``dim`` of a value of the given rank."""
    return ids.reshape((1,) * dim + (-1,) + (1,) * (rank - dim - 1))


def move_to(ids: Ids, sources: Sequence[int], targets: Sequence[int], rank: int) -> Ids:
    """Lay dimension ``sources[i]`` of ``ids`` along dimension ``targets[i]`` of a value of the given rank.

    Dimensions that are not named must not vary.
    """
    sizes = [1] * rank
    order = sorted(range(len(sources)), key=lambda i: targets[i])
    for i in order:
        sizes[targets[i]] = ids.shape[sources[i]]
    rest = [d for d in range(ids.ndim) if d not in sources]
    return ids.transpose(rest + [sources[i] for i in order]).reshape(sizes)


def overlaps(a: Ids, b: Ids) -> bool:
    """True if two factors of one rank vary along a common dimension."""
    return any(x > 1 and y > 1 for x, y in zip(a.shape, b.shape, strict=True))


def reshape(ids: Ids, old: tuple[int, ...], new: tuple[int, ...]) -> Ids:
    """The factor of ``x.reshape(new)`` from a factor of ``x`` of shape ``old``; canonical.

    Only the segments of dimensions that are really merged or split, and along which ids vary, are materialised.
    """
    if 0 in old:
        return np.zeros((1,) * len(new), np.int64)
    source, target = [1] * len(old), [1] * len(new)
    for ins, outs in segments(old, new):
        if any(ids.shape[d] > 1 for d in ins):
            for d in ins:
                source[d] = old[d]
            for d in outs:
                target[d] = new[d]
    return compress(np.broadcast_to(ids, source).reshape(target))


def segments(old: tuple[int, ...], new: tuple[int, ...]) -> list[tuple[range, range]]:
    """The finest split of both shapes into consecutive runs of dimensions with equal products, in order."""
    runs: list[tuple[range, range]] = []
    i = j = 0
    while i < len(old) or j < len(new):
        i0, j0 = i, j
        left = right = 1
        if i < len(old):
            left, i = old[i], i + 1
        if j < len(new):
            right, j = new[j], j + 1
        while left != right:
            if left < right:
                left, i = left * old[i], i + 1
            else:
                right, j = right * new[j], j + 1
        runs.append((range(i0, i), range(j0, j)))
    return runs


def live_sizes(
    shape: tuple[int, ...], factors: Sequence[Ids], alive: Mask, inner: Callable[[Ids], Sequence[int]] = lambda _: ()
) -> tuple[int, ...] | None:
    """The shape of the packed live elements, or None if they do not fill a box.

    Args:
        shape: the shape of the value.
        factors: its canonical factors.
        alive: for every atom, whether it lives (``alive[0]`` is True).
        inner: for a factor that varies along several dimensions and is ragged, the dimensions that run within blocks; without an
            answer the counts decide.
    """
    sizes = list(shape)
    taken: set[int] = set()
    for ids, live in _joined(factors, alive):
        dims = support(live)
        found = {dims[0]: int(live.sum())} if len(dims) == 1 else _packed(live, dims, ids, inner)
        if found is None:
            return None
        for dim, size in found.items():
            if dim in taken and sizes[dim] != size:
                return None
            sizes[dim] = size
            taken.add(dim)
    return tuple(sizes)


def _joined(factors: Sequence[Ids], alive: Mask) -> list[tuple[Ids, Mask]]:
    """Where elements exist (clause 3): factors that overlap along some of their dimensions together, with the one that varies most.

    Factors along the same dimensions stand alone: what lives along them has to agree.
    """
    found: list[tuple[Ids, Mask]] = []
    for ids in factors:
        live, rest = alive[ids], []
        for other, there in found:
            if support(live) != support(there) and any(x > 1 and y > 1 for x, y in zip(live.shape, there.shape, strict=True)):
                ids, live = (other if len(support(other)) >= len(support(ids)) else ids), live & there
            else:
                rest.append((other, there))
        found = [*rest, (ids, live)]
    return found


def _packed(live: Mask, dims: tuple[int, ...], ids: Ids, inner: Callable[[Ids], Sequence[int]]) -> dict[int, int] | None:
    spread = {d: int(live.any(axis=tuple(e for e in range(live.ndim) if e != d)).sum()) for d in dims}
    total = int(live.sum())
    if prod(spread.values()) == total:
        return spread
    for dim in [d for d in inner(ids) if d in dims] or reversed(dims):
        counts = live.sum(axis=dim)
        most = int(counts.max())
        if prod(n for d, n in spread.items() if d != dim) * most == total:
            return {**spread, dim: most}
    return None
