"""Curves as a matplotlib figure, and tables as plain text."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from rich.console import Console, RenderableType

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def figure(lines: Mapping[str, Sequence[tuple[float, float]]], *, across: str, up: str, level: float) -> Figure:
    """One curve per name, a dashed line at ``level``.

    Raises:
        ImportError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("plotting needs matplotlib; install it: pip install 'fxprune[plot]'.") from error
    made = Figure(figsize=(7, 4.5), layout="constrained")
    axes = made.add_subplot()
    for name, points in lines.items():
        axes.plot([x for x, _ in points], [y for _, y in points], marker="o", markersize=3, linewidth=1.2, label=name)
    axes.axhline(level, color="0.5", linestyle="--", linewidth=0.8)
    axes.set(xlabel=across, ylabel=up)
    if lines:
        axes.legend(fontsize="small", ncols=1 + len(lines) // 16)
    return made


def as_text(table: RenderableType) -> str:
    """What rich draws, without colours, 120 columns wide."""
    text = io.StringIO()
    Console(width=120, file=text, color_system=None).print(table)
    return text.getvalue().rstrip()
