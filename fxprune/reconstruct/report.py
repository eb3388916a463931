"""What reconstruction did, layer by layer.

1. The *relative error* of a layer is the root of the mean squared difference between what it puts out and what is wanted of it, over that of the
   wanted outputs from their mean: 0 is exact, 1 is no better than a constant. It is that of the calibration rows.
2. ``before`` is with the surviving weights as they were, ``after`` with the refitted ones. NaN: not measured (nothing was refitted).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from rich.console import Console, Group
from rich.table import Table
from rich.text import Text
from torch import fx

from fxprune.errors import PlanMismatchError

META = "fxprune_reconstruction"
WIDTH = 130


@dataclass(frozen=True, slots=True)
class Layer:
    """One refitted (or merely cut) layer.

    Attributes:
        name: the layer that lost inputs.
        producer: who made the channels that went, "" where that was not asked.
        inputs: input channels in the original.
        kept: input channels that are left.
        before: relative error without a refit (clauses 1 and 2).
        after: relative error as it is.
        penalty: the LASSO's lambda, 0 where it did not choose.
        rows: calibration rows.
        seconds: CPU seconds of this process, the passes over the images included.
        bytes: memory of the moments.
        note: what a reader should know.
    """

    name: str
    producer: str
    inputs: int
    kept: int
    before: float
    after: float
    penalty: float = 0.0
    rows: int = 0
    seconds: float = 0.0
    bytes: int = 0
    note: str = ""


@dataclass(frozen=True, slots=True)
class Report:
    """Layers in the order in which they were treated, and groups that were not, with the reason.

    Attributes:
        layers: see ``Layer``.
        skipped: names of producers or layers, and why their channels were left.
        how: who chose the channels, and whether weights were refitted.
    """

    layers: tuple[Layer, ...]
    skipped: tuple[tuple[str, str], ...] = ()
    how: str = ""

    def __rich__(self) -> Group:
        """The report as tables."""
        table = Table(title=f"reconstruction: {self.how}", title_justify="left")
        for name in ("layer", "loses channels of"):
            table.add_column(name, overflow="fold")
        for name in ("inputs", "error before", "after", "lambda", "rows", "seconds", "MB"):
            table.add_column(name, justify="right", no_wrap=True)
        notes = any(layer.note for layer in self.layers)
        if notes:
            table.add_column("note", overflow="fold")
        for layer in self.layers:
            cells = (
                f"{layer.inputs} -> {layer.kept}",
                *(_share(value) for value in (layer.before, layer.after)),
                f"{layer.penalty:.2g}" if layer.penalty else "",
                f"{layer.rows:,}" if layer.rows else "",
                f"{layer.seconds:.2f}",
                f"{layer.bytes / 1e6:.1f}" if layer.bytes else "",
                *((Text(layer.note),) if notes else ()),
            )
            table.add_row(Text(layer.name), Text(layer.producer), *cells)
        return Group(table, *(Text(f"left as it was: {name}: {why}") for name, why in self.skipped))

    def __str__(self) -> str:
        console = Console(width=WIDTH, color_system=None, force_terminal=False)
        with console.capture() as captured:
            console.print(self.__rich__())
        return "\n".join(line.rstrip() for line in captured.get().splitlines())


def _share(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.4f}" if value >= 1e-4 or value == 0 else f"{value:.1e}"


def attach(module: fx.GraphModule, report: Report) -> None:
    """Keep a report on the module it tells of."""
    module.meta[META] = report


def report_of(module: Any) -> Report:
    """The report of a module that ``channel_prune`` or ``repair`` returned. It is not part of files that ``fxprune.save`` writes.

    Args:
        module: what they returned, or a copy.

    Returns:
        What was done to it.

    Raises:
        PlanMismatchError: the module carries none.
    """
    found = getattr(module, "meta", {}).get(META)
    if not isinstance(found, Report):
        raise PlanMismatchError(
            f"this {type(module).__name__} carries no report: it is not what channel_prune or repair returned.",
            got=type(module).__name__,
        )
    return found
