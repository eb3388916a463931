"""The report's figures for papers, drawn by matplotlib (``fxprune[report]``).

Each function takes a ``Story`` and returns a figure; ``save_figures`` writes them all. Sizes are inches: 3.5 is a column of most journals, 7 a page.
"""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fxprune.errors import FxpruneError
from fxprune.reporting.story import Story

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BEFORE, AFTER, REMOVED, CUT = "#b9c6d6", "#1668c4", "#d9822b", "#c2255c"
MOST_LABELS = 40


def _figure(width: float, height: float) -> tuple[Figure, Any]:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise FxpruneError("figures need matplotlib: pip install 'fxprune[report]'.", got="matplotlib") from error
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def widths(story: Story, width: float = 7.0, height: float = 2.4) -> Figure:
    """Output channels of every layer, before and after.

    Args:
        story: what ``fxprune.reporting.story.story`` gave.
        width: inches.
        height: inches.

    Raises:
        FxpruneError: matplotlib is not installed.
    """
    figure, axes = _figure(width, height)
    rows = [layer for layer in story.layers if layer.before > 0]
    places = range(len(rows))
    axes.bar(places, [row.before for row in rows], width=0.85, color=BEFORE if story.slim else AFTER, label="before")
    if story.slim:
        axes.bar(places, [max(row.after, 0) for row in rows], width=0.85, color=AFTER, label="after")
        axes.legend(frameon=False, ncols=2, loc="lower right", bbox_to_anchor=(1, 1))
    axes.set_ylabel("channels")
    axes.margins(x=0.01)
    if len(rows) <= MOST_LABELS:
        axes.set_xticks(list(places), [row.name for row in rows], rotation=60, ha="right", fontsize=7)
    else:
        axes.set_xlabel("layer, in program order")
    return figure


def scores(story: Story, group: str = "", width: float = 3.5, height: float = 2.4) -> Figure:
    """Histogram of the scores of a group (all groups: ""), what goes and what stays, with the cut.

    Args:
        story: what ``fxprune.reporting.story.story`` gave.
        group: name of a group.
        width: inches.
        height: inches.

    Raises:
        FxpruneError: matplotlib is not installed, or the story has no such group.
    """
    found = next((histogram for histogram in story.ranking if histogram.group == group), None)
    if found is None:
        names = ", ".join(repr(histogram.group) for histogram in story.ranking[1:4])
        raise FxpruneError(f"there are no scores of a group {group!r}; groups are {names or 'none'}, ...", got=group)
    figure, axes = _figure(width, height)
    edges, step = found.edges, (found.high - found.low) / len(found.kept) or 1.0
    axes.bar(edges[:-1], found.removed, width=step, align="edge", color=REMOVED, label="go")
    axes.bar(edges[:-1], found.kept, width=step, align="edge", bottom=found.removed, color=AFTER, label="stay")
    if not math.isnan(found.cut):
        axes.axvline(found.cut, color=CUT, linestyle="--", linewidth=1, label="cut")
    axes.set_xlabel(f"score ({story.score})")
    axes.set_ylabel("coupled channels")
    axes.legend(frameon=False)
    return figure


def costs(story: Story, width: float = 3.5, height: float = 2.0) -> Figure:
    """What is left of channels, parameters, MACs, bytes and latency, as shares of the original.

    Args:
        story: of a slim model.
        width: inches.
        height: inches.

    Raises:
        FxpruneError: matplotlib is not installed, or the model is not slim.
    """
    if not story.slim:
        raise FxpruneError("this model is not slim: there is no before and after.", got=story.model)
    shares = [(cost.name, cost.after / cost.before) for cost in story.costs if cost.before > 0]
    if len(story.latency) == 2:
        shares.append(("latency", 1 / story.latency[1].speedup))
    figure, axes = _figure(width, height)
    places = range(len(shares))
    axes.barh(places, [100] * len(shares), color=BEFORE)
    axes.barh(places, [100 * share for _, share in shares], color=AFTER)
    for place, (_, share) in zip(places, shares, strict=True):
        axes.text(101, place, f"{share:.0%}", va="center", fontsize=8)
    axes.set_yticks(list(places), [name for name, _ in shares])
    axes.invert_yaxis()
    axes.set_xlabel("left, % of the original")
    return figure


def couplings(story: Story, width: float = 5.0, height: float = 5.0) -> Figure:
    """Layers on a circle in the order of the program, couplings as lines through it.

    Args:
        story: what ``fxprune.reporting.story.story`` gave.
        width: inches.
        height: inches.

    Raises:
        FxpruneError: matplotlib is not installed.
    """
    from matplotlib.collections import LineCollection

    figure, axes = _figure(width, height)
    layers, links = story.couplings.layers, story.couplings.links
    angles = [2 * math.pi * i / max(1, len(layers)) for i in range(len(layers))]
    places = [(math.sin(a), math.cos(a)) for a in angles]
    curves = []
    for link in links:
        (x, y), (u, v) = places[link.left], places[link.right]
        steps = [i / 12 for i in range(13)]  # a quadratic curve, drawn to the middle of the circle
        curves.append(
            [
                (
                    (1 - t) ** 2 * x + t**2 * u + t * (1 - t) * (x + u) * 0.8,
                    (1 - t) ** 2 * y + t**2 * v + t * (1 - t) * (y + v) * 0.8,
                )
                for t in steps
            ]
        )
    axes.add_collection(LineCollection(curves, colors="#66717f", linewidths=0.4, alpha=0.25 if len(links) > 800 else 0.5))
    colours = [AFTER if layer.free == layer.width else REMOVED if layer.free else "#7b8794" for layer in layers]
    axes.scatter([x for x, _ in places], [y for _, y in places], s=8, c=colours, zorder=2)
    if len(layers) <= MOST_LABELS:
        for layer, (x, y), angle in zip(layers, places, angles, strict=True):
            turn = 90 - math.degrees(angle)
            flip = x < 0
            axes.text(
                1.06 * x,
                1.06 * y,
                layer.name,
                rotation=turn + 180 * flip,
                ha="right" if flip else "left",
                va="center",
                rotation_mode="anchor",
                fontsize=6,
            )
    axes.set_aspect("equal")
    axes.axis("off")
    axes.margins(0.25 if len(layers) <= MOST_LABELS else 0.05)
    return figure


def save_figures(story: Story, folder: str | os.PathLike[str], suffix: str = ".pdf") -> tuple[Path, ...]:
    """Write all figures that the story has numbers for.

    Args:
        story: what ``fxprune.reporting.story.story`` gave.
        folder: where they go; it is made if it is not there.
        suffix: ``.pdf``, ``.svg``, ``.png`` or another that matplotlib knows.

    Returns:
        The files.

    Raises:
        FxpruneError: matplotlib is not installed.
    """
    place = Path(folder)
    place.mkdir(parents=True, exist_ok=True)
    drawn = {"widths": widths(story), "couplings": couplings(story)}
    if story.ranking:
        drawn["scores"] = scores(story)
    if story.slim:
        drawn["costs"] = costs(story)
    written = []
    for name, figure in drawn.items():
        file = place / f"{name}{suffix}"
        figure.savefig(file, dpi=200)
        written.append(file)
    return tuple(written)
