"""Slim networks at equal MACs, timed beside those of torch-pruning and torch-kirigami: ``python benchmarks/latency.py``.

1. Every side removes channels until a share of the MACs is left (0.5 and 0.25, counted by torch.utils.flop_counter); its ratio is found by
   bisection. fxprune ranks by its ``magnitude`` score and rounds widths to multiples of 8; torch-pruning ranks by the same numbers, handed to it per
   output channel of each layer (what has none there falls back to its own norm); torch-kirigami has its own GroupMagnitude. `fxprune plain` is
   fxprune without rounding and without deploy.
2. fxprune's network is deployed for the batch size in question; the peers' networks run as they come. All run in one process, in turns
   (fxprune/timing.py): eager, under torch.compile, and in ONNX Runtime, each with the original beside them.
3. The speed-up realised is original / slim latency; its share of the MAC reduction says how much of what was saved is felt.
4. ``--predict`` compares latency tables (fxprune.latency) with measured networks instead, at ratios 0.3, 0.5 and 0.7.
"""

from __future__ import annotations

import argparse
import copy
import json
import tempfile
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import machine
import torch
from networks import torchvision_network
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import fxprune
from fxprune.latency import measure
from fxprune.timing import interleaved, typical

NETWORKS = ("resnet50", "vgg16_bn", "densenet121", "mobilenet_v2")
SHARES = (0.5, 0.25)
RUNTIMES = ("eager", "compile", "onnx")
PEERS = ("torch-pruning", "torch-kirigami")
CLOSE = 0.01
STEPS = 8

Make = Callable[[nn.Module, Tensor, float], nn.Module]


def ours(model: nn.Module, image: Tensor, ratio: float, round_to: int = 8) -> nn.Module:
    """The network that fxprune makes; the model stays as it is."""
    return fxprune.slim(model, ratio, image, score="magnitude", round_to=round_to, verify=False)


class Shared:
    """An importance for torch-pruning: fxprune's scores, per output channel of the layer that a group starts with."""

    def __init__(self, model: nn.Module, image: Tensor) -> None:
        self.scores: dict[str, Tensor] = {}
        for group in fxprune.analyze(model, image).groups:
            values = fxprune.score.magnitude(group)
            for member in group.members:
                if not member.reads and member.dim == 0 and member.name.endswith(".weight"):
                    layer = self.scores.setdefault(member.name, torch.zeros(model.get_parameter(member.name).shape[0]))
                    layer[torch.from_numpy(member.atom)] = values[torch.from_numpy(member.channel)].float()
        self.missing: list[str] = []

    def __call__(self, group: Any) -> Tensor:
        """Scores of a group of torch-pruning, shape (channels,)."""
        for dependency, places in group:
            name = f"{dependency.target.name.split(' ')[0]}.weight"
            if name in self.scores and len(places) == len(group[0].idxs) and "out_channels" in str(dependency.handler):
                return self.scores[name][torch.as_tensor(places) % len(self.scores[name])]
        import torch_pruning

        self.missing.append(group[0].dep.target.name)
        return torch_pruning.importance.GroupMagnitudeImportance(p=2)(group)


def torch_pruning_side(model: nn.Module, image: Tensor, ratio: float) -> nn.Module:
    """torch-pruning's network, with fxprune's scores."""
    import torch_pruning

    made = copy.deepcopy(model)
    last = [module for module in made.modules() if isinstance(module, nn.Linear)][-1]
    importance = Shared(model, image)
    options = {"global_pruning": True, "pruning_ratio": ratio, "ignored_layers": [last]}
    torch_pruning.pruner.MagnitudePruner(made, image, importance, **options).step()
    return made


def torch_kirigami_side(model: nn.Module, image: Tensor, ratio: float) -> nn.Module:
    """torch-kirigami's network."""
    from torch_kirigami import DependencyGraph
    from torch_kirigami.pruning import ChannelRatio, Greedy, GroupMagnitude, Pruner

    made = copy.deepcopy(model)
    pruner = Pruner(made, graph=DependencyGraph.build(made, args=(image,)))
    budget = ChannelRatio(ratio, scope="global")
    return pruner.prune(pruner.discover_candidates(), budget=budget, strategy=Greedy(GroupMagnitude(p=2)))[0]


SIDES: dict[str, Make] = {
    "fxprune": ours,
    "fxprune plain": partial(ours, round_to=1),
    "torch-pruning": torch_pruning_side,
    "torch-kirigami": torch_kirigami_side,
}


def macs(model: nn.Module, image: Tensor) -> int:
    """Multiply-adds of one call."""
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        model(image)
    return counter.get_total_flops() // 2


def at_share(make: Make, model: nn.Module, image: Tensor, share: float) -> tuple[nn.Module, float, float]:
    """The network of one side with that share of the MACs, its ratio, and the share it has."""
    whole, low, high = macs(model, image), 0.0, 0.95
    best: tuple[nn.Module, float, float] | None = None
    for _ in range(STEPS):
        ratio = (low + high) / 2
        found = make(model, image, ratio)
        left = macs(found, image) / whole
        if best is None or abs(left - share) < abs(best[2] - share):
            best = found, ratio, left
        if abs(left - share) <= CLOSE * share:
            break
        low, high = (ratio, high) if left > share else (low, ratio)
    assert best is not None
    return best


def session(model: nn.Module, image: Tensor, folder: Path, name: str) -> Callable[[], object]:
    """A call of the model in ONNX Runtime."""
    import onnxruntime

    path = folder / f"{name.replace(' ', '_')}.onnx"
    torch.onnx.export(model, (image,), path, dynamo=True, verbose=False)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    made = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return partial(made.run, None, {made.get_inputs()[0].name: image.numpy()})


def calls(
    runtime: str, modules: dict[str, nn.Module], image: Tensor, seconds: float, folder: Path
) -> dict[str, Callable[[], object]]:
    """What is timed, by side (clause 2)."""
    made: dict[str, Callable[[], object]] = {}
    for side, module in modules.items():
        shown = fxprune.deploy(module, image, seconds=seconds if runtime == "eager" else 0) if side == "fxprune" else module
        if runtime == "onnx":
            made[side] = session(shown, image, folder, side)
        else:
            made[side] = partial(torch.compile(shown) if runtime == "compile" else shown, image)
    return made


def compare(name: str, options: argparse.Namespace, console: Console) -> list[dict[str, Any]]:
    """Clauses 1 to 3 for one network."""
    torch.manual_seed(0)
    model, image = torchvision_network(name)
    rows: list[dict[str, Any]] = []
    for share in options.shares:
        modules, left = {"original": model}, {"original": 1.0}
        for side in ("fxprune", "fxprune plain", *options.peers):
            found = attempted(name, side, model, image, share, console)
            if found is not None:
                modules[side], left[side] = found
        for batch in options.batches:
            shown = image.repeat(batch, 1, 1, 1)
            for runtime in options.runtimes:
                rows.append(time_one(name, share, runtime, modules, left, shown, options.seconds))
                console.print(line(rows[-1]), highlight=False)
    return rows


def attempted(
    name: str, side: str, model: nn.Module, image: Tensor, share: float, console: Console
) -> tuple[nn.Module, float] | None:
    """A side's network and its share of the MACs; a side that fails on a network is a result too."""
    try:
        made, ratio, left = at_share(SIDES[side], model, image, share)
    except Exception as error:  # noqa: BLE001 - whatever a peer raises
        console.print(f"{name}: {side} failed: {type(error).__name__}: {error}", markup=False, highlight=False)
        return None
    console.print(f"{name}: {side} at ratio {ratio:.3f} has {left:.3f} of the MACs", highlight=False)
    return made, left


def time_one(
    name: str, share: float, runtime: str, modules: dict[str, nn.Module], left: dict[str, float], image: Tensor, seconds: float
) -> dict[str, Any]:
    """One line of the table."""
    torch._dynamo.reset()
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        made = calls(runtime, modules, image, seconds, Path(folder))
        times = interleaved(list(made.values()), torch.device("cpu"), seconds * len(made))
    found = {side: typical(own) for side, own in zip(made, times, strict=True)}
    return {"network": name, "share": share, "runtime": runtime, "batch": len(image), "seconds": found, "macs": left}


def line(row: dict[str, Any]) -> str:
    """The ratios of one line."""
    own = row["seconds"]
    told = [f"{side} {1e3 * value:.2f} ms" for side, value in own.items()]
    peers = [
        f"{side} / fxprune {value / own['fxprune']:.2f}" for side, value in own.items() if side in PEERS and "fxprune" in own
    ]
    felt = [f"{side} {realised(row, side):.2f}" for side in own if side != "original"]
    place = f"{row['network']} {row['share']:g} {row['runtime']} batch {row['batch']}"
    return f"{place}: {', '.join(told)}; {', '.join(peers)}; realised speed-up / MAC reduction: {', '.join(felt)}"


def realised(row: dict[str, Any], side: str) -> float:
    """Clause 3."""
    return row["seconds"]["original"] / row["seconds"][side] * row["macs"][side]


def predict(name: str, console: Console) -> dict[str, Any]:
    """Clause 4."""
    torch.manual_seed(0)
    model, image = torchvision_network(name)
    with tempfile.TemporaryDirectory() as folder:
        table = measure(model, image, cache=folder)
    modules, plans = [fxprune.deploy(model, image, form=table.form)], [None]
    for ratio in (0.3, 0.5, 0.7):
        slim = fxprune.slim(model, ratio, image, score="random", verify=False)
        plans.append(fxprune.plan_of(slim))
        modules.append(fxprune.deploy(slim, image, form=table.form))
    with torch.no_grad():
        times = interleaved([partial(module, image) for module in modules], torch.device("cpu"), 10)
    predicted, measured = [table.seconds(plan) for plan in plans], [typical(own) for own in times]
    quotients = [a / b for a, b in zip(predicted, measured, strict=True)]
    console.print(
        f"{name} ({table.form}, alignment {table.alignment}): predicted / measured at ratios 0, 0.3, 0.5, 0.7: "
        + ", ".join(f"{1e3 * a:.2f} / {1e3 * b:.2f} = {q:.3f}" for a, b, q in zip(predicted, measured, quotients, strict=True)),
        highlight=False,
    )
    return {"network": name, "predicted": predicted, "measured": measured, "alignment": table.alignment}


def show(rows: Sequence[dict[str, Any]], console: Console) -> None:
    """All lines as a table: milliseconds and, for peers, the quotient to fxprune's."""
    sides = list(dict.fromkeys(side for row in rows for side in row["seconds"]))
    table = Table(title="ms (quotient to fxprune's; share of the MAC reduction that is felt)", title_justify="left")
    for column in ("network", "MACs", "runtime", "batch", *sides):
        table.add_column(column, justify="right" if column not in ("network", "runtime") else "left")
    for row in rows:
        cells = []
        for side in sides:
            value = row["seconds"].get(side)
            felt = "" if side == "original" or value is None else f"; {realised(row, side):.2f}"
            cells.append("failed" if value is None else f"{1e3 * value:.2f} ({value / row['seconds']['fxprune']:.2f}{felt})")
        table.add_row(row["network"], f"{row['share']:g}", row["runtime"], str(row["batch"]), *cells)
    console.print(table)


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line, run, and write JSON if asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="*", default=list(NETWORKS), help="torchvision classifiers")
    parser.add_argument("--shares", nargs="*", type=float, default=list(SHARES), help="of the MACs that are left")
    parser.add_argument("--batches", nargs="*", type=int, default=[1, 16])
    parser.add_argument("--runtimes", nargs="*", choices=RUNTIMES, default=list(RUNTIMES))
    parser.add_argument("--peers", nargs="*", choices=PEERS, default=list(PEERS))
    parser.add_argument("--seconds", type=float, default=4.0, help="per network and side; default 4")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--predict", action="store_true", help="latency tables against measurements (clause 4)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write all numbers to FILE")
    options = parser.parse_args(arguments)

    torch.set_num_threads(options.threads)
    warnings.simplefilter("ignore")
    console = Console(width=None if Console().is_terminal else 200)
    console.print(machine.line(), highlight=False)
    if options.predict:
        rows: list[dict[str, Any]] = [predict(name, console) for name in options.networks]
    else:
        rows = [row for name in options.networks for row in compare(name, options, console)]
        show(rows, console)
    if options.json is not None:
        options.json.write_text(json.dumps({"machine": machine.facts(), "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
