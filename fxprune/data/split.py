"""One part of a labelled image set."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Split:
    """Labelled images that are decoded when they are read; a map-style dataset for ``torch.utils.data.DataLoader``.

    Attributes:
        labels: ``(n,)``, int64.
        read: maps indices ``(k,)`` to normalized images ``(k, c, h, w)``, float32.
    """

    labels: Tensor
    read: Callable[[Tensor], Tensor]

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        label = int(self.labels[index])  # raises IndexError past the end, which ends iteration
        return self.read(torch.tensor([index % len(self)], device="cpu"))[0], label

    def batch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Images ``(k, c, h, w)`` and labels ``(k,)`` at the given indices ``(k,)``."""
        return self.read(indices), self.labels[indices]

    def batches(self, size: int, seed: int | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        """All images in batches of ``size``, in their order or, given a seed, shuffled; the last batch may be smaller."""
        shuffled = (
            None if seed is None else torch.randperm(len(self), generator=torch.Generator().manual_seed(seed), device="cpu")
        )
        order = torch.arange(len(self), device="cpu") if shuffled is None else shuffled
        for indices in order.split(size):
            yield self.batch(indices)

    def subset(self, indices: Tensor) -> Split:
        """The images at the given indices ``(k,)``, still decoded only when they are read."""
        read = self.read
        return Split(self.labels[indices], lambda chosen: read(indices[chosen]))
