"""Where the studies of slimming_results.py read images and write results: one JSON file per finished cell, never done twice."""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from machine import line
from slimming_training import Clock, Data, Training, accuracy, decoded, trained
from torch import Tensor, nn

import fxprune
from fxprune import zoo

Facts = dict[str, Any]
FIRST = 1000  # test images for what is no result


@dataclass(frozen=True)
class Desk:
    """Where images come from and results go.

    Attributes:
        data: folder of all image sets.
        out: folder of results and checkpoints.
        clock: when to stop.
        tests: number of test images of CIFAR-10; MNIST has all of its own.
        seeds: at most so many.
        longer: trainings take so many times as many steps, with as much less strength of a penalty.
    """

    data: Path
    out: Path
    clock: Clock
    tests: int
    seeds: int
    longer: int = 1
    _sets: dict[str, Data] = field(default_factory=dict)

    def images(self, name: str = "cifar10-jpeg") -> Data:
        """An image set, decoded once."""
        if name not in self._sets:
            tests = self.tests if name == "cifar10-jpeg" else 10_000  # a tenth of a point counts on MNIST, and costs nothing
            self._sets[name] = decoded(name, self.data / name, self.out / "images", tests)
        return self._sets[name]

    def pretrained(self, name: str) -> nn.Module:
        """One of the CIFAR ResNets."""
        (file,) = (self.data / "resnet-cifar10").glob(f"{name}-*.th")
        return zoo.load_pretrained(getattr(zoo, name)(), file).eval()

    def range(self, most: int) -> range:
        """The seeds of a study that has ``most``."""
        return range(min(most, self.seeds))

    def cell(self, name: str, make: Callable[..., Facts], *arguments: Any) -> Facts:
        """The facts of a cell, measured by ``make(desk, path for checkpoints, *arguments)`` unless they are there."""
        path = self.out / f"{name}.json"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            facts = make(self, self.checkpoint(name), *arguments) | {"machine": line()}
            half = path.with_suffix(".half")
            half.write_text(json.dumps(facts, indent=1) + "\n")
            half.replace(path)
            told = (f"{key} {facts[key]:.4g}" for key in ("macs_left", "before", "after", "seconds") if key in facts)
            print(f"{time.strftime('%H:%M:%S')} {name}: {' '.join(told)}", flush=True)
            self.clock.check()
        found: Facts = json.loads(path.read_text())
        return found

    def checkpoint(self, name: str) -> Path:
        """Where a cell keeps its network."""
        return self.out / f"{name}.pt"

    def reload(self, model: nn.Module, name: str) -> None:
        """Give a network the weights that a cell has left, and put it into eval mode."""
        model.load_state_dict(torch.load(self.checkpoint(name), weights_only=True)["model"])
        model.eval()


def sizes(model: nn.Module, original: nn.Module, image: Tensor) -> Facts:
    """Parameters and MACs of one image, absolute and as shares of the original's."""
    ours, whole = (fxprune.summary(network, image[:1]) for network in (model, original))
    return {
        "parameters": ours.parameters,
        "macs": ours.macs,
        "parameters_left": ours.parameters / whole.parameters,
        "macs_left": ours.macs / whole.macs,
    }


def tuned(
    desk: Desk,
    path: Path,
    model: nn.Module,
    how: Training,
    data: Data,
    seed: int,
    teacher: nn.Module | None = None,
    tests: int | None = None,
) -> Facts:
    """Accuracy before (on the first test images) and after a training, in place; ``tests``: on that many."""
    how = replace(how, steps=how.steps * desk.longer, strength=how.strength / desk.longer)
    facts: Facts = {"seed": seed, "training": asdict(how), "before": accuracy(model, data.test, FIRST)}
    seconds = trained(model, how, data, path, seed=seed, clock=desk.clock, teacher=teacher)
    return facts | {"after": accuracy(model, data.test, tests), "tests": tests or len(data.test), "seconds": seconds}


def whole(
    desk: Desk, path: Path, model: nn.Module, how: Training, data: Data, seed: int, facts: Facts, tests: int | None = None
) -> Facts:
    """A cell: a copy of the network, trained as it is."""
    own = copy.deepcopy(model)
    return facts | sizes(own, model, image_of(data)) | tuned(desk, path, own, how, data, seed, tests=tests)


def image_of(data: Data) -> Tensor:
    """The first two training images: what networks are captured with."""
    return data.calibration(2)[0][0]
