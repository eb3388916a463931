"""Image sets by name: those of torchvision, any folder of images, and the small sets of this package.

| name | what ``root`` is |
|---|---|
| digits | nothing: scikit-learn ships them |
| mnist, cifar10, cifar100, svhn | the root of torchvision's dataset; nothing is downloaded unless asked for |
| cifar10-jpeg | the folder with train.npz and test.npz (cifar.py) |
| folder | a folder with train/ and val/ (or test/), one folder per class in each |
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torchvision import datasets, transforms

from fxprune.data.cifar import MEAN, STD, cifar10_jpeg
from fxprune.data.digits import digits
from fxprune.data.mnist import mnist
from fxprune.data.split import Split

Statistics = tuple[tuple[float, ...], tuple[float, ...]]
# mean and standard deviation per channel of the training images, in [0, 1]
CIFAR10: Statistics = ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))
CIFAR100: Statistics = ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762))
SVHN: Statistics = ((0.4377, 0.4438, 0.4728), (0.1980, 0.2010, 0.1970))


@dataclass(frozen=True, slots=True, eq=False)
class Images:
    """A labelled image set, ready for training.

    Attributes:
        train: what is trained on.
        test: what is held out.
        classes: number of classes.
        shape: channels, height and width of an image.
        padding: by how many pixels training images are usually shifted; 0 where they are not.
        mirror: whether mirror images keep their meaning.
    """

    train: Split
    test: Split
    classes: int
    shape: tuple[int, int, int]
    padding: int = 0
    mirror: bool = False


def load(name: str, root: str | Path = "", *, download: bool = False, side: int = 224) -> Images:
    """The image set of that name (module docstring).

    Args:
        name: see the table.
        root: where it is.
        download: let torchvision fetch what is missing.
        side: height and width to which images of a folder are cut.

    Raises:
        ValueError: an unknown name, or a missing root.
        FileNotFoundError: files are missing.
        RuntimeError: torchvision does not find its files.
    """
    if name not in SETS:
        raise ValueError(f"data must be one of {', '.join(SETS)}, got {name!r}.")
    if name != "digits" and not str(root):
        raise ValueError(f"data {name!r} needs a root: the folder where it is.")
    return SETS[name](Path(root), download, side)


def _digits(root: Path, download: bool, side: int) -> Images:
    del root, download, side
    train, test = digits()
    return Images(train, test, 10, (1, 8, 8))


def _mnist(root: Path, download: bool, side: int) -> Images:
    del side
    if download:
        datasets.MNIST(str(root), download=True)
    train, test = mnist(root)
    return Images(train, test, 10, (1, 28, 28))


def _jpeg(root: Path, download: bool, side: int) -> Images:
    del download, side
    train, test = cifar10_jpeg(root)
    return Images(train, test, 10, (3, 32, 32), 4, mirror=True)


def _normalized(pixels: Tensor, statistics: Statistics) -> Callable[[Tensor], Tensor]:
    """A reader of uint8 images ``(n, c, h, w)``."""
    mean, std = (torch.tensor(values, device="cpu").view(-1, 1, 1) for values in statistics)
    return lambda indices: (pixels[indices].float() / 255 - mean) / std


def _cifar(kind: Any, statistics: Statistics, classes: int) -> Callable[[Path, bool, int], Images]:
    def read(root: Path, download: bool, side: int) -> Images:
        del side
        parts = []
        for train in (True, False):
            found = kind(str(root), train=train, download=download)
            pixels = torch.from_numpy(found.data).permute(0, 3, 1, 2).contiguous()
            parts.append(Split(torch.tensor(found.targets, device="cpu"), _normalized(pixels, statistics)))
        return Images(parts[0], parts[1], classes, (3, 32, 32), 4, mirror=True)

    return read


def _svhn(root: Path, download: bool, side: int) -> Images:
    del side
    parts = []
    for part in ("train", "test"):
        found = datasets.SVHN(str(root), split=part, download=download)
        parts.append(Split(torch.from_numpy(found.labels).long(), _normalized(torch.from_numpy(found.data), SVHN)))
    return Images(parts[0], parts[1], 10, (3, 32, 32))


def _folder(root: Path, download: bool, side: int) -> Images:
    del download
    held_out = next((name for name in ("val", "test") if (root / name).is_dir()), None)
    if held_out is None or not (root / "train").is_dir():
        raise FileNotFoundError(
            f"{root} must have the folders train/ and val/ (or test/), each with one folder of images per class."
        )
    prepare = transforms.Compose(
        [
            transforms.Resize(round(side * 8 / 7)),
            transforms.CenterCrop(side),
            transforms.ToTensor(),
            transforms.Normalize(MEAN, STD),
        ]
    )
    sets = [datasets.ImageFolder(str(root / part), prepare) for part in ("train", held_out)]
    if sets[0].classes != sets[1].classes:
        raise ValueError(f"{root}: train/ and {held_out}/ have different classes.")

    def reader(found: Any) -> Callable[[Tensor], Tensor]:
        return lambda indices: torch.stack([found[i][0] for i in indices.tolist()])

    train, test = (Split(torch.tensor(found.targets, device="cpu"), reader(found)) for found in sets)
    return Images(train, test, len(sets[0].classes), (3, side, side), side // 8, mirror=True)


SETS: dict[str, Callable[[Path, bool, int], Images]] = {
    "digits": _digits,
    "mnist": _mnist,
    "cifar10": _cifar(datasets.CIFAR10, CIFAR10, 10),
    "cifar100": _cifar(datasets.CIFAR100, CIFAR100, 100),
    "svhn": _svhn,
    "cifar10-jpeg": _jpeg,
    "folder": _folder,
}
