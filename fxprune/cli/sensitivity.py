"""``fxprune sensitivity``: accuracy against density, one layer at a time, or against the share of channels removed, one group at a time."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal

import torch
import typer
from rich.table import Table
from rich.text import Text
from torch import nn

from fxprune.cli import models
from fxprune.cli.groups import of_groups
from fxprune.cli.options import Arguments, Json, Model, RankedBy, Weights, written
from fxprune.cli.talk import answer, aside, busy, command, counted

Of = Literal["weights", "channels"]


@command
def sensitivity(
    model: Model,
    weights: Weights = None,
    arg: Arguments = None,
    of: Annotated[
        Of, typer.Option(help="What goes: single weights of one layer at a time, or channels of one coupled group at a time.")
    ] = "weights",
    data: Annotated[
        str, typer.Option(help="Image set: digits, mnist, cifar10, cifar100, svhn, cifar10-jpeg, folder.")
    ] = "digits",
    root: Annotated[Path | None, typer.Option(exists=True, help="Where the images are.")] = None,
    subset: Annotated[int, typer.Option(min=0, help="Use that many test images only; 0: all.")] = 0,
    batch: Annotated[int, typer.Option("--batch", "-b", min=1, help="Images per call.")] = 256,
    density: Annotated[
        list[float] | None, typer.Option("--density", "-d", help="Of weights: share of a layer's weights that STAYS. Repeatable.")
    ] = None,
    share: Annotated[
        list[float] | None, typer.Option("--share", "-s", help="Of channels: share of a group's channels that GOES. Repeatable.")
    ] = None,
    score: RankedBy = "auto",
    layer: Annotated[
        list[str] | None, typer.Option("--layer", metavar="GLOB", help="Measure these layers (groups) only. Repeatable.")
    ] = None,
    loss: Annotated[
        float, typer.Option(min=0, max=1, help="Allowed loss of accuracy per layer (group), for the suggestions.")
    ] = 0.01,
    points: Annotated[
        Path | None, typer.Option(metavar="FILE.json", callback=written, help="Keep measured points here, and go on from there.")
    ] = None,
    plot: Annotated[Path | None, typer.Option(metavar="FILE.svg", callback=written, help="Draw the curves.")] = None,
    as_json: Json = False,
) -> None:
    """Measure how much accuracy each layer costs when it loses weights, or each group when it loses channels.

    Nothing is retrained. With --points an interrupted scan goes on where it was.

    Examples:
      fxprune sensitivity zoo:lenet300 -w lenet300.pt --data mnist --root data/mnist

      fxprune sensitivity zoo:resnet56 -w resnet56.pth --data cifar10-jpeg --root data --subset 1000 --points scan.json --plot scan.svg

      fxprune sensitivity zoo:resnet56 -w resnet56.pth --of channels --score l1 --share 0.3 --share 0.6 --data cifar10-jpeg --root data
    """
    from fxprune import sparse
    from fxprune.data import load
    from fxprune.sparse.sensitivity import DENSITIES

    if of == "weights" and (share or score != "auto"):
        raise typer.BadParameter("--share and --score are for --of channels; single weights take --density.")
    if of == "channels" and density:
        raise typer.BadParameter("--density is for --of weights; channels take --share, the share that goes.")
    with busy(f"building {model}"):
        built = models.build(model, arg or (), weights)
    with busy(f"reading {data}"):
        try:
            images = load(data, root or "")
        except (ValueError, FileNotFoundError) as error:
            raise typer.BadParameter(str(error)) from error
    test = images.test.subset(torch.arange(min(subset, len(images.test)), device="cpu")) if subset else images.test
    if of == "channels":
        told, shown = of_groups(
            built,
            list(test.batches(batch)),
            shares=share,
            score=score,
            groups=tuple(layer or ()),
            points=points,
            plot=plot,
            loss=loss,
        )
        answer("sensitivity", {**told, "images": len(test)}, as_json=as_json, shown=lambda: shown)
        return
    chosen = tuple(density or DENSITIES)
    found = sparse.layers(built, "all", tuple(layer or ()))
    with counted("points", 1 + len(found) * len(chosen)) as step:

        @torch.no_grad()
        def accuracy(module: nn.Module) -> float:
            right = sum(int((module(pixels).argmax(1) == labels).sum()) for pixels, labels in test.batches(batch))
            step()
            return right / len(test)

        scan = sparse.scan(built, accuracy, chosen, path=points, names=tuple(layer or ()))
    if plot is not None:
        scan.plot(plot)
        aside().print(f"wrote {plot}", markup=False)
    suggested = scan.suggest(loss)
    told = {
        "baseline": scan.baseline,
        "images": len(test),
        "layers": [
            {
                "name": name,
                "weights": scan.sizes[name],
                "accuracy": [list(p) for p in curve],
                "suggestion": asdict(suggested[name]),
            }
            for name, curve in scan.accuracy.items()
        ],
        "loss": loss,
    }

    def table() -> Table:
        shown = Table(
            title=f"accuracy, one layer at a time (unpruned: {scan.baseline:.2%}, {len(test):,} images)", title_justify="left"
        )
        shown.add_column("layer")
        for d in sorted(chosen, reverse=True):
            shown.add_column(f"{100 * d:.3g} %", justify="right")
        shown.add_column(f"lowest density for a loss of {100 * loss:g} points", justify="right")
        for name, curve in scan.accuracy.items():
            cells = [f"{100 * a:.2f}" for _, a in sorted(curve, reverse=True)]
            shown.add_row(Text(name), *cells, f"{suggested[name].density:.1%}")
        return shown

    answer("sensitivity", told, as_json=as_json, shown=table)
