"""What becomes of the constants of removed channels: dropped, expected in closed form, from data, with border maps; on handwritten digits.

A small VGG is trained with an L1 penalty on gamma, then slimmed at growing ratios, without any fine-tuning. Reported: accuracy, and the mean
squared difference of the logits to those of the unpruned network, on held-out digits; mean and spread over seeds.
"""

from __future__ import annotations

import argparse
import json
import statistics
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fxprune
from benchmarks.machine import facts
from fxprune import train, zoo
from fxprune.data import Split, digits

BATCH = 64
WAYS = ("dropped", "closed form", "data", "closed form, border maps")


def trained(seed: int, epochs: int, strength: float) -> tuple[nn.Module, Split, Split]:
    """A small VGG after sparse training."""
    torch.manual_seed(seed)
    learn, test = digits(seed=seed)
    model = zoo.tiny_vgg()
    sparsity = train.GammaL1(model, strength, init=0.5)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=epochs * -(-len(learn) // BATCH))
    for epoch in range(epochs):
        for images, labels in learn.batches(BATCH, seed=seed * 1000 + epoch):
            optimizer.zero_grad()
            F.cross_entropy(model(images), labels).backward()
            sparsity.add_gradient()
            optimizer.step()
            schedule.step()
    return model.eval(), learn, test


@torch.no_grad()
def measured(slim: nn.Module, model: nn.Module, images: Tensor, labels: Tensor) -> tuple[float, float]:
    """Accuracy, and mean squared difference of the logits."""
    found = slim(images)
    return float((found.argmax(1) == labels).double().mean()), float((found - model(images)).square().mean())


def rows(seeds: int, ratios: list[float], epochs: int, strength: float) -> Iterator[dict[str, Any]]:
    """One row per seed, ratio and way."""
    for seed in range(seeds):
        model, learn, test = trained(seed, epochs, strength)
        images, labels = test.batch(torch.arange(len(test)))
        data = [x for x, _ in learn.batches(BATCH, seed=0)][:8]
        yield {"seed": seed, "ratio": 0.0, "way": "unpruned", "accuracy": measured(model, model, images, labels)[0], "error": 0.0}
        for ratio in ratios:
            for way, absorb in zip(WAYS, (False, True, data, "exact"), strict=True):
                slim = fxprune.slim(model, ratio, images[:2], absorb=absorb)
                accuracy, error = measured(slim, model, images, labels)
                yield {"seed": seed, "ratio": ratio, "way": way, "accuracy": accuracy, "error": error}


def table(found: list[dict[str, Any]]) -> str:
    """Mean and spread over seeds, as Markdown."""
    lines = ["| ratio | " + " | ".join(("unpruned", *WAYS)) + " |", "|" + "---|" * (len(WAYS) + 2)]
    for ratio in sorted({row["ratio"] for row in found} - {0.0}):
        cells = []
        for way in ("unpruned", *WAYS):
            own = [row for row in found if row["way"] == way and row["ratio"] in (0.0, ratio)]
            points = [100 * row["accuracy"] for row in own]
            spread = statistics.stdev(points) if len(points) > 1 else 0.0
            text = f"{statistics.mean(points):.1f} ± {spread:.1f}"
            cells.append(text if way == "unpruned" else f"{text} ({statistics.mean(row['error'] for row in own):.2g})")
        lines.append(f"| {ratio:.2f} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--ratios", type=float, nargs="+", default=[0.5, 0.6, 0.65, 0.7, 0.75, 0.8])
    parser.add_argument("--epochs", type=int, default=14)
    parser.add_argument("--strength", type=float, default=0.03)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    warnings.simplefilter("ignore", fxprune.FxpruneWarning)
    torch.set_num_threads(1)
    found = list(rows(options.seeds, options.ratios, options.epochs, options.strength))
    print("accuracy in % without fine-tuning (mean squared difference of the logits to the unpruned network's)")
    print(table(found))
    if options.json:
        options.json.write_text(json.dumps({"machine": facts(), "rows": found}, indent=1))


if __name__ == "__main__":
    main()
