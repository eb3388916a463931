"""Short trainings for the page of results: every one is stored, and goes on where it was interrupted.

1. SGD with Nesterov momentum 0.9 and weight decay 5e-4; the rate rises over the first twentieth of the steps and falls to zero along a cosine. Images
   are shifted by up to 4 pixels and mirrored. Which images a step sees, and what becomes of them, depends on seed and step alone, so all
   networks of a comparison see the same.
2. With a strength, gammas are pushed to zero by the paper's subgradient or by proximal steps (``fxprune.train.GammaL1``). With a teacher, the loss is
   ``fxprune.train.distillation`` at temperature 4 and weight 0.9.
3. Every ``EVERY`` steps a checkpoint replaces the one before (written beside it and renamed). ``Clock.check`` ends the process between two steps when
   its minutes are over.
"""

from __future__ import annotations

import math
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fxprune import train
from fxprune.data import Augmentation, Images, cifar
from fxprune.data.mnist import MEAN, STD
from fxprune.data.named import load

EVERY = 50
STATISTICS = {"cifar10-jpeg": (cifar.MEAN, cifar.STD), "mnist": ((MEAN,), (STD,))}
OUT_OF_TIME = 75  # exit status: start me again


@dataclass(frozen=True)
class Pixels:
    """Decoded images of one set, normalized when picked.

    Attributes:
        images: ``(n, c, h, w)``, uint8.
        labels: ``(n,)``.
        mean: ``(c, 1, 1)``.
        std: ``(c, 1, 1)``.
    """

    images: Tensor
    labels: Tensor
    mean: Tensor
    std: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Normalized images and labels."""
        return (self.images[indices].float() / 255 - self.mean) / self.std, self.labels[indices]


@dataclass(frozen=True)
class Data:
    """Training and test images."""

    train: Pixels
    test: Pixels
    padding: int
    mirror: bool

    def calibration(self, count: int, size: int = 128) -> list[tuple[Tensor, Tensor]]:
        """The first training images as they are, in batches, with labels."""
        return [self.train.batch(part) for part in torch.arange(count).split(size)]


def decoded(name: str, root: Path, folder: Path, tests: int) -> Data:
    """The image set, decoded once and kept in ``folder``."""
    found: Images | None = None
    parts = []
    mean, std = STATISTICS[name]
    averages, spreads = (torch.tensor(values).view(-1, 1, 1) for values in (mean, std))
    for part in ("train", "test"):
        path = folder / f"{name}-{part}.npz"
        if not path.exists():
            found = found or load(name, root)
            split = found.train if part == "train" else found.test
            chunks = [split.batch(indices) for indices in torch.arange(len(split)).split(1000)]
            pixels = torch.cat([((x * spreads + averages) * 255).round().clamp(0, 255).to(torch.uint8) for x, _ in chunks])
            folder.mkdir(parents=True, exist_ok=True)
            half = path.with_suffix(".half.npz")
            np.savez(half, images=pixels.numpy(), labels=torch.cat([y for _, y in chunks]).numpy())
            half.replace(path)
        with np.load(path) as archive:
            limit = tests if part == "test" else None
            parts.append(Pixels(*(torch.from_numpy(archive[key][:limit]) for key in ("images", "labels")), averages, spreads))
    colour = name == "cifar10-jpeg"
    return Data(parts[0], parts[1], 4 if colour else 0, colour)


@dataclass(frozen=True)
class Clock:
    """When the process has to end, by the wall clock; 0: never."""

    end: float = 0.0

    def check(self) -> None:
        """Exit with ``OUT_OF_TIME`` if that time is over."""
        if self.end and time.time() > self.end:
            sys.exit(OUT_OF_TIME)


@dataclass(frozen=True)
class Training:
    """How a network is trained (clauses 1 and 2).

    Attributes:
        steps: of the optimizer.
        rate: the largest learning rate.
        batch: images per step.
        strength: of the penalty on gammas; 0: none.
        method: "subgradient" or "proximal".
        subset: only that many images are used; 0: all.
        decay: weight decay.
        half: forward passes in bfloat16 where ``torch.autocast`` would; weights, norms, losses and all measurements stay single.
    """

    steps: int
    rate: float = 0.05
    batch: int = 128
    strength: float = 0.0
    method: str = "subgradient"
    subset: int = 0
    decay: float = 5e-4
    half: bool = True

    def rate_at(self, step: int) -> float:
        """Clause 1."""
        rise = max(1, self.steps // 20)
        if step < rise:
            return self.rate * (step + 1) / rise
        return 0.5 * self.rate * (1 + math.cos(math.pi * (step - rise) / max(1, self.steps - rise)))


@torch.no_grad()
def accuracy(model: nn.Module, pixels: Pixels, count: int | None = None) -> float:
    """Share of images classified correctly; of the first ``count``, or all."""
    count = min(count or len(pixels), len(pixels))
    was = model.training
    model.eval()
    right = 0
    for part in torch.arange(count).split(250):
        x, y = pixels.batch(part)
        right += int((model(x.to(memory_format=torch.channels_last)).argmax(1) == y).sum())
    model.train(was)
    return right / count


def images_of(step: int, how: Training, data: Data, seed: int) -> tuple[Tensor, Tensor]:
    """What a step is trained on (clause 1)."""
    count = min(how.subset, len(data.train)) if how.subset else len(data.train)
    epoch, place = divmod(step, count // how.batch)
    key = 1000 * seed + epoch
    order = torch.randperm(count, generator=torch.Generator().manual_seed(key))
    indices = order[place * how.batch : (place + 1) * how.batch]
    x, y = data.train.batch(indices)
    if data.padding:
        x = Augmentation.draw(count, data.padding, key, mirror=data.mirror).apply(x, indices)
    return x, y


def trained(
    model: nn.Module, how: Training, data: Data, path: Path, *, seed: int, clock: Clock, teacher: nn.Module | None = None
) -> float:
    """Train in place, or read from ``path`` what was reached; CPU seconds of all steps."""
    model.to(memory_format=torch.channels_last).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=how.rate, momentum=0.9, nesterov=True, weight_decay=how.decay)
    penalty = train.GammaL1(model, how.strength) if how.strength else None
    done, spent = 0, 0.0
    if path.exists():
        found = torch.load(path, weights_only=True)
        done, spent = found["steps"], found["seconds"]
        model.load_state_dict(found["model"])
        if done < how.steps:
            optimizer.load_state_dict(found["optimizer"])
    began = time.process_time()
    for step in range(done, how.steps):
        for group in optimizer.param_groups:
            group["lr"] = how.rate_at(step)
        x, y = images_of(step, how, data, seed)
        x = x.to(memory_format=torch.channels_last)
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=how.half):
            logits = model(x).float()
        if teacher is None:
            loss = F.cross_entropy(logits, y)
        else:
            with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=how.half):
                told = teacher(x).float()
            loss = train.distillation(logits, told, y, temperature=4.0, weight=0.9)
        loss.backward()
        if penalty and how.method == "subgradient":
            penalty.add_gradient()
        optimizer.step()
        if penalty and how.method == "proximal":
            penalty.shrink(optimizer)
        if (step + 1) % EVERY == 0 or step + 1 == how.steps:
            state = {"steps": step + 1, "seconds": spent + time.process_time() - began, "model": model.state_dict()}
            if step + 1 < how.steps:
                state["optimizer"] = optimizer.state_dict()
            path.parent.mkdir(parents=True, exist_ok=True)
            half = path.with_suffix(".half")
            torch.save(state, half)
            half.replace(path)
            clock.check()
    spent += time.process_time() - began
    model.eval()
    return spent
