"""Readers of the small image sets."""

import io
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fxprune import data

ROOT = Path(os.environ.get("FXPRUNE_DATA", Path(__file__).parents[4] / "shared" / "data"))


def test_digits_are_split_without_overlap_and_seeded() -> None:
    train, test = data.digits(test_share=0.2, seed=1)
    again, _ = data.digits(test_share=0.2, seed=1)
    other, _ = data.digits(test_share=0.2, seed=2)
    assert (len(train), len(test)) == (1438, 359)
    images, labels = train.batch(torch.arange(len(train)))
    assert images.shape == (1438, 1, 8, 8)
    assert images.dtype == torch.float32
    assert (images.min(), images.max()) == (-1, 1)
    assert set(labels.tolist()) == set(range(10))
    torch.testing.assert_close(images, again.batch(torch.arange(len(again)))[0])
    assert not torch.equal(labels, other.labels)
    held_out = {tuple(image.flatten().tolist()) for image in test.read(torch.arange(len(test)))}
    assert not held_out & {tuple(image.flatten().tolist()) for image in images}


def test_digits_without_scikit_learn_say_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ImportError, match=r"pip install 'fxprune\[demo\]'"):
        data.digits()


def test_a_share_outside_the_unit_interval_is_refused() -> None:
    with pytest.raises(ValueError, match=r"test_share must be in \(0, 1\), got 20"):
        data.digits(test_share=20)


def test_batches_cover_everything_once() -> None:
    split = data.Split(torch.arange(10), lambda indices: indices.float().view(-1, 1, 1, 1))
    for seed in (None, 3):
        parts = list(split.batches(4, seed))
        assert [len(labels) for _, labels in parts] == [4, 4, 2]
        labels = torch.cat([labels for _, labels in parts])
        torch.testing.assert_close(torch.cat([images for images, _ in parts]).flatten(), labels.float())
        assert labels.sort().values.tolist() == list(range(10))
        assert (labels.tolist() == list(range(10))) == (seed is None)


def test_a_split_is_a_dataset() -> None:
    split = data.Split(torch.arange(3), lambda indices: indices.float().view(-1, 1, 1, 1))
    assert [(image.item(), label) for image, label in split] == [(0, 0), (1, 1), (2, 2)]
    assert split[-1][0].item() == 2
    loader = torch.utils.data.DataLoader(split, batch_size=2)
    assert [labels.tolist() for _, labels in loader] == [[0, 1], [2]]
    reversed_twice = split.subset(torch.tensor([2, 1, 0])).subset(torch.tensor([2, 0]))
    assert [(image.item(), label) for image, label in reversed_twice] == [(0, 0), (2, 2)]


def jpeg(value: int) -> bytes:
    """A uniformly grey JPEG file."""
    file = io.BytesIO()
    Image.new("RGB", (32, 32), (value, value, value)).save(file, "JPEG")
    return file.getvalue()


def test_cifar_is_decoded_from_its_archives(tmp_path: Path) -> None:
    files = [jpeg(value) for value in (0, 128, 255)]
    offset = np.cumsum([0] + [len(file) for file in files])
    joined = np.frombuffer(b"".join(files), np.uint8)
    for name in ("train", "test"):
        np.savez(tmp_path / f"{name}.npz", jpeg=joined, offset=offset, label=np.array([3, 1, 2], np.uint8))
    train, test = data.cifar10_jpeg(tmp_path)
    images, labels = test.batch(torch.tensor([2, 0]))
    assert len(train) == 3
    assert labels.tolist() == [2, 3]
    white = (1 - torch.tensor([0.485, 0.456, 0.406])) / torch.tensor([0.229, 0.224, 0.225])
    torch.testing.assert_close(images[0, :, 0, 0], white)
    assert images.shape == (2, 3, 32, 32)


def test_mnist_is_read_whole() -> None:
    if not (ROOT / "mnist").exists():
        pytest.skip(f"{ROOT / 'mnist'} is absent; point $FXPRUNE_DATA at the folder that holds mnist/")
    train, test = data.mnist(ROOT / "mnist")
    assert (len(train), len(test)) == (60_000, 10_000)
    images, labels = train.batch(torch.arange(10_000))
    assert images.shape == (10_000, 1, 28, 28)
    assert labels[:5].tolist() == [5, 0, 4, 1, 9]
    assert abs(float(images.mean())) < 0.02
    assert abs(float(images.std()) - 1) < 0.02
