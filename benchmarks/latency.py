"""Slim networks at equal MACs, timed beside those of torch-pruning and torch-kirigami.

    python benchmarks/latency.py --file latency.json                     # everything: some hours on one core
    python benchmarks/latency.py --file latency.json --minutes 5         # in pieces: goes on where it stopped
    python benchmarks/latency.py --file latency.json --show              # the tables of what is there
    python benchmarks/latency.py --predict --networks resnet50           # latency tables against measurements

1. A *cell* is a network, a share of the MACs, a runtime and a batch size. Its sides (latency_sides.py) are timed in one process, in turns
   (fxprune/timing.py). With one thread the clock is the CPU time of that thread, which other processes on the machine disturb little.
2. fxprune's networks are deployed: eager ones for the batch size in question, folded ones for compilers. The peers' networks run as they come.
   Under torch.compile all are compiled for the batch size; ONNX Runtime gets the dynamo exporter's file, with a dynamic batch.
3. The *speed-up realised* is the original's latency over the slim one's, and its share of the MAC reduction says how much of what was saved is
   felt. The original is taken as it is, and deployed as well (in the runtime in question): what ``deploy`` gains counts in the first only.
4. A side that fails, and one that was left out, is in the cell with the reason.
5. *fxprune fastest*: ``fxprune.quickest`` for the same MACs and score, by that runtime.
6. ``--predict`` compares a latency table with networks slimmed at random by ratios 0.3, 0.5 and 0.7, with widths as they fall and with multiples of
   8: the predicted time over the measured one, and the predicted over the measured share of the original's time.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
import zlib
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import latency_sides as sides
import machine
import torch
from networks import torchvision_network
from torch import Tensor, nn

import fxprune
from fxprune.io.atomic import replacing
from fxprune.latency import measure
from fxprune.timing import interleaved, typical

NETWORKS = ("resnet50", "vgg16_bn", "densenet121", "mobilenet_v2")
SHARES = (0.5, 0.25)
RUNTIMES = ("eager", "onnx", "compile")
RATIOS = (0.3, 0.5, 0.7)
ORIGINAL, DEPLOYED = "original", "original deployed"
LONG = 0.5  # seconds of a call, of which fewer are timed
FEW = 3

Call = Callable[[], object]


def cell(network: str, share: float, runtime: str, batch: int, options: argparse.Namespace) -> dict[str, Any]:
    """Clauses 1 to 5 for one cell."""
    torch.manual_seed(0)
    model, image = torchvision_network(network)
    shown = image.repeat(batch, 1, 1, 1)
    modules: dict[str, nn.Module] = {ORIGINAL: model, DEPLOYED: model}
    left, notes, absent = {ORIGINAL: 1.0, DEPLOYED: 1.0}, {}, {}
    for side in options.sides:
        try:
            own = side == sides.FASTEST
            found = (
                fastest(model, shown, runtime, f"{network}-{share:g}", share, options)
                if own
                else sides.made(side, network, share, options.nets)
            )
        except Exception as error:  # noqa: BLE001 - whatever a peer raises is a result
            absent[side] = f"{type(error).__name__}: {error}"
            continue
        modules[side], left[side], notes[side] = found.module, found.left, found.note
    torch._dynamo.reset()
    with torch.no_grad():
        made = {
            side: attempted(side, module, runtime, shown, options, f"{network}-{share:g}") for side, module in modules.items()
        }
        absent |= {side: found for side, found in made.items() if isinstance(found, str)}
        calls = {side: found for side, found in made.items() if not isinstance(found, str)}
        limit = options.seconds * len(calls)
        times = interleaved(list(calls.values()), torch.device("cpu"), limit, rounds(calls[ORIGINAL]))
    seconds = {side: typical(own) for side, own in zip(calls, times, strict=True)}
    place = {"network": network, "share": share, "runtime": runtime, "batch": batch, "threads": torch.get_num_threads()}
    return {**place, "seconds": seconds, "macs": left, "notes": notes, "absent": absent, "rounds": len(times[0])}


def fastest(model: nn.Module, image: Tensor, runtime: str, name: str, share: float, options: argparse.Namespace) -> sides.Side:
    """Clause 5."""

    def run(slim: nn.Module) -> Call:
        return call(sides.FASTEST, slim, runtime, image, options, name)

    budget = fxprune.Budget(macs=share)
    found = fxprune.quickest(
        model, image, budget, run=run, score="magnitude", round_to=options.multiples, seconds=options.seconds / 2, verify=False
    )
    best, first = max(one.kept for one in found.candidates), found.candidates[0]
    note = f"{first.name}: keeps {first.kept / best:.1%} of the best score"
    return sides.Side(found.model, sides.macs(found.model, image) / sides.macs(model, image), note)


def attempted(side: str, module: nn.Module, runtime: str, image: Tensor, options: argparse.Namespace, name: str) -> Call | str:
    """What is timed, or why there is none (clause 4): an exporter or compiler may fail too."""
    try:
        made = call(side, module, runtime, image, options, name)
        made()
    except Exception as error:  # noqa: BLE001
        return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
    return made


def rounds(original: Call) -> int:
    """Fewer where a call takes long."""
    start = time.perf_counter()
    original()
    return FEW if time.perf_counter() - start > LONG else 10_000


def call(side: str, module: nn.Module, runtime: str, image: Tensor, options: argparse.Namespace, name: str) -> Call:
    """What is timed (clause 2). The fastest differs from cell to cell: its file is named after its plan."""
    if side == sides.FASTEST:
        kept = json.dumps(fxprune.plan_of(module).kept, sort_keys=True)
        name = f"{name}-{zlib.crc32(kept.encode()):08x}"
    if side in sides.OURS or side == DEPLOYED:
        module = fxprune.deploy(module, image, seconds=options.seconds if runtime == "eager" else 0)
    if runtime == "onnx":
        name = name if side not in (ORIGINAL, DEPLOYED) else name.partition("-")[0]
        return session(module, image, options.nets / f"{name}-{side.replace(', ', '_').replace(' ', '_')}.onnx")
    return partial(torch.compile(module) if runtime == "compile" else module, image)


def session(model: nn.Module, image: Tensor, file: Path) -> Call:
    """A call of the model in ONNX Runtime."""
    import onnxruntime

    if not file.exists():
        shapes = ({0: torch.export.Dim("batch", min=1, max=1024)},)
        with replacing(file) as stream:
            torch.onnx.export(
                model, (image[:1].repeat(2, 1, 1, 1),), dynamo=True, dynamic_shapes=shapes, verbose=False, external_data=False
            ).save(stream)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.add_session_config_entry("session.force_spinning_stop", "1")  # or threads of one session spin while the next one runs
    made = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    return partial(made.run, None, {made.get_inputs()[0].name: image.numpy()})


def realised(row: dict[str, Any], side: str, original: str = ORIGINAL) -> float:
    """Clause 3."""
    return float(row["seconds"][original] / row["seconds"][side] * row["macs"][side])


def shown(rows: Sequence[dict[str, Any]]) -> str:
    """The cells as Markdown: milliseconds, share of the MACs, and what is felt of the reduction."""
    names = [ORIGINAL, DEPLOYED, *sides.SIDES]
    lines = [f"| network | MACs | runtime | batch | {' | '.join(names)} |", "|---" * (4 + len(names)) + "|"]
    for row in rows:
        own = []
        for side in names:
            if side in row["seconds"]:
                felt = (
                    "" if side in (ORIGINAL, DEPLOYED) else f" ({realised(row, side):.2f}, {realised(row, side, DEPLOYED):.2f})"
                )
                own.append(f"{1e3 * row['seconds'][side]:.2f}{felt}")
            else:
                own.append("-" if side not in row["absent"] else "failed")
        lines.append(f"| {row['network']} | {row['share']:g} | {row['runtime']} | {row['batch']} | {' | '.join(own)} |")
    for row in rows:
        place = f"{row['network']}, {row['share']:g}, {row['runtime']}, batch {row['batch']}"
        lines += [f"- {place}: {side}: {why}" for side, why in row["absent"].items()]
        if sides.FASTEST in row["notes"]:
            lines.append(f"- {place}: {sides.FASTEST}: {row['notes'][sides.FASTEST]}")
    return "\n".join(dict.fromkeys(lines))


def predict(network: str) -> dict[str, Any]:
    """Clause 6."""
    torch.manual_seed(0)
    model, image = torchvision_network(network)
    table = measure(model, image)
    plans: list[fxprune.Plan | None] = [None]
    modules = [fxprune.deploy(model, image, form=table.form)]
    for round_to in (1, 8):
        for ratio in RATIOS:
            slim = fxprune.slim(model, ratio, image, score="random", round_to=round_to, verify=False)
            plans.append(fxprune.plan_of(slim))
            modules.append(fxprune.deploy(slim, image, form=table.form))
    with torch.no_grad():
        times = interleaved([partial(module, image) for module in modules], torch.device("cpu"), 10)
    predicted, measured = [table.seconds(plan) for plan in plans], [typical(own) for own in times]
    return {
        "network": network,
        "threads": torch.get_num_threads(),
        "form": table.form,
        "alignment": table.alignment,
        "predicted": predicted,
        "measured": measured,
    }


def predictions(rows: Sequence[dict[str, Any]]) -> str:
    """Clause 6 as Markdown."""
    heads = ["original", *(f"{ratio:g}" for ratio in RATIOS), *(f"{ratio:g}, multiples of 8" for ratio in RATIOS)]
    lines = [f"| network | threads | {' | '.join(heads)} |", "|---" * (2 + len(heads)) + "|"]
    for row in rows:
        pairs = list(zip(row["predicted"], row["measured"], strict=True))
        whole = pairs[0][0] / pairs[0][1]
        cells = [f"{1e3 * a:.2f} / {1e3 * b:.2f} = {a / b:.2f} ({a / b / whole:.2f})" for a, b in pairs]
        lines.append(f"| {row['network']} | {row['threads']} | {' | '.join(cells)} |")
    return "\n".join(lines)


def read(file: Path | None) -> dict[str, Any]:
    """What was measured before."""
    return json.loads(file.read_text()) if file is not None and file.exists() else {"cells": {}, "predictions": {}}


def write(file: Path | None, found: dict[str, Any]) -> None:
    """All of it, at once."""
    if file is not None:
        with replacing(file) as stream:
            stream.write((json.dumps({**found, "machine": machine.facts()}, indent=1) + "\n").encode())


def wanted(options: argparse.Namespace) -> list[tuple[str, float, str, int]]:
    """The cells that were asked for, by runtime: the cheap ones first."""
    return [(n, s, r, b) for r in options.runtimes for b in options.batches for n in options.networks for s in options.shares]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="*", default=list(NETWORKS), help="torchvision classifiers")
    parser.add_argument("--shares", nargs="*", type=float, default=list(SHARES), help="of the MACs that are left")
    parser.add_argument("--batches", nargs="*", type=int, default=[1, 16])
    parser.add_argument("--runtimes", nargs="*", choices=RUNTIMES, default=list(RUNTIMES))
    parser.add_argument("--sides", nargs="*", choices=sides.SIDES, default=list(sides.SIDES))
    parser.add_argument("--multiples", nargs="*", type=int, default=[16, 32], help="of widths, for the fastest side (clause 5)")
    parser.add_argument("--seconds", type=float, default=2.0, help="of timing, per side of a cell; default 2")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--minutes", type=float, default=float("inf"), help="begin no cell after that time")
    parser.add_argument("--predict", action="store_true", help="latency tables against measurements (clause 6)")
    parser.add_argument("--show", action="store_true", help="measure nothing, print what is in the file")
    parser.add_argument(
        "--file", "--json", type=Path, metavar="FILE", help="where measurements are kept; what is there is not measured again"
    )
    parser.add_argument("--nets", type=Path, default=Path("latency-networks"), help="folder for slim networks, once made")
    options = parser.parse_args(arguments)

    torch.set_num_threads(options.threads)
    warnings.simplefilter("ignore")
    found = read(options.file)
    start = time.perf_counter()
    if options.predict and not options.show:
        for network in options.networks:
            key = f"{network}, {options.threads} threads"
            if key not in found["predictions"] and time.perf_counter() - start < 60 * options.minutes:
                found["predictions"][key] = predict(network)
                write(options.file, found)
                print(predictions([found["predictions"][key]]).splitlines()[-1], flush=True)
    for place in wanted(options) if not options.predict and not options.show else []:
        key = ", ".join(map(str, (*place, f"{options.threads} threads")))
        if key not in found["cells"] and time.perf_counter() - start < 60 * options.minutes:
            found["cells"][key] = cell(*place, options)
            write(options.file, found)
            print(shown([found["cells"][key]]).splitlines()[2], flush=True)
    print(machine.line())
    if found["predictions"]:
        print(predictions(list(found["predictions"].values())))
    print(shown(list(found["cells"].values())))


if __name__ == "__main__":
    main()
