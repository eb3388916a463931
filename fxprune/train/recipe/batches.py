"""Which images a step sees.

1. Order and augmentation of an epoch follow from the seed, the phase and the epoch. A step sees ``batch`` images; process r of w takes
   the r-th of w equal parts. So what all processes see together is what one would see, and a run can start at any step.
2. An epoch has as many steps as there are full batches; what is left over is another part of the images in every epoch.
"""

from __future__ import annotations

import hashlib
import multiprocessing
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from fxprune.data import Augmentation, Images


def seed_of(*parts: object) -> int:
    """A seed that follows from what names it."""
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=8).digest(), "big") >> 1


@dataclass(frozen=True, slots=True, eq=False)
class Share:
    """One process's part of the training images.

    Attributes:
        images: the set.
        batch: images per step over all processes.
        rank: which process.
        world: of how many.
        augment: shift and mirror, where that suits the set.
        workers: processes that read ahead.
    """

    images: Images
    batch: int
    rank: int = 0
    world: int = 1
    augment: bool = True
    workers: int = 0

    def __post_init__(self) -> None:
        if self.batch % self.world:
            raise ValueError(f"batch must be a multiple of the number of processes ({self.world}), got {self.batch}.")
        if self.batch > len(self.images.train):
            raise ValueError(f"batch must not exceed the number of training images ({len(self.images.train)}), got {self.batch}.")

    @property
    def steps(self) -> int:
        """Of an epoch (clause 2)."""
        return len(self.images.train) // self.batch

    def epoch(self, seed: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Images and labels of the steps of an epoch from ``start`` on; ``seed`` names training and epoch."""
        # Readers are functions made on the spot, which cannot be sent to a process but are there in a forked one.
        context = "fork" if self.workers and "fork" in multiprocessing.get_all_start_methods() else None
        loader: DataLoader[tuple[Tensor, Tensor]] = DataLoader(
            _Epoch(self, seed, start), batch_size=None, num_workers=self.workers, multiprocessing_context=context
        )
        return iter(loader)


class _Epoch(Dataset[tuple[Tensor, Tensor]]):
    """One epoch's batches, each one item."""

    def __init__(self, share: Share, seed: int, start: int) -> None:
        count = len(share.images.train)
        order = torch.randperm(count, generator=torch.Generator().manual_seed(seed), device="cpu")
        parts = order[: share.steps * share.batch].view(share.steps, share.world, -1)
        self.mine = parts[start:, share.rank]
        self.share = share
        wanted = share.augment and share.images.padding
        self.drawn = (
            Augmentation.draw(count, share.images.padding, seed_of(seed, "augmentation"), mirror=share.images.mirror)
            if wanted
            else None
        )

    def __len__(self) -> int:
        return len(self.mine)

    def __getitem__(self, step: int) -> tuple[Tensor, Tensor]:
        if not 0 <= step < len(self):
            raise IndexError(step)
        indices = self.mine[step]
        images, labels = self.share.images.train.batch(indices)
        return (images if self.drawn is None else self.drawn.apply(images, indices)), labels
