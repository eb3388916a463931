"""One ATen call as the rules see it, and the table from operator names to rules.

1. A rule receives a ``Call`` and returns the call's value, its tensors marked with their masks.
2. The table is keyed by the operator's name without overload and without the underscore of an in-place form.
3. ``Call.run`` runs the operator itself on raw values, ``Call.again`` runs a composition of other operators through the rules.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fxprune.verify.existence import Mask, exists, has_dead, mark, mask_of

Rule = Callable[["Call"], Any]
RULES: dict[str, Rule] = {}


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Register a rule for operators, by name (clause 2)."""

    def register(function: Rule) -> Rule:
        RULES.update(dict.fromkeys(names, function))
        return function

    return register


def operator_name(func: OpOverload) -> str:
    """``aten::relu_.default`` is called ``relu``."""
    name = func._schema.name.removeprefix("aten::")
    return name[:-1] if name.endswith("_") and not name.endswith("__") and writes_self(func) else name


def writes_self(func: OpOverload) -> bool:
    """True for an in-place form."""
    arguments = func._schema.arguments
    alias = arguments[0].alias_info if arguments else None
    return alias is not None and alias.is_write


def returns_view(func: OpOverload) -> bool:
    """True if the schema says that the result is a view or an alias."""
    return any(r.alias_info is not None and not r.alias_info.is_write for r in func._schema.returns)


def tensors(tree: Any) -> list[Tensor]:
    """The tensors of a nested value, in order."""
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


class Call:
    """One call: its operator, its arguments by name, the mode it happens in, and whether the plan's layout is selection."""

    __slots__ = ("arguments", "func", "kwarg_only", "mode", "name", "selection")

    def __init__(
        self, func: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any], mode: TorchDispatchMode, selection: bool
    ) -> None:
        self.func, self.mode, self.selection, self.name = func, mode, selection, operator_name(func)
        self.arguments: dict[str, Any] = {}
        self.kwarg_only: set[str] = set()
        for i, argument in enumerate(func._schema.arguments):
            if argument.kwarg_only:
                self.kwarg_only.add(argument.name)
            if i < len(args):
                self.arguments[argument.name] = args[i]
            elif argument.name in kwargs:
                self.arguments[argument.name] = kwargs[argument.name]
            else:
                self.arguments[argument.name] = argument.default_value if argument.has_default_value() else None

    def __getitem__(self, name: str) -> Any:
        return self.arguments[name]

    def get(self, *names: str) -> Any:
        """The first of these arguments that the operator has, None if it has none of them."""
        return next((self.arguments[name] for name in names if name in self.arguments), None)

    @property
    def operands(self) -> list[Tensor]:
        """All tensor arguments, in order."""
        return tensors(list(self.arguments.values()))

    @property
    def masked(self) -> bool:
        """True if some operand has a mask."""
        return any(mask_of(operand) is not None for operand in self.operands)

    @property
    def removed(self) -> bool:
        """True if some operand has a dead element."""
        return any(has_dead(mask_of(operand)) for operand in self.operands)

    def run(self, /, **replaced: Any) -> Any:
        """Run the operator on raw values, with some arguments replaced."""
        return self._call(self.func, {**self.arguments, **replaced})

    def decomposed(self) -> Any:
        """Run the operator's own decomposition through the rules."""
        return self.again(self._call, self.func.decompose, self.arguments)

    def _call(self, function: Callable[..., Any], arguments: dict[str, Any]) -> Any:
        positional = [value for name, value in arguments.items() if name not in self.kwarg_only]
        return function(*positional, **{name: arguments[name] for name in arguments if name in self.kwarg_only})

    def again(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Run a composition of operators through the rules (clause 3)."""
        with self.mode:
            return function(*args, **kwargs)


def zeroed(value: Tensor, fill: float = 0.0) -> Tensor:
    """The value with its dead elements replaced; NaN in dead places does not leak."""
    mask = mask_of(value)
    return torch.where(exists(mask), value, fill) if has_dead(mask) and mask is not None else value


def mark_all(value: Any, mask: Mask) -> Any:
    """Give every tensor of a nested value the same mask."""
    for tensor in tensors(value):
        mark(tensor, mask)
    return value


def dims_of(call: Call, value: Tensor) -> Iterator[int]:
    """The reduced dimensions, non-negative; all of them if none are named."""
    dims = call.get("dim", "dims")
    if dims is None or dims == []:
        return iter(range(value.ndim))
    return (d % max(1, value.ndim) for d in ([dims] if isinstance(dims, int) else dims))
