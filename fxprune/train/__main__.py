"""``python -m fxprune.train``: the recipe from the command line. ``torchrun --nproc-per-node N -m fxprune.train`` for several devices."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

import torch

from fxprune.train.recipe.settings import LAYOUTS, METHODS, PRECISIONS, Settings

CHOICES = {"method": METHODS, "layout": LAYOUTS, "precision": PRECISIONS}


def parser() -> argparse.ArgumentParser:
    """One option for every setting, and those of the run itself."""
    result = argparse.ArgumentParser(
        prog="python -m fxprune.train",
        description="Train with sparsity, slim, fine-tune, and again. The same command takes an interrupted run up.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    result.add_argument("--out", type=Path, required=True, help="folder of the run")
    result.add_argument("--every", type=int, default=0, help="steps between checkpoints; 0: at the ends of epochs only")
    result.add_argument("--workers", type=int, default=0, help="processes that read images ahead")
    result.add_argument("--accelerator", default="auto", help="auto, cpu, cuda, ...")
    result.add_argument("--download", action="store_true", help="let torchvision fetch missing data")
    result.add_argument("--tensorboard", action="store_true", help="write TensorBoard event files too")
    result.add_argument("--quiet", action="store_true", help="show nothing")
    told = _told()
    for field in fields(Settings):
        name, default = "--" + field.name.replace("_", "-"), field.default
        if isinstance(default, bool):
            result.add_argument(name, action=argparse.BooleanOptionalAction, default=default, help=told[field.name])
        else:
            result.add_argument(
                name,
                type=type(default),
                default=default,
                choices=CHOICES.get(field.name),
                help=told[field.name].replace("%", "%%"),
            )
    return result


def _told() -> dict[str, str]:
    """What the docstring says of each setting."""
    text = (Settings.__doc__ or "").partition("Attributes:")[2]
    return {name: " ".join(words.split()) for name, words in re.findall(r"^ {8}(\w+): (.*(?:\n {10,}.*)*)", text, re.MULTILINE)}


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line and run."""
    options = parser().parse_args(arguments)
    from fxprune.train.recipe.run import run

    if options.accelerator == "cpu" or not torch.accelerator.is_available():
        torch.use_deterministic_algorithms(mode=True, warn_only=True)
    settings = Settings(**{field.name: getattr(options, field.name) for field in fields(Settings)})
    run(
        settings,
        options.out,
        every=options.every,
        workers=options.workers,
        accelerator=options.accelerator,
        download=options.download,
        tensorboard=options.tensorboard,
        quiet=options.quiet,
    )


if __name__ == "__main__":
    main()
