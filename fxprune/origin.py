"""What identifies the original of a slim model: its parameters and its program.

1. *Shapes* are those of every distinct parameter and buffer, by its first name (tied weights have one).
2. The *program* is the captured graph, one line per node: operation, target, arguments with other nodes by position; of a module that is
   called, its class and settings as it prints them. Names of nodes, devices, dtypes of weights and the mode are not part of it.
3. Two models with equal shapes and programs are the same architecture: a plan for one is a plan for the other. The *fingerprint* is a
   digest of both.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from inspect import isfunction
from typing import Any

import torch
from torch import fx

from fxprune.capture.tracer import Captured

Function = Callable[..., Any]

SHORT = 12  # hexadecimal digits of a node's digest


@dataclass(frozen=True, slots=True)
class Origin:
    """The architecture of an original and how it was captured.

    Attributes:
        model: class name of the original.
        capture: how it was captured.
        shapes: clause 1.
        program: name and digest of every node (clause 2).
        inputs: the signature of the example inputs (capture/signature.py); None where it cannot be written down.
        entered: names of the functions that were entered when it was captured.
    """

    model: str
    capture: str
    shapes: Mapping[str, tuple[int, ...]]
    program: tuple[tuple[str, str], ...]
    inputs: Any
    entered: tuple[str, ...] = ()

    @property
    def fingerprint(self) -> str:
        """Clause 3, as 64 hexadecimal digits."""
        shapes = sorted((name, list(shape)) for name, shape in self.shapes.items())
        return hashlib.sha256(json.dumps([shapes, [line for _, line in self.program]]).encode()).hexdigest()


def origin(captured: Captured, inputs: Any, entered: frozenset[Function] = frozenset()) -> Origin:
    """The origin of whatever is made from a captured model. ``inputs`` is their signature; tensors of ``captured`` may be on meta."""
    shapes = {name: tuple(tensor.shape) for name, tensor in captured.tensors.items()}
    names = tuple(sorted(map(_name, entered)))
    return Origin(captured.name, captured.how, shapes, tuple(_program(captured)), inputs, names)


def _program(captured: Captured) -> Iterator[tuple[str, str]]:
    places = {node: f"%{i}" for i, node in enumerate(captured.graph.nodes)}
    for node in captured.graph.nodes:
        parts = [node.op, _target(captured, node), _text(node.args, places), _text(dict(node.kwargs), places)]
        yield node.name, hashlib.sha256("\n".join(parts).encode()).hexdigest()[:SHORT]


def _target(captured: Captured, node: fx.Node) -> str:
    if node.op == "call_module":
        return f"{node.target} {captured.root.get_submodule(str(node.target))!r}"
    return node.target if isinstance(node.target, str) else _name(node.target)


def _name(function: Any) -> str:
    name = getattr(function, "__qualname__", "")
    if not name or "<locals>" in name:  # made by another function, which gave it its own name
        name = getattr(function, "__name__", type(function).__name__)
    return f"{getattr(function, '__module__', None) or ''}.{name}"


def functions(names: Sequence[str]) -> frozenset[Function]:
    """The functions of these names, as far as their modules are loaded: nothing is imported."""
    found = set()
    for name in names:
        parts = name.split(".")
        home = next((".".join(parts[:i]) for i in range(len(parts), 0, -1) if ".".join(parts[:i]) in sys.modules), "")
        value: Any = sys.modules.get(home)
        for part in name.removeprefix(home).strip(".").split("."):
            value = getattr(value, part, None)
        if isfunction(value):
            found.add(value)
    return frozenset(found)


def _text(value: Any, places: Mapping[fx.Node, str]) -> str:
    """An argument in a form that has no addresses in it (clause 2)."""
    if isinstance(value, fx.Node):
        return places[value]
    if isinstance(value, (tuple, list)):
        return f"[{', '.join(_text(item, places) for item in value)}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{key}: {_text(item, places)}' for key, item in value.items())}}}"
    if isinstance(value, slice):
        return f"slice{_text((value.start, value.stop, value.step), places)}"
    if isinstance(value, torch.device):
        return "device"
    if value is None or value is Ellipsis or isinstance(value, (bool, int, float, complex, str, torch.dtype)):
        return repr(value)
    return _name(value) if callable(value) else type(value).__name__


def difference(file: Origin, model: Origin) -> str:
    """The first difference between two origins, in words; "" if they are the same architecture."""
    for name, shape in file.shapes.items():
        if name not in model.shapes:
            return f"it had {name!r} of shape {shape}, which this model has not"
        if model.shapes[name] != shape:
            return f"{name!r} had shape {shape}, and has {model.shapes[name]} in this model"
    extra = next((name for name in model.shapes if name not in file.shapes), None)
    if extra is not None:
        return f"this model has {extra!r} of shape {model.shapes[extra]}, which it had not"
    for (_, old), (name, new) in zip(file.program, model.program, strict=False):
        if old != new:
            return f"the program is another one from node {name!r} on"
    if len(file.program) != len(model.program):
        return f"its program had {len(file.program)} nodes, this model's has {len(model.program)}"
    return ""
