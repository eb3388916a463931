"""The 1,797 handwritten digits, 8x8 and grey, that scikit-learn ships: nothing to download."""

from __future__ import annotations

import torch

from fxprune.data.split import Split

WHITE = 16  # the largest value of a pixel


def digits(test_share: float = 0.2, seed: int = 0) -> tuple[Split, Split]:
    """Train and test split of the digits, images ``(1, 8, 8)`` in [-1, 1].

    Args:
        test_share: share of the images that is held out, in (0, 1).
        seed: decides which.

    Raises:
        ImportError: scikit-learn is not installed.
        ValueError: ``test_share`` is not in (0, 1).
    """
    if not 0 < test_share < 1:
        raise ValueError(f"test_share must be in (0, 1), got {test_share}.")
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ImportError("digits() reads images that scikit-learn ships; install it: pip install 'fxprune[demo]'.") from error
    found = load_digits()
    images = torch.from_numpy(found.images).float().unsqueeze(1) * (2 / WHITE) - 1
    labels = torch.from_numpy(found.target).long()
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed), device="cpu")
    held_out = round(test_share * len(labels))
    whole = Split(labels, lambda indices: images[indices])
    return whole.subset(order[held_out:]), whole.subset(order[:held_out])
