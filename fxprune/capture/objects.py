"""Objects that hold tensors: what is in them, and how a program makes them.

1. What an object holds is, recursively: the items of tuples, lists, mappings and sets, what torch's pytree finds, the fields of a dataclass, the
   attributes of any other object. Modules, classes and functions hold nothing.
2. ``assemble`` makes an object of a class with given attributes, without calling the class: a program that returns an object whose making
   was Python's own business (a cache that a method filled) returns one of the same class with the same attributes.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

NOTHING = (str, bytes, int, float, complex, bool, type(None), torch.dtype, torch.device, nn.Module, type)


def held(value: Any) -> list[Tensor]:
    """Every tensor in a value, in order (clause 1)."""
    return list(_held(value, set()))


def _held(value: Any, seen: set[int]) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
        return
    if isinstance(value, NOTHING) or id(value) in seen:
        return
    seen.add(id(value))
    for item in _items(value):
        yield from _held(item, seen)


def _items(value: Any) -> list[Any]:
    leaves = torch.utils._pytree.tree_leaves(value)
    if len(leaves) != 1 or leaves[0] is not value:
        return leaves
    if isinstance(value, Mapping):
        return list(value.values())
    slots = [name for kind in type(value).__mro__ for name in getattr(kind, "__slots__", ()) if isinstance(name, str)]
    return [getattr(value, name) for name in slots if hasattr(value, name)] + list(getattr(value, "__dict__", {}).values())


def importable(kind: type) -> bool:
    """A class of somebody's module that ``assemble`` finds again by its name and can make by attributes alone."""
    found: Any = sys.modules.get(kind.__module__)
    for part in kind.__qualname__.split("."):
        found = getattr(found, part, None)
    return found is kind and kind.__new__ is object.__new__ and kind.__module__ != "builtins"


def assemble(module: str, name: str, attributes: dict[str, Any]) -> Any:
    """An object of the class ``name`` of a module (clause 2)."""
    kind: Any = importlib.import_module(module)
    for part in name.split("."):
        kind = getattr(kind, part)
    made = object.__new__(kind)
    made.__dict__.update(attributes)
    return made
