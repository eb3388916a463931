"""What the commands say: results to the standard output, everything else to the standard error output."""

from __future__ import annotations

import functools
import json
import math
import os
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NoReturn

import typer
from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from fxprune.errors import FxpruneError, FxpruneWarning

REFUSED, DEFECT = 1, 3


def out() -> Console:
    """The console of results."""
    return Console(highlight=False)


def aside() -> Console:
    """The console of progress, warnings and errors."""
    return Console(stderr=True, highlight=False)


def answer(command: str, data: Mapping[str, Any], *, as_json: bool, shown: Callable[[], RenderableType | None]) -> None:
    """Print a command's result: its data as JSON, or what is shown to people."""
    if as_json:
        _write(json.dumps({"command": command, **plain(data)}, indent=2, allow_nan=False) + "\n")
        return
    found = shown()
    if found is not None:
        out().print(found)


def _write(text: str) -> None:
    """To the standard output; where torchrun started several processes, the first one's answer is that of all."""
    if os.environ.get("RANK", "0") == "0":
        sys.stdout.write(text)


def plain(value: Any) -> Any:
    """Data that JSON knows: NaN and infinities become null, tuples lists, keys texts."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, (bool, int, str)):
        return value
    return str(value)


@contextmanager
def busy(what: str) -> Iterator[None]:
    """Show what is being done, and for how long, while it is done; nothing where nobody watches."""
    console = aside()
    if not console.is_terminal:
        yield
        return
    with Progress(SpinnerColumn(), TextColumn(what), TimeElapsedColumn(), console=console, transient=True) as progress:
        progress.add_task("")
        yield


@contextmanager
def counted(what: str, total: int) -> Iterator[Callable[[], None]]:
    """A progress bar; what is yielded moves it on by one."""
    console = aside()
    columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("", total=total)
        yield lambda: progress.advance(task)


def command(function: Callable[..., None]) -> Callable[..., None]:
    """A command whose errors are told as module docstring clause 2 of the package says."""

    @functools.wraps(function)
    def told(*args: Any, **options: Any) -> None:
        as_json = bool(options.get("as_json"))
        with warnings.catch_warnings():
            warnings.showwarning = _warned
            warnings.simplefilter("always", FxpruneWarning)
            try:
                function(*args, **options)
            except FxpruneError as error:
                _refused(error, as_json=as_json)
            except (typer.Exit, typer.Abort, typer.BadParameter, KeyboardInterrupt, SystemExit):
                raise
            except Exception as error:
                if type(error).__module__.startswith(("click", "typer")):
                    raise
                traceback.print_exc()
                raise typer.Exit(DEFECT) from error

    return told


def _refused(error: FxpruneError, *, as_json: bool) -> NoReturn:
    kind = type(error).__name__
    if as_json:
        facts = {"type": kind, "message": str(error), "node": error.node, "expected": error.expected, "got": error.got}
        _write(json.dumps({"error": plain(facts)}, indent=2) + "\n")
    aside().print(f"[bold red]{kind}:[/] ", end="", soft_wrap=True)
    aside().print(str(error), markup=False, soft_wrap=True)
    raise typer.Exit(REFUSED)


def _warned(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
    if issubclass(category, FxpruneWarning):
        aside().print("[bold yellow]warning:[/] ", end="")
        aside().print(str(message), markup=False, soft_wrap=True)
