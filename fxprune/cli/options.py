"""Options that several commands have, and commands whose options are made from a dataclass."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

MODELS = (
    "torchvision:resnet50, timm:vit_tiny_patch16_224, zoo:resnet164, or package.module:factory (a function that returns a model)."
)


def written(path: Path | None) -> Path | None:
    """A file that is to be written: what is wrong with its place is said before anything is computed.

    Raises:
        BadParameter: it is a folder, or its folder is not there.
    """
    if path is not None and path.is_dir():
        raise typer.BadParameter(f"{str(path)!r} is a folder. Name a file in it.")
    if path is not None and not path.absolute().parent.is_dir():
        raise typer.BadParameter(
            f"there is no folder {str(path.parent)!r} to write {path.name!r} into. Make it, or name another."
        )
    return path


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
Report = Annotated[
    Path | None,
    typer.Option("--report", metavar="FILE.html", callback=written, help="Also write the report: one HTML file."),
]


def _score(name: str) -> str:
    """A score that can be named on a command line.

    Raises:
        BadParameter: there is none of that name; those that look at data need Python.
    """
    from fxprune.errors import BudgetError
    from fxprune.score import NAMED
    from fxprune.score.scores import named

    known = ("auto", *sorted(NAMED))
    first = name.partition(":")[0]
    if first not in known:
        near = difflib.get_close_matches(first, known, 1)
        hint = f" Did you mean {near[0]}?" if near else ""
        raise typer.BadParameter(
            f"{name!r} is none of {', '.join(known)}.{hint} Scores that look at data need Python (docs/scores.md)."
        )
    if name != "auto":
        try:
            named(name)
        except BudgetError as error:
            raise typer.BadParameter(str(error)) from error
    return name


RankedBy = Annotated[
    str,
    typer.Option(
        "--score",
        callback=_score,
        metavar="NAME[:BY]",
        help="What ranks channels: auto, gamma, gamma_sum, gamma_max, gamma_norm, magnitude, l1, l2, fpgm, lamp, random; "
        "with :mean, :max, :l2, :size or :standard behind it, relative to its layer, such as l1:mean.",
    ),
]


def with_parameters(function: Callable[..., Any], parameters: Sequence[inspect.Parameter]) -> Callable[..., Any]:
    """The function with a signature for typer to read; it takes all of it as keyword arguments."""
    function.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    function.__annotations__ = {p.name: p.annotation for p in parameters}
    return function


def option(name: str, kind: Any, default: Any, help_: str, *flags: str, **more: Any) -> inspect.Parameter:
    """One keyword-only parameter with what typer wants to know."""
    annotated = Annotated[kind, typer.Option(*(flags or (f"--{name.replace('_', '-')}",)), help=help_, **more)]
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotated)
