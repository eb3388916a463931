"""``fxprune inspect``: what can go, what went, and why the rest stays."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any

import typer
from rich.console import RenderableType
from rich.text import Text

from fxprune.cli import models
from fxprune.cli.options import Arguments, Json, Model, Report, Shapes, SlimFileOrNot, Weights
from fxprune.cli.talk import answer, aside, busy, command


@command
def inspect(
    model: Model,
    slim: SlimFileOrNot = None,
    weights: Weights = None,
    arg: Arguments = None,
    input_: Shapes = None,
    explain: Annotated[
        list[str] | None,
        typer.Option(
            "--explain", "-e", metavar="NAME", help="Explain a module or parameter: with whom it is coupled, why it is pinned."
        ),
    ] = None,
    report: Report = None,
    as_json: Json = False,
) -> None:
    """Show a model's channels: what they cost, which can go, and why the rest cannot.

    With a SLIM file, show what became of them.

    Examples:
      fxprune inspect torchvision:resnet50

      fxprune inspect zoo:resnet20 --explain layer1.0.conv1

      fxprune inspect my_project.nets:build --arg num_classes=10 --input 1x3x64x64

      fxprune inspect torchvision:resnet18 slim.safetensors --report slim.html
    """
    import fxprune
    from fxprune.reporting.story import example_of

    with busy(f"building {model}"):
        built = models.build(model, arg or (), weights)
    example: Any = models.example(input_ or (), built)
    original: Any = None
    if slim is not None:
        with busy(f"loading {slim}"):
            original, built = built, fxprune.load(built, slim, example)
        example = example_of(built, example)
    if explain:
        with busy("analyzing"):
            graph = fxprune.analyze(built, example)
        told = {name: graph.explain(name) for name in explain}
        answer("inspect", {"explain": told}, as_json=as_json, shown=lambda: Text("\n".join(told.values())))
        return
    with busy("analyzing, counting multiply-adds"):
        found = fxprune.summary(built, example)
    if report is not None:
        with busy(f"writing {report}"):
            fxprune.report(built, report, model=original if weights is not None else None, example_inputs=example)
        aside().print(f"wrote {report}", markup=False)
    shown: RenderableType = found.__rich__()
    answer("inspect", asdict(found), as_json=as_json, shown=lambda: shown)
