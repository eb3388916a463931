"""What arrives at readers: facts about removed input channels, one number per channel."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fxprune.absorb.deferred import Deferred, Joined, deferred, resolved
from fxprune.absorb.fact import Fact, Shape, full_rank, narrowed, wide
from fxprune.absorb.readers import Reader
from fxprune.provenance.factor import Ids


@dataclass(frozen=True, slots=True, eq=False)
class Arrival:
    """Removed atoms of a reader's input side and what arrives there: NaN where it is not known. ``window``: windows.py, clause 3."""

    reader: Reader
    shape: Shape
    atoms: Ids
    mean: Tensor
    std: Tensor
    apart: Tensor
    window: int = 1


def arrivals(read: Sequence[tuple[Reader, Fact, Ids, int]]) -> Iterator[Arrival]:
    """Clause 3 of propagate.py, for all readers."""
    later: dict[int, tuple[Deferred | Joined, Tensor]] = {}
    for place, (own, x, atoms, _) in enumerate(read):
        found = x if isinstance(x, Joined) else deferred(x)
        if found is not None and own.channel == 1:
            later[place] = found, torch.from_numpy(atoms)
    answers = dict(zip(later, resolved(list(later.values())), strict=True))
    for place, (own, x, atoms, window) in enumerate(read):
        if place in answers:
            mean, std = answers[place]
            yield Arrival(own, x.shape, atoms, mean, std, torch.zeros_like(mean), window)
        elif not x.known:
            nothing = torch.full((len(atoms),), torch.nan, dtype=torch.float64, device="cpu")
            yield Arrival(own, x.shape, atoms, nothing, torch.zeros_like(nothing), nothing)
        else:
            yield _arrival(own, x, atoms, window)


def _arrival(found: Reader, x: Fact, atoms: Ids, window: int) -> Arrival:
    """The same for one reader, whatever the fact."""
    narrow = narrowed(x.mean)
    std = full_rank(x.std, narrow).expand(wide(x.std.shape, narrow.shape))
    size = x.shape[found.channel]
    lines = narrow.movedim(found.channel, 0).reshape(narrow.shape[found.channel], -1)
    middle = tuple(slice(None) if d == found.channel else slice(s // 2, s // 2 + 1) for d, s in enumerate(narrow.shape))
    mean = narrow[middle].reshape(-1).expand(size)
    apart = torch.maximum((lines.amax(1).expand(size) - mean).abs(), (lines.amin(1).expand(size) - mean).abs())
    spread = std.movedim(found.channel, 0).reshape(std.shape[found.channel], -1).amax(1).expand(size)
    index = torch.from_numpy(atoms)
    return Arrival(found, x.shape, atoms, mean[index], spread[index], apart[index], window)
