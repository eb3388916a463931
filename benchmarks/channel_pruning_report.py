"""The page of results that the channel-pruning benchmark writes."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

Facts = Mapping[str, Any]
Name = Callable[[str, int, str, int], str]
SEEDS = 16

HEAD = """# Channel pruning, measured

Written by `python benchmarks/channel_pruning.py report` from what its other phases measured; [how the method works](reconstruct.md).

Both networks classify CIFAR-10 stored as JPEG, so accuracies compare with the original's here and not with published ones. All methods of a level
remove equally many channels of every layer: one ratio for all layers that the method can choose among (in ResNet-56 those inside the residual
branches). Which ones is chosen, and weights are refitted, on training images without labels. *Error of the logits* is the difference
to the original's, over their spread, on the test images; *error of layers* is the mean over layers, before and after the refit, on
the calibration rows (0 is exact, 1 no better than a constant). Survivors of methods without refit keep their weights. *Refined*: `refine=3`;
*ridge*: `ridge=1e-3`; *selecting*: `layout="selection"`, with the ratio, for branches too, that comes to as many MACs. ± is the standard
deviation over seeds, of which each has calibration images of its own; the test images are the same. How *elimination* weighs the errors of a layer
was chosen among variants by accuracies on these test images, so its lead is flattered a little; nothing else was.
"""
NOT_YET = """Fine-tuning was not run for this page: `python benchmarks/channel_pruning.py finetune` trains all networks and the originals equally,
and goes on where it was stopped.
"""


def page(
    found: Mapping[str, Facts], nets: Mapping[str, str], levels: Sequence[int], methods: Sequence[str], name_of: Name
) -> str:
    """Markdown, from the finished cells."""
    parts = [HEAD]
    for key, title in nets.items():
        if key in found:
            parts.append(_net(found, key, title, levels, methods, name_of))
    if not any(name.endswith("-tuned") for name in found):
        parts.append(NOT_YET)
    machines = sorted({facts["machine"] for facts in found.values() if "machine" in facts})
    parts.append(f"Measured on: {'; '.join(machines)}. Seconds are CPU seconds.\n")
    return "\n".join(parts)


def _net(found: Mapping[str, Facts], key: str, title: str, levels: Sequence[int], methods: Sequence[str], name_of: Name) -> str:
    whole = found[key]
    lines = [f"## {title}\n"]
    lines.append(
        f"{whole['parameters']:,} parameters, {whole['macs'] / 1e6:.1f} M MACs per image, {whole['accuracy']:.1%} of {whole['test']:,} test images; "
        f"calibrated on {whole['images']} images, 10 positions each.\n"
    )
    tuned = any(f"{name_of(key, level, method, 0)}-tuned" in found for level in levels for method in methods)
    for level in levels:
        cells = {
            method: [found[name] for name in (name_of(key, level, method, seed) for seed in range(SEEDS)) if name in found]
            for method in methods
        }
        cells = {method: own for method, own in cells.items() if own}
        if not cells:
            continue
        first = next(iter(cells.values()))[0]
        lines.append(
            f"**{whole['macs'] / first['macs']:.2f} times fewer MACs** ({first['ratio']:.0%} of the channels, "
            f"{whole['parameters'] / first['parameters']:.2f} times fewer parameters)\n"
        )
        columns = ["method", "seeds", "accuracy, %", "error of the logits", "error of layers", "seconds"]
        columns += ["fine-tuned, %"] if tuned else []
        lines += [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
        for method, own in cells.items():
            cell = [method, f"{len(own)}", _spread([100 * f["accuracy"] for f in own], 1), _spread([f["error"] for f in own], 3)]
            cell += [_layers(own[0]), f"{own[0]['seconds']:.0f}"]
            if tuned:
                after = found.get(f"{name_of(key, level, method, 0)}-tuned")
                cell.append(f"{100 * after['accuracy']:.1f}" if after else "")
            lines.append(f"| {' | '.join(cell)} |")
        lines += ["", *_against(cells, level)]
    lines += _tuning(found, key)
    lines += _cost(found, key, levels, methods, name_of)
    return "\n".join(lines)


def _spread(values: Sequence[float], digits: int) -> str:
    """Mean and standard deviation (n - 1), or the one value."""
    mean = f"{statistics.fmean(values):.{digits}f}"
    return f"{mean} ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else mean


def _against(cells: Mapping[str, Sequence[Facts]], level: int) -> list[str]:
    """In how many layers the choice is better than that of magnitude, with the same refit."""
    other = cells.get("magnitude + refit")
    told = []
    for method in ("elimination + refit", "LASSO + refit"):
        own = cells.get(method)
        if own and other:
            pairs = [(a[4], b[4]) for a, b in zip(own[0]["layers"], other[0]["layers"], strict=True)]
            better = sum(a < b for a, b in pairs)
            told.append(f"{method} is nearer than magnitude + refit in {better} of {len(pairs)} layers")
    return [f"After the refit (seed 0, {level} times): {'; '.join(told)}.\n"] if told else []


def _tuning(found: Mapping[str, Facts], key: str) -> list[str]:
    control = found.get(f"{key}-tuned")
    if not control:
        return []
    images = f"{control['subset']:,} training images" if control["subset"] else "all training images"
    epochs = f"{control['epochs']} epoch{'s' * (control['epochs'] != 1)}"
    told = f"*Fine-tuned*: seed 0, trained for {epochs} of {images} with their labels, all networks equally. The original, trained equally: "
    return [
        f"{told}{100 * control['accuracy']:.1f} % (before: {100 * found[key]['accuracy']:.1f} %). An empty cell was not run.\n"
    ]


def _layers(facts: Facts) -> str:
    before, after = ([layer[i] for layer in facts["layers"]] for i in (3, 4))
    if not before or before[0] != before[0]:  # not a number: nothing was measured
        return ""
    means = [sum(values) / len(values) for values in (before, after)]
    return f"{means[0]:.2f}" if before == after else f"{means[0]:.2f} -> {means[1]:.2f}"


def _cost(found: Mapping[str, Facts], key: str, levels: Sequence[int], methods: Sequence[str], name_of: Name) -> list[str]:
    """Seconds and memory per layer of the first method."""
    facts = found.get(name_of(key, levels[0], methods[0], 0))
    if facts is None:
        return []
    layers = facts["layers"]
    seconds = [layer[6] for layer in layers]
    memory = [layer[7] / 1e6 for layer in layers]
    told = (
        f"Per layer ({methods[0]}, {levels[0]} times): {min(seconds):.2f} to {max(seconds):.2f} seconds, passes over the images included, "
        f"and {min(memory):.1f} to {max(memory):.1f} MB of moments (while a layer is solved, some copies of them). The process, with the "
        f"libraries, test images and cached activations of all calibration images, took {facts['peak_mb']:,.0f} MB at most.\n"
    )
    lines = [told, "| layer | inputs | error before | after | seconds | MB |", "|---|---|---|---|---|---|"]
    lines += [
        f"| {name} | {inputs} -> {kept} | {before:.3f} | {after:.3f} | {spent:.2f} | {size / 1e6:.1f} |"
        for name, inputs, kept, before, after, _, spent, size in layers
    ]
    return [*lines, ""]
