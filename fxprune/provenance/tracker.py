"""The abstract interpreter: a dispatch mode that runs a program on meta tensors and provenance on the side.

1. Every tensor that a rule returns is bound to a ``Value``; tensors that no rule has seen have no factors.
2. One table maps each ATen operator to its rule (rules/__init__.py). No rule: run the operator on meta tensors, pin every
   factor of its operands, record its name (the sound top).
3. Small integer tensors that do not depend on the model's inputs keep their numbers (``constant``), so that indexing by
   constants can be followed.
4. Rules bind results; they never look at numbers otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from fxprune.errors import CaptureError
from fxprune.provenance.factor import Ids, Value, align, compress, overlaps, support
from fxprune.provenance.ledger import SINGLE, Ledger

Rule = Callable[["Tracker", Any, Sequence[Any], dict[str, Any]], Any]
LARGEST_CONSTANT = 1_000_000


class Tracker(TorchDispatchMode):
    """Runs ATen calls on meta tensors and keeps the provenance of every value."""

    def __init__(self, ledger: Ledger, find: Callable[[Any], Rule]) -> None:
        super().__init__()
        self.ledger = ledger
        self._find = find
        self._rules: dict[Any, Rule] = {}
        self._values: dict[int, tuple[Tensor, Value]] = {}
        self._constants: dict[int, tuple[Tensor, Tensor]] = {}

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Nothing here is compiled; the guard that torch would wrap around every call is not needed."""
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        rule = self._rules.get(func)
        if rule is None:
            rule = self._rules[func] = self._find(func)
        return rule(self, func, args, kwargs or {})

    # -- values --------------------------------------------------------------------------------------------------------

    def value(self, tensor: Tensor) -> Value:
        found = self._values.get(id(tensor))
        return found[1] if found is not None else Value(tuple(tensor.shape))

    def bind(self, tensor: Tensor, factors: Iterable[Ids]) -> Tensor:
        """Attach a provenance; factors that vary nowhere are pinned and dropped (factor.py, clause 4)."""
        kept = []
        for ids in factors:
            if ids.size > 1:
                kept.append(ids)
            elif ids.size == 1 and ids.flat[0] > 0:
                self.ledger.pin(ids, SINGLE)
        self._values[id(tensor)] = (tensor, Value(tuple(tensor.shape), tuple(kept)))
        return tensor

    def new(self, shape: Sequence[int], like: Tensor, factors: Iterable[Ids]) -> Tensor:
        return self.bind(torch.empty(shape, dtype=like.dtype, device="meta"), factors)

    # -- constants -----------------------------------------------------------------------------------------------------

    def constant(self, tensor: Tensor) -> Tensor | None:
        """The numbers of an integer tensor that does not depend on the inputs, on the CPU, where they are known."""
        found = self._constants.get(id(tensor))
        return found[1] if found is not None else None

    def set_constant(self, tensor: Tensor, numbers: Tensor) -> None:
        if numbers.numel() <= LARGEST_CONSTANT:
            self._constants[id(tensor)] = (tensor, numbers)

    def fold(self, func: Any, args: Sequence[Any], kwargs: dict[str, Any], result: Any) -> None:
        """Compute the numbers of ``result`` where those of all operands are known (clause 3)."""
        if not isinstance(result, Tensor) or (result.is_floating_point() and result.dim() > 0) or result.is_complex():
            return
        if result.numel() > LARGEST_CONSTANT or torch.Tag.nondeterministic_seeded in func.tags:
            return
        known = [self._numbers(arg) for arg in args]
        named = {key: self._numbers(arg) for key, arg in kwargs.items()}
        if any(arg is _UNKNOWN for arg in known) or any(arg is _UNKNOWN for arg in named.values()):
            return
        if "device" in named:
            named["device"] = "cpu"
        self.set_constant(result, func(*known, **named))

    def _numbers(self, arg: Any) -> Any:
        if isinstance(arg, Tensor):
            found = self.constant(arg)
            return _UNKNOWN if found is None else found
        if isinstance(arg, (list, tuple)):
            parts = [self._numbers(item) for item in arg]
            return _UNKNOWN if any(part is _UNKNOWN for part in parts) else parts
        return arg

    # -- what most rules need ------------------------------------------------------------------------------------------

    def couple(self, a: Ids, b: Ids) -> None:
        self.ledger.couple(a, b)

    def smear(self, ids: Ids, dims: Iterable[int]) -> Ids:
        """Couple atoms along ``dims``, so that the factor no longer varies there."""
        for dim in dims:
            if ids.shape[dim] > 1:
                first = ids[(slice(None),) * dim + (slice(0, 1),)]
                self.couple(ids, first)
                ids = first
        return compress(ids)

    def count_in(self, ids: Ids) -> None:
        """A statistic runs over these elements: atoms without a producer among them (padded zeros) count, so they stay."""
        unproduced = self.ledger.unproduced
        if unproduced:
            counted = [i for i in np.unique(ids).tolist() if i in unproduced]
            if counted:
                self.ledger.pin(np.array(counted, np.int64), "padded or constant elements count in a statistic")

    def merge(self, shape: Sequence[int], values: Sequence[Value]) -> list[Ids]:
        """The factors of an elementwise result (rules/pointwise.py states the algebra)."""
        rank = len(shape)
        aligned = [[align(ids, rank) for ids in value.factors] for value in values]
        out: list[Ids] = []
        for factors in aligned:
            for ids in factors:
                clashes = [i for i, other in enumerate(out) if overlaps(ids, other)]
                for i in clashes:
                    self.couple(out[i], ids)
                    if len(support(ids)) > len(support(out[i])):
                        out[i] = ids
                if not clashes:
                    out.append(ids)
        if len(values) > 1:
            out = [ids for ids in out if not self._meets_constant(ids, rank, values, aligned)]
        return out

    def _meets_constant(self, ids: Ids, rank: int, values: Sequence[Value], aligned: Sequence[Sequence[Ids]]) -> bool:
        for value, factors in zip(values, aligned, strict=True):
            offset = rank - len(value.shape)
            full = any(d >= offset and value.shape[d - offset] != 1 for d in support(ids))
            if full and not any(overlaps(ids, other) for other in factors):
                self.ledger.pin(ids, "an operand of full size has channels that cannot go (a constant, or the model's input)")
                return True
        return False


_UNKNOWN: Any = object()


def data_dependent(func: Any, node: str) -> CaptureError:
    """The error for a program whose control flow depends on numbers that only a real run knows."""
    return CaptureError(
        f"node {node!r} reads a number out of a tensor ({func}), and what follows depends on it. Provenance is computed without "
        "numbers. Compute that number from shapes, or move the data-dependent part out of the model.",
        node=node,
        target=str(func),
    )
