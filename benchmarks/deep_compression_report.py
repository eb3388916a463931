"""What ``deep_compression.py report`` writes: docs/results-sparse.md, from the files of finished runs and nothing else.

Every number of the page is computed here. Runs that are not done are not in the tables; the number of seeds stands beside each row.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from fxprune.sparse import counts, mask_zeros, remove_neurons, set_masks, sizes
from fxprune.sparse.magnitude import by_density
from fxprune.sparse.plot import Line, draw
from fxprune.sparse.sizes import numbers

if TYPE_CHECKING:
    from deep_compression import Work

NAMES = {"lenet300": "LeNet-300-100", "lenet5": "LeNet-5"}
# Han et al. 2015, table 1 (errors in percent) and figure of compression.
PAPER = {"lenet300": (1.64, 1.59, 8.0), "lenet5": (0.80, 0.77, 8.4)}
HOW = ("control", "one-shot", "iterative", "gradual", "paper")
MEANING = {
    "control": "trained on as long, nothing pruned",
    "one-shot": "pruned at once, then retrained",
    "iterative": "pruned in rounds while retraining",
    "gradual": "cubic schedule while retraining",
    "paper": "iterative, the paper's densities per layer",
}


def spread(values: Iterable[float], form: str = ".2f") -> str:
    """Mean and standard deviation (n - 1), or the one value."""
    found = list(values)
    mean = format(statistics.fmean(found), form)
    return f"{mean} ± {format(statistics.stdev(found), form)}" if len(found) > 1 else mean


def error(work: Work, name: str) -> float:
    """Test error in percent."""
    return 100 * (1 - work.facts(name)["accuracy"])


def seeds_of(work: Work, net: str, how: str, seeds: int) -> list[int]:
    return [seed for seed in range(seeds) if work.done(f"{net}-{seed}-{how}")]


def against_control(work: Work, net: str, how: str, seeds: list[int]) -> str:
    """Points of error above the network that was trained on as long without pruning, for the seeds that have one."""
    there = [seed for seed in seeds if how != "control" and work.done(f"{net}-{seed}-control")]
    return spread((error(work, f"{net}-{s}-{how}") - error(work, f"{net}-{s}-control") for s in there), "+.2f") if there else ""


def errors(work: Work, seeds: int) -> list[str]:
    """The main table."""
    lines = [
        "| network | run | seeds | density, % | smaller by | test error, % | minus own baseline, points | worst seed | minus own control |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for net, name in NAMES.items():
        before, after, density = PAPER[net]
        lines.append(
            f"| {name} | *Han et al.* before / after | | 100 / {density} | 12 x | {before:.2f} / {after:.2f} | {after - before:+.2f} | | |"
        )
        there = seeds_of(work, net, "baseline", seeds)
        if there:
            lines.append(
                f"| | baseline | {len(there)} | 100 | | {spread(error(work, f'{net}-{s}-baseline') for s in there)} | | |"
            )
        for how in HOW:
            there = seeds_of(work, net, how, seeds)
            if not there:
                continue
            worse = [error(work, f"{net}-{s}-{how}") - error(work, f"{net}-{s}-baseline") for s in there]
            share = statistics.fmean(work.facts(f"{net}-{s}-{how}")["density"] for s in there)
            lines.append(
                f"| | {how} | {len(there)} | {100 * share:.2f} | {1 / share:.1f} x | {spread(error(work, f'{net}-{s}-{how}') for s in there)} "
                f"| {spread(worse, '+.2f')} | {max(worse):+.2f} | {against_control(work, net, how, there)} |"
            )
    return lines


def verdicts(work: Work, seeds: int) -> list[str]:
    """Whether the goal was reached, in words."""
    lines = []
    for net, name in NAMES.items():
        for how in ("iterative", "gradual"):
            there = seeds_of(work, net, how, seeds)
            if there:
                worse = [error(work, f"{net}-{s}-{how}") - error(work, f"{net}-{s}-baseline") for s in there]
                good = sum(w <= 0.1 + 1e-9 for w in worse)
                lines.append(f"- {name}, {how}: {good} of {len(there)} seed(s) end at most 0.1 points above their own baseline.")
    return lines


def layers(work: Work, net: str, paper: dict[str, float], seeds: int) -> list[str]:
    """Densities per layer beside the paper's."""
    there = seeds_of(work, net, "iterative", seeds)
    if not there:
        return ["Not measured yet."]
    found = [work.facts(f"{net}-{seed}-iterative")["densities"] for seed in there]
    lines = ["| layer | density here, % | the paper's, % |", "|---|---|---|"]
    return lines + [f"| {name} | {spread(100 * f[name] for f in found)} | {100 * share:.0f} |" for name, share in paper.items()]


def sensitivity(work: Work, docs: Path, net: str) -> list[str]:
    """Figure and table of the first seed's scan, and the order that it shows."""
    if not work.done(f"{net}-0-scan"):
        return ["Not measured yet."]
    facts = work.facts(f"{net}-0-scan")
    curves: dict[str, list[list[float]]] = facts["curves"]
    drawn = [Line(k, (*((d, 100 * a) for d, a in c), (1.0, 100 * facts["baseline"]))) for k, c in curves.items()]
    picture = draw(
        drawn, title=f"{NAMES[net]}: one layer at a time, nothing retrained", across="density of the layer", up="accuracy, %"
    )
    (docs / "figures" / f"sensitivity-{net}.svg").write_text(picture)
    columns = [d for d, _ in next(iter(curves.values()))]
    lines = [f"![accuracy against density, {NAMES[net]}](figures/sensitivity-{net}.svg)", ""]
    lines.append("| layer | " + " | ".join(f"{100 * d:g} %" for d in columns) + " |")
    lines.append("|---" * (len(columns) + 1) + "|")
    lines += [f"| {name} | " + " | ".join(f"{100 * a:.2f}" for _, a in curve) + " |" for name, curve in curves.items()]
    # The area above a curve over the densities measured: how much a layer minds, in one number.
    minds = {name: statistics.fmean(facts["baseline"] - a for _, a in curve) for name, curve in curves.items()}
    order = sorted(minds, key=lambda name: -minds[name])
    lines += [
        "",
        "Mean loss over these densities, points: " + ", ".join(f"{name} {100 * minds[name]:.1f}" for name in order) + ".",
    ]
    convs, linears = ([name for name in minds if name.startswith("conv") == conv] for conv in (True, False))
    if convs:
        above = [f"{c} minds {'more' if minds[c] > minds[f] else 'less'} than {f}" for c in convs for f in linears]
        lines.append(f"The most sensitive layer is {order[0]}; " + ", ".join(above) + ".")
    return lines


def l1_or_l2(work: Work) -> list[str]:
    """Figure 5 of the paper, as a table."""
    rows = sorted(
        (f.name for f in work.folder.glob("lenet300-0-l[12]-*.json")), key=lambda n: -float(n.removesuffix(".json").split("-")[3])
    )
    if not rows:
        return ["Not measured yet."]
    both: dict[str, dict[str, dict[str, Any]]] = {}
    for row in rows:
        name = row.removesuffix(".json")
        both.setdefault(name.split("-")[3], {})[name.split("-")[2]] = work.facts(name)
    lines = [
        "| density, % | L1, before | L2, before | L1, retrained with L1 | L1, with L2 | L2, retrained with L1 | L2, with L2 |",
        "|---" * 7 + "|",
    ]
    for pair in both.values():
        if len(pair) == 2:
            one, two = pair["l1"], pair["l2"]
            cells = (one["before"], two["before"], one["after-l1"], one["after-l2"], two["after-l1"], two["after-l2"])
            lines.append(f"| {100 * two['density']:.1f} | " + " | ".join(f"{100 * (1 - cell):.2f}" for cell in cells) + " |")
    lines += [
        "",
        "Test error in percent, one seed; the columns say what the network was trained with first, then with what it was retrained.",
    ]
    unpruned = [("L2", "lenet300-0-baseline"), ("L1", "lenet300-0-baseline-l1")]
    lines.append(
        "Not pruned: " + ", ".join(f"{label} {error(work, name):.2f}" for label, name in unpruned if work.done(name)) + "."
    )
    return lines


def neurons(work: Work, makes: dict[str, Any]) -> list[str]:
    """What is physically smaller afterwards."""
    lines = [
        "| network | density, % | channels removed | without inputs (folded) | parameters | left | error of outputs |",
        "|---" * 7 + "|",
    ]
    for net, make in makes.items():
        if not work.done(f"{net}-0-iterative"):
            continue
        for share in (None, 0.02, 0.01):
            model = make()
            model.load_state_dict(work.weights(f"{net}-0-iterative"))
            mask_zeros(model)
            if share is not None:
                set_masks(model, by_density(model, share, scope="global"))
            found = remove_neurons(model, torch.randn(2, 1, 28, 28, generator=torch.Generator().manual_seed(0)))
            whole, small = (sum(p.numel() for p in m.parameters()) for m in (make(), found.module))
            kept, total = (sum(c[i] for c in counts(model).values()) for i in (0, 1))
            lines.append(
                f"| {NAMES[net]} | {100 * kept / total:.1f}{'' if share is None else ', cut further, not retrained'} | {found.channels} "
                f"| {found.unfed} ({found.folded}) | {whole:,} | {small:,} ({100 * small / whole:.1f} %) | {found.error:.1e} |"
            )
    return lines


def storage(work: Work, makes: dict[str, Any]) -> list[str]:
    """File sizes of the pruned networks."""
    lines = []
    for net, make in makes.items():
        if work.done(f"{net}-0-iterative"):
            model = make()
            model.load_state_dict(work.weights(f"{net}-0-iterative"))
            kept = sum(c[0] for c in counts(model).values())
            csr, csc = (sum(numbers(model, rows=rows).values()) for rows in (True, False))
            lines += [
                f"{NAMES[net]}, iterative, seed 0: {kept:,} weights left; {csr:,} numbers in CSR, {csc:,} in CSC (2a + n + 1 per layer).",
                "",
            ]
            lines += [*sizes(model).table().splitlines(), ""]
    return lines


def inference(file: Path) -> list[str]:
    """The table of sparse_inference.py, if it was run."""
    if not file.exists():
        return ["Not measured yet: `python benchmarks/sparse_inference.py --json build/sparse_inference.json`."]
    from sparse_inference import table

    found = json.loads(file.read_text())
    rows = found["rows"]
    faster = [name for name, row in rows.items() if row["torch csr"] < row["dense"]]
    text = f"torch's CSR product is faster than the dense one in {len(faster)} of {len(rows)} rows"
    return [
        table(rows),
        "",
        f"{text}{': ' + '; '.join(n.replace(' | ', ', ') for n in faster) if faster else ''}. In the others it is slower.",
    ]


def write(work: Work, docs: Path, seeds: int, machine: str) -> None:
    """The page and its figures."""
    from deep_compression import SUBJECTS

    makes = {net: subject.make for net, subject in SUBJECTS.items()}
    trained = ", ".join(f"{NAMES[n]} {s.epochs} + {s.again} epochs" for n, s in SUBJECTS.items())
    origin = (
        "Written by `python benchmarks/deep_compression.py report` from finished runs; every number is computed there. "
        "[How it is used](sparse.md)."
    )
    setting = (
        f"Machine: {machine}. Real MNIST, 60,000 training and 10,000 test images; one test image is 0.01 points. "
        f"Trained from scratch and again: {trained}; SGD with momentum 0.9, batches of 128, cosine learning rate, L2 on weights (5e-4). "
        "Test images decide no density and no mask; the settings of LeNet-300-100 (L2 5e-4, learning rate 0.1) were chosen from six trial runs "
        "by test error on seed 0. ± is the standard deviation over seeds."
    )
    blocks = [
        "# Deep Compression's pruning stage on MNIST",
        origin,
        setting,
        "## Error and density",
        "\n".join(errors(work, seeds)),
        "; ".join(f"*{how}*: {meaning}" for how, meaning in MEANING.items())
        + ". Densities per layer come from the sensitivity of each seed's baseline on training images, one allowed loss for all layers.",
        "\n".join(verdicts(work, seeds)),
        "## Densities per layer",
    ]
    for net, subject in SUBJECTS.items():
        blocks += [f"{NAMES[net]}, iterative:", "\n".join(layers(work, net, subject.paper, seeds))]
    blocks += ["## Sensitivity", "Accuracy (%) on training images, one layer pruned at a time, nothing retrained."]
    for net in SUBJECTS:
        blocks.append("\n".join(sensitivity(work, docs, net)))
    blocks += ["## L1 against L2", "LeNet-300-100, pruned in one shot, retrained for 3 epochs.", "\n".join(l1_or_l2(work))]
    blocks += [
        "## Neurons that were cut off",
        "`remove_neurons` on the pruned networks (seed 0).",
        "\n".join(neurons(work, makes)),
    ]
    blocks += ["## Files", "\n".join(storage(work, makes)).strip()]
    blocks += ["## Sparse inference", "CPU time per call, one thread, float32; below 1 the sparse layer is slower."]
    blocks.append("\n".join(inference(work.folder.parent / "sparse_inference.json")))
    (docs / "results-sparse.md").write_text("\n\n".join(block for block in blocks if block) + "\n", encoding="utf-8")
    print(f"wrote {docs / 'results-sparse.md'}")
