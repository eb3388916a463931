"""Short trainings of the channel-pruning benchmark that go on where they were interrupted.

1. One cycle: the rate rises over the first fifth of the steps and falls along a cosine; SGD with momentum 0.9 and weight decay 5e-4, images shifted
   and mirrored. What an image becomes depends on seed and epoch alone.
2. After every epoch a checkpoint replaces the one before (written beside it and renamed); a finished training is only read.
"""

from __future__ import annotations

import math
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fxprune.data import Augmentation, Images

BATCH = 128


def batches(images: Images, count: int, seed: int = 0, size: int = BATCH) -> list[Tensor]:
    """``count`` training images as they are, others for every seed, in batches: what layers are reconstructed on."""
    return [
        images.train.batch(part % len(images.train))[0] for part in torch.arange(seed * count, (seed + 1) * count).split(size)
    ]


@torch.no_grad()
def accuracy(model: nn.Module, x: Tensor, y: Tensor) -> float:
    """Share of images classified correctly."""
    model.eval()
    return sum(int((model(a).argmax(1) == b).sum()) for a, b in zip(x.split(500), y.split(500), strict=True)) / len(y)


def rate_at(step: int, total: int, top: float) -> float:
    """Clause 1."""
    rise = max(1, total // 5)
    if step < rise:
        return top * (step + 1) / rise
    return 0.5 * top * (1 + math.cos(math.pi * (step - rise) / (total - rise)))


def train(model: nn.Module, images: Images, path: Path, *, epochs: int, top: float, seed: int = 0, subset: int = 0) -> None:
    """Train in place; ``path`` holds what is reached (clause 2). ``subset``: on that many images an epoch."""
    names = [name for name, _ in model.named_parameters()]
    optimizer = torch.optim.SGD(model.parameters(), lr=top, momentum=0.9, weight_decay=5e-4)
    done = 0
    if path.exists():
        found = torch.load(path, weights_only=True)
        done = int(found["epochs"])
        model.load_state_dict(found["model"])
        optimizer.load_state_dict(found["optimizer"])
    count = len(images.train)
    steps = math.ceil((min(subset, count) if subset else count) / BATCH)
    for epoch in range(done, epochs):
        model.train()
        order = torch.randperm(count, generator=torch.Generator().manual_seed(1000 * seed + epoch))
        augmented = Augmentation.draw(count, images.padding, 1000 * seed + epoch, mirror=images.mirror)
        for number, picked in enumerate(order.split(BATCH)[:steps]):
            x, y = images.train.batch(picked)
            x = augmented.apply(x, picked).contiguous(memory_format=torch.channels_last)
            for group in optimizer.param_groups:
                group["lr"] = rate_at(epoch * steps + number, epochs * steps, top)
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
        state = {"epochs": epoch + 1, "model": model.state_dict(), "optimizer": optimizer.state_dict(), "names": names}
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(state, path.with_suffix(".part"))
        path.with_suffix(".part").replace(path)
        print(f"{path.stem}: epoch {epoch + 1} of {epochs}", flush=True)
    model.eval()
