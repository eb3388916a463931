"""``fxprune export``: a slim model for another runtime."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text
from torch import nn

from fxprune.cli import models
from fxprune.cli.options import Arguments, Json, Model, Shapes, SlimFile, written
from fxprune.cli.talk import answer, busy, command
from fxprune.errors import FxpruneError


@command
def export(
    model: Model,
    slim: SlimFile,
    output: Annotated[
        Path,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE",
            callback=written,
            help="Its suffix chooses: .onnx, .pt2 (torch.export), .pt (TorchScript).",
        ),
    ],
    arg: Arguments = None,
    input_: Shapes = None,
    deploy: Annotated[
        bool, typer.Option("--deploy", help="Fold batch norms, scales and constants first, as fxprune.deploy does.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Export a slim model, run what was written, and compare it with the model.

    The number of samples stays open where the model allows it.

    Examples:
      fxprune export torchvision:resnet50 slim.safetensors -o slim.onnx

      fxprune export torchvision:resnet50 slim.safetensors -o slim.onnx --deploy

      fxprune export zoo:resnet56 slim.safetensors -o slim.pt2
    """
    import fxprune
    from fxprune.io.export import FORMATS
    from fxprune.io.export import export as write
    from fxprune.reporting.latency import runnable
    from fxprune.reporting.story import example_of

    if output.suffix not in FORMATS:
        raise typer.BadParameter(f"-o must end in {', '.join(FORMATS)}, got {output.name!r}.")
    with busy(f"building {model}"):
        original = models.build(model, arg or ())
    example = models.example(input_ or (), original)
    with busy(f"loading {slim}"):
        small: nn.Module = fxprune.load(original, slim, example).eval()
    inputs = example_of(small, example)
    if inputs is None:
        raise FxpruneError("the example inputs that this model was slimmed with could not be saved. Give --input.")
    leading = max(2, max((int(x.shape[0]) for x in inputs.args if hasattr(x, "shape") and x.dim()), default=2))
    call = runnable(inputs, leading)
    if deploy:
        with busy("folding"):
            small = fxprune.deploy(small, call, seconds=0)
    with busy(f"exporting {output}"):
        done = write(small, output, call)

    def told() -> Text:
        batch = "any number of samples" if done.dynamic else f"{leading} samples, no other number"
        return Text(
            f"wrote {done.path}: {done.format}, {done.bytes:,} bytes, {batch}; {done.checked_with} gives the model's outputs "
            f"within {done.error:.1e}"
        )

    answer("export", asdict(done), as_json=as_json, shown=told)
