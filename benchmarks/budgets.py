"""Budgets: asked, achieved, gap to the bound, seconds.

    python benchmarks/budgets.py                                   # all networks, all budgets: about five minutes on one core
    python benchmarks/budgets.py --networks resnet50 --json out.json
    python benchmarks/budgets.py --latency                         # latency budgets: some minutes per network for its table

Each network (random weights, scale factors uniform in [0.1, 2], one example image) is planned for each budget and slimmed. *Achieved* is
counted on the slim model, by its parameters and by ``torch.utils.flop_counter`` while it runs on meta tensors, and has to be what the plan
foresaw, to the last unit; bytes of activations are the plan's. *Kept* is the share of the score that stays, *at most* what no plan for this
budget can exceed, *uniform* what the best plan with equal shares everywhere keeps. Seconds are CPU time of ``plan`` with one thread, without
capture and analysis.

With ``--latency`` networks are slimmed for latency budgets, of the deployed form. *Achieved* is then what the clock said of the slim model
beside the original, *predicted* what the table did, in seconds and (of shares) as shares of what either says of the original; *MACs keep* is
what the best plan for a MAC budget keeps that the table gives the same time. Seconds are those of ``slim``, verification left out, timing included,
the table (*table*) not. *MACs* are what is left of them, and in brackets the speed-up over the deployed original times that: how much of the
reduction is felt. With ``--json`` what the file holds is not measured again.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from machine import facts, line
from networks import randomise, torchvision_network
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import fxprune
from fxprune import Budget, BudgetError, zoo
from fxprune.latency import LatencyTable, measure

NETWORKS = ("resnet50", "densenet121", "mobilenet_v2", "efficientnet_b0", "vgg16_bn", "vit_b_16", "resnet164")
MORE = ("densenet201", "mobilenet_v3_large")
BUDGETS: tuple[dict[str, Any], ...] = (
    {"macs": 0.5},
    {"macs": 0.25},
    {"params": 0.5},
    {"params": 0.25},
    {"activation_bytes": 0.5},
    {"macs": 0.5, "params": 0.4, "activation_bytes": 0.8},
)

LATENCIES: tuple[dict[str, Any], ...] = ({"latency": 0.5}, {"latency": 0.3}, {"latency": 0.5, "params": 0.3})
STEPS = 8  # of the bisection for a MAC budget of equal latency


def network(name: str) -> tuple[nn.Module, Tensor]:
    """A network of the list in eval mode, and an image."""
    torch.manual_seed(0)
    if name == "resnet164":
        return randomise(zoo.resnet164(num_classes=10)), torch.randn(1, 3, 32, 32)
    return torchvision_network(name)


def counted(slim: nn.Module, image: Tensor) -> dict[str, int]:
    """Parameters and MACs of a model, counted on it."""
    hollow = copy.deepcopy(slim).to("meta")
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        hollow(image.to("meta"))
    return {"params": sum(p.numel() for p in slim.parameters()), "macs": counter.get_total_flops() // 2}


def summed(graph: fxprune.ChannelGraph) -> str:
    """A plain sum, of which every channel's part can be told; the default with a budget goes by shares of layers."""
    return "gamma" if all(group.gammas for group in graph.groups) else "magnitude"


def row(name: str, model: nn.Module, image: Tensor, graph: fxprune.ChannelGraph, amounts: dict[str, Any]) -> dict[str, Any]:
    """One measurement."""
    start = time.process_time()
    try:
        plan = fxprune.plan(graph, budget=Budget(**amounts), score=summed(graph))
    except BudgetError as error:
        return {"network": name, "budget": amounts, "refused": str(error), "least": error.expected}
    seconds = time.process_time() - start
    exact = counted(fxprune.apply(model, plan, image, verify=False), image)
    figures = plan.figures
    for kind, number in exact.items():
        if kind in figures and figures[kind]["achieved"] != number:
            raise AssertionError(
                f"{name}, {amounts}: the plan foresaw {figures[kind]['achieved']} {kind}, the model has {number}"
            )
    try:
        even = fxprune.plan(graph, budget=Budget(**amounts), score=summed(graph), scope="uniform").figures["kept score"]
        uniform = even["achieved"] / even["original"]
    except BudgetError:
        uniform = float("nan")
    score = figures["kept score"]
    return {
        "network": name,
        "budget": amounts,
        "achieved": {kind: own["achieved"] / own["original"] for kind, own in figures.items() if kind != "kept score"},
        "numbers": {kind: own["achieved"] for kind, own in figures.items() if kind != "kept score"},
        "kept": score["achieved"] / score["original"],
        "bound": score["bound"] / score["original"],
        "gap": score["gap"],
        "uniform": uniform,
        "seconds": seconds,
    }


def timed_row(
    name: str, model: nn.Module, image: Tensor, graph: fxprune.ChannelGraph, costs: LatencyTable, amounts: dict[str, Any]
) -> dict[str, Any]:
    """One latency budget, met by the clock; and what others keep in the same time."""
    budget = Budget(**amounts, table=costs)
    start = time.process_time()
    try:
        slim = fxprune.slim(model, None, image, budget=budget, score=summed(graph), verify=False)
    except BudgetError as error:
        return {"network": name, "budget": amounts, "refused": str(error), "least": error.got}
    seconds = time.process_time() - start
    plan = fxprune.plan_of(slim)
    found, score = plan.figures["latency"], plan.figures["kept score"]
    try:
        equal = replace(budget, latency=f"{found['predicted']!r}s")
        even = fxprune.plan(graph, budget=equal, score=summed(graph), scope="uniform").figures["kept score"]
        uniform = even["achieved"] / even["original"]
    except BudgetError:
        uniform = float("nan")
    return {
        "network": name,
        "budget": amounts,
        "achieved": {kind: own["achieved"] / own["original"] for kind, own in plan.figures.items() if kind != "kept score"},
        "predicted": found["predicted"] / found["measured"],
        "relative": (found["predicted"] / costs.seconds()) / (found["measured"] / found["original"]),
        "milliseconds": {kind: 1e3 * found[kind] for kind in ("original", "asked", "predicted", "measured")},
        "rounds": found["rounds"],
        "left": counted(slim, image)["macs"] / counted(model, image)["macs"],
        "kept": score["achieved"] / score["original"],
        "bound": score["bound"] / score["original"],
        "gap": score["gap"],
        "uniform": uniform,
        "macs": by_macs(graph, costs, found["predicted"], {k: v for k, v in amounts.items() if k != "latency"}),
        "seconds": seconds,
    }


def by_macs(graph: fxprune.ChannelGraph, costs: LatencyTable, allowed: float, others: dict[str, Any]) -> float:
    """The share of the score that ``by_macs_plan`` keeps; NaN without one."""
    plan = by_macs_plan(graph, costs, allowed, others, score=summed(graph), round_to=costs.alignment)
    if plan is None:
        return float("nan")
    own = plan.figures["kept score"]
    return own["achieved"] / own["original"]


def by_macs_plan(
    graph: fxprune.ChannelGraph, costs: LatencyTable, allowed: float, others: dict[str, Any], **options: Any
) -> fxprune.Plan | None:
    """The plan for the largest MAC budget that takes at most that long by the table; None: none does.

    ``others``: bounds that hold as well.
    """
    low, high, found = 0.0, 1.0, None
    for _ in range(STEPS):
        share = (low + high) / 2
        try:
            plan = fxprune.plan(graph, budget=Budget(macs=share, **others), **options)
        except BudgetError:
            low = share
            continue
        if costs.seconds(plan) <= allowed:
            low, found = share, plan
        else:
            high = share
    return found


def timed_table(rows: Sequence[dict[str, Any]]) -> str:
    """Latency budgets as Markdown."""
    heads = "network, asked, achieved, ms, predicted / measured (of shares), MACs (felt), rounds, kept, gap, uniform keeps, MACs keep, seconds"
    lines = [f"| {heads.replace(', ', ' | ')} |", "|---" * 12 + "|"]
    for own in rows:
        asked = ", ".join(f"{kind} {share:.0%}" for kind, share in own["budget"].items())
        if "refused" in own:
            lines.append(f"| {own['network']} | {asked} | refused: {own['refused'].split('. ')[0]} |" + " |" * 9)
            continue
        achieved = ", ".join(f"{own['achieved'][kind]:.1%}" for kind in own["budget"])
        spans = own["milliseconds"]
        numbers = f"{own['kept']:.1%} | {own['gap']:.2%} | {own['uniform']:.1%} | {own['macs']:.1%} | {own['seconds']:.1f}"
        foreseen = f"{own['predicted']:.3f} ({own['relative']:.3f})"
        felt = f"{own['left']:.1%} ({own['left'] / own['achieved']['latency']:.2f})"
        lines.append(
            f"| {own['network']} | {asked} | {achieved} | {spans['original']:.2f} -> {spans['measured']:.2f} | {foreseen} | {felt} | "
            f"{own['rounds']:.0f} | {numbers} |"
        )
    return "\n".join(lines)


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The measurements as Markdown."""
    lines = [
        "| network | asked | achieved | kept | at most | gap | uniform keeps | seconds |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for own in rows:
        asked = ", ".join(f"{kind} {share:.0%}" for kind, share in own["budget"].items())
        if "refused" in own:
            lines.append(f"| {own['network']} | {asked} | refused: {own['refused'].split('. ')[0]} | | | | | |")
            continue
        achieved = ", ".join(f"{own['achieved'][kind]:.2%}" for kind in own["budget"])
        numbers = f"{own['kept']:.2%} | {own['bound']:.2%} | {own['gap']:.2%} | {own['uniform']:.1%} | {own['seconds']:.2f}"
        lines.append(f"| {own['network']} | {asked} | {achieved} | {numbers} |")
    return "\n".join(lines)


def main() -> None:
    """Run what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="*", default=[*NETWORKS, *MORE])
    parser.add_argument("--latency", action="store_true", help="latency budgets instead")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, help="write the measurements to this file")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="begin no network after that time")
    options = parser.parse_args()
    warnings.simplefilter("ignore", fxprune.FxpruneWarning)
    torch.set_num_threads(options.threads)
    show = timed_table if options.latency else table
    rows = json.loads(options.json.read_text())["rows"] if options.json and options.json.exists() else []
    begin = time.perf_counter()
    for name in options.networks:
        asked = LATENCIES if options.latency else BUDGETS
        missing = [own for own in asked if not any(r["network"] == name and r["budget"] == own for r in rows)]
        if not missing or time.perf_counter() - begin > 60 * options.minutes:
            continue
        model, image = network(name)
        graph = fxprune.analyze(model, image)
        if options.latency:
            start = time.process_time()
            costs = measure(model, image)
            print(
                f"{name}: a table in {time.process_time() - start:.1f} s, {costs.form}, alignment {costs.alignment}", flush=True
            )
        for amounts in missing:
            if options.latency:
                rows.append(timed_row(name, model, image, graph, costs, amounts))
            else:
                rows.append(row(name, model, image, graph, amounts))
            print(show(rows[-1:]).splitlines()[-1], flush=True)
            if options.json:
                options.json.write_text(json.dumps({"machine": facts(), "rows": rows}, indent=2), encoding="utf-8")
    print(f"\n{line()}\n\n{show(rows)}")


if __name__ == "__main__":
    main()
