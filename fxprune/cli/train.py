"""``fxprune train``: the recipe of Network Slimming; one option for every setting of ``fxprune.train.recipe.Settings``."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any, Literal

import torch
import typer

from fxprune.cli.options import Json, option, with_parameters
from fxprune.cli.talk import answer, command
from fxprune.errors import FxpruneError
from fxprune.train.__main__ import CHOICES, _told
from fxprune.train.recipe.settings import Settings


def train(**options: Any) -> None:
    """Train with sparsity, slim, fine-tune, and again. The same command takes an interrupted run up.

    Settings that are not given are those of the Network Slimming paper. The folder of the run gets state.pt, log.csv, results.json
    and the slim network, slim.safetensors, which the other commands take.

    Examples:
      fxprune train --out runs/digits --epochs 20 --strength 0.02 --ratio 0.6

      fxprune train --out runs/vgg --data cifar10 --root data --network vgg19_bn --ratio 0.7

      torchrun --nproc-per-node 4 -m fxprune train --out runs/vgg --data cifar10 --root data --network vgg19_bn
    """
    as_json = bool(options.pop("as_json"))
    folder = Path(options.pop("out"))
    run_options = {name: options.pop(name) for name in ("every", "workers", "accelerator", "download", "tensorboard", "quiet")}
    try:
        settings = Settings(**options)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    if run_options["accelerator"] == "cpu" or not torch.accelerator.is_available():
        torch.use_deterministic_algorithms(mode=True, warn_only=True)
    run_options["quiet"] = run_options["quiet"] or as_json
    try:
        from fxprune.train.recipe.run import SLIM, run

        state = run(settings, folder, **run_options)
    except ImportError as error:
        # Errors of our own say what to install, and name no module.
        hint = " Install fxprune[train]." if error.name else ""
        raise FxpruneError(f"training needs another package: {error}{hint}", got=str(error.name)) from error
    except (FileNotFoundError, ValueError) as error:
        if isinstance(error, FxpruneError):
            raise
        raise FxpruneError(f"the run cannot begin: {error}", got=type(error).__name__) from error
    data = {"folder": str(folder), "stages": state.stages, "files": {"slim": str(folder / SLIM)}}
    answer("train", data, as_json=as_json, shown=lambda: None)


def _plain(said: str) -> str:
    """A sentence of a docstring as it stands in a help text: no markup, no references to clauses."""
    said = re.sub(r" \(clauses? [^)]*\)", "", said).replace("``", "")
    return said[:1].upper() + said[1:]


def made() -> Callable[..., None]:
    """The command with its options."""
    told = _told()
    own = [
        option("out", Path, inspect.Parameter.empty, "Folder of the run.", "--out", metavar="FOLDER"),
        option("every", int, 0, "Steps between checkpoints; 0: at the ends of epochs only.", min=0),
        option("workers", int, 0, "Processes that read images ahead.", min=0),
        option("accelerator", str, "auto", "auto, cpu, cuda, ..."),
        option("download", bool, False, "Let torchvision fetch missing data.", "--download"),
        option("tensorboard", bool, False, "Write TensorBoard event files too.", "--tensorboard"),
        option("quiet", bool, False, "Show nothing.", "--quiet"),
    ]
    for field in fields(Settings):
        help_ = _plain(told[field.name])
        default: Any = field.default
        kind = Literal[CHOICES[field.name]] if field.name in CHOICES else type(default)
        flags = (f"--{field.name}/--no-{field.name}",) if isinstance(default, bool) else ()
        own.append(option(field.name, kind, default, help_, *flags))
    own.append(inspect.Parameter("as_json", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=Json))

    def train_(**options: Any) -> None:
        train(**options)

    train_.__doc__ = train.__doc__
    return command(with_parameters(train_, own))
