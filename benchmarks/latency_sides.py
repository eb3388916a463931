"""Whose networks ``latency.py`` times: each side's slim network at a share of the MACs, made once and kept on disk.

1. All sides rank by fxprune's ``magnitude`` score, globally. MACs are counted by torch.utils.flop_counter on one image.
2. *fxprune*: ``slim`` with ``Budget(macs=share)``, widths multiples of 16 (what kernels for AVX-512 like), ``deploy``. *fxprune latency*: the same,
   but of the plans that use at least 97 % of those MACs the one that a latency table (batch 1, deployed) says is fastest: the least latency
   bound is found by bisection.
3. *torch-pruning*: its MagnitudePruner, global, with fxprune's scores per output channel of each layer (what has none there falls back to its own
   norm), at the ratio with that share of the MACs, to 2 %. *torch-pruning, 16*: the same with its ``round_to=16``.
4. *torch-kirigami*: the channels of an fxprune plan without rounding, removed by its ``plan_remove``. Its own search examines every channel by
   itself, which takes minutes on MobileNet-v2 and far longer on the others, once per ratio tried.
5. *original deployed* tells what ``deploy`` alone does.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from networks import torchvision_network
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import fxprune
from fxprune import Budget, BudgetError
from fxprune.latency import measure

FASTEST = "fxprune fastest"  # by the runtime in question (latency.py)
SIDES = ("fxprune", "fxprune latency", FASTEST, "torch-pruning", "torch-pruning, 16", "torch-kirigami")
OURS = SIDES[:3]
ROUND = 16
CLOSE, STEPS = 0.02, 6
USED, HALVINGS = 0.97, 6


@dataclass(frozen=True, slots=True)
class Side:
    """A slim network, the share of the MACs that it has, and what to know of it."""

    module: nn.Module
    left: float
    note: str


def made(side: str, network: str, share: float, folder: Path) -> Side:
    """The network of one side, from the folder if it is there. torch.load runs code: the folder is this script's own."""
    file = folder / f"{network}-{share:g}-{side.replace(', ', '_').replace(' ', '_')}.pt"
    if file.exists():
        return Side(*torch.load(file, weights_only=False))
    torch.manual_seed(0)
    model, image = torchvision_network(network)
    found = MAKERS[side](model, image, share)
    folder.mkdir(parents=True, exist_ok=True)
    torch.save((found.module, found.left, found.note), file)
    return found


def macs(model: nn.Module, image: Tensor) -> int:
    """Multiply-adds of one call."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(image)
    return counter.get_total_flops() // 2


def by_macs(model: nn.Module, image: Tensor, share: float) -> Side:
    """Clause 2, fxprune."""
    slim = fxprune.slim(model, None, image, budget=Budget(macs=share), score="magnitude", round_to=ROUND, verify=False)
    figures = fxprune.plan_of(slim).figures
    return Side(slim, macs(slim, image) / macs(model, image), f"score kept {_kept(figures):.1%}")


def by_latency(model: nn.Module, image: Tensor, share: float) -> Side:
    """Clause 2, fxprune latency."""
    table = measure(model, image, show=False)
    graph = fxprune.analyze(model, image)

    def planned(latency: float) -> fxprune.Plan | None:
        try:
            budget = Budget(macs=share, latency=latency, table=table)
            return fxprune.plan(graph, budget=budget, score="magnitude", round_to=ROUND)
        except BudgetError:
            return None

    low, high = 0.0, 1.0
    best = planned(high)
    assert best is not None
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        plan = planned(middle)
        spent = 0.0 if plan is None else plan.figures["macs"]["achieved"] / plan.figures["macs"]["original"]
        if plan is not None and spent >= USED * share:
            high, best = middle, plan
        else:
            low = middle
    slim = fxprune.apply(model, best, image, verify=False)
    told = best.figures["latency"]
    note = f"score kept {_kept(best.figures):.1%}, predicted {told['achieved'] / told['original']:.1%} of the latency"
    return Side(slim, macs(slim, image) / macs(model, image), note)


def _kept(figures: Any) -> float:
    return float(figures["kept score"]["achieved"] / figures["kept score"]["original"])


class Shared:
    """An importance for torch-pruning: fxprune's scores, per output channel of the layer that a group starts with."""

    def __init__(self, model: nn.Module, image: Tensor) -> None:
        self.scores: dict[str, Tensor] = {}
        for group in fxprune.analyze(model, image).groups:
            values = fxprune.score.magnitude(group)
            for member in group.members:
                if not member.reads and member.dim == 0 and member.name.endswith(".weight"):
                    layer = self.scores.setdefault(member.name, torch.zeros(model.get_parameter(member.name).shape[0]))
                    layer[torch.from_numpy(member.atom)] = values[torch.from_numpy(member.channel)].float()

    def __call__(self, group: Any) -> Tensor:
        """Scores of a group of torch-pruning, shape (channels,)."""
        for dependency, places in group:
            name = f"{dependency.target.name.split(' ')[0]}.weight"
            if name in self.scores and len(places) == len(group[0].idxs) and "out_channels" in str(dependency.handler):
                return self.scores[name][torch.as_tensor(places) % len(self.scores[name])]
        import torch_pruning

        found: Tensor = torch_pruning.importance.GroupMagnitudeImportance(p=2)(group)
        return found


def by_torch_pruning(model: nn.Module, image: Tensor, share: float, round_to: int | None = None) -> Side:
    """Clause 3. MACs fall about with the square of what stays: the ratio is corrected by that."""
    import torch_pruning

    importance, whole = Shared(model, image), macs(model, image)
    best: tuple[float, nn.Module, float, float] | None = None
    low, high, ratio = 0.0, 0.97, 1 - share**0.5
    for _ in range(STEPS):
        module = copy.deepcopy(model)
        last = [m for m in module.modules() if isinstance(m, nn.Linear)][-1]
        options = {"global_pruning": True, "pruning_ratio": ratio, "ignored_layers": [last], "round_to": round_to}
        torch_pruning.pruner.MagnitudePruner(module, image, importance, **options).step()
        left = macs(module, image) / whole
        if best is None or abs(left - share) < best[0]:
            best = abs(left - share), module, left, ratio
        if abs(left - share) <= CLOSE * share:
            break
        low, high = (ratio, high) if left > share else (low, ratio)
        guess = 1 - (1 - ratio) * (share / left) ** 0.5
        ratio = guess if low < guess < high else (low + high) / 2
    assert best is not None
    return Side(best[1], best[2], f"ratio {best[3]:.3f}")


def by_torch_kirigami(model: nn.Module, image: Tensor, share: float) -> Side:
    """Clause 4."""
    from torch_kirigami import DependencyGraph
    from torch_kirigami.pruning import Pruner

    graph = fxprune.analyze(model, image)
    plan = fxprune.plan(graph, budget=Budget(macs=share), score="magnitude")
    module = copy.deepcopy(model)
    theirs = DependencyGraph.build(module, args=(image,))
    pruner = Pruner(module, graph=theirs)
    asked = []
    for group in graph.groups:
        first = next(m for m in group.members if not m.reads and m.dim == 0)
        gone = sorted(set(range(plan.sizes[first.name][0])) - set(plan.kept[first.name][0]))
        if gone:
            asked.append(theirs.parameter(first.name).axis(0).select(gone))
    slim, _ = pruner.apply(pruner.plan_remove(asked))
    return Side(slim, macs(slim, image) / macs(model, image), "the channels of an fxprune plan")


MAKERS: dict[str, Callable[[nn.Module, Tensor, float], Side]] = {
    "fxprune": by_macs,
    "fxprune latency": by_latency,
    "torch-pruning": by_torch_pruning,
    "torch-pruning, 16": lambda model, image, share: by_torch_pruning(model, image, share, ROUND),
    "torch-kirigami": by_torch_kirigami,
}
