"""Network Slimming by the recipe, over several seeds, beside an equally trained control: ``python benchmarks/network_slimming.py --case digits``.

1. A case is a network, an image set and a budget of epochs. For every seed it is trained with sparsity, slimmed and fine-tuned; the
   *control* is the same network trained without a penalty for the same epochs in the same two (or more) phases, unpruned.
2. Told are mean and spread (minimum to maximum) of test accuracy: control, after sparse training, slim before any fine-tuning, and after
   it, with parameters and MACs. Several passes give one line each, as in the paper's multi-pass table.
3. Every run is in a folder below ``--out`` and goes on where it was interrupted.

Published numbers stand in Liu et al. 2017 (arXiv:1708.06519); accuracies on ``cifar10-jpeg`` compare with the control of the same files only.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import machine
import torch
from rich.console import Console
from rich.table import Table

from fxprune.train.recipe import Settings, run

CASES: dict[str, Settings] = {
    # 12 CPU seconds a training; the strength makes up for the short training
    "digits": Settings(data="digits", network="tiny_vgg", epochs=30, tune_epochs=6, strength=0.02, ratio=0.6),
    "digits-proximal": Settings(
        data="digits", network="tiny_vgg", epochs=30, tune_epochs=6, strength=0.2, ratio=0.6, method="proximal"
    ),
    "digits-passes": Settings(data="digits", network="tiny_vgg", epochs=20, tune_epochs=10, strength=0.02, ratio=0.5, passes=5),
    # the paper's perceptron: 84.4 % fewer parameters (its table 3)
    "mnist-mlp": Settings(data="mnist", network="mlp-500-300", epochs=20, tune_epochs=20, batch=128, strength=1e-3, ratio=0.8),
    "cifar-vgg-quarter": Settings(
        data="cifar10-jpeg", network="vgg16_bn", width=0.25, epochs=30, tune_epochs=15, batch=128, strength=1e-3, ratio=0.6
    ),
    "cifar-vgg-quarter-passes": Settings(
        data="cifar10-jpeg", network="vgg16_bn", width=0.25, epochs=15, tune_epochs=8, batch=128, strength=1e-3, passes=5
    ),
    # the paper's own settings; days on a CPU
    "cifar-vgg19": Settings(data="cifar10", network="vgg19_bn", ratio=0.7),
    "cifar-resnet164": Settings(data="cifar10", network="resnet164", ratio=0.6),
    "cifar-densenet40": Settings(data="cifar10", network="densenet40", ratio=0.7),
    "cifar-vgg19-passes": Settings(data="cifar10", network="vgg19_bn", passes=5),
}
FOLDERS = {"mnist": "mnist", "cifar10-jpeg": "cifar10-jpeg"}  # below --data; torchvision's sets are in --data itself


def control(settings: Settings) -> Settings:
    """The same trainings without penalty and without slimming (clause 1)."""
    return replace(settings, method="none", ratio=0.0, absorb=False, gamma=0.0)


def rows_of(settings: Settings, folder: Path, options: argparse.Namespace) -> list[dict[str, Any]]:
    """What one run measured."""
    return run(settings, folder, every=options.every, workers=options.workers, accelerator=options.accelerator).stages


def spread(values: Sequence[float]) -> str:
    """Mean, and from which to which value, in percent."""
    mean = sum(values) / len(values)
    return f"{mean:.2%}" if len(values) == 1 else f"{mean:.2%} ({min(values):.2%} to {max(values):.2%})"


def table_of(runs: Sequence[list[dict[str, Any]]], controls: Sequence[list[dict[str, Any]]]) -> Table:
    """Clause 2."""
    table = Table(title=f"{len(runs)} seeds", title_justify="left")
    for name in ("pass", "network", "test accuracy", "parameters", "MACs"):
        table.add_column(name)
    first = controls[0][0]
    table.add_row(
        "",
        "control, unpruned",
        spread([rows[-1]["test"] for rows in controls]),
        f"{first['parameters']:,}",
        f"{first['macs']:,}",
    )
    for number, row in enumerate(runs[0]):
        shrunk = (sum(rows[number][key] for rows in runs) / len(runs) / first[key] - 1 for key in ("parameters", "macs"))
        table.add_row(
            str(row["pass"] + 1), row["stage"], spread([rows[number]["test"] for rows in runs]), *(f"{s:+.1%}" for s in shrunk)
        )
    return table


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a case."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--case", choices=CASES, default="digits")
    parser.add_argument(
        "--data", type=Path, default=Path("../shared/data"), help="folder that holds mnist/, cifar10-jpeg/ or torchvision's files"
    )
    parser.add_argument("--out", type=Path, default=Path("runs/network_slimming"), help="folder of the runs")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, help="of sparse training, instead of the case's")
    parser.add_argument("--tune-epochs", type=int, help="of fine-tuning")
    parser.add_argument("--ratio", type=float, help="share of channels to remove per pass")
    parser.add_argument("--strength", type=float, help="of the penalty")
    parser.add_argument("--subset", type=int, help="train on that many images")
    parser.add_argument("--every", type=int, default=100, help="steps between checkpoints")
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--accelerator", default="auto")
    parser.add_argument("--threads", type=int, default=1, help="of torch")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write all numbers to FILE")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    given = {name: getattr(options, name) for name in ("epochs", "tune_epochs", "ratio", "strength", "subset")}
    base = replace(CASES[options.case], **{name: value for name, value in given.items() if value is not None})
    if base.data != "digits":
        base = replace(base, root=str(options.data / FOLDERS.get(base.data, "")))
    runs, controls = [], []
    for seed in range(options.seeds):
        settings = replace(base, seed=seed)
        folder = options.out / options.case / f"seed{seed}"
        runs.append(rows_of(settings, folder / "slim", options))
        controls.append(rows_of(control(settings), folder / "control", options))
    if os.environ.get("RANK", "0") != "0":  # the other processes of torchrun have nothing to add
        return
    console = Console()
    console.print(machine.line(), highlight=False)
    console.print(table_of(runs, controls))
    if options.json is not None:
        found = {"machine": machine.facts(), "settings": json.loads(base.to_json()), "runs": runs, "controls": controls}
        options.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
