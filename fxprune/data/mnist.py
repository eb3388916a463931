"""MNIST (LeCun et al. 1998) in its own file format, below a folder as ``torchvision.datasets.MNIST`` lays it out."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor
from torchvision import datasets

from fxprune.data.split import Split

MEAN = 0.1307
STD = 0.3081


def mnist(root: str | Path) -> tuple[Split, Split]:
    """Train and test split, images ``(1, 28, 28)``, normalized to mean 0 and variance 1. Nothing is downloaded.

    Args:
        root: the folder that holds ``MNIST/raw``.

    Raises:
        RuntimeError: the files are not there.
    """
    return _read(root, train=True), _read(root, train=False)


def _read(root: str | Path, *, train: bool) -> Split:
    found = datasets.MNIST(str(root), train=train, download=False)
    pixels: Tensor = found.data
    labels: Tensor = found.targets

    def decode(indices: Tensor) -> Tensor:
        return (pixels[indices].unsqueeze(1).float() / 255 - MEAN) / STD

    return Split(labels.to(torch.int64), decode)
