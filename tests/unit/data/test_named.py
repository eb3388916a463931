"""Image sets by name, from files in the formats of their publishers."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import datasets

from fxprune import data
from fxprune.data import named


def test_digits_need_no_root() -> None:
    images = data.load("digits")
    assert (images.classes, images.shape, images.padding, images.mirror) == (10, (1, 8, 8), 0, False)
    assert (len(images.train), len(images.test)) == (1438, 359)


def test_unknown_names_and_missing_roots_are_refused() -> None:
    with pytest.raises(ValueError, match=r"data must be one of digits, mnist, .* got 'imagenet'"):
        data.load("imagenet")
    with pytest.raises(ValueError, match="data 'cifar10' needs a root"):
        data.load("cifar10")


@pytest.mark.parametrize(("name", "classes"), [("cifar10", 10), ("cifar100", 100)])
def test_cifar_as_torchvision_reads_it(name: str, classes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kind = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}[name]
    monkeypatch.setattr(kind, "_check_integrity", lambda _: True)
    monkeypatch.setattr(kind, "_load_meta", lambda _: None)
    folder = tmp_path / kind.base_folder
    folder.mkdir()
    label = "labels" if name == "cifar10" else "fine_labels"
    for file, _ in (*kind.train_list, *kind.test_list):
        content = {"data": np.full((2, 3072), 255, np.uint8), label: [1, classes - 1]}
        content["data"][0, 1024:] = 0  # the first image is red
        (folder / file).write_bytes(pickle.dumps(content))
    found = data.load(name, tmp_path)
    assert (found.classes, found.shape, found.padding, found.mirror) == (classes, (3, 32, 32), 4, True)
    images, labels = found.test.batch(torch.tensor([0, 1]))
    assert labels.tolist() == [1, classes - 1]
    mean, std = (torch.tensor(v) for v in (named.CIFAR10 if name == "cifar10" else named.CIFAR100))
    torch.testing.assert_close(images[0, :, 3, 4], (torch.tensor([1.0, 0, 0]) - mean) / std)
    torch.testing.assert_close(images[1, :, 3, 4], (1 - mean) / std)


def test_svhn_as_torchvision_reads_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from scipy.io import savemat

    monkeypatch.setattr(datasets.SVHN, "_check_integrity", lambda _: True)
    for part in ("train", "test"):
        pixels = np.zeros((32, 32, 3, 2), np.uint8)
        pixels[5, 6, :, 1] = 255
        savemat(tmp_path / f"{part}_32x32.mat", {"X": pixels, "y": np.array([[10], [3]])})  # the set's label of a zero is 10
    found = data.load("svhn", tmp_path)
    images, labels = found.train.batch(torch.tensor([1, 0]))
    assert labels.tolist() == [3, 0]
    mean, std = (torch.tensor(v) for v in named.SVHN)
    torch.testing.assert_close(images[0, :, 5, 6], (1 - mean) / std)
    torch.testing.assert_close(images[1, :, 5, 6], -mean / std)
    assert found.padding == 0


def folder_of_images(root: Path, classes: tuple[str, ...] = ("cat", "dog")) -> Path:
    for part in ("train", "val"):
        for value, name in enumerate(classes):
            (root / part / name).mkdir(parents=True)
            for number in range(2):
                Image.new("RGB", (40, 30), (value * 255,) * 3).save(root / part / name / f"{number}.png")
    return root


def test_a_folder_of_images(tmp_path: Path) -> None:
    found = data.load("folder", folder_of_images(tmp_path), side=16)
    assert (found.classes, found.shape, len(found.train)) == (2, (3, 16, 16), 4)
    images, labels = found.test.batch(torch.tensor([3, 0]))
    assert labels.tolist() == [1, 0]
    assert images.shape == (2, 3, 16, 16)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    torch.testing.assert_close(images[0, :, 0, 0], (1 - mean) / std)


def test_folders_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="must have the folders train/ and val/"):
        data.load("folder", tmp_path)
    folder_of_images(tmp_path)
    (tmp_path / "val" / "dog").rename(tmp_path / "val" / "wolf")
    with pytest.raises(ValueError, match="train/ and val/ have different classes"):
        data.load("folder", tmp_path, side=16)


def test_mnist_and_jpegs_by_name(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError):
        data.load("mnist", tmp_path)
    with pytest.raises(FileNotFoundError):
        data.load("cifar10-jpeg", tmp_path)
