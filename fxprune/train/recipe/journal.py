"""What is seen of a run: a progress bar on a terminal, a line per epoch elsewhere, CSV, TensorBoard.

The CSV is a function of the run's state and is written with it, so after an interruption it has no row twice and none too few.
"""

from __future__ import annotations

import csv
import importlib
import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from fxprune.train.recipe.settings import Phase

Row = dict[str, float | int | str]


def csv_of(rows: Sequence[Row]) -> str:
    """Rows with a head; numbers in full precision."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]) if rows else [], lineterminator="\n")
    if rows:
        writer.writeheader()
        writer.writerows(rows)
    return text.getvalue()


def table_of(stages: Sequence[Row]) -> Table:
    """Every network of a run that was measured, beside the first."""
    table = Table(title="networks of this run", title_justify="left")
    for name in ("pass", "network", "test accuracy", "parameters", "", "MACs per image", " "):
        table.add_column(name, justify="left" if name == "network" else "right")
    for row in stages:
        smaller = [
            f"{float(row[key]) / float(stages[0][key]) - 1:+.1%}" if row is not stages[0] else ""
            for key in ("parameters", "macs")
        ]
        table.add_row(
            str(int(row["pass"]) + 1),
            str(row["stage"]),
            f"{float(row['test']):.2%}",
            f"{row['parameters']:,}",
            smaller[0],
            f"{row['macs']:,}",
            smaller[1],
        )
    return table


class Journal:
    """Shows a run. Processes other than the first have a silent one."""

    def __init__(self, console: Console | None, tensorboard: Path | None = None, rows: int = 0) -> None:
        """``console=None``: silent. ``tensorboard``: the folder of its event files; ``rows`` epochs are in them already."""
        self._console = console
        self._progress: Progress | None = None
        self._bar: Any = None
        self._writer = _writer(tensorboard, rows) if tensorboard is not None else None
        self._rows = rows

    def step(self, phase: Phase, epoch: int, step: int, steps: int) -> None:
        """A step was done."""
        if self._console is None or not self._console.is_terminal:
            return
        if self._progress is None:
            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
            self._progress = Progress(*columns, console=self._console)
            self._progress.start()
            self._bar = self._progress.add_task("", total=None)
        description = f"pass {phase.number + 1}, {phase.kind}"
        self._progress.update(self._bar, description=description, total=phase.epochs * steps, completed=epoch * steps + step)

    def epoch(self, row: Row) -> None:
        """An epoch was finished."""
        self._rows += 1
        if self._writer is not None:
            for name, value in row.items():
                if isinstance(value, float) and math.isfinite(value):
                    self._writer.add_scalar(f"{row['kind']}/{name}", value, self._rows)
            self._writer.flush()
        if self._progress is not None:
            self._progress.refresh()  # which else comes ten times a second, and an epoch may be shorter
        if self._console is not None:
            zero = float(row["below 1e-3"])
            more = "" if math.isnan(zero) else f", {zero:.0%} of gammas below 1e-3"
            self._console.print(
                f"pass {int(row['pass']) + 1} {row['kind']} epoch {int(row['epoch']) + 1}: loss {float(row['loss']):.4f}, "
                f"train {float(row['train']):.1%}, test {float(row['test']):.1%}{more}",
                highlight=False,
            )

    def say(self, text: object) -> None:
        """Print something."""
        if self._console is not None:
            self._console.print(text)

    def close(self) -> None:
        """Let go of the terminal and the files."""
        if self._progress is not None:
            self._progress.stop()
        if self._writer is not None:
            self._writer.close()


def _writer(folder: Path, rows: int) -> Any:
    for name in ("tensorboardX", "torch.utils.tensorboard"):
        try:
            writer: Any = importlib.import_module(name).SummaryWriter
        except ImportError:
            continue
        # What an interrupted run wrote beyond its last checkpoint is hidden. Files are named by the second, which two runs may share.
        return writer(str(folder), purge_step=rows + 1 if rows else None, filename_suffix=f".{rows}")
    raise ImportError("TensorBoard logs need tensorboardX or tensorboard; install one: pip install tensorboardX.")
