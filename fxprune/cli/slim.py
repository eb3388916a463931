"""``fxprune slim``: a smaller model, verified, in one file."""

from __future__ import annotations

import inspect
import math
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Group
from rich.table import Table
from rich.text import Text
from typer.core import TyperCommand

from fxprune.cli import models
from fxprune.cli.options import Arguments, Json, Model, RankedBy, Report, Shapes, Weights, option, with_parameters, written
from fxprune.cli.talk import answer, aside, busy, command

Layout = Literal["coupled", "selection", "auto"]
Scope = Literal["global", "uniform", "isomorphic", "threshold", "below"]
Absorb = Literal["yes", "exact", "no"]
ABSORB: dict[str, bool | str] = {"yes": True, "exact": "exact", "no": False}
BOUNDS = {
    "params": "Upper bound on the parameters that remain: a share (0.5, 50%) or a number (2M).",
    "macs": "Upper bound on the multiply-adds that remain, all samples of the example together: a share (0.5, 50%) or a number (1.8G).",
    "activation_bytes": "Upper bound on the bytes of activations that remain: a share (0.5, 50%) or a number (10MB, 10MiB).",
    "latency": "Upper bound on the latency that remains: a share (0.5) or a time (12ms), measured on this machine.",
}


def slim(
    model: Model,
    ratio: Annotated[float | None, typer.Option("--ratio", "-r", help="Share of the channels to REMOVE, in [0, 1).")] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE.safetensors",
            callback=written,
            help="Where the slim model goes (fxprune.load reads it).",
        ),
    ] = None,
    weights: Weights = None,
    arg: Arguments = None,
    input_: Shapes = None,
    from_: Annotated[
        Path | None,
        typer.Option("--from", metavar="SLIM", exists=True, help="Slim this slim model of MODEL further (another round)."),
    ] = None,
    score: RankedBy = "auto",
    layout: Annotated[
        Layout,
        typer.Option(
            help="'selection': every batch norm drops its own channels, behind a select. 'auto': the faster one at the same score."
        ),
    ] = "coupled",
    scope: Annotated[
        Scope,
        typer.Option(
            help="What is ranked against what: everything, or within groups, or classes of groups, that lose equal shares. "
            "'threshold': one ranking of all channels, for a budget too."
        ),
    ] = "global",
    absorb: Annotated[
        Absorb,
        typer.Option(
            help="Fold the constants of removed channels into their readers; 'exact': into border maps as well; 'no' drops them."
        ),
    ] = "yes",
    no_absorb: Annotated[bool, typer.Option("--no-absorb", help="The same as --absorb no.")] = False,
    floor: Annotated[float, typer.Option(help="Share of each group that stays; 0 allows emptied layers.")] = 0.1,
    round_to: Annotated[
        int | None,
        typer.Option(help="Widths become multiples of this. Unless told 1; with --latency, what is cheap on this machine."),
    ] = None,
    keep: Annotated[
        list[str] | None,
        typer.Option(metavar="GLOB", help="Modules or parameters whose channels stay, such as 'layer4.*'. Repeatable."),
    ] = None,
    verify: Annotated[
        bool, typer.Option("--verify/--no-verify", help="Hold the result against the masked original, in float64.")
    ] = True,
    strict: Annotated[
        bool, typer.Option("--strict", help="Fail where a plan cannot be verified, instead of keeping what is to blame.")
    ] = False,
    plan: Annotated[
        Path | None, typer.Option(metavar="FILE.json", callback=written, help="Also write the plan alone, as JSON.")
    ] = None,
    report: Report = None,
    as_json: Json = False,
    **bounds: Any,
) -> None:
    """Make a model physically smaller, verify it, and write it to one file.

    The file holds weights, plan and evidence, and no pickle. How much goes is said by --ratio, or by upper bounds on what remains.

    Examples:
      fxprune slim torchvision:resnet50 -w resnet50.pth --ratio 0.5 -o slim.safetensors

      fxprune slim zoo:resnet56 -w resnet56.pth --ratio 0.4 --keep 'layer3.*' -o slim.safetensors --report slim.html

      fxprune slim torchvision:resnet18 --latency 0.6 -i 1x3x224x224 -o slim.safetensors

      fxprune slim my_project.nets:build --ratio 0.3 --round-to 8 --json

      fxprune slim torchvision:resnet50 --macs 50% --params 10M --score l1:mean -o slim.safetensors

      fxprune slim zoo:resnet164 -w resnet164.pth --ratio 0.6 --layout selection -o slim.safetensors

      fxprune slim zoo:vgg16_bn -w vgg.pth --ratio 0.7 --absorb exact -o slim.safetensors

      fxprune slim torchvision:resnet50 --from slim.safetensors --ratio 0.2 -o slimmer.safetensors
    """
    import fxprune

    chosen = {name: value for name, value in bounds.items() if value is not None}
    budget = fxprune.Budget(**{n: _bound(n, v) for n, v in chosen.items()}) if chosen else None
    if ratio is None and budget is None:
        ways = ", ".join("--" + name.replace("_", "-") for name in ("ratio", *bounds))
        raise typer.BadParameter(f"say how much is to go: {ways}.")
    with busy(f"building {model}"):
        built = models.build(model, arg or (), weights)
    example = models.example(input_ or (), built)
    start = built
    if from_ is not None:
        with busy(f"loading {from_}"):
            start = fxprune.load(built, from_, example)
    begin = time.perf_counter()
    said = ", ".join(["capturing", "analyzing", "planning", "rewriting", *(["verifying"] if verify else [])])
    options: dict[str, Any] = {} if budget is None else {"budget": budget}
    # What is measured shows bars of its own.
    with nullcontext() if "latency" in chosen else busy(said):
        made = fxprune.slim(
            start,
            ratio,
            example,
            score=score,
            layout=layout,
            scope=scope,
            absorb=False if no_absorb else ABSORB[absorb],
            floor=floor,
            round_to=round_to,
            keep=tuple(keep or ()),
            verify=verify,
            strict=strict,
            **options,
        )
    seconds = time.perf_counter() - begin
    written = _write(made, built, output, plan, report, example, whole=weights is not None)
    with busy("counting"):
        data = {**_facts(made), "seconds": seconds, "files": written}
    answer("slim", data, as_json=as_json, shown=lambda: _table(data))
    if not written and not as_json:
        aside().print("nothing was written: give -o FILE.safetensors to keep the slim model")


def _write(
    made: Any, original: Any, output: Path | None, plan: Path | None, report: Path | None, example: Any, *, whole: bool
) -> dict[str, str]:
    import fxprune

    written = {}
    if output is not None:
        with busy(f"writing {output}"):
            fxprune.save(made, output)
        written["slim"] = str(output)
    if plan is not None:
        plan.write_text(fxprune.plan_of(made).to_json(indent=1) + "\n", encoding="utf-8")
        written["plan"] = str(plan)
    if report is not None:
        with busy(f"writing {report}, measuring latency"):
            fxprune.report(made, report, model=original if whole else None, example_inputs=example)
        written["report"] = str(report)
    return written


def _facts(made: Any) -> dict[str, Any]:
    import fxprune
    from fxprune.reporting.story import story

    told = story(made, latency=False)
    plan, absorption = fxprune.plan_of(made), fxprune.absorption_of(made)
    evidence = None if told.evidence is None else {**asdict(told.evidence), "text": str(told.evidence)}
    return {
        "model": told.model,
        "capture": told.capture,
        "asked": told.asked,
        "achieved": told.achieved,
        "figures": {name: dict(own) for name, own in plan.figures.items()},
        "score": told.score,
        "layout": told.layout,
        "absorption": {
            "mode": absorption.mode,
            "exact": absorption.exact,
            "difference": absorption.difference,
            "text": str(absorption),
        },
        "inputs": told.inputs,
        "before": {c.name.lower(): c.before for c in told.costs},
        "after": {c.name.lower(): c.after for c in told.costs},
        "layers": [asdict(layer) for layer in told.layers],
        "evidence": evidence,
        "operators_without_rule": dict(told.without_rule),
        "notes": list(told.notes),
    }


def _table(data: dict[str, Any]) -> Group:
    asked = "for a budget" if data["figures"] else f"asked: {data['asked']:.1%}"
    head = Text(f"{data['model']}: {data['achieved']:.1%} of the channels removed ({asked})")
    table = Table()
    for name in ("", "before", "after", "left"):
        table.add_column(name, justify="right" if name else "left")
    for name, before in data["before"].items():
        after = data["after"][name]
        known = not math.isnan(before)
        label = "MACs" if name == "macs" else name
        table.add_row(
            label, f"{before:,.0f}" if known else "?", f"{after:,.0f}", f"{after / before:.1%}" if known and before else ""
        )
    lines = [
        f"ranked by {data['score']}, layout {data['layout']}; {data['seconds']:.1f} s; MACs are those of a call with inputs {data['inputs']}",
        data["absorption"]["text"],
        data["evidence"]["text"] if data["evidence"] else "not verified",
        *(f"note: {note}" for note in data["notes"]),
        *(f"no rule: {name} at {', '.join(nodes[:4])}" for name, nodes in data["operators_without_rule"].items()),
        *(f"wrote {path}" for path in data["files"].values()),
    ]
    return Group(head, table, Text("\n".join(lines)))


def _bound(name: str, text: str) -> Any:
    """A number, or a text (12ms) that ``Budget`` reads."""
    try:
        value = float(text)
    except ValueError:
        return text
    return int(value) if name != "latency" and value > 1 and value.is_integer() else value


def made() -> Callable[..., None]:
    """The command. It has an option for every bound that ``fxprune.Budget`` knows, and none where there is no ``Budget``."""
    import fxprune

    budget = getattr(fxprune, "Budget", None)
    known = {f.name for f in fields(budget)} if budget is not None and is_dataclass(budget) else set()
    own = [option(name, str | None, None, said, metavar="BOUND") for name, said in BOUNDS.items() if name in known]

    def slim_(**options: Any) -> None:
        slim(**options)

    slim_.__doc__ = slim.__doc__
    parameters = [
        p for p in inspect.signature(slim, eval_str=True).parameters.values() if p.kind is not inspect.Parameter.VAR_KEYWORD
    ]
    return command(with_parameters(slim_, [*parameters, *own]))


class Command(TyperCommand):
    """The command as typer makes it, but ``--absorb`` alone is ``--absorb yes``."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Say what was left out, and parse."""
        said: list[str] = []
        for arg, following in zip(args, [*args[1:], ""], strict=True):
            said += [arg, "yes"] if arg == "--absorb" and following not in ABSORB else [arg]
        return super().parse_args(ctx, said)
