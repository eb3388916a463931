"""Structural clones: new module objects around tensors that a caller chooses.

1. Every module object is new (shared modules stay shared); every attribute that is no tensor, module, builtin container or method of
   its own is the same object as in the original. Nothing done to the clone's structure is visible in the original.
2. Each distinct parameter or buffer is passed through ``tensor(name, old)`` once (tied weights stay tied).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from functools import lru_cache
from types import MethodType

import torch
from torch import Tensor, nn

TensorMap = Callable[[str, Tensor], Tensor]
CONTAINERS = frozenset({dict, list, set, OrderedDict})
STORES = ("_parameters", "_buffers", "_modules")


def clone(module: nn.Module, tensor: TensorMap) -> nn.Module:
    """A structural clone (clauses 1 and 2). Linear in the number of modules and tensors."""
    return _clone(module, "", tensor, {}, {})


def cloned(module: nn.Module, tensor: TensorMap) -> tuple[nn.Module, list[tuple[str, nn.Module]]]:
    """A structural clone, and what ``walk`` says of it."""
    modules: dict[int, tuple[str, nn.Module]] = {}
    return _clone(module, "", tensor, modules, {}), list(modules.values())


def _clone(
    module: nn.Module,
    prefix: str,
    tensor: TensorMap,
    modules: dict[int, tuple[str, nn.Module]],
    tensors: dict[int, Tensor],
) -> nn.Module:
    """``modules``: by the original's identity, in the order of ``walk``: the clone and its name."""
    found = modules.get(id(module))
    if found is not None:
        return found[1]
    new: nn.Module = object.__new__(type(module))
    modules[id(module)] = (prefix[:-1], new)
    state = module.__dict__.copy()
    contained, others = _special(tuple(state), tuple(map(type, state.values())))
    for key in contained:
        state[key] = state[key].copy()
    for key in others:
        value = state[key]
        if isinstance(value, Tensor):
            state[key] = _tensor(value, prefix + key, tensor, tensors)
        elif type(value) is MethodType and value.__self__ is module:
            state[key] = MethodType(value.__func__, new)
    for store in STORES[:2]:
        state[store] = {key: _tensor(value, prefix + key, tensor, tensors) for key, value in module.__dict__[store].items()}
    state["_modules"] = {
        key: None if child is None else _clone(child, f"{prefix}{key}.", tensor, modules, tensors)
        for key, child in module.__dict__["_modules"].items()
    }
    new.__dict__.update(state)
    if "_flat_weights_names" in state:  # recurrent modules keep a second list of their parameters
        new.__dict__["_flat_weights"] = [getattr(new, name) for name in state["_flat_weights_names"]]
    return new


@lru_cache(maxsize=4096)
def _special(keys: tuple[str, ...], kinds: tuple[type, ...]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The attributes of builtin containers, and those of types that clause 1 must look at: the same for most modules of a class."""
    named = [(key, kind) for key, kind in zip(keys, kinds, strict=True) if key not in STORES]
    contained = tuple(key for key, kind in named if kind in CONTAINERS)
    return contained, tuple(key for key, kind in named if kind is MethodType or issubclass(kind, Tensor))


def _tensor(value: Tensor | None, name: str, tensor: TensorMap, tensors: dict[int, Tensor]) -> Tensor | None:
    if value is None:
        return None
    found = tensors.get(id(value))
    if found is None:
        found = tensors[id(value)] = tensor(name, value)
    return found


def module_at(root: nn.Module, path: str) -> nn.Module:
    """``root.get_submodule(path)`` for a path that exists."""
    found: nn.Module = root
    if path:
        for part in path.split("."):
            child = found._modules.get(part)
            found = child if child is not None else getattr(found, part)
    return found


def walk(root: nn.Module) -> list[tuple[str, nn.Module]]:
    """Every distinct module by its first name, in the order of ``named_modules`` (as a list: it is walked often)."""
    found: list[tuple[str, nn.Module]] = []
    seen: set[int] = set()

    def visit(name: str, module: nn.Module) -> None:
        if id(module) in seen:
            return
        seen.add(id(module))
        found.append((name, module))
        prefix = f"{name}." if name else ""
        for key, child in module._modules.items():
            if child is not None:
                visit(prefix + key, child)

    visit("", root)
    return found


def named_tensors(modules: list[tuple[str, nn.Module]]) -> dict[str, Tensor]:
    """Every distinct parameter, then every distinct buffer, by its first name."""
    named: dict[str, Tensor] = {}
    seen: set[int] = set()
    for store in ("_parameters", "_buffers"):
        for name, module in modules:
            prefix = f"{name}." if name else ""
            for key, tensor in module.__dict__[store].items():
                if tensor is not None and id(tensor) not in seen:
                    seen.add(id(tensor))
                    named[prefix + key] = tensor
    return named


def same(_name: str, value: Tensor) -> Tensor:
    """The tensor map that shares every tensor with the original."""
    return value


def to_meta(_name: str, value: Tensor) -> Tensor:
    """The tensor map that keeps shapes and dtypes only. Gradients and subclasses are dropped."""
    return torch.empty(value.shape, dtype=value.dtype, device="meta")


def hollow(_name: str, value: Tensor) -> Tensor:
    """The tensor map that keeps shapes, dtypes and devices of floating-point tensors, but one number of memory (a zero) for each.

    Tensors on the meta device come to the CPU; whole numbers stay what they are, for programs may read them.
    """
    if not (value.is_floating_point() or value.is_complex()):
        return value
    zero = torch.zeros((), dtype=value.dtype, device="cpu" if value.is_meta else value.device).expand(value.shape)
    return nn.Parameter(zero, requires_grad=value.requires_grad) if isinstance(value, nn.Parameter) else zero
