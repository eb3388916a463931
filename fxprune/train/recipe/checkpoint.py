"""A run's state, in one file that is always whole.

1. A file is written under another name in the same folder, flushed to the disk, and then renamed over the old one; the folder is
   flushed too. Whoever reads, and whenever the writer is killed, finds the old state or the new one. What a killed writer leaves behind is removed by
   the next run (``tidy``).
2. It holds tensors, numbers and texts only: ``torch.load(path, weights_only=True)`` reads it, so no code in it can run.
3. ``State`` is all that a run needs to go on: what follows from the settings is not in it, what was drawn at random is drawn from
   seeds that follow from the settings and the step.
"""

from __future__ import annotations

import io
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fxprune.errors import FxpruneError

STATE = "state.pt"
FORMAT = 1


@dataclass(slots=True)
class State:
    """Where a run is.

    Attributes:
        settings: as JSON.
        phase: number of the phase that is being trained; past the last one, the run is done.
        step: optimizer steps done in it.
        plan: what slimming has removed so far, as JSON; "" for nothing.
        model: state dict of the network.
        optimizer: its state dict; empty before the first step of a phase.
        sparsity: steps of the penalty.
        scaler: state dict of the gradient scaler; empty where gradients are not scaled.
        sums: loss, hits and images of the epoch so far.
        rows: one per finished epoch.
        stages: one per network that was measured: trained, slimmed, tuned.
    """

    settings: str
    phase: int = 0
    step: int = 0
    plan: str = ""
    model: dict[str, Tensor] = field(default_factory=dict)
    optimizer: dict[str, Any] = field(default_factory=dict)
    sparsity: dict[str, float | int] = field(default_factory=dict)
    scaler: dict[str, Any] = field(default_factory=dict)
    sums: list[float] = field(default_factory=lambda: [0.0, 0.0, 0.0])
    rows: list[dict[str, float | int | str]] = field(default_factory=list)
    stages: list[dict[str, float | int | str]] = field(default_factory=list)


def write_whole(path: Path, data: bytes) -> None:
    """Clause 1."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}.draft")
    try:
        with draft.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)
    if os.name == "posix":
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def tidy(folder: Path) -> None:
    """Remove drafts that nobody will finish."""
    for draft in folder.glob(".*.draft"):
        draft.unlink(missing_ok=True)


def save(path: Path, content: Mapping[str, Any]) -> None:
    """Clauses 1 and 2."""
    buffer = io.BytesIO()
    torch.save(dict(content), buffer)
    write_whole(path, buffer.getvalue())


def save_state(folder: Path, state: State) -> None:
    """Write a run's state."""
    save(folder / STATE, {"format": FORMAT} | {f.name: getattr(state, f.name) for f in fields(state)})


def load_state(folder: Path) -> State | None:
    """The state of the run in a folder, on the CPU; None if there is none.

    Raises:
        FxpruneError: the file is no state of a run, or one of another version.
    """
    path = folder / STATE
    if not path.exists():
        return None
    try:
        found: dict[str, Any] = torch.load(path, weights_only=True, map_location="cpu")
        version = found.pop("format")
        state = State(**found) if version == FORMAT else None
    except Exception as error:
        raise FxpruneError(
            f"{path} is not the state of a run ({type(error).__name__}). Move it away to start anew.", node=str(path)
        ) from error
    if state is None:
        raise FxpruneError(
            f"{path} was written by another version of fxprune (format {version}, this one reads {FORMAT}).",
            node=str(path),
            expected=FORMAT,
            got=version,
        )
    return state
