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
        self.visible = True  # constants that index are arguments of the node, where a rewriter reaches them
        self._find = find
        self._rules: dict[Any, Rule] = {}
        self._values: dict[int, tuple[Tensor, Value]] = {}
        self._alone: dict[int, tuple[Tensor, str, list[int]]] = {}
        self._expanded: dict[str, set[int]] = {}
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
        kept, alone = [], []
        for ids in factors:
            if ids.size > 1:
                kept.append(ids)
            elif ids.size == 1 and ids.flat[0] > 0:
                self.ledger.pin(ids, SINGLE)
                alone.append(int(ids.flat[0]))
        if alone or id(tensor) in self._alone:
            self._alone[id(tensor)] = (tensor, self.ledger.node, alone)
        self._values[id(tensor)] = (tensor, Value(tuple(tensor.shape), tuple(kept)))
        return tensor

    def alone(self, tensor: Tensor) -> list[int]:
        """The atoms of factors that vary nowhere, which ``bind`` dropped at the current node."""
        _, node, atoms = self._alone.get(id(tensor), (tensor, "", []))
        return atoms if node == self.ledger.node else []

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

    def blocks(self, ids: Ids, dims: Iterable[int], owner: Ids | None = None) -> Ids:
        """The factor along ``dims`` that says where something of ``ids`` is left (ledger.py, clause 7). Equal blocks share an owner."""
        varied = support(ids)
        lead = [d for d in varied if d in dims]
        order = [*lead, *(d for d in range(ids.ndim) if d not in lead)]
        sizes = [ids.shape[d] for d in lead]
        rows = np.ascontiguousarray(ids.transpose(order)).reshape(int(np.prod(sizes)), -1)
        shape = [ids.shape[d] if d in lead else 1 for d in range(ids.ndim)]
        if owner is not None:
            self.ledger.block(rows, np.broadcast_to(owner, shape).ravel())
            return owner
        if len(np.unique(rows[:, 0])) == len(rows):
            return self.ledger.block(rows).reshape(shape)
        _, first, inverse = np.unique(rows, axis=0, return_index=True, return_inverse=True)
        place = np.empty(len(first), np.int64)
        place[np.argsort(first)] = np.arange(len(first))
        return self.ledger.block(rows[np.sort(first)])[place[inverse.ravel()]].reshape(shape)

    def expanded(self, count: int) -> Ids:
        """Fresh atoms for a dimension that the current node makes by expansion."""
        ids = self.ledger.fresh(count)
        self._expanded.setdefault(self.ledger.node, set()).update(ids.tolist())
        return ids

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
        wide: set[int] = set()  # dimensions along which an earlier operand has full size
        for value, factors in zip(values, aligned, strict=True):
            own = {d + rank - len(value.shape) for d, size in enumerate(value.shape) if size != 1}
            self._meet_all(out, factors, wide, own)
            wide |= own
        if len(values) > 1:
            beside = [self._beside_constants(ids, rank, values, aligned) for ids in out]
            out = [ids for ids in beside if ids is not None]
        return out

    def _meet_all(self, out: list[Ids], factors: Sequence[Ids], wide: set[int], own: set[int]) -> None:
        """Couple one operand's factors with those of the operands before it, and add what meets nothing.

        Factors of one operand do not meet each other (a grouped convolution's weight has two along its rows). Where two operands have
        factors along the same dimensions, these meet, and what else they overlap with is met only if it would find nothing else there.
        """
        earlier, pairs = len(out), []
        for k, ids in enumerate(factors):
            met = [i for i in range(earlier) if overlaps(ids, out[i])]
            pairs += [(i, k) for i in met]
            if not met:
                out.append(ids)
        alike = {(i, k) for i, k in pairs if len(pairs) > 1 and support(out[i]) == support(factors[k])}
        before, after = {i for i, _ in alike}, {k for _, k in alike}
        for i, k in pairs:
            alone = i not in before and k not in after
            open_ = (i not in before and own.issuperset(support(out[i]))) or (
                k not in after and wide.issuperset(support(factors[k]))
            )
            if len(pairs) == 1 or (i, k) in alike or alone or open_:
                out[i] = self._meet(out[i], factors[k])

    def _meet(self, a: Ids, b: Ids) -> Ids:
        """What is left of two overlapping factors of an elementwise result: a factor of whole blocks of the other stands beside it."""
        varied, other = support(a), support(b)
        if self._expanded.get(self.ledger.node):  # expanded and used within one node: a broadcast like any other
            for thin, thick in ((a, b), (b, a)):
                if len(support(thin)) < len(support(thick)) and self._expanded[self.ledger.node].issuperset(
                    thin.ravel().tolist()
                ):
                    return thick
        if len(other) < len(varied) and varied[-1] not in other and set(other) < set(varied):
            self.blocks(a, other, b)
            return a
        if len(varied) < len(other) and other[-1] not in varied and set(varied) < set(other):
            self.blocks(b, varied, a)
            return b
        self.couple(a, b)
        return b if len(other) > len(varied) else a

    def _beside_constants(self, ids: Ids, rank: int, values: Sequence[Value], aligned: Sequence[Sequence[Ids]]) -> Ids | None:
        """What is left of a factor beside operands of full size that have none there (constants, the model's input); None: pinned.

        One number per block: no block may vanish, but each may be thinned. One per channel of a block: blocks go as a whole or not at all.
        """
        for value, factors in zip(values, aligned, strict=True):
            offset, varied = rank - len(value.shape), support(ids)
            full = [d for d in varied if d >= offset and value.shape[d - offset] != 1]
            if not full or any(overlaps(ids, other) for other in factors):
                continue
            if varied[-1] not in full:
                self.blocks(ids, full, np.zeros([s if d in full else 1 for d, s in enumerate(ids.shape)], np.int64))
            elif len(full) < len(varied) and varied[0] not in full:
                ids = self.smear(ids, full)
            else:
                self.ledger.pin(ids, "an operand of full size has channels that cannot go (a constant, or the model's input)")
                return None
        return ids


_UNKNOWN: Any = object()


def data_dependent(func: Any, node: str) -> CaptureError:
    """The error for a program whose control flow depends on numbers that only a real run knows."""
    return CaptureError(
        f"node {node!r} reads a number out of a tensor ({func}), and what follows depends on it. Provenance is computed without "
        "numbers. Compute that number from shapes, or move the data-dependent part out of the model.",
        node=node,
        target=str(func),
    )
