"""The application: its commands, and what it says about itself."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Annotated

import typer

import fxprune
from fxprune.cli import train
from fxprune.cli.compare import bench, diff
from fxprune.cli.export import export
from fxprune.cli.inspect import inspect
from fxprune.cli.sensitivity import sensitivity
from fxprune.cli.slim import Command as SlimCommand
from fxprune.cli.slim import made as slim_command

EPILOG = (
    "Exit codes: 0 done; 1 refused (the message says what, where, why and what to do); 2 a command line that makes no sense; "
    "3 a defect, with a traceback. Every command takes --json."
)

app = typer.Typer(
    name="fxprune",
    no_args_is_help=True,
    add_completion=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"fxprune {fxprune.__version__}")
        raise typer.Exit


@app.callback(epilog=EPILOG)
def about(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")] = False,
) -> None:
    r"""Make PyTorch models physically smaller, and know that they still compute the same.

    First steps:

      fxprune inspect torchvision:resnet18

      fxprune slim torchvision:resnet18 --ratio 0.5 -o slim.safetensors --report slim.html

      fxprune slim torchvision:resnet18 --macs 0.5 -o slim.safetensors

      fxprune bench torchvision:resnet18 slim.safetensors

      fxprune export torchvision:resnet18 slim.safetensors -o slim.onnx
    """


app.command("inspect")(inspect)
app.command("slim", cls=SlimCommand)(slim_command())
app.command("train")(train.made())
app.command("sensitivity")(sensitivity)
app.command("bench")(bench)
app.command("diff")(diff)
app.command("export")(export)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit with its code (package docstring, clause 2)."""
    app(args=list(sys.argv[1:] if arguments is None else arguments), prog_name="fxprune")
