"""Facts that are computed when somebody asks, and those of all readers together.

1. A fact is *calm* if no element is known for certain: each is a random variable or not known. A batch norm's output is calm if none of its gammas
   is zero, and none so small beside beta that an activation could make a constant of it (``CALM`` standard deviations).
2. A *deferred* fact is a chain of activations (``CHAINED``) behind a calm *leaf*, one number per channel. Asked for its mean, it applies them like
   ``fact.pointwise`` does to any other, to all channels.
3. A reader asks at its removed channels alone. ``resolved`` answers all readers at once: leaves behind which the same activations stand are joined
   and go through them together. Many networks have thousands of small tensors to look at, and few activations.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fxprune.absorb.fact import Fact, Samples, Shape, full_rank, narrowed, normal, pointwise, small, unknown
from fxprune.absorb.operators import Operation

CALM = 8.0
CHAINED: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "relu6": nn.ReLU6,
    "silu": nn.SiLU,
    "gelu": nn.GELU,
    "sigmoid": nn.Sigmoid,
    "tanh": nn.Tanh,
    "hardswish": nn.Hardswish,
    "hardsigmoid": nn.Hardsigmoid,
    "leaky_relu": nn.LeakyReLU,
    "mish": nn.Mish,
}
MOST = 1 << 14  # channels that go through an activation at once: sampled ones take 161 numbers each


@dataclass(frozen=True, slots=True, eq=False)
class Link:
    """An activation of a chain; ``kind`` tells it from others: a function, or the class of a module."""

    name: str
    call: Callable[..., Any]
    settings: tuple[tuple[str, Any], ...]
    kind: Any

    def __call__(self, fact: Fact) -> Fact:
        return pointwise(self.name, self.call, (fact,), dict(self.settings), inplace=True)


@dataclass(frozen=True, slots=True, eq=False)
class Leaf:
    """Clause 2: per channel, NaN in ``mean`` where nothing is known; a batch norm's output (``gaussian``), or any other calm fact."""

    mean: Tensor
    std: Tensor
    source: str
    gaussian: bool

    def fact(self, shape: Shape) -> Fact:
        """For a value of that shape, channels in dimension 1."""
        line = (1, -1, *[1] * (len(shape) - 2))
        mean, std = self.mean.view(line), self.std.view(line)
        return normal(mean, std, shape, self.source) if self.gaussian else small(mean, std, shape, calm=True)


class Later(Fact):
    """A calm fact that is made when somebody asks."""

    known, calm = True, True

    def __init__(self, shape: Shape, make: Callable[[], Fact]) -> None:
        self.__dict__.update(_shape=tuple(shape), _make=make, _made=None)

    @property
    def whole(self) -> Fact:
        """What it is."""
        if self.__dict__["_made"] is None:
            self.__dict__["_made"] = self.__dict__["_make"]()
        found: Fact = self.__dict__["_made"]
        return found

    @property
    def shape(self) -> Shape:
        found: Shape = self.__dict__["_shape"]
        return found

    @property
    def mean(self) -> Tensor:
        return self.whole.mean

    @property
    def std(self) -> Tensor:
        return self.whole.std

    @property
    def samples(self) -> Samples | None:
        return self.whole.samples

    @property
    def source(self) -> str:
        return self.whole.source

    @property
    def gaussian(self) -> bool:
        return self.whole.gaussian


class Deferred(Later):
    """Clause 2."""

    def __init__(self, shape: Shape, leaf: Leaf, chain: tuple[Link, ...] = ()) -> None:
        def make() -> Fact:
            return _through(leaf.fact(shape), chain)

        super().__init__(shape, make)
        self.__dict__.update(leaf=leaf, chain=chain)

    leaf: Leaf
    chain: tuple[Link, ...]

    def then(self, link: Link) -> Deferred:
        """The fact behind one more activation."""
        return Deferred(self.shape, self.leaf, (*self.chain, link))

    def of_shape(self, shape: Shape) -> Deferred:
        """The same channels over another image."""
        return Deferred(shape, self.leaf, self.chain)


class Joined(Later):
    """Calm facts with one number per channel, one behind the other in the channel dimension."""

    def __init__(self, shape: Shape, parts: Sequence[Fact], make: Callable[[], Fact]) -> None:
        super().__init__(shape, make)
        self.__dict__["parts"] = tuple(parts)

    parts: tuple[Fact, ...]

    def of_shape(self, shape: Shape) -> Later:
        """The same channels over another image."""
        parts = [_over(part, (shape[0], part.shape[1], *shape[2:])) for part in self.parts]
        return Joined(shape, parts, lambda: _line_fact(self.whole, shape))

    @staticmethod
    def fits(parts: Sequence[Fact]) -> bool:
        """These facts can be parts, and some of them is known."""
        return any(part.known for part in parts) and all(
            part.calm and (isinstance(part, (Deferred, Joined)) or part.line is not None) for part in parts
        )


def _over(part: Fact, shape: Shape) -> Fact:
    """A part of a joined fact over another image."""
    if isinstance(part, (Deferred, Joined)):
        return part.of_shape(shape)
    return _line_fact(part, shape)


def _line_fact(fact: Fact, shape: Shape) -> Fact:
    """A calm fact with one number per channel, over another image."""
    line = fact.line
    assert line is not None
    return Leaf(*line, "", False).fact(shape)


def _through(fact: Fact, chain: Sequence[Link]) -> Fact:
    for link in chain:
        fact = link(fact)
    return fact


def link(what: Operation, module: nn.Module | None, call: Callable[..., Any]) -> Link | None:
    """The link that an activation of one operand makes of a chain; None where it is not one of ``CHAINED`` as it stands.

    ``call``: what is called with that operand.
    """
    kind = CHAINED.get(what.name)
    if kind is None or (module is not None and type(module) is not kind):
        return None
    return Link(what.name, call, tuple(sorted(what.settings.items())), what.call if module is None else kind)


def deferred(fact: Fact) -> Deferred | None:
    """A fact as one that can go through activations later: a calm one with one number per channel."""
    if isinstance(fact, Deferred):
        return fact
    if not fact.calm or not fact.known or isinstance(fact, Later) or fact.samples is not None or len(fact.shape) < 2:
        return None
    line = fact.line
    return None if line is None else Deferred(fact.shape, Leaf(*line, "", False))


Answer = tuple[Tensor, Tensor]  # mean and std of the channels that are asked for


def resolved(asked: Sequence[tuple[Deferred | Joined, Tensor]]) -> list[Answer]:
    """Clause 3: for every fact, and the channels (dimension 1, ascending) that are asked for."""
    answers: list[list[Answer]] = [[] for _ in asked]
    waiting: dict[tuple[Any, ...], list[tuple[int, int, Deferred, Tensor]]] = {}
    for number, (fact, atoms) in enumerate(asked):
        for part, own in _parts(fact, atoms):
            if isinstance(part, Deferred):
                key = (part.leaf.gaussian, *((one.kind, one.settings) for one in part.chain))
                waiting.setdefault(key, []).append((number, len(answers[number]), part, own))
                answers[number].append((part.leaf.mean, part.leaf.std))  # its place
            else:
                line = part.line
                assert line is not None
                answers[number].append((line[0][own], line[1][own]))
    for requests in waiting.values():
        mean = torch.cat([part.leaf.mean[own] for _, _, part, own in requests])
        std = torch.cat([part.leaf.std[own] for _, _, part, own in requests])
        chain, gaussian = requests[0][2].chain, requests[0][2].leaf.gaussian
        if chain:
            pieces = []
            for m, s in zip(mean.split(MOST), std.split(MOST), strict=True):
                made = _through(Leaf(m, s, "all", gaussian).fact((1, len(m))), chain)
                pieces.append((made.mean.reshape(-1), made.std.expand(made.shape).reshape(-1)))
            mean, std = (torch.cat(column) for column in zip(*pieces, strict=True))
        sizes = [len(own) for _, _, _, own in requests]
        for (number, place, _, _), m, s in zip(requests, mean.split(sizes), std.split(sizes), strict=True):
            answers[number][place] = m, s
    return [parts[0] if len(parts) == 1 else _together(parts) for parts in answers]


def _together(parts: Sequence[Answer]) -> Answer:
    return torch.cat([mean for mean, _ in parts]), torch.cat([std for _, std in parts])


def _parts(fact: Fact, atoms: Tensor) -> Iterator[tuple[Fact, Tensor]]:
    """What a joined fact is made of, with the channels of each part that are asked for."""
    if not isinstance(fact, Joined):
        yield fact, atoms
        return
    start = 0
    for part in fact.parts:
        stop = start + part.shape[1]
        low, high = torch.searchsorted(atoms, torch.tensor([start, stop], device="cpu")).tolist()
        if high > low:
            yield from _parts(part, atoms[low:high] - start)
        start = stop


def joined(args: Any, kwargs: Any) -> Fact | None:
    """A concatenation, without laying constants out over pixels."""
    parts = args[0]
    dim = int(args[1] if len(args) > 1 else kwargs.get("dim", kwargs.get("axis", 0)))
    if not all(isinstance(p, Fact) for p in parts) or len({len(p.shape) for p in parts}) > 1:
        return None
    dim %= len(parts[0].shape)
    if dim == 1 and Joined.fits(parts):
        shape = (parts[0].shape[0], sum(p.shape[1] for p in parts), *parts[0].shape[2:])
        return Joined(shape, parts, lambda: _laid(parts, dim) or unknown(shape))
    return _laid(parts, dim)


def _laid(parts: Sequence[Fact], dim: int) -> Fact | None:
    smalls = [narrowed(p.mean) for p in parts]
    if any(s.shape[d] > 1 for s in smalls for d in range(s.dim()) if d != dim):
        return None
    shape = list(parts[0].shape)
    shape[dim] = sum(p.shape[dim] for p in parts)
    line = [1] * len(shape)

    def laid(t: Tensor, part: Fact) -> Tensor:
        line[dim] = part.shape[dim]
        return full_rank(t, part.mean).expand(line)

    mean = torch.cat([laid(s, p) for s, p in zip(smalls, parts, strict=True)], dim)
    return small(mean, torch.cat([laid(p.std, p) for p in parts], dim), shape)
