"""The studies of slimming_results.py: what is trained, slimmed and trained again. Names of cells say which is which."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from slimming_desk import FIRST, Desk, Facts, image_of, sizes, tuned, whole
from slimming_peers import at_macs
from slimming_training import Data, Training, accuracy
from torch import nn

import fxprune
from fxprune import reconstruct, score, train, zoo
from fxprune.train import gammas
from fxprune.train.recipe.amount import below_quantile

CALIBRATION = 640  # training images for scores that look at data and for recalibration
REFIT = 2560  # for refits
STREAM = ("conv1", "layer*.conv2")  # what makes the residual streams of the CIFAR ResNets


@dataclass(frozen=True)
class Way:
    """How channels are chosen, and what the slim network gets before and in fine-tuning.

    Attributes:
        score: of fxprune, or the pruner of torch-pruning.
        peer: torch-pruning does it.
        repair: weights are refitted by least squares before fine-tuning.
        rate: of fine-tuning, if not the study's.
        distill: fine-tuning learns from the control too (``trained``).
        first: the cut comes first (*half*), and fine-tuning gets the steps of sparse training as well.
    """

    score: str
    peer: bool = False
    repair: bool = False
    distill: bool = False
    rate: float = 0.0
    first: bool = False


def cut(model: nn.Module, way: Way, share: float, data: Data, seed: int, keep: Sequence[str] = STREAM) -> nn.Module:
    """The network with that share of its MACs left, not fine-tuned. ``keep``: for peers alone."""
    image = image_of(data)[:1]
    if way.peer:
        return at_macs(model, way.score, share, image, keep)
    calibration = data.calibration(CALIBRATION)
    generator = torch.Generator().manual_seed(seed)
    chosen: dict[str, Callable[[], Any]] = {
        "fisher": lambda: score.fisher(calibration),
        "random": lambda: lambda group: torch.rand(len(group), generator=generator),
    }
    by = chosen.get(way.score, lambda: way.score)()
    slim = fxprune.slim(model, None, image, budget=fxprune.Budget(macs=share), score=by)
    if way.repair:
        # A refitted classifier has weights too large for the learning rates here: in one trial 22 % after a training that gave 63 % without.
        classifiers = [name for name, module in slim.named_modules() if isinstance(module, nn.Linear)]
        inputs = [x for x, _ in data.calibration(REFIT)]
        slim = reconstruct.repair(model, slim, inputs, images=REFIT, cache=True, keep=classifiers)
    return slim


# curve: ResNet-20 at equal MACs

REFITTED = "fxprune, Fisher, refit"
LEVELS = (0.4, 0.6, 0.2, 0.8)  # of the MACs, left
CURVE = Training(steps=150, rate=0.05)
CONTROL_RATES = (0.05, 0.02)
WAYS = {
    "fxprune, gamma": Way("gamma"),
    "fxprune, gamma:log": Way("gamma:log"),
    "torch-pruning, BNScale": Way("bnscale", peer=True),
    "torch-pruning, group norm": Way("groupnorm", peer=True),
    "fxprune, L1:log": Way("l1:log"),
    "fxprune, random": Way("random"),
    "fxprune, Fisher, refit, distillation": Way("fisher", repair=True, distill=True),
    "fxprune, L1": Way("l1:mean"),
    "fxprune, Fisher": Way("fisher"),
}


def curve(desk: Desk) -> None:
    """The control at two learning rates, and every way at every level."""
    data, model = desk.images(), desk.pretrained("resnet20")
    for seed in desk.range(2):
        for rate in CONTROL_RATES:
            facts = {"way": "control", "level": 1.0}
            desk.cell(f"curve/control-rate{rate}-seed{seed}", whole, model, replace(CURVE, rate=rate), data, seed, facts)
        teacher = copy.deepcopy(model)
        desk.reload(teacher, f"curve/control-rate{CONTROL_RATES[0]}-seed{seed}")
        for share in LEVELS:
            for name, way in WAYS.items():
                cell = f"curve/{slug(name)}-{share}-seed{seed}"
                desk.cell(cell, _at, model, name, way, share, CURVE, seed, seed, teacher)


def cuts(desk: Desk) -> None:
    """What every way leaves at every level, without any training: as it is, and with batch norms estimated anew.

    Of ResNet-20, and of channel_pruning.py's VGG-16 if its ``vgg16-quarter.pt`` has been copied to ``--out``.
    """
    networks = {"cuts": (desk.pretrained("resnet20"), STREAM)}
    weights = desk.out / "vgg16-quarter.pt"
    if weights.exists():
        vgg = zoo.vgg16_bn(width=0.25)
        vgg.load_state_dict(torch.load(weights, weights_only=True)["model"])
        networks["cuts-vgg"] = (vgg.eval(), ())
    for folder, (model, keep) in networks.items():
        desk.cell(f"{folder}/control", _cut_only, model, "control", Way(""), 1.0, keep)
        for share in LEVELS:
            for name, way in WAYS.items():
                if not way.distill:
                    desk.cell(f"{folder}/{slug(name)}-{share}", _cut_only, model, name, way, share, keep)
            refitted = Way("fisher", repair=True)
            desk.cell(f"{folder}/{slug(REFITTED)}-{share}", _cut_only, model, REFITTED, refitted, share, keep)


def _cut_only(desk: Desk, path: Path, model: nn.Module, name: str, way: Way, share: float, keep: Sequence[str]) -> Facts:
    del path
    data = desk.images()
    slim = copy.deepcopy(model) if name == "control" else cut(model, way, share, data, 0, keep)
    facts: Facts = {"way": name, "level": share, "seed": 0, **sizes(slim, model, image_of(data))}
    facts |= {"before": accuracy(slim, data.test, 2 * FIRST)}
    train.recalibrate(slim, [x for x, _ in data.calibration(CALIBRATION)])
    return facts | {"after": accuracy(slim, data.test, 2 * FIRST)}


def _at(
    desk: Desk,
    path: Path,
    model: nn.Module,
    name: str,
    way: Way,
    share: float,
    how: Training,
    seed: int,
    order: int,
    teacher: nn.Module,
) -> Facts:
    data = desk.images()
    slim = cut(model, way, share, data, seed)
    how = replace(how, rate=way.rate or how.rate)
    facts: Facts = {"way": name, "level": share, **sizes(slim, model, image_of(data))}
    return facts | tuned(desk, path, slim, how, data, order, teacher if way.distill else None)


def slug(name: str) -> str:
    """A name for files."""
    return "-".join("".join(c if c.isalnum() else " " for c in name.lower()).split())


# half: sparse fine-tuning, half of the MACs, fine-tuning; the control gets all steps in one go


@dataclass(frozen=True)
class Half:
    """The two trainings, how many seeds, whose they are, and the learning rate of the control (0.05 was better for it than 0.02 and 0.01)."""

    sparse: Training
    tune: Training
    seeds: int
    network: str
    rate: float = 0.05


HALF = {
    "resnet20": Half(Training(steps=390, rate=0.02, strength=1e-4), Training(steps=1560, rate=0.05), 3, "resnet20"),
    "resnet20, ten epochs": Half(Training(steps=0), Training(steps=3900, rate=0.05), 3, "resnet20"),
    "resnet56": Half(Training(steps=195, rate=0.02, strength=1e-4), Training(steps=975, rate=0.05), 2, "resnet56"),
}
CHOSEN = "Fisher, refit, distillation, cut first"  # the best of ResNet-20's first seed: all other cells have this one alone
HALF_WAYS = {
    "Fisher, refit, distillation": Way("fisher", repair=True, distill=True),
    "gamma:log": Way("gamma:log"),
    CHOSEN: Way("fisher", repair=True, distill=True, first=True),
}


def half(desk: Desk, name: str) -> None:
    """Per seed: the control, the first training, and both ways from there."""
    data, plan = desk.images(), HALF[name]
    for seed in desk.range(plan.seeds):
        model, stem = desk.pretrained(plan.network), f"half/{slug(name)}-seed{seed}"
        long = replace(plan.tune, rate=plan.rate, steps=plan.sparse.steps + plan.tune.steps)
        desk.cell(f"{stem}-control", whole, model, long, data, seed, {"network": name, "way": "control"})
        teacher, sparse = copy.deepcopy(model), copy.deepcopy(model)
        desk.reload(teacher, f"{stem}-control")
        first = seed == 0 and name == "resnet20"
        if first:
            desk.cell(f"{stem}-sparse", whole, model, plan.sparse, data, seed, {"network": name, "way": "sparse"})
            desk.reload(sparse, f"{stem}-sparse")
        for way_name, way in HALF_WAYS.items() if first else ((CHOSEN, HALF_WAYS[CHOSEN]),):
            cell, start, how = f"{stem}-{slug(way_name)}", sparse, plan.tune
            if way.first:
                start, how = model, replace(plan.tune, steps=long.steps)
            desk.cell(cell, _half, name, start, way_name, way, how, seed, teacher)


def _half(
    desk: Desk, path: Path, name: str, model: nn.Module, way_name: str, way: Way, how: Training, seed: int, teacher: nn.Module
) -> Facts:
    return {"network": name} | _at(desk, path, model, way_name, way, 0.5, how, seed, seed + 100, teacher)


# mlp: the paper's perceptron

EPOCH = 468  # steps of 128 images
MLP_SPARSE = Training(steps=15 * EPOCH, rate=0.1, decay=1e-4, strength=4e-4, half=False)
MLP_TUNE = Training(steps=15 * EPOCH, rate=0.1, decay=1e-4, half=False)
FEWER = 0.844  # parameters, the paper's table 1


def with_gammas(model: nn.Module, value: float) -> nn.Module:
    """A copy whose scale factors have that value."""
    own = copy.deepcopy(model)
    with torch.no_grad():
        for gamma in gammas(own).values():
            gamma.fill_(value)
    return own


def mlp(desk: Desk) -> None:
    """Control, sparse training, and the slim network."""
    data = desk.images("mnist")
    for seed in desk.range(3):
        torch.manual_seed(seed)
        fresh = zoo.mlp(784, 500, 300, 10)
        long = replace(MLP_TUNE, steps=MLP_SPARSE.steps + MLP_TUNE.steps)
        desk.cell(f"mlp/seed{seed}-control", whole, fresh, long, data, seed, {"way": "control"})
        sparse = with_gammas(fresh, 0.5)
        desk.cell(f"mlp/seed{seed}-sparse", whole, sparse, MLP_SPARSE, data, seed, {"way": "sparse"})
        desk.reload(sparse, f"mlp/seed{seed}-sparse")
        teacher = copy.deepcopy(fresh)
        desk.reload(teacher, f"mlp/seed{seed}-control")
        desk.cell(f"mlp/seed{seed}-slim", _mlp, sparse, seed, "slim", None)
        desk.cell(f"mlp/seed{seed}-slim-distilled", _mlp, sparse, seed, "slim, distillation", teacher)


def _mlp(desk: Desk, path: Path, sparse: nn.Module, seed: int, way: str, teacher: nn.Module | None) -> Facts:
    data = desk.images("mnist")
    slim = fxprune.slim(sparse, None, image_of(data), budget=fxprune.Budget(params=1 - FEWER), score="gamma")
    widths = [m.out_features for m in slim.modules() if isinstance(m, nn.Linear)]
    facts: Facts = {"way": way, "widths": widths, **sizes(slim, sparse, image_of(data))}
    return facts | tuned(desk, path, slim, MLP_TUNE, data, seed + 100, teacher)


# passes: half of all channels per pass, but at most half of any layer

PASSES = 5
PASS_SPARSE = Training(steps=500, rate=0.1, decay=1e-4, strength=5e-4)
PASS_TUNE = Training(steps=300, rate=0.05, decay=1e-4)


def passes(desk: Desk) -> None:
    """Five passes, and a control that is trained as long as all of them."""
    data = desk.images()
    for seed in desk.range(2):
        torch.manual_seed(seed)
        fresh = zoo.vgg16_bn(width=0.25)
        model = with_gammas(fresh, 0.5)
        for number in range(1, PASSES + 1):
            stem = f"passes/seed{seed}-pass{number}"
            order = seed + 20 * (number - 1)
            desk.cell(f"{stem}-sparse", _pass, model, fresh, PASS_SPARSE, order, {"kind": "sparse", "pass": number})
            desk.reload(model, f"{stem}-sparse")
            ratio = below_quantile(fxprune.analyze(model, image_of(data)), 0.5, floor=0.5)
            model = fxprune.slim(model, ratio, image_of(data), floor=0.5)
            desk.cell(f"{stem}-tuned", _pass, model, fresh, PASS_TUNE, order + 10, {"kind": "tuned", "pass": number})
            desk.reload(model, f"{stem}-tuned")
        long = replace(PASS_SPARSE, strength=0.0, steps=PASSES * (PASS_SPARSE.steps + PASS_TUNE.steps))
        desk.cell(f"passes/seed{seed}-control", whole, fresh, long, data, seed, {"kind": "control", "pass": 0})


def _pass(desk: Desk, path: Path, model: nn.Module, fresh: nn.Module, how: Training, order: int, facts: Facts) -> Facts:
    data = desk.images()
    own = copy.deepcopy(model)
    return facts | sizes(own, fresh, image_of(data)) | tuned(desk, path, own, how, data, order)


# paper: the paper's networks at its ratios, in both layouts

INITIAL = 0.2  # gamma; the paper: 0.5
PAPER = Training(steps=600, batch=32, rate=0.1, decay=1e-4, strength=1e-3)
PAPER_NETWORKS = ("vgg19_bn", "densenet40", "resnet164")
RATIOS = (0.4, 0.6, 0.7)
PAPER_TESTS = 1000  # images
PAPER_TUNE = Training(steps=100, batch=32, rate=0.05, decay=1e-4)


def paper(desk: Desk) -> None:
    """Sparse training once per network; from there a control and all slim networks are trained equally."""
    data = desk.images()
    for name in PAPER_NETWORKS:
        torch.manual_seed(0)
        model, stem = with_gammas(getattr(zoo, name)(), INITIAL), f"paper/{name}-seed0"
        desk.cell(f"{stem}-sparse", _sparse, model, {"network": name, "kind": "sparse"})
        desk.reload(model, f"{stem}-sparse")
        for layout in ("selection", "coupled"):
            for ratio in RATIOS:
                desk.cell(f"{stem}-{layout}-{ratio}-cut", _cut, name, model, layout, ratio)
    for name in PAPER_NETWORKS:
        model, stem = getattr(zoo, name)(), f"paper/{name}-seed0"
        desk.reload(model, f"{stem}-sparse")
        facts = {"network": name, "kind": "control"}
        desk.cell(f"{stem}-control", whole, model, PAPER_TUNE, data, 0, facts, PAPER_TESTS)
        for layout in ("selection", "coupled"):
            for ratio in RATIOS:
                desk.cell(f"{stem}-{layout}-{ratio}-tuned", _cut_tuned, name, model, layout, ratio)


def _sparse(desk: Desk, path: Path, model: nn.Module, facts: Facts) -> Facts:
    found = (
        facts
        | sizes(model, model, image_of(desk.images()))
        | tuned(desk, path, model, PAPER, desk.images(), 0, tests=PAPER_TESTS)
    )
    merged = torch.cat([gamma.detach().abs().flatten() for gamma in gammas(model).values()])
    quantiles = {str(q): float(merged.quantile(q)) for q in (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.99)}
    return found | {"gammas": quantiles, "spare": train.readiness(model).spare}


def _slimmed(desk: Desk, model: nn.Module, layout: str, ratio: float) -> nn.Module:
    """The paper's rule in the selection layout; the defaults of ``slim`` in the coupled one."""
    options: dict[str, Any] = {"floor": 0.0, "absorb": False} if layout == "selection" else {}
    return fxprune.slim(model, ratio, image_of(desk.images()), layout=layout, verify=False, **options)


def _cut(desk: Desk, path: Path, name: str, model: nn.Module, layout: str, ratio: float) -> Facts:
    del path
    data = desk.images()
    slim = _slimmed(desk, model, layout, ratio)
    facts: Facts = {"network": name, "kind": layout, "ratio": ratio, "emptied": len(fxprune.plan_of(slim).silent)}
    facts |= sizes(slim, model, image_of(data)) | {"before": accuracy(slim, data.test, PAPER_TESTS)}
    train.recalibrate(slim, [x for x, _ in data.calibration(CALIBRATION)])
    return facts | {"after": accuracy(slim, data.test, PAPER_TESTS)}


def _cut_tuned(desk: Desk, path: Path, name: str, model: nn.Module, layout: str, ratio: float) -> Facts:
    facts: Facts = {"network": name, "kind": layout, "ratio": ratio}
    return facts | tuned(desk, path, _slimmed(desk, model, layout, ratio), PAPER_TUNE, desk.images(), 0, tests=PAPER_TESTS)


STUDIES: dict[str, Callable[[Desk], None]] = {
    "cuts": cuts,
    "curve": curve,
    "half-resnet20": partial(half, name="resnet20"),
    "half-resnet20-long": partial(half, name="resnet20, ten epochs"),
    "half-resnet56": partial(half, name="resnet56"),
    "mlp": mlp,
    "passes": passes,
    "paper": paper,
}
