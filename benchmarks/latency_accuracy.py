"""At an equal latency, what is kept: plans for latency beside uniform ones and plans for MACs, on a trained ResNet-56.

    python benchmarks/latency_accuracy.py --data DIR --work FOLDER            # about ten minutes on one core
    python benchmarks/latency_accuracy.py --data DIR --work FOLDER --minutes 4    # in pieces: goes on where it stopped

DIR holds the CIFAR-JPEG images and the pretrained ResNets.

1. Three plans take the same time by a latency table of the deployed network (a batch of 16): *latency* keeps most score within the time, *uniform*
   takes an equal share of every group, *macs* keeps most score within the largest bound on MACs whose plan takes no longer. All rank by
   the same score (``--score``; "fisher" looks at ``CALIBRATION`` training images) and round widths to the table's alignment. With ``--repair``
   the weights of all slim networks but the classifier's are refitted on the same images (``reconstruct.repair``).
2. Each network and the unpruned one is fine-tuned for as many steps of 128 images, with the same images in the same order
   (channel_pruning_training.py). Accuracies are of test images, before and after.
3. Times are those of the deployed networks, all in turns (fxprune/timing.py).
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import machine
import torch
from budgets import by_macs_plan
from channel_pruning_training import accuracy, train
from torch import nn

import fxprune
from fxprune import Budget, reconstruct, zoo
from fxprune.data import Images, load
from fxprune.io.atomic import replacing
from fxprune.latency import LatencyTable, measure
from fxprune.timing import interleaved, typical

PLANS = ("latency", "uniform", "macs")
BATCH = 16
CALIBRATION = 640


def plans(model: nn.Module, table: LatencyTable, share: float, score: Any) -> dict[str, fxprune.Plan]:
    """Clause 1."""
    graph = fxprune.analyze(model, torch.randn(BATCH, 3, 32, 32))
    budget = Budget(latency=share, table=table)
    options: dict[str, Any] = {"score": score, "round_to": table.alignment}
    first = fxprune.plan(graph, budget=budget, **options)
    allowed = max(first.figures["latency"]["achieved"], share * table.seconds())
    found = {
        "latency": first,
        "uniform": fxprune.plan(graph, budget=replace(budget, latency=f"{allowed!r}s"), scope="uniform", **options),
    }
    macs = by_macs_plan(graph, table, allowed, {}, **options)
    assert macs is not None
    return {**found, "macs": macs}


def timed(nets: dict[str, nn.Module], form: str) -> dict[str, float]:
    """Clause 3: seconds."""
    images = torch.randn(BATCH, 3, 32, 32)
    deployed = [partial(fxprune.deploy(net, images, form=form), images) for net in nets.values()]
    with torch.no_grad():
        times = interleaved(deployed, torch.device("cpu"), 4.0 * len(deployed))
    return {name: typical(own) for name, own in zip(nets, times, strict=True)}


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Whatever is not there yet, until time is up."""
    file = options.work / "latency_accuracy.json"
    found: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}
    begin = time.perf_counter()

    def keep(**more: Any) -> None:
        found.update(more)
        options.work.mkdir(parents=True, exist_ok=True)
        with replacing(file) as stream:
            stream.write((json.dumps({**found, "machine": machine.facts()}, indent=1) + "\n").encode())

    def late() -> bool:
        return time.perf_counter() - begin > 60 * options.minutes

    model = zoo.load_pretrained(zoo.resnet56(), options.data / "resnet-cifar10" / options.weights).eval()
    images = load("cifar10-jpeg", options.data / "cifar10-jpeg")
    x, y = images.test.batch(torch.arange(options.test))
    table = measure(model, torch.randn(BATCH, 3, 32, 32), cache=options.work, show=False)
    calibration = [images.train.batch(part) for part in torch.arange(CALIBRATION).split(128)]
    if "plans" not in found:
        score = fxprune.score.fisher(calibration) if options.score == "fisher" else options.score
        keep(plans={name: plan.to_json() for name, plan in plans(model, table, options.share, score).items()})
    chosen = {name: fxprune.Plan.from_json(text) for name, text in found["plans"].items()}
    nets: dict[str, nn.Module] = {"unpruned": model}
    nets |= {name: fxprune.apply(model, plan, torch.randn(BATCH, 3, 32, 32), verify=False) for name, plan in chosen.items()}
    if options.repair:
        inputs = [x for x, _ in calibration]
        again = partial(reconstruct.repair, model, loader=inputs, images=CALIBRATION, cache=True, keep=["linear"])
        nets |= {name: again(nets[name]) for name in chosen}
    if "seconds" not in found:
        keep(
            seconds=timed(nets, table.form),
            predicted={"unpruned": table.seconds(), **{name: table.seconds(plan) for name, plan in chosen.items()}},
            kept={name: _share(plan, "kept score") for name, plan in chosen.items()},
            parameters={name: sum(p.numel() for p in net.parameters()) for name, net in nets.items()},
            alignment=table.alignment,
            form=table.form,
        )
    for seed in range(options.seeds):
        for name, net in nets.items():
            key = f"{name}, seed {seed}"
            if late():
                return found
            if f"before {name}" not in found:
                keep(**{f"before {name}": accuracy(net, x, y)})
            if key not in found:
                keep(**{key: _tuned(net, images, seed, options, x, y, options.work / f"{name}-{seed}.pt")})
                print(key, found[key], flush=True)
    return found


def _tuned(net: nn.Module, images: Images, seed: int, options: argparse.Namespace, x: Any, y: Any, path: Path) -> float:
    """Clause 2."""
    import copy

    own = copy.deepcopy(net)
    train(own, images, path, epochs=1, top=options.rate, seed=seed, subset=128 * options.steps)
    return accuracy(own, x, y)


def _share(plan: fxprune.Plan, name: str) -> float:
    own = plan.figures[name]
    return own["achieved"] / own["original"]


def shown(found: dict[str, Any], options: argparse.Namespace) -> str:
    """The measurements as Markdown."""
    lines = [
        "| plan | ms | of the original | predicted | score kept | parameters | accuracy before | after fine-tuning |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name in ("unpruned", *PLANS):
        if "seconds" not in found:
            break
        own, whole = found["seconds"][name], found["seconds"]["unpruned"]
        tuned = [found[key] for seed in range(options.seeds) if (key := f"{name}, seed {seed}") in found]
        after = ", ".join(f"{value:.2%}" for value in tuned)
        before = f"{found[f'before {name}']:.2%}" if f"before {name}" in found else ""
        kept = f"{found['kept'][name]:.1%}" if name in found["kept"] else ""
        share = found["predicted"][name] / found["predicted"]["unpruned"]
        lines.append(
            f"| {name} | {1e3 * own:.2f} | {own / whole:.1%} | {share:.1%} | {kept} | {found['parameters'][name]:,} | {before} | {after} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Run what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True, help="folder for the table, checkpoints and results")
    parser.add_argument("--weights", required=True, help="file name of ResNet-56's checkpoint")
    parser.add_argument("--share", type=float, default=0.5, help="of the latency; default 0.5")
    parser.add_argument("--score", default="gamma:log", help="a name, or fisher (clause 1)")
    parser.add_argument("--repair", action="store_true", help="refit weights after the cut (clause 1)")
    parser.add_argument("--steps", type=int, default=160)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--rate", type=float, default=0.02)
    parser.add_argument("--test", type=int, default=4000, help="test images")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="begin nothing new after that time")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    found = run(options)
    print(f"{machine.line()}\n{shown(found, options)}")


if __name__ == "__main__":
    main()
