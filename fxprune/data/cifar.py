"""CIFAR-10 (Krizhevsky 2009) stored as JPEG files inside two npz archives, decoded when read.

``train.npz`` and ``test.npz`` hold ``jpeg``, all files joined (uint8), ``offset`` (n + 1), and ``label`` (n). They are decoded by
Pillow, which comes with torchvision, in some 100 microseconds an image. JPEG is lossy: compare with a baseline measured on
the same files, not with published accuracies.
"""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from fxprune.data.split import Split

# Mean and standard deviation of ImageNet's channels, which the pretrained CIFAR ResNets of the zoo were trained with.
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)


def cifar10_jpeg(root: str | Path) -> tuple[Split, Split]:
    """Train and test split, images ``(3, 32, 32)``, normalized per channel.

    Args:
        root: the folder with ``train.npz`` and ``test.npz``.

    Raises:
        FileNotFoundError: one of the two is missing.
    """
    folder = Path(root)
    return _read(folder / "train.npz"), _read(folder / "test.npz")


def _read(path: Path) -> Split:
    with np.load(path) as archive:
        jpeg = archive["jpeg"]
        offset = archive["offset"].tolist()
        labels = torch.from_numpy(archive["label"]).long()
    mean, std = (torch.tensor(values, device="cpu").view(3, 1, 1) for values in (MEAN, STD))

    def decode(indices: Tensor) -> Tensor:
        pixels = np.stack([np.asarray(Image.open(BytesIO(jpeg[offset[i] : offset[i + 1]]))) for i in indices.tolist()])
        return (torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous() / 255 - mean) / std

    return Split(labels, decode)
