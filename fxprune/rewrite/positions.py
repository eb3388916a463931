"""Positions along a dimension: original position -> number of survivors before it (literals.py, clause 3)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from torch import Tensor, fx

from fxprune.provenance.factor import Ids, Mask, Value


def survivors(ids: Ids, dim: int, alive: Mask) -> Mask:
    """Per position along ``dim``: something there is alive."""
    live = alive[ids]
    return np.asarray(live.any(axis=tuple(d for d in range(ids.ndim) if d != dim)), np.bool_)


def translated(part: Any, old: Any, now: Any, live: Mask, constant: Callable[[Any], Tensor | None]) -> Any:
    """One part of a key: what the program computes stays symbolic where it is right on slim shapes (clause 2)."""
    known = old if isinstance(old, (int, slice, list, tuple)) else part
    right = translate(known, live, constant)
    if isinstance(part, fx.Node):
        return part if right == now and not isinstance(now, Value) else right
    if isinstance(part, slice) and isinstance(right, slice) and isinstance(now, slice):
        total = int(live.sum())
        kept = [s if _bound(n, total, e) == _bound(r, total, e) else r for s, n, r, e in _ends(part, now, right)]
        return slice(*kept)
    return right


def _ends(part: slice, now: slice, right: slice) -> list[tuple[Any, Any, Any, int]]:
    return [(part.start, now.start, right.start, 0), (part.stop, now.stop, right.stop, 1)]


def _bound(end: int | None, total: int, last: int) -> int:
    if end is None:
        return total if last else 0
    return max(0, end + total) if end < 0 else min(end, total)


def translate(part: Any, live: Mask, constant: Callable[[Any], Tensor | None] = lambda _: None) -> Any:
    """One slice, number or list of numbers, from original positions to slim ones (clause 3)."""
    before = np.concatenate([[0], np.cumsum(live)])
    size = len(live)
    if isinstance(part, slice):
        start, stop, step = part.indices(size)
        if step == 1:
            first = None if part.start is None else int(before[start])
            last = None if part.stop is None or stop == size else int(before[max(start, stop)])
            return slice(first, last)
        return [int(before[i]) for i in range(start, stop, step) if live[i]]
    if isinstance(part, int):
        return int(before[part % size])
    numbers = part if isinstance(part, (list, tuple)) else constant(part)
    if numbers is None:
        return part
    flat = numbers.tolist() if isinstance(numbers, Tensor) else list(numbers)
    if len(flat) == size and all(isinstance(i, bool) for i in flat):
        flat = [i for i, on in enumerate(flat) if on]
    return [int(before[i % size]) for i in flat if live[i % size]]
