"""Random crops and mirror images that depend on nothing but the seed, the epoch and the image's number.

The usual augmentation of CIFAR (Lee et al. 2015, He et al. 2016): shift by up to ``padding`` pixels, mirror half of the images. What an
image becomes does not depend on the batch it is in, on the number of processes or on a generator's state, so a training can be cut
into processes and taken up again anywhere.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Augmentation:
    """What becomes of every image in one epoch.

    Attributes:
        shift: ``(n, 2)``, down and to the right, from 0 to twice the padding.
        mirrored: ``(n,)``, bool.
        padding: pixels of the mean colour (0 in normalized images) around an image.
    """

    shift: Tensor
    mirrored: Tensor
    padding: int

    @classmethod
    def draw(cls, count: int, padding: int, seed: int, *, mirror: bool = True) -> Augmentation:
        """For ``count`` images, from a seed that names training and epoch."""
        generator = torch.Generator().manual_seed(seed)
        shift = torch.randint(0, 2 * padding + 1, (count, 2), generator=generator, device="cpu")
        return cls(shift, (torch.rand(count, generator=generator, device="cpu") < 0.5) & mirror, padding)

    def apply(self, images: Tensor, indices: Tensor) -> Tensor:
        """Images ``(k, c, h, w)``, whose numbers are ``indices`` ``(k,)``, shifted and mirrored; a new tensor."""
        height, width = images.shape[2:]
        down, right = (self.shift[indices, axis].view(-1, 1) - self.padding for axis in (0, 1))
        rows = torch.arange(height, device="cpu").view(1, -1) + down
        columns = torch.arange(width, device="cpu").view(1, -1)
        columns = torch.where(self.mirrored[indices].view(-1, 1), width - 1 - columns, columns) + right
        inside = ((rows >= 0) & (rows < height))[:, :, None] & ((columns >= 0) & (columns < width))[:, None, :]
        picked = images[
            torch.arange(len(images), device="cpu")[:, None, None],
            :,
            rows.clamp(0, height - 1)[:, :, None],
            columns.clamp(0, width - 1)[:, None, :],
        ]
        return (picked * inside[..., None]).permute(0, 3, 1, 2).contiguous()
