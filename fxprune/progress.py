"""A progress bar for what takes more than a moment, on standard error."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


@contextmanager
def steps(what: str, total: int, *, show: bool = True) -> Iterator[Callable[[str], None]]:
    """A bar of ``total`` steps; call what it gives with a few words after every step. Nothing is drawn where nobody watches."""
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[now]}"),
    )
    with Progress(*columns, console=console, transient=True, disable=not (show and console.is_terminal)) as progress:
        task = progress.add_task(what, total=total, now="")

        def step(now: str = "") -> None:
            progress.update(task, advance=1, now=now)

        yield step
