"""What is known about a value of the original program, whatever its inputs are.

1. ``mean`` (float64, of the value's shape, stride 0 where it does not vary) is NaN where nothing is known. ``std`` is 0 where an element IS that
   constant in every run; elsewhere the element is a random variable with that expected value and standard deviation.
2. ``samples``: the element as a function of one standard normal variable, at the nodes of ``expected.NODES``, with the nodes in the place of
   the batch: what two branches of one batch norm's output (``x * sigmoid(x)``) have in common. ``source`` names that batch norm.
   ``gaussian``: mean and std say all.
3. Pointwise operators act on constants as they are. On random variables of one source they act node by node; sums and products of
   variables of several sources take them to be independent, and everything else of several sources is not known. A random variable without
   samples is taken to be normal.
4. Zero times what is not known is zero.
5. ``calm``: no element is known for certain, as far as that is known (deferred.py).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import count
from typing import Any

import torch
from torch import Tensor

from fxprune.absorb.expected import NODES, WEIGHTS, closed_form

_NUMBERS = count()
Shape = tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Fact:
    """Clauses 1, 2 and 5. ``std`` and ``samples`` are broadcastable to the shape."""

    mean: Tensor
    std: Tensor
    samples: Samples | None = None
    source: str = ""
    gaussian: bool = False
    known: bool = True
    calm: bool = False

    @property
    def shape(self) -> Shape:
        return tuple(self.mean.shape)

    @property
    def line(self) -> tuple[Tensor, Tensor] | None:
        """Mean and std per channel (dimension 1), where they vary along no other dimension."""
        channels, mean = self.shape[1], narrowed(self.mean)
        if mean.numel() not in (1, channels) or self.std.numel() not in (1, channels) or mean.shape[1] != mean.numel():
            return None
        return mean.reshape(-1).expand(channels), self.std.reshape(-1).expand(channels)

    @property
    def certain(self) -> bool:
        """No element is a random variable."""
        return not bool((self.std > 0).any())


def unknown(shape: Sequence[int]) -> Fact:
    """A value of which nothing is known."""
    nothing, zero = _nothing(len(shape))
    return Fact(nothing.expand(tuple(shape)), zero, known=False, calm=True)


@cache
def _nothing(rank: int) -> tuple[Tensor, Tensor]:
    nothing = torch.full((1,) * rank, torch.nan, dtype=torch.float64, device="cpu")
    return nothing, torch.zeros_like(nothing)


def narrowed(tensor: Tensor) -> Tensor:
    """One entry along every dimension of stride 0."""
    if 0 in tensor.stride():
        for dim in range(tensor.dim()):
            if tensor.shape[dim] > 1 and tensor.stride(dim) == 0:
                tensor = tensor.narrow(dim, 0, 1)
    return tensor


def compact(tensor: Tensor) -> Tensor:
    """One entry along every dimension along which a tensor does not vary (NaN equals NaN)."""
    tensor = narrowed(tensor)
    for dim in range(tensor.dim()):
        if tensor.shape[dim] > 1:
            first, second = tensor.narrow(dim, 0, 1), tensor.narrow(dim, 1, 1)
            if _same(first, second) and _same(tensor, first):
                tensor = first
    return tensor


def _same(a: Tensor, b: Tensor) -> bool:
    return bool(((a == b) | (a.isnan() & b.isnan())).all())


def settled(mean: Tensor, std: Tensor, shape: Sequence[int] | None = None) -> Fact:
    """A fact from a mean and a std, compacted; ``shape``: what the mean stands for, where it is broadcast."""
    return small(compact(mean.to(torch.float64)), compact(std.to(torch.float64)), mean.shape if shape is None else shape)


def small(mean: Tensor, std: Tensor, shape: Sequence[int], *, calm: bool = False) -> Fact:
    """A fact from a mean and a std that have one entry along dimensions along which they do not vary, as far as that is known."""
    lost = mean.isnan()
    own = std.masked_fill(lost, 0.0) if std.shape == lost.shape else std
    return Fact(mean.expand(tuple(shape)), own, known=not bool(lost.all()), calm=calm)


def normal(mean: Tensor, std: Tensor, shape: Sequence[int], source: str) -> Fact:
    """Elements that are normal variables of one source, constants where std is 0."""
    return replace(small(mean, std, shape), source=source, gaussian=True)


def _narrow(tensors: Sequence[Tensor]) -> list[Tensor]:
    """The operands of a pointwise operator, of one rank, with one entry along dimensions along which none of them varies."""
    rank = max(t.dim() for t in tensors)
    aligned = [t.reshape((1,) * (rank - t.dim()) + tuple(t.shape)) if t.dim() < rank else t for t in tensors]
    for dim in range(rank):
        if all(t.shape[dim] == 1 or t.stride(dim) == 0 for t in aligned):
            aligned = [t.narrow(dim, 0, 1) for t in aligned]
    return aligned


def _sampled(fact: Fact, mean: Tensor) -> Tensor:
    """Clause 2: ``(nodes, ...)`` for a fact whose narrowed mean has one entry in its first dimension."""
    if fact.samples is not None:
        values = fact.samples()
        if values.dim() == mean.dim():
            return values
    std = fact.std
    if std.dim() < mean.dim():
        std = std.reshape((1,) * (mean.dim() - std.dim()) + tuple(std.shape))
    return mean + std * NODES.to(mean.device).view(-1, *[1] * (mean.dim() - 1))


def pointwise(
    name: str, call: Callable[..., Any], arguments: tuple[Any, ...], settings: dict[str, Any], *, inplace: bool = False
) -> Fact:
    """Clauses 3 and 4. ``arguments`` may hold facts, tensors and plain values; ``call`` gets them in this order."""
    places = [i for i, a in enumerate(arguments) if isinstance(a, (Fact, Tensor))]
    operands = [arguments[i] for i in places]
    calm = all(isinstance(a, Fact) and a.calm for a in operands)
    if calm and not all(a.known for a in operands):
        return unknown(wide(*(a.shape for a in operands)))
    means = [a.mean if isinstance(a, Fact) else a.detach().cpu().to(torch.float64) for a in operands]
    shape = wide(*(m.shape for m in means))
    narrow = _narrow(means)

    def run(*values: Tensor) -> Tensor:
        filled = list(arguments)
        for i, value in zip(places, values, strict=True):
            filled[i] = value.clone() if inplace else value
        result: Tensor = call(*filled)
        return result.to(torch.float64)

    lost = narrow[0].isnan()
    for m in narrow[1:]:
        lost = lost | m.isnan()
    random = [a for a in operands if isinstance(a, Fact) and not a.certain]
    mean = run(*narrow).masked_fill(lost, torch.nan)
    if name in ("mul", "multiply") and len(narrow) == 2:
        surely = [
            (m == 0) & (_broad(a.std, m) == 0) if isinstance(a, Fact) else m == 0 for a, m in zip(operands, narrow, strict=True)
        ]
        mean = mean.masked_fill(surely[0] | surely[1], 0.0)
    if not random:
        return small(mean, torch.zeros_like(mean), shape)
    sources = {a.source or f"node {next(_NUMBERS)}" for a in random}
    if len(sources) > 1:
        return _independent(name, operands, narrow, mean, shape, len(arguments), calm)
    spread = _random(operands, narrow) & ~lost
    if narrow[0].dim() == 0 or any(m.shape[0] != 1 for m in narrow):
        return settled(mean.masked_fill(spread, torch.nan), torch.zeros_like(mean), shape)
    samples = Samples(lambda: run(*[_sampled(a, m) if isinstance(a, Fact) else m for a, m in zip(operands, narrow, strict=True)]))
    only = operands[0]
    formula = None
    if len(operands) == 1 and (only.gaussian or only.samples is None):
        formula = closed_form(name, settings)
    moments = None if formula is None else formula(narrow[0], _broad(only.std, narrow[0]))
    average, deviation = samples.moments() if moments is None else moments
    fact = small(torch.where(spread, average, mean), torch.where(spread, deviation, torch.zeros_like(deviation)), shape)
    return replace(fact, samples=samples, source=next(iter(sources)))


class Samples:
    """Clause 2, computed when somebody asks."""

    def __init__(self, make: Callable[[], Tensor]) -> None:
        self._make = make
        self._made: Tensor | None = None

    def __call__(self) -> Tensor:
        if self._made is None:
            self._made = self._make()
        return self._made

    def moments(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation."""
        values = self()
        weights = WEIGHTS.to(values.device)
        shape = (1, *values.shape[1:])
        flat = values.reshape(len(weights), -1)
        average = weights @ flat
        second = weights @ flat.square()
        return average.reshape(shape), (second - average.square()).clamp(min=0).sqrt().reshape(shape)


def wide(*shapes: Shape) -> Shape:
    """What these shapes broadcast to."""
    first = tuple(shapes[0])
    return first if all(tuple(s) == first for s in shapes) else tuple(torch.broadcast_shapes(*shapes))


def _broad(std: Tensor, like: Tensor) -> Tensor:
    std = std if std.dim() == like.dim() else std.reshape((1,) * (like.dim() - std.dim()) + tuple(std.shape))
    return std.expand(wide(std.shape, like.shape))


def _random(operands: Sequence[Any], narrow: Sequence[Tensor]) -> Tensor:
    """Where an element of some operand is a random variable."""
    found = torch.zeros((), dtype=torch.bool, device=narrow[0].device)
    for a, m in zip(operands, narrow, strict=True):
        if isinstance(a, Fact):
            found = found | (_broad(a.std, m) > 0)
    return found.expand(wide(found.shape, *(m.shape for m in narrow)))


def _independent(
    name: str, operands: Sequence[Any], narrow: Sequence[Tensor], mean: Tensor, shape: Sequence[int], arguments: int, calm: bool
) -> Fact:
    """Clause 3, several sources. ``calm``: all operands are."""
    if arguments != 2 or len(operands) != 2 or not all(isinstance(a, Fact) for a in operands):
        return settled(mean.masked_fill(_random(operands, narrow), torch.nan), torch.zeros_like(mean), shape)
    variances = [_broad(a.std, m).square() for a, m in zip(operands, narrow, strict=True)]
    if name in ("add", "sub", "subtract"):
        spread = (variances[0] + variances[1]).sqrt()
        return small(mean, spread, shape, calm=True) if calm else settled(mean, spread, shape)
    if name in ("mul", "multiply"):
        squares = [m.square() + v for m, v in zip(narrow, variances, strict=True)]
        return settled(mean, (squares[0] * squares[1] - mean.square()).clamp(min=0).sqrt(), shape)
    return settled(mean.masked_fill(_random(operands, narrow), torch.nan), torch.zeros_like(mean), shape)


def full_rank(std: Tensor, like: Tensor) -> Tensor:
    """A std with as many dimensions as its mean."""
    return std.reshape((1,) * (like.dim() - std.dim()) + tuple(std.shape)) if std.dim() < like.dim() else std
