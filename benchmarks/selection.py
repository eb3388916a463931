"""Sizes of the paper's networks in both layouts, for scale factors drawn at random: ``python -m benchmarks.selection``.

1. Scale factors are drawn anew for every seed: *uniform*, from [0, 1) everywhere; *levels*, log-normal around a level of each layer's own, as
   sparse training leaves them: some layers keep nearly everything, others next to nothing.
2. Parameters and MACs (multiply-adds of one 32x32 image; FLOPs of the paper are 2 x MACs) at the paper's ratios: of what the reference
   scripts build (tests/reference/slimming.py), of the selection layout by the same rule (``floor=0``), of the coupled layout as ``slim``
   has it. Means over the seeds, least and most in brackets.
3. Sizes are those of the emitted modules, counted by ``fxprune.summary``; nothing is trained, so the paper's accuracies have no place here.
   Where the reference empties a batch norm, its scripts fail; such draws are counted.
"""

from __future__ import annotations

import argparse
import json
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import fxprune
from benchmarks.machine import facts
from fxprune import zoo
from tests.reference import slimming


@dataclass(frozen=True)
class Network:
    """A network of the paper: how to build it, the script that prunes it, ratios, and its rows in the paper's table 1."""

    build: Callable[[], nn.Module]
    script: Callable[[Any, Tensor, slimming.Masks], slimming.Pruned]
    paper: dict[float, str]


NETWORKS = {
    "VGG-19": Network(zoo.vgg19_bn, slimming.vgg, {0.7: "2.30 M, -51.0 % FLOPs"}),
    "ResNet-164": Network(zoo.resnet164, slimming.resnet, {0.4: "1.44 M, -23.7 % FLOPs", 0.6: "1.10 M, -44.9 % FLOPs"}),
    "DenseNet-40, stem 16": Network(
        zoo.densenet40, slimming.densenet, {0.4: "0.66 M, -28.4 % FLOPs", 0.7: "0.35 M, -55.0 % FLOPs"}
    ),
    "DenseNet-40, stem 24": Network(lambda: zoo.densenet40(stem=24), slimming.densenet, {}),
}
RATIOS = (0.4, 0.6, 0.7)


def uniform(count: int, rng: torch.Generator) -> Tensor:
    """Clause 1."""
    return torch.rand(count, generator=rng)


def levels(count: int, rng: torch.Generator) -> Tensor:
    """Clause 1."""
    level = torch.randn(1, generator=rng)
    return (0.5 * level + 0.5 * torch.randn(count, generator=rng)).exp()


DRAWS = {"uniform": uniform, "levels": levels}


@dataclass(frozen=True)
class Size:
    """What one pruned network has, and how many batch norms it has emptied."""

    parameters: int
    macs: int
    emptied: int = 0


def draw(model: nn.Module, how: str, seed: int) -> None:
    """New scale factors, in place."""
    rng = torch.Generator().manual_seed(seed)
    for m in model.modules():
        if isinstance(m, nn.BatchNorm2d):
            m.weight.data = DRAWS[how](m.num_features, rng)


def ours(model: nn.Module, ratio: float, layout: str, image: Tensor) -> Size:
    """The size of what ``slim`` gives."""
    floor = {"floor": 0.0} if layout == "selection" else {}
    slim = fxprune.slim(model, ratio, image, layout=layout, absorb=False, verify=False, **floor)
    found = fxprune.summary(slim, image)
    return Size(found.parameters, found.macs, len(fxprune.plan_of(slim).silent))


def reference(network: Network, model: nn.Module, ratio: float, image: Tensor) -> Size:
    """The size of what the reference scripts build."""
    kept = slimming.masks(model, ratio)
    with torch.no_grad():
        pruned = network.script(model, image, kept)
    return Size(pruned.parameters, pruned.macs, sum(not mask.any() for mask in kept.values()))


def measure(names: list[str], ratios: list[float], seeds: int) -> list[dict[str, Any]]:
    """One row per network, distribution and ratio, with the sizes of every seed."""
    image = torch.zeros(1, 3, 32, 32)
    rows = []
    for name in names:
        network = NETWORKS[name]
        model = network.build().eval()
        whole = fxprune.summary(model, image)
        for how in DRAWS:
            for ratio in ratios:
                row: dict[str, Any] = {"network": name, "draw": how, "ratio": ratio, "paper": network.paper.get(ratio, "")}
                row |= {"parameters": whole.parameters, "macs": whole.macs, "reference": [], "selection": [], "coupled": []}
                for seed in range(seeds):
                    draw(model, how, seed)
                    row["reference"].append(asdict(reference(network, model, ratio, image)))
                    for layout in ("selection", "coupled"):
                        row[layout].append(asdict(ours(model, ratio, layout, image)))
                rows.append(row)
                print(line(row), flush=True)
    return rows


def line(row: dict[str, Any]) -> str:
    """A row of the table."""
    cells = [row["network"], row["draw"], f"{row['ratio']:.0%}".replace("%", " %"), row["paper"] or "-"]
    for kind in ("reference", "selection", "coupled"):
        sizes = row[kind]
        millions = [size["parameters"] / 1e6 for size in sizes]
        saved = [100 * (1 - size["macs"] / row["macs"]) for size in sizes]
        emptied = sum(bool(size["emptied"]) for size in sizes) if kind == "reference" else 0
        cells.append(f"{spread(millions, 2)} M, -{spread(saved, 1)} %" + (f" ({emptied} fail)" if emptied else ""))
    return "| " + " | ".join(cells) + " |"


def spread(values: list[float], digits: int) -> str:
    """Mean, and least to most."""
    low, high = f"{min(values):.{digits}f}", f"{max(values):.{digits}f}"
    mean = f"{sum(values) / len(values):.{digits}f}"
    return mean if low == high else f"{mean} [{low}, {high}]"


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="*", default=list(NETWORKS), choices=list(NETWORKS))
    parser.add_argument("--ratios", nargs="*", type=float, default=list(RATIOS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    warnings.simplefilter("ignore", fxprune.FxpruneWarning)
    print("| network | gammas | ratio | paper | reference scripts | selection | coupled |\n|---|---|---|---|---|---|---|")
    rows = measure(options.networks, options.ratios, options.seeds)
    if options.json:
        options.json.write_text(json.dumps({"machine": facts(), "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
