"""``fxprune bench`` and ``fxprune diff``: two models in time, two plans in channels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.table import Table

from fxprune.cli import models
from fxprune.cli.options import Arguments, Json, Model, Shapes, SlimFile, Weights
from fxprune.cli.talk import answer, busy, command, counted
from fxprune.errors import FxpruneError, PlanMismatchError


@command
def bench(
    model: Model,
    slim: SlimFile,
    weights: Weights = None,
    arg: Arguments = None,
    input_: Shapes = None,
    batch: Annotated[
        list[int] | None, typer.Option("--batch", "-b", min=1, show_default="as slimmed", help="Samples per call. Repeatable.")
    ] = None,
    rounds: Annotated[int, typer.Option(min=3, help="At most that many rounds.")] = 50,
    seconds: Annotated[float, typer.Option(min=0.1, help="No round begins after that time, for each batch.")] = 10.0,
    threads: Annotated[int | None, typer.Option(min=1, show_default="torch's", help="CPU threads.")] = None,
    deploy: Annotated[
        bool, typer.Option("--deploy", help="Measure both as fxprune.deploy gives them: norms folded, the fastest layout.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Measure the latency of a model and of its slim version, in turns, on this machine.

    Times are medians over interleaved rounds, ratios are medians of the rounds' ratios: what disturbs the machine disturbs both.

    Examples:
      fxprune bench torchvision:resnet50 slim.safetensors --batch 1 --batch 16

      fxprune bench torchvision:resnet50 slim.safetensors --deploy

      fxprune bench zoo:resnet56 slim.safetensors -w resnet56.pth --threads 1 --json
    """
    import fxprune
    from fxprune.inference.deploy import deployment_of
    from fxprune.reporting.latency import measure, runnable
    from fxprune.reporting.story import example_of

    if threads is not None:
        torch.set_num_threads(threads)
    with busy(f"building {model}"):
        original = models.build(model, arg or (), weights)
    example = models.example(input_ or (), original)
    with busy(f"loading {slim}"):
        small = fxprune.load(original, slim, example).eval()
    inputs = example_of(small, example)
    if inputs is None:
        raise FxpruneError("the example inputs that this model was slimmed with could not be saved. Give --input.")
    measured: list[dict[str, Any]] = []
    sizes: list[int | None] = [*batch] if batch else [None]
    for size in sizes:
        call = runnable(inputs, size)
        pair, forms = {"original": original, "slim": small}, {}
        if deploy:
            with busy("deploying"):
                pair = {name: fxprune.deploy(module, call) for name, module in pair.items()}
            forms = {"forms": {name: deployment_of(module).chosen for name, module in pair.items()}}
        with counted(f"batch {size or 'as slimmed'}", rounds) as step:
            found = measure(pair, call, rounds=rounds, seconds=seconds, on_round=_each(step))
        measured.append({"batch": _leading(call), **{entry.name: asdict(entry) for entry in found}, **forms})
    data = {"threads": torch.get_num_threads(), "torch": torch.__version__, "measured": measured}

    def table() -> Table:
        shown = Table(title=f"latency, {data['threads']} thread(s), medians of interleaved rounds", title_justify="left")
        for name in (
            "batch",
            "original, ms",
            "slim, ms",
            "faster",
            "from - to",
            "CPU time",
            "rounds",
            *(["forms"] if deploy else []),
        ):
            shown.add_column(name, justify="right")
        for row in measured:
            first, second = row["original"], row["slim"]
            shown.add_row(
                str(row["batch"]),
                f"{first['wall'] * 1e3:.2f}",
                f"{second['wall'] * 1e3:.2f}",
                f"{second['speedup']:.2f} x",
                f"{second['low']:.2f} - {second['high']:.2f}",
                f"{second['cpu_speedup']:.2f} x",
                str(second["rounds"]),
                *([", ".join(row["forms"].values())] if deploy else []),
            )
        return shown

    answer("bench", data, as_json=as_json, shown=table)


def _each(step: Callable[[], None]) -> Callable[[int], None]:
    return lambda _: step()


def _leading(inputs: object) -> int | None:
    leaves = torch.utils._pytree.tree_leaves(getattr(inputs, "args", ()))
    return next((int(x.shape[0]) for x in leaves if isinstance(x, torch.Tensor) and x.dim()), None)


Plan = Annotated[Path, typer.Argument(exists=True, help="A plan (.json) or a slim model (.safetensors).", show_default=False)]


@command
def diff(a: Plan, b: Plan, as_json: Json = False) -> None:
    """Show what two plans for one model keep differently.

    The exit code is 0 whether they differ or not.

    Examples:
      fxprune diff slim-40.safetensors slim-60.safetensors

      fxprune diff monday.json today.json --json
    """
    import fxprune

    (first, one), (second, other) = models.plan_in(a), models.plan_in(b)
    if one and other and one != other:
        raise PlanMismatchError(
            f"{a} and {b} were made from different architectures: their channels cannot be compared. `fxprune inspect MODEL SLIM` shows each.",
            expected=one,
            got=other,
        )
    found = fxprune.diff(first, second)
    data = {"same": not found, **asdict(found)}
    answer("diff", data, as_json=as_json, shown=found.__rich__)
