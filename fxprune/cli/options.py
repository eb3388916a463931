"""Options that several commands have, and commands whose options are made from a dataclass."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

MODELS = (
    "torchvision:resnet50, timm:vit_tiny_patch16_224, zoo:resnet164, or package.module:factory (a function that returns a model)."
)

Model = Annotated[str, typer.Argument(metavar="MODEL", help=f"The original: {MODELS}", show_default=False)]
SlimFile = Annotated[
    Path, typer.Argument(metavar="SLIM", exists=True, help="What `fxprune slim -o` or fxprune.save wrote.", show_default=False)
]
SlimFileOrNot = Annotated[
    Path | None,
    typer.Argument(metavar="[SLIM]", exists=True, help="What `fxprune slim -o` or fxprune.save wrote.", show_default=False),
]
Weights = Annotated[
    Path | None,
    typer.Option(
        "--weights",
        "-w",
        exists=True,
        dir_okay=False,
        help="State dict of the original (.pt, .pth, .safetensors). No code in it is run.",
    ),
]
Arguments = Annotated[
    list[str] | None,
    typer.Option("--arg", metavar="NAME=VALUE", help="Argument of the model's factory, such as num_classes=10. Repeatable."),
]
Shapes = Annotated[
    list[str] | None,
    typer.Option(
        "--input", "-i", metavar="SHAPE", help="Example input, 2x3x224x224 or 2x16:int64; inferred if left out. Repeatable."
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of tables.")]
Report = Annotated[Path | None, typer.Option("--report", metavar="FILE.html", help="Also write the report: one HTML file.")]


def with_parameters(function: Callable[..., Any], parameters: Sequence[inspect.Parameter]) -> Callable[..., Any]:
    """The function with a signature for typer to read; it takes all of it as keyword arguments."""
    function.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    function.__annotations__ = {p.name: p.annotation for p in parameters}
    return function


def option(name: str, kind: Any, default: Any, help_: str, *flags: str, **more: Any) -> inspect.Parameter:
    """One keyword-only parameter with what typer wants to know."""
    annotated = Annotated[kind, typer.Option(*(flags or (f"--{name.replace('_', '-')}",)), help=help_, **more)]
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotated)
