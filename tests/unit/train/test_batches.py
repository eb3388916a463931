"""Which images a step sees, and what becomes of them."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from fxprune.data import Augmentation, Images, Split
from fxprune.train.recipe.batches import Share, seed_of


def numbered(count: int) -> Images:
    """Images whose pixels are their number."""
    pixels = torch.arange(count).view(-1, 1, 1, 1).expand(-1, 1, 4, 4).float()
    split = Split(torch.arange(count), lambda indices: pixels[indices])
    return Images(split, split, count, (1, 4, 4), padding=1, mirror=True)


@pytest.mark.parametrize("world", [1, 2, 4])
def test_processes_share_what_one_would_see(world: int) -> None:
    images = numbered(22)
    alone = list(Share(images, 8).epoch(5))
    shares = [list(Share(images, 8, rank, world).epoch(5)) for rank in range(world)]
    assert len(alone) == Share(images, 8).steps == 2
    for step, (pixels, labels) in enumerate(alone):
        torch.testing.assert_close(torch.cat([share[step][0] for share in shares]), pixels)
        assert torch.cat([share[step][1] for share in shares]).tolist() == labels.tolist()
    labels = torch.cat([labels for _, labels in alone])
    assert len(labels.unique()) == 16
    assert labels.tolist() != torch.cat([labels for _, labels in Share(images, 8).epoch(6)]).tolist()


def test_an_epoch_goes_on_from_any_step() -> None:
    share = Share(numbered(40), 8)
    whole = list(share.epoch(1))
    for start in range(share.steps + 1):
        rest = list(share.epoch(1, start))
        assert len(rest) == share.steps - start
        for (a, b), (c, d) in zip(whole[start:], rest, strict=True):
            assert torch.equal(a, c)
            assert torch.equal(b, d)


def test_workers_read_the_same() -> None:
    images = numbered(32)
    for (a, _), (b, _) in zip(Share(images, 8).epoch(2), Share(images, 8, workers=1).epoch(2), strict=True):
        assert torch.equal(a, b)


def test_batches_that_cannot_be_are_refused() -> None:
    with pytest.raises(ValueError, match=r"multiple of the number of processes \(3\), got 8"):
        Share(numbered(20), 8, 0, 3)
    with pytest.raises(ValueError, match=r"number of training images \(20\), got 32"):
        Share(numbered(20), 32)


def test_augmentation_shifts_and_mirrors() -> None:
    images = torch.randn(6, 2, 5, 7, generator=torch.Generator().manual_seed(0))
    drawn = Augmentation.draw(10, 2, seed=4)
    indices = torch.tensor([7, 1, 3, 9, 0, 2])
    found = drawn.apply(images, indices)
    for image, index, got in zip(images, indices.tolist(), found, strict=True):
        down, right = drawn.shift[index].tolist()
        source = F.pad(image, (2, 2, 2, 2))[:, down : down + 5, :]
        columns = source[:, :, 2:-2].flip(2) if drawn.mirrored[index] else source[:, :, 2:-2]
        torch.testing.assert_close(got, moved(columns, right - 2, mirrored=bool(drawn.mirrored[index])))
    assert 0 < int(drawn.mirrored.sum()) < 10
    assert not Augmentation.draw(10, 2, seed=4, mirror=False).mirrored.any()
    again = drawn.apply(images[2:3], indices[2:3])
    assert torch.equal(again[0], found[2])  # whatever batch it is in


def moved(image: torch.Tensor, right: int, *, mirrored: bool) -> torch.Tensor:
    """Shift by ``right`` columns of the original: in a mirror image, of the mirrored one."""
    shift = -right if mirrored else right
    return F.pad(image, (4, 4))[:, :, 4 + shift : 4 + shift + image.shape[2]]


def test_seeds_follow_from_what_names_them() -> None:
    assert seed_of(1, "a", 2) == seed_of(1, "a", 2)
    assert len({seed_of(0, phase, epoch) for phase in range(10) for epoch in range(10)}) == 100
    assert all(0 <= seed_of(i) < 2**63 for i in range(100))
