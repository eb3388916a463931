"""The page of results that the channel-pruning benchmark writes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

Facts = Mapping[str, Any]
Name = Callable[[str, int, str], str]

HEAD = """# Channel pruning, measured

Written by `python benchmarks/channel_pruning.py report` from what its other phases measured; [how the method works](reconstruct.md).

Both networks classify CIFAR-10 stored as JPEG, so accuracies compare with the original's here and not with published ones. All methods of a level
remove equally many channels of every layer: one ratio for all layers that the method can choose among (in ResNet-56 those inside the residual
branches). Which ones is chosen, and weights are refitted, on training images without labels. *Error of the logits* is the difference
to the original's, over their spread, on the test images; *error of layers* is the mean over layers, before and after the refit, on
the calibration rows (0 is exact, 1 no better than a constant). Survivors of methods without refit keep their weights. *Refined*: `refine=3`;
*ridge*: `ridge=1e-3`. Plain least squares has too many unknowns for so few images in the widest layers: on 1,000 held-out training images the
error of the quarter-width VGG-16 at 4x came from single images that are far off.
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
    tuned = any(f"{name_of(key, level, method)}-tuned" in found for level in levels for method in methods)
    for level in levels:
        names = {method: name_of(key, level, method) for method in methods}
        cells = {method: found[name] for method, name in names.items() if name in found}
        if not cells:
            continue
        first = next(iter(cells.values()))
        lines.append(
            f"**{whole['macs'] / first['macs']:.2f} times fewer MACs** ({first['ratio']:.0%} of the channels, "
            f"{whole['parameters'] / first['parameters']:.2f} times fewer parameters)\n"
        )
        columns = ["method", "accuracy", "error of the logits", "error of layers", "seconds"]
        columns += ["accuracy, fine-tuned"] if tuned else []
        lines += [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
        for method, facts in cells.items():
            cell = [method, f"{facts['accuracy']:.1%}", f"{facts['error']:.3f}", _layers(facts), f"{facts['seconds']:.0f}"]
            if tuned:
                after = found.get(f"{names[method]}-tuned")
                cell.append(f"{after['accuracy']:.1%}" if after else "")
            lines.append(f"| {' | '.join(cell)} |")
        lines.append("")
    control = found.get(f"{key}-tuned")
    if control:
        lines.append(f"The original, trained equally: {control['accuracy']:.1%}.\n")
    lines += _cost(found, key, levels, methods, name_of)
    return "\n".join(lines)


def _layers(facts: Facts) -> str:
    before, after = ([layer[i] for layer in facts["layers"]] for i in (3, 4))
    if not before or before[0] != before[0]:  # not a number: nothing was measured
        return ""
    means = [sum(values) / len(values) for values in (before, after)]
    return f"{means[0]:.2f}" if before == after else f"{means[0]:.2f} -> {means[1]:.2f}"


def _cost(found: Mapping[str, Facts], key: str, levels: Sequence[int], methods: Sequence[str], name_of: Name) -> list[str]:
    """Seconds and memory per layer of the first method."""
    facts = found.get(name_of(key, levels[0], methods[0]))
    if facts is None:
        return []
    layers = facts["layers"]
    seconds = [layer[6] for layer in layers]
    memory = [layer[7] / 1e6 for layer in layers]
    told = (
        f"Per layer ({methods[0]}, {levels[0]} times): {min(seconds):.2f} to {max(seconds):.2f} seconds, passes over the images included, "
        f"and {min(memory):.1f} to {max(memory):.1f} MB of moments. The process, with the libraries, test images and cached activations of all "
        f"calibration images, took {facts['peak_mb']:,.0f} MB at most.\n"
    )
    lines = [told, "| layer | inputs | error before | after | seconds | MB |", "|---|---|---|---|---|---|"]
    shown = layers if len(layers) <= 12 else layers[:: max(1, len(layers) // 9)]
    lines += [
        f"| {name} | {inputs} -> {kept} | {before:.3f} | {after:.3f} | {spent:.2f} | {size / 1e6:.1f} |"
        for name, inputs, kept, before, after, _, spent, size in shown
    ]
    if len(shown) < len(layers):
        lines.append(f"\n(one layer in {max(1, len(layers) // 9)}; there are {len(layers)})")
    return [*lines, ""]
