"""The last capture: the module as it stands, to be run and not to be rewritten.

1. Nothing is recorded here. The program is what the module's Python code does when it is called (provenance/eager.py runs it).
2. ``root`` is a structural clone that shares the model's tensors; attention is legalized in it, as for tracing. ``graph`` has no nodes.
3. The slim model is a structural clone with smaller tensors, so it is of the model's own class: train mode, losses, hooks and an open batch
   size are the original's. What it costs: a number that Python code holds cannot be patched, so the channels that meet one stay.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from fxprune.capture.attention import legalize
from fxprune.capture.clone import clone, same
from fxprune.capture.tracer import Captured
from fxprune.errors import CaptureError

HOW = "the eager module as it runs"
NOTE = (
    "captured as the eager module runs: the slim model is of the original's class, without a graph; "
    "channels that meet a number written in its Python code stay"
)


@dataclass(frozen=True)
class EagerCaptured(Captured):
    """A module that is its own program (clauses 1 and 2)."""

    def module(self) -> fx.GraphModule:
        """An eager capture has no graph to make a module of."""
        raise CaptureError(f"{self.name} was captured as an eager module; it has no graph.", got=self.name)


def as_it_is(model: nn.Module) -> EagerCaptured:
    """The capture that takes every module that runs.

    Raises:
        CaptureError: a ScriptModule.
    """
    if isinstance(model, (torch.jit.ScriptModule, torch.jit.ScriptFunction)):
        raise CaptureError(
            f"{type(model).__name__} cannot be captured: TorchScript hides its Python code.", got=type(model).__name__
        )
    root = clone(model, same)
    legalize(root)
    return EagerCaptured(root, fx.Graph(), type(model).__name__, HOW, (NOTE,))


def followed(captured: Captured) -> None:
    """For those who follow what nodes compute.

    Raises:
        CaptureError: there are none (clause 1).
    """
    if isinstance(captured, EagerCaptured):
        raise CaptureError(
            f"{captured.name} runs as an eager module only: no tracer takes it, and what is dead can be told only from a program that can be "
            "followed node by node. Nothing was looked at. fxprune.slim takes it, with a ratio.",
            got=captured.name,
        )


def tensors_in(value: Any) -> list[Tensor]:
    """The tensors of whatever a module returns: containers, dataclasses, and the attributes of objects of unknown classes; each once."""
    found: list[Tensor] = []
    seen: set[int] = set()

    def visit(item: Any) -> None:
        if id(item) in seen or isinstance(item, (str, bytes, int, float, type, nn.Module)) or item is None:
            return
        seen.add(id(item))
        if isinstance(item, Tensor):
            found.append(item)
        elif isinstance(item, dict):
            for part in item.values():
                visit(part)
        elif isinstance(item, (list, tuple, set, frozenset)):
            for part in item:
                visit(part)
        else:
            slots = [getattr(item, name, None) for name in getattr(type(item), "__slots__", ())]
            for part in (*getattr(item, "__dict__", {}).values(), *slots):
                visit(part)

    visit(value)
    return found
