"""How long fxprune takes to slim a network, beside torch-pruning, and how that grows: ``python benchmarks/compile_time.py``.

1. The clock is the CPU time of this process, with one torch thread; verification is off on both sides (torch-pruning has none).
2. Both sides start from a network in eval mode and one example image, and end with a network that has lost half of its
   channels by one global ranking: for fxprune `slim(model, 0.5, example_inputs=x, absorb=False, verify=False)`, and beside it the default,
   with absorption, which torch-pruning has not; for torch-pruning the pruner's constructor and one `step()`, with the last layer ignored.
   Copying the network for torch-pruning, which prunes in place, is not counted.
3. Two pruners of torch-pruning are run: `bn` is its Network Slimming (BNScalePruner, BNScaleImportance), `magnitude` its
   general pruner (MagnitudePruner, GroupMagnitudeImportance), which builds its groups once less.
4. Part three: fxprune alone on networks with attention, in forward passes of the same network at batch 1 on the same clock.
5. Repeats are interleaved; the best counts for the ratios, the median stands beside it. A side that has used `--patience`
   seconds on a network is not repeated further.
"""

from __future__ import annotations

import argparse
import copy
import gc
import json
import math
import statistics
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import machine
import torch
from networks import FAMILIES, randomise, torchvision_network
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

NETWORKS = (
    "resnet50",
    "resnet152",
    "densenet121",
    "densenet201",
    "vgg16_bn",
    "mobilenet_v3_large",
    "efficientnet_b0",
    "inception_v3",
    "googlenet",
    "regnet_y_8gf",
)
WITH_ATTENTION = ("vit_b_16", "swin_t", "convnext_tiny", "maxvit_t")
PEERS = ("bn", "magnitude")
RATIO = 0.5

Rows = list[dict[str, Any]]
Compile = Callable[[nn.Module, Tensor], nn.Module]


def ours(model: nn.Module, image: Tensor) -> nn.Module:
    """Slim with fxprune; the model stays as it is."""
    import fxprune

    return fxprune.slim(model, RATIO, example_inputs=image, absorb=False, verify=False)


def absorbing(model: nn.Module, image: Tensor) -> nn.Module:
    """The same, with the constants of removed channels absorbed, as is the default."""
    import fxprune

    return fxprune.slim(model, RATIO, example_inputs=image, verify=False)


def peer(kind: str) -> Compile:
    """Prune with torch-pruning, in place."""
    import torch_pruning

    def prune(model: nn.Module, image: Tensor) -> nn.Module:
        last = [module for module in model.modules() if isinstance(module, nn.Linear)][-1]
        options = {"global_pruning": True, "pruning_ratio": RATIO, "ignored_layers": [last]}
        if kind == "bn":
            importance = torch_pruning.importance.BNScaleImportance()
            pruner = torch_pruning.pruner.BNScalePruner(model, image, importance, **options)
        else:
            importance = torch_pruning.importance.GroupMagnitudeImportance(p=2)
            pruner = torch_pruning.pruner.MagnitudePruner(model, image, importance, **options)
        pruner.step()
        return model

    return prune


def parameters(model: nn.Module) -> int:
    """Number of parameters."""
    return sum(parameter.numel() for parameter in model.parameters())


def clock(run: Compile, model: nn.Module, image: Tensor) -> tuple[float, nn.Module]:
    """CPU seconds of one run and what it returned."""
    gc.collect()
    start = time.process_time()
    result = run(model, image)
    return time.process_time() - start, result


def measure(name: str, sides: dict[str, Compile], repeats: int, patience: float) -> dict[str, Any]:
    """Run all sides on one network in turns."""
    torch.manual_seed(0)
    model, image = torchvision_network(name)
    seconds: dict[str, list[float]] = {side: [] for side in sides}
    left: dict[str, int] = {}
    failed: dict[str, str] = {}
    for _ in range(repeats):
        for side, run in sides.items():
            if side in failed or sum(seconds[side]) > patience:
                continue
            mine = model if side.startswith("fxprune") else copy.deepcopy(model)
            try:
                spent, result = clock(run, mine, image)
            except Exception as error:  # noqa: BLE001 - a side that fails on a network is a result too
                failed[side] = f"{type(error).__name__}: {error}"
                continue
            seconds[side].append(spent)
            left[side] = parameters(result)
    return {"network": name, "parameters": parameters(model), "seconds": seconds, "left": left, "failed": failed}


def compare(names: Sequence[str], sides: dict[str, Compile], repeats: int, patience: float, console: Console) -> Rows:
    """The table of part one, printed as it grows."""
    rows = []
    for name in names:
        row = measure(name, sides, repeats, patience)
        rows.append(row)
        told = [f"{side} {min(found):.3f} s" for side, found in row["seconds"].items() if found]
        told += [f"{side} failed: {reason}" for side, reason in row["failed"].items()]
        console.print(f"{name}: {', '.join(told)}", markup=False, highlight=False)

    table = Table(title="CPU seconds, best (median); parameters left", title_justify="left")
    table.add_column("network")
    for side in sides:
        table.add_column(side, justify="right")
    peers = [side for side in sides if not side.startswith("fxprune")] if "fxprune" in sides else []
    for side in peers:
        table.add_column(f"{side} / fxprune", justify="right")
    for row in rows:
        table.add_row(row["network"], *(_cell(row, side) for side in sides), *(_ratio_cell(row, side) for side in peers))
    console.print(table)
    for side in peers:
        ratios = [ratio for row in rows if (ratio := _ratio(row, side)) is not None]
        if ratios:
            mean = statistics.geometric_mean(ratios)
            console.print(f"{side} / fxprune: geometric mean {mean:.1f}, least {min(ratios):.1f}, over {len(ratios)} networks")
    return rows


def _cell(row: dict[str, Any], side: str) -> str:
    found = row["seconds"][side]
    if not found:
        return "failed"
    return f"{min(found):.3f} ({statistics.median(found):.3f}); {row['left'][side] / row['parameters']:.0%}"


def _ratio(row: dict[str, Any], side: str) -> float | None:
    theirs, mine = row["seconds"][side], row["seconds"]["fxprune"]
    return min(theirs) / min(mine) if theirs and mine else None


def _ratio_cell(row: dict[str, Any], side: str) -> str:
    ratio = _ratio(row, side)
    return "" if ratio is None else f"{ratio:.1f}"


def grow(repeats: int, patience: float, largest: int, console: Console) -> Rows:
    """Part two: seconds and couplings as a network of one kind grows, and the exponent between neighbours."""
    import fxprune

    table = Table(title="growth, fxprune alone; the exponent is that of seconds against couplings", title_justify="left")
    for column in ("network", "layers", "seconds", "couplings", "microseconds per coupling", "exponent"):
        table.add_column(column, justify="left" if column == "network" else "right")
    rows: Rows = []
    for family, (build, sizes) in FAMILIES.items():
        before: dict[str, Any] | None = None
        for layers in sizes:
            if layers > largest:
                continue
            torch.manual_seed(0)
            model, image = randomise(build(layers)), torch.randn(1, 3, 8, 8)
            spent: list[float] = []
            while len(spent) < repeats and sum(spent) <= patience:
                spent.append(clock(ours, model, image)[0])
            couplings = number_of_couplings(fxprune.analyze(model, image))
            row = {"family": family, "layers": layers, "seconds": spent, "couplings": couplings, "exponent": None}
            if before is not None:
                growth = math.log(min(spent) / min(before["seconds"]))
                row["exponent"] = growth / math.log(couplings / before["couplings"])
            rows.append(row)
            before = row
            exponent = "" if row["exponent"] is None else f"{row['exponent']:.2f}"
            per_coupling = f"{min(spent) / couplings * 1e6:.1f}"
            table.add_row(family, f"{layers:,}", f"{min(spent):.3f}", f"{couplings:,}", per_coupling, exponent)
    console.print(table)
    return rows


def in_forward_passes(names: Sequence[str], repeats: int, console: Console) -> Rows:
    """Part three: the time to slim a network over the time of one forward pass."""
    table = Table(title="CPU seconds, best: one forward pass, slim", title_justify="left")
    for column in ("network", "forward", "slim", "slim / forward"):
        table.add_column(column, justify="left" if column == "network" else "right")
    rows: Rows = []
    for name in names:
        torch.manual_seed(0)
        model, image = torchvision_network(name)
        forward: list[float] = []
        spent: list[float] = []
        with torch.no_grad():
            model(image)
        for _ in range(repeats):
            with torch.no_grad():
                forward.append(clock(lambda m, x: m(x), model, image)[0])
            spent.append(clock(ours, model, image)[0])
        passes = min(spent) / min(forward)
        rows.append({"network": name, "forward": forward, "seconds": spent, "passes": passes})
        table.add_row(name, f"{min(forward):.3f}", f"{min(spent):.3f}", f"{passes:.1f}")
    console.print(table)
    return rows


def number_of_couplings(graph: Any) -> int:
    """How many pairs of atoms the analysis coupled, before closing them."""
    return sum(len(coupling.left) for coupling in graph.program.recorder.couplings)


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line, run the parts, and write JSON if asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="*", default=list(NETWORKS), help="torchvision classifiers; none skips part one")
    parser.add_argument("--peers", nargs="*", choices=PEERS, default=list(PEERS), help="pruners of torch-pruning")
    parser.add_argument("--only-peers", action="store_true", help="leave fxprune out")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--patience", type=float, default=60, help="CPU seconds after which a side is not repeated; default 60")
    parser.add_argument("--largest", type=int, default=5_000, help="most layers of part two; 0 skips it")
    parser.add_argument("--attention", nargs="*", default=list(WITH_ATTENTION), help="networks of part three; none skips it")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write all numbers to FILE")
    options = parser.parse_args(arguments)

    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", module="torch_pruning")
    console = Console(width=None if Console().is_terminal else 140)
    console.print(machine.line(), highlight=False)
    sides: dict[str, Compile] = {} if options.only_peers else {"fxprune": ours, "fxprune absorbing": absorbing}
    sides |= {f"torch-pruning {kind}": peer(kind) for kind in options.peers}

    result: dict[str, Any] = {"machine": machine.facts(), "ratio": RATIO, "networks": [], "growth": [], "attention": []}
    if options.networks:
        result["networks"] = compare(options.networks, sides, options.repeats, options.patience, console)
    if options.largest and not options.only_peers:
        result["growth"] = grow(options.repeats, options.patience, options.largest, console)
    if options.attention and not options.only_peers:
        result["attention"] = in_forward_passes(options.attention, max(5, options.repeats), console)
    if options.json is not None:
        options.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
