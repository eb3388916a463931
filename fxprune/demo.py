"""Train a small network on handwritten digits, slim it, and show what that did: ``python -m fxprune.demo``.

The whole of Network Slimming (Liu et al. 2017, arXiv:1708.06519) in under a minute on one core: train with L1 on the scale
factors of batch norm, remove the channels with the smallest, fine-tune what is left. The digits come with scikit-learn;
nothing is downloaded.
"""

from __future__ import annotations

import argparse
import copy
import io
import json
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import fxprune
from fxprune.data import Split, digits
from fxprune.train import GammaL1
from fxprune.zoo import tiny_vgg

STRENGTH = 0.02  # of the L1 term; the paper's 1e-4 is for trainings a hundred times as long
BATCH = 64
LATENCY_BATCH = 256
REPEATS = 31


@dataclass(frozen=True, slots=True)
class Size:
    """What a network costs; MACs and seconds on one CPU thread.

    Attributes:
        widths: output channels of every convolution and linear layer.
        parameters: number of parameters.
        macs: multiply-adds for one image.
        bytes: size of the saved state dict.
        seconds: median CPU time of a batch of LATENCY_BATCH images.
    """

    widths: dict[str, int]
    parameters: int
    macs: int
    bytes: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Result:
    """All that the demo shows; accuracies in [0, 1]."""

    asked: float
    achieved: float
    gammas_near_zero: float
    before: Size
    after: Size
    accuracy_before: float
    accuracy_slim: float
    accuracy_tuned: float
    evidence: str
    slim_seconds: float
    total_seconds: float


def fit(model: nn.Module, split: Split, epochs: int, rate: float, seed: int, *, sparsity: GammaL1 | None = None) -> None:
    """Train in place with momentum and a learning rate that falls from ``rate`` to 0 along a cosine."""
    steps = max(1, epochs * -(-len(split) // BATCH))
    optimizer = torch.optim.SGD(model.parameters(), lr=rate, momentum=0.9, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    model.train()
    for epoch in range(epochs):
        for images, labels in split.batches(BATCH, seed=seed * 1000 + epoch):
            optimizer.zero_grad()
            F.cross_entropy(model(images), labels).backward()
            if sparsity is not None:
                sparsity.add_gradient()
            optimizer.step()
            schedule.step()
    model.eval()


@torch.no_grad()
def accuracy(model: nn.Module, split: Split) -> float:
    """Share of images that are classified correctly, in eval mode."""
    correct = sum(int((model(images).argmax(1) == labels).sum()) for images, labels in split.batches(LATENCY_BATCH))
    return correct / len(split)


@torch.no_grad()
def latencies(models: Sequence[nn.Module], images: Tensor) -> list[float]:
    """Median CPU seconds of a forward pass for each model, measured in turns, so that all meet the same machine."""
    seconds: list[list[float]] = [[] for _ in models]
    for _ in range(REPEATS):
        for model, record in zip(models, seconds, strict=True):
            start = time.process_time()
            model(images)
            record.append(time.process_time() - start)
    return [statistics.median(record[1:]) for record in seconds]  # the first one warms up


def size(model: nn.Module, image: Tensor, seconds: float) -> Size:
    """The cost of a model for one image ``(1, c, h, w)``."""
    widths = {
        name: int(module.weight.shape[0]) for name, module in model.named_modules() if isinstance(module, (nn.Conv2d, nn.Linear))
    }
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(image)
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return Size(widths, parameters, counter.get_total_flops() // 2, file.tell(), seconds)


def run(ratio: float = 0.6, epochs: int = 30, seed: int = 0) -> Result:
    """The whole demo: train sparse, slim by ``ratio``, verify, measure, fine-tune."""
    begin = time.perf_counter()
    torch.manual_seed(seed)
    train, test = digits(seed=seed)
    images = test.read(torch.arange(LATENCY_BATCH, device="cpu"))

    model = tiny_vgg()
    sparsity = GammaL1(model, STRENGTH, init=0.5)
    fit(model, train, epochs, 0.1, seed, sparsity=sparsity)

    start = time.perf_counter()
    slim = fxprune.slim(model, ratio, example_inputs=images[:2])
    slim_seconds = time.perf_counter() - start
    plan = fxprune.plan_of(slim)
    evidence = fxprune.verify(model, slim, images[:16])

    slow, fast = latencies((model, slim), images)
    tuned = copy.deepcopy(slim)
    fit(tuned, train, max(1, epochs // 6), 0.01, seed + 1)
    return Result(
        asked=plan.asked,
        achieved=plan.achieved,
        gammas_near_zero=sparsity.share_below(),
        before=size(model, images[:1], slow),
        after=size(slim, images[:1], fast),
        accuracy_before=accuracy(model, test),
        accuracy_slim=accuracy(slim, test),
        accuracy_tuned=accuracy(tuned, test),
        evidence=str(evidence),
        slim_seconds=slim_seconds,
        total_seconds=time.perf_counter() - begin,
    )


def show(result: Result, console: Console) -> None:
    """Print a result as two tables and what was verified."""
    before, after = result.before, result.after
    widths = Table(title="channels per layer", title_justify="left")
    for column in ("layer", "before", "after"):
        widths.add_column(column, justify="left" if column == "layer" else "right")
    for name, width in before.widths.items():
        widths.add_row(name, str(width), str(after.widths[name]))
    console.print(widths)

    costs = Table(title="what the network costs", title_justify="left")
    for column in ("", "before", "after", "smaller by"):
        costs.add_column(column, justify="right" if column else "left")

    rows = (
        ("parameters", "{:,.0f}", before.parameters, after.parameters),
        ("MACs per image", "{:,.0f}", before.macs, after.macs),
        ("size on disk, kB", "{:,.1f}", before.bytes / 1e3, after.bytes / 1e3),
        (f"CPU time of {LATENCY_BATCH} images, one thread, ms", "{:,.2f}", before.seconds * 1e3, after.seconds * 1e3),
    )
    for name, form, old, new in rows:
        costs.add_row(name, form.format(old), form.format(new), f"{old / new:.1f} x")
    console.print(costs)

    console.print(f"channels removed: {result.achieved:.1%} (asked: {result.asked:.1%}) in {result.slim_seconds:.2f} s")
    console.print(f"gammas near zero after training: {result.gammas_near_zero:.1%}")
    console.print(
        f"test accuracy: {result.accuracy_before:.1%} before, {result.accuracy_slim:.1%} slim, "
        f"{result.accuracy_tuned:.1%} after a short fine-tune"
    )
    console.print(result.evidence, soft_wrap=True, markup=False, highlight=False)
    console.print(f"all of it took {result.total_seconds:.0f} s")


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line, run, print, and write JSON if asked to."""
    parser = argparse.ArgumentParser(prog="python -m fxprune.demo", description="Train, slim and fine-tune a small network.")
    parser.add_argument("--ratio", type=float, default=0.6, help="share of channels to remove, in [0, 1); default 0.6")
    parser.add_argument("--epochs", type=int, default=30, help="epochs of training; default 30")
    parser.add_argument("--seed", type=int, default=0, help="of the data split, the weights and the order of images; default 0")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write all numbers to FILE")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    console = Console()
    with console.status(f"training for {options.epochs} epochs, slimming by {options.ratio:.0%}, fine-tuning"):
        result = run(options.ratio, options.epochs, options.seed)
    show(result, console)
    if options.json is not None:
        options.json.write_text(json.dumps(asdict(result), indent=2) + "\n")


if __name__ == "__main__":
    main()
