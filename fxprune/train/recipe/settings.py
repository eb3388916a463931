"""All that a run of the recipe depends on.

1. Defaults are those of Network Slimming (Liu et al. 2017, section 4.2, arXiv:1708.06519) on CIFAR, whatever ``data`` is: SGD with Nesterov
   momentum 0.9, weight decay 1e-4, batches of 64, rate 0.1 divided by 10 at 50 % and 75 % of 160 epochs, gammas set to 0.5, strength 1e-4 for VGG
   and 1e-5 for ResNet and DenseNet; fine-tuning uses the same setting without the penalty.
2. One pass removes ``ratio`` of all channels under a floor per group. Each of several passes removes what is below the quantile ``ratio`` of
   all scale factors, and at most half of a layer (amount.py): the floor is 0.5.
3. ``batch`` counts the images of one step over all processes.
4. Two runs with equal settings compute the same, wherever and however often they were interrupted.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, fields
from typing import Any

METHODS = ("subgradient", "penalty", "proximal", "none")
LAYOUTS = ("coupled", "selection")  # "auto" goes by the clock, and equal settings have to compute the same
LEAST = {"side": 1, "subset": 0, "width": 0, "passes": 1, "recalibrate": 0, "epochs": 0, "batch": 1, "rate": 0, "weight_decay": 0}
PRECISIONS = ("32-true", "16-mixed", "bf16-mixed", "64-true")


@dataclass(frozen=True, slots=True)
class Settings:
    """What is trained on what, how, and how much goes.

    Attributes:
        data: name of the image set (``fxprune.data.load``).
        root: where it is.
        side: height and width of images of a folder.
        subset: train on that many images only; 0: all.
        augment: shift and mirror training images, where that suits the set.
        network: a function of ``fxprune.zoo``, or ``torchvision/NAME``.
        weights: file of pretrained weights for a network of the zoo (``zoo.load_pretrained``); "": random ones.
        width: factor of the widths, for networks that take one.
        passes: how often to train, slim and fine-tune.
        ratio: share of the channels that goes in each pass, in [0, 1); with several passes less goes where the floor stands in the way.
        floor: share of each group that stays in each pass; negative: 0.1, or 0.5 with several passes.
        layout: "coupled", or "selection" as in the paper's residual and dense networks (``fxprune.slim``).
        absorb: as for ``fxprune.slim``: true, false, or (not from the command line) "exact".
        recalibrate: batches from which BN statistics are estimated anew after slimming; 0: they stay.
        epochs: of each training with sparsity.
        tune_epochs: of each fine-tuning; negative: as many as ``epochs``.
        batch: images per step (clause 3).
        rate: learning rate at the start.
        momentum: of SGD, with Nesterov's correction if positive.
        weight_decay: on all parameters, as in the paper.
        strength: of the penalty; negative: the paper's for the network.
        method: how the penalty is applied (``fxprune.train.penalty``); "none" trains without.
        coupled: penalize coupled channels together (``GroupL1``).
        gamma: value of all gammas at the start; 0 leaves them as they are; negative: 0.5, or as they are where ``weights`` are given.
        distill: weight of distillation from the unpruned network while fine-tuning, in [0, 1].
        seed: of weights, order and augmentation.
        precision: "32-true", "16-mixed", "bf16-mixed" or "64-true".
    """

    data: str = "digits"
    root: str = ""
    side: int = 224
    subset: int = 0
    augment: bool = True
    network: str = "tiny_vgg"
    weights: str = ""
    width: float = 1.0
    passes: int = 1
    ratio: float = 0.5
    floor: float = -1.0
    layout: str = "coupled"
    absorb: bool | str = True
    recalibrate: int = 0
    epochs: int = 160
    tune_epochs: int = -1
    batch: int = 64
    rate: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 1e-4
    strength: float = -1.0
    method: str = "subgradient"
    coupled: bool = False
    gamma: float = -1.0
    distill: float = 0.0
    seed: int = 0
    precision: str = "32-true"

    def __post_init__(self) -> None:
        for name, allowed in (("method", METHODS), ("layout", LAYOUTS), ("precision", PRECISIONS)):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {getattr(self, name)!r}.")
        if self.absorb not in (True, False, "exact"):
            raise ValueError(f"absorb must be true, false or 'exact', got {self.absorb!r}.")
        for name, least in LEAST.items():
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= least):
                raise ValueError(f"{name} must be at least {least:g}, got {value}.")
        for name in ("floor", "strength", "gamma", "tune_epochs"):
            if not math.isfinite(getattr(self, name)):
                raise ValueError(f"{name} must be finite, got {getattr(self, name)}.")
        if self.width <= 0:
            raise ValueError(f"width must be positive, got {self.width}.")
        if self.floor > 1:
            raise ValueError(f"floor must be in [0, 1] (the share of each group that stays), or negative, got {self.floor}.")
        for name, most in (("ratio", 1 - 1e-9), ("momentum", 1 - 1e-9), ("distill", 1)):
            if not 0 <= getattr(self, name) <= most:
                raise ValueError(f"{name} must be in [0, 1{')' if most < 1 else ']'}, got {getattr(self, name)}.")

    @property
    def the_floor(self) -> float:
        """Clause 2."""
        return self.floor if self.floor >= 0 else 0.1 if self.passes == 1 else 0.5

    @property
    def the_strength(self) -> float:
        """Clause 1."""
        return self.strength if self.strength >= 0 else 1e-4 if "vgg" in self.network or "mlp" in self.network else 1e-5

    @property
    def the_gamma(self) -> float:
        """Clause 1; 0: they stay as they are."""
        return self.gamma if self.gamma >= 0 else 0.0 if self.weights else 0.5

    @property
    def phases(self) -> tuple[Phase, ...]:
        """Trainings in their order: with sparsity, then fine-tuning, in each pass."""
        tune = self.tune_epochs if self.tune_epochs >= 0 else self.epochs
        return tuple(
            Phase(number, kind, epochs)
            for number in range(self.passes)
            for kind, epochs in (("sparse", self.epochs), ("tune", tune))
        )

    def rate_at(self, epoch: int, epochs: int) -> float:
        """The learning rate of an epoch of a phase of so many epochs (clause 1)."""
        return self.rate * 0.1 ** sum(epoch >= share * epochs for share in (0.5, 0.75))

    def to_json(self) -> str:
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> Settings:
        data: dict[str, Any] = json.loads(text)
        known = {field.name for field in fields(cls)}
        return cls(**{key: value for key, value in data.items() if key in known})

    def differs(self, other: Settings) -> tuple[str, ...]:
        """Names of the settings that are not the same."""
        return tuple(field.name for field in fields(self) if getattr(self, field.name) != getattr(other, field.name))


@dataclass(frozen=True, slots=True)
class Phase:
    """One training: ``kind`` is "sparse" (a slimming follows) or "tune"."""

    number: int
    kind: str
    epochs: int
