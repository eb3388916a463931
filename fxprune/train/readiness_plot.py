"""The picture of a ``Readiness``: sorted |gamma|, per norm and overall. Needs matplotlib."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from fxprune.train.readiness import Readiness

SMALLEST = 1e-6  # exact zeros have no place on a logarithmic scale; they are drawn here


def plot(found: Readiness) -> Figure:
    """One curve per norm and a bold one for all: x is the share of channels, y the |gamma| up to which they lie.

    Raises:
        ImportError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("plotting needs matplotlib; install it: pip install 'fxprune[plot]'.") from error
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.add_subplot()
    for layer, values in zip(found.layers, found.values, strict=True):
        axes.plot(_shares(len(values)), values.clamp(min=SMALLEST).tolist(), color="0.7", linewidth=0.8, label=f"_{layer.name}")
    merged = torch.cat(found.values).sort().values
    axes.plot(_shares(len(merged)), merged.clamp(min=SMALLEST).tolist(), color="C0", linewidth=2.5, label="all norms")
    axes.axvline(found.spare, color="C3", linestyle="--", label=f"to spare: {found.spare:.0%}")
    axes.set(yscale="log", xlim=(0, 1), xlabel="share of channels", ylabel="|gamma|")
    axes.legend()
    return figure


def _shares(count: int) -> list[float]:
    return [(i + 1) / count for i in range(count)]
