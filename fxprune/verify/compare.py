"""Comparing values of the slim program with values of the masked original.

1. Of a masked value the elements that exist are compared. Wild elements exist if the slim value has room for them; where it has
   room for some only, the value is skipped, for its existence is decided later.
2. Where the elements that exist are an outer product over the dimensions, shape and order are exact. A ragged value may be
   permuted: its varying dimensions are compared as one set of vectors. Behind a ragged value, or under a plan whose kept indices
   are not ascending, an outer product may be permuted likewise, and a value that exists in full along dimension 1.
3. The error of a value is ``max |a - b| / max |a|``. Outputs must exist in full, in order, within ``rtol``; inner values within
   ``SLACK * rtol``, for cancellation may enlarge errors that vanish again. Values that are not floating are compared exactly.
4. A value that cancels to (nearly) nothing is measured against ``CANCELLED`` times the largest value met so far, which is the size of
   its rounding errors: the mean of a normalized value is 0 in exact arithmetic and noise in any other. Numbers that stand apart from all
   others (more than ``APART`` times the next smaller one, from the median up) do not count: attention masks are made of them, and measured
   against 1e308 nothing would differ.
5. Unknown values (clause 6 of ``existence``) must not be outputs, and are not compared; nor is memory that nothing has written to.
6. A value without elements says nothing about its other sizes: the slim value must be without elements too, whatever they are.
7. Where a value differs and the program has drawn random numbers before, the error says so: the slim program draws others.
8. Where the operands of a call agree within ``rtol`` and a result that is not floating differs, an operator that is not continuous has decided
   upon rounding (a tie, a value at a threshold), if the slim program's call gives the original's result on the original's operands. Then
   nothing is wrong with either program, and both go on with one decision (where the caller asks for it).
"""

from __future__ import annotations

import math
from bisect import insort
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten

from fxprune.errors import VerificationError
from fxprune.plan import Plan
from fxprune.verify.call import tensors
from fxprune.verify.existence import ALIVE, DEAD, full, has_dead, is_unknown, is_unwritten, mask_of

SLACK = 1000.0
CANCELLED = 1e-7
APART = 1e4


Step = tuple[list[Tensor], list[Tensor]]


class Named(Protocol):
    """A node of a graph, or a call of an eager module."""

    @property
    def name(self) -> str: ...


class Comparison:
    """The running result of one validation, and the rules of the clauses.

    Attributes:
        noise: the name of the first node that drew random numbers, empty if none has (clause 7).
    """

    def __init__(self, plan: Plan, rtol: float, state: Iterable[Tensor] = ()) -> None:
        """``state``: the tensors that a program starts from (parameters, inputs)."""
        self.rtol = rtol
        self.sizes: list[float] = sorted(filter(None, map(_size, state)))
        self.noise = ""
        self.permuted = any(list(rows) != sorted(rows) for dims in plan.kept.values() for rows in dims.values())
        self.compared = self.outputs = self.empty = 0
        self.outputs_error = 0.0
        self.worst = (0.0, "")
        self.skipped: list[str] = []
        self.reordered: list[str] = []
        self.settled: list[str] = []

    def decided(self, node: Named, expected: Step, got: Step, again: Callable[[list[Tensor]], Any]) -> Any:
        """What the slim program goes on with where it has only decided otherwise upon rounding (clause 7); None everywhere else.

        Args:
            node: the call.
            expected: operands and values of the original's call.
            got: those of the slim program's.
            again: makes the slim program's call with other operands.
        """
        apart = [
            a.shape != b.shape or not torch.equal(a, b)
            for a, b in zip(expected[1], got[1], strict=False)
            if not a.is_floating_point() or a.shape != b.shape
        ]
        involved = (*expected[0], *expected[1])
        if not any(apart) or len(expected[0]) != len(got[0]) or any(mask_of(a) is not None or is_unknown(a) for a in involved):
            return None
        if any(
            a.shape != b.shape or not relative_error(a, b, self.floor) <= self.rtol
            for a, b in zip(expected[0], got[0], strict=True)
        ):
            return None
        result = again(expected[0])
        found = tensors(result)
        same = len(found) == len(expected[1]) and all(
            a.shape == b.shape and relative_error(a, b, self.floor) <= self.rtol for a, b in zip(expected[1], found, strict=True)
        )
        if same:
            self.settled.append(node.name)
        return result if same else None

    def inner(self, node: Named, expected: Any, got: Any) -> None:
        """Compare the values of two corresponding nodes."""
        pairs = [(a, b) for a, b in _paired(expected, got) if not is_unknown(a)]
        if any(is_unwritten(a) for a, _ in pairs):
            self.skipped.append(node.name)
            return
        if not pairs:
            return
        errors = [self._tensor(a, b, node.name) for a, b in pairs]
        if any(error is None for error in errors):
            self.skipped.append(node.name)
        else:
            self.compared += 1
        self._note(node.name, max((e for e in errors if e is not None), default=0.0), SLACK * self.rtol)

    def output(self, node: Named, expected: Any, got: Any) -> None:
        """Compare what the two programs return."""
        for a, b in _paired(expected, got):
            if is_unknown(a):
                raise VerificationError(
                    "an output tells positions among channels some of which the plan removes; they must be kept",
                    expected="no removed channel among those whose positions are told",
                    got="positions among removed channels",
                )
            if has_dead(mask_of(a)):
                dead = int((full(mask_of(a), a) == DEAD).sum())
                raise VerificationError(
                    f"the plan removes {dead} of {a.numel()} elements of an output; outputs keep their shape",
                    expected="no removed element",
                    got=f"{dead} removed elements",
                )
            _same_shape(tuple(a.shape), b)
            error = relative_error(a, b, self.floor)
            self.outputs += 1
            self.empty += a.numel() == 0
            self.outputs_error = max(self.outputs_error, error)
            self._note(node.name, error, self.rtol)

    def _note(self, name: str, error: float, bound: float) -> None:
        if error >= self.worst[0]:
            self.worst = (error, name)
        if not error <= bound and self.noise:
            raise VerificationError(
                f"the program draws random numbers (first at node {self.noise!r}), and the slim program draws others: values behind "
                f"them differ (relative error {error:.3g}, allowed {bound:.1g}) and cannot be verified; pass verify=False, or take "
                "the noise out of evaluation",
                expected="a program that draws no random numbers",
                got=self.noise,
            )
        if not error <= bound:
            raise VerificationError(
                f"the slim value differs from the masked original: relative error {error:.3g}, allowed {bound:.1g}",
                expected=bound,
                got=error,
            )

    def _error(self, a: Tensor, b: Tensor) -> float:
        """Relative error; what cancels to nothing is measured against what it was made of (clause 4)."""
        size = _size(a)
        if size:
            insort(self.sizes, size)
        return relative_error(a, b, self.floor)

    @property
    def floor(self) -> float:
        """What values that cancel are measured against (clause 4)."""
        if not self.sizes:
            return 1e-30
        place = (len(self.sizes) - 1) // 2
        while place + 1 < len(self.sizes) and self.sizes[place + 1] <= APART * self.sizes[place]:
            place += 1
        return max(1e-30, CANCELLED * self.sizes[place])

    def _tensor(self, a: Tensor, b: Tensor, name: str) -> float | None:
        """The error of one tensor, None if its existence is decided later (clauses 1 and 2)."""
        mask = mask_of(a)
        if a.numel() == 0:
            if b.ndim != a.ndim or b.numel():
                raise _shape_error(str(tuple(a.shape)), b)
            return None  # nothing to compare
        a, b = _narrowed(a, b)
        if mask is None:
            _same_shape(tuple(a.shape), b)
            error = self._error(a, b)
            if not self.permuted or a.ndim < 2 or error <= SLACK * self.rtol:
                return error
            self.reordered.append(name)
            return self._error(*_matched(_vectors(a, [1]), _vectors(b, [1])))
        copies = a.numel() // mask.numel()
        alive, present = int((mask == ALIVE).sum()) * copies, int((mask != DEAD).sum()) * copies
        if alive <= b.numel() < present:
            return None
        if present == 0:
            if b.numel():
                raise _shape_error("nothing", b)
            return 0.0
        exists = mask != DEAD
        varying = [d for d in range(a.ndim) if mask.shape[d] > 1]
        lines = {d: exists.any(dim=[e for e in range(a.ndim) if e != d]) if a.ndim > 1 else exists for d in varying}
        sizes = [int(lines[d].sum()) if d in varying else a.shape[d] for d in range(a.ndim)]
        if present == torch.Size(sizes).numel():
            _same_shape(tuple(sizes), b)
            for d in varying:
                a = a.index_select(d, lines[d].nonzero()[:, 0])
            error = self._error(a, b)
            if not self.permuted or not error > SLACK * self.rtol:
                return error
            expected, found = _vectors(a, varying), _vectors(b, varying)
        else:
            self.permuted = True
            if b.numel() != present:
                raise _shape_error(f"{present} elements (ragged, of {tuple(a.shape)})", b)
            if not _balanced(exists, lines, b):
                raise _shape_error(f"{tuple(sizes)} at most, ragged with {present} elements in equal blocks", b)
            rest = [d for d in range(a.ndim) if d not in varying]
            if b.ndim != a.ndim or any(b.shape[d] != a.shape[d] for d in rest):
                rest, varying = [], list(range(a.ndim))
            columns = exists.permute(*rest, *varying).expand(*[1 for _ in rest], *[a.shape[d] for d in varying]).reshape(-1)
            expected = _vectors(a, varying)[:, columns]
            found = _vectors(b, varying if rest else list(range(b.ndim)))
        self.reordered.append(name)
        return self._error(*_matched(expected, found))


def _size(value: Tensor) -> float:
    """The largest magnitude in a floating value; 0 where there is none, or where it is not finite."""
    if not value.is_floating_point() or not value.numel():
        return 0.0
    top = float(value.abs().max())
    return top if math.isfinite(top) else 0.0


def _narrowed(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Where both values are broadcast (stride 0) along a dimension, one entry stands for all, however many they are."""
    if a.ndim == b.ndim:
        for dim in range(a.ndim):
            if a.shape[dim] > 1 and a.stride(dim) == 0 and b.shape[dim] and (b.stride(dim) == 0 or b.shape[dim] == 1):
                a, b = a.narrow(dim, 0, 1), b.narrow(dim, 0, 1)
    return a, b


def relative_error(a: Tensor, b: Tensor, floor: float = 1e-30) -> float:
    """``max |a - b| / max(max |a|, floor)``; infinite where not floating values differ, or where one is NaN and the other is not."""
    if a.numel() == 0:
        return 0.0
    if not (a.is_floating_point() or a.is_complex()):
        return 0.0 if torch.equal(a, b.to(a.dtype)) else math.inf
    apart, scale = float((a - b).abs().max()), float(a.abs().max())
    if math.isfinite(apart) and math.isfinite(scale):
        return apart / max(floor, scale)
    same = (a == b) | (a.isnan() & b.isnan())
    if not bool((same | (a.isfinite() & b.isfinite())).all()):
        return math.inf
    apart = float(torch.where(same, 0.0, (a - b).abs()).max())
    return apart / max(floor, float(torch.where(a.isfinite(), a.abs(), 0.0).max()))


def _balanced(exists: Tensor, lines: dict[int, Tensor], got: Tensor) -> bool:
    """A ragged value fits where one of its dimensions with equally many elements per index has its size in the slim value."""
    if got.ndim != exists.ndim:
        return True
    equal = []
    for dim, line in lines.items():
        counts = exists.sum(dim=[d for d in range(exists.ndim) if d != dim])[line]
        if bool((counts == counts[0]).all()):
            equal.append(got.shape[dim] == len(counts))
    return any(equal) or not equal


def _vectors(value: Tensor, varying: list[int]) -> Tensor:
    """``(rest, positions)``: one column for every position in the varying dimensions."""
    rest = [d for d in range(value.ndim) if d not in varying]
    return value.permute(*rest, *varying).reshape(torch.Size([value.shape[d] for d in rest]).numel(), -1)


def _matched(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Bring the columns of both into one order: that of their products with a fixed random vector."""
    if a.shape != b.shape:
        raise _shape_error(f"{a.shape[1]} vectors of {a.shape[0]}", b)
    key = torch.rand(a.shape[0], generator=torch.Generator().manual_seed(0), dtype=torch.float64, device="cpu").to(a.device) + 0.5

    def order(value: Tensor) -> Tensor:
        return (key.to(torch.float64) @ value.to(torch.float64)).argsort()

    return a[:, order(a)], b[:, order(b)]


def _paired(expected: Any, got: Any) -> list[tuple[Tensor, Tensor]]:
    left, right = (tree_flatten(_opened(value, set()))[0] for value in (expected, got))
    if not any(isinstance(leaf, Tensor) for leaf in left):
        return []
    if len(left) != len(right) or any(isinstance(x, Tensor) != isinstance(y, Tensor) for x, y in zip(left, right, strict=False)):
        raise VerificationError(
            f"the masked original gives {len(left)} values here, the slim program {len(right)}",
            expected=len(left),
            got=len(right),
        )
    return [(x, y) for x, y in zip(left, right, strict=True) if isinstance(x, Tensor)]


def _opened(value: Any, seen: set[int]) -> list[Any]:
    """The leaves of a value; in the place of an object that torch's pytree knows as a leaf (a cache), those of its items and attributes."""
    found = []
    for leaf in tree_flatten(value)[0]:
        items = list(leaf.values()) if isinstance(leaf, Mapping) else []
        plain = isinstance(leaf, (Tensor, type, nn.Module)) or id(leaf) in seen or not (items or hasattr(leaf, "__dict__"))
        found.append(leaf if plain else _opened([items, dict(getattr(leaf, "__dict__", {}))], seen | {id(leaf)}))
    return found


def _same_shape(expected: tuple[int, ...], got: Tensor) -> None:
    if expected != tuple(got.shape):
        raise _shape_error(str(expected), got)


def _shape_error(expected: str, got: Tensor) -> VerificationError:
    return VerificationError(
        f"the plan gives this value the shape {expected}, the slim value has {tuple(got.shape)}",
        expected=expected,
        got=tuple(got.shape),
    )
