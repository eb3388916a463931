"""The call that is traced: which arguments of ``forward`` are placeholders, and which keep their defaults.

1. The signature is read through decorators (``functools.wraps``), and the example inputs are bound to it. Every argument of that call is a
   placeholder: those given by position first, in their order, then those given by name. Of ``*args`` and ``**kwargs`` as many as are given.
2. An argument that the call leaves out keeps its default. Numbers that are defaults stay arguments; ``None``, flags and names decide branches
   and are fixed while tracing. Both stay in the signature; any other object that is a default does not.
3. A default stays in the signature unless an argument without one comes later.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from fxprune.capture.inputs import Inputs
from fxprune.errors import InputError

EMPTY: Any = inspect.Parameter.empty
DECIDES = (type(None), bool, str)
NUMBERS = (int, float)


@dataclass(frozen=True, slots=True)
class Slot:
    """One argument of the traced call.

    Attributes:
        name: the placeholder's name; empty for a default that is no placeholder (clause 2).
        default: what the signature says, ``EMPTY`` for nothing.
        value: what the example gives, or the default.
        keyword: the name to pass it by, empty for a positional one.
        fixed: tracing sees the value itself.
    """

    name: str
    default: Any
    value: Any
    keyword: str
    fixed: bool


def slots(model: nn.Module, inputs: Inputs) -> list[Slot]:
    """The arguments of ``model.forward`` for a call with these inputs (clauses 1 to 3).

    Raises:
        InputError: an argument that the model does not take.
    """
    parameters = list(inspect.signature(model.forward).parameters.values())
    by_position, by_name, left = [], [], dict(inputs.kwargs)
    plain = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    for parameter, value in zip(plain, inputs.args, strict=False):
        by_position.append(Slot(parameter.name, _kept(parameter), value, "", fixed=False))
    star = next((p.name for p in parameters if p.kind is p.VAR_POSITIONAL), "")
    names = [p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    if not star and len(inputs.args) > len(plain):
        raise InputError("more example inputs were given than the model takes.", expected=len(plain), got=len(inputs.args))
    if not any(p.kind is p.VAR_KEYWORD for p in parameters):
        for extra in left.keys() - set(names):
            raise InputError(f"the model takes no input {extra!r}; it takes {', '.join(names)}.", node=extra, got=extra)
    by_position += [Slot(f"{star}_{i}", EMPTY, value, "", fixed=False) for i, value in enumerate(inputs.args[len(plain) :])]
    for parameter in parameters:
        if parameter in plain[: len(inputs.args)] or parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        if parameter.name in left:
            by_name.append(Slot(parameter.name, _kept(parameter), left.pop(parameter.name), parameter.name, fixed=False))
        elif parameter.default is not EMPTY:
            by_name.append(_absent(parameter))
    by_name += [Slot(name, EMPTY, value, name, fixed=False) for name, value in left.items()]
    by_name.sort(key=lambda slot: slot.default is not EMPTY)
    return _without_gaps([*by_position, *by_name])


def _kept(parameter: inspect.Parameter) -> Any:
    return parameter.default if isinstance(parameter.default, (*DECIDES, *NUMBERS)) else EMPTY


def _absent(parameter: inspect.Parameter) -> Slot:
    """Clause 2."""
    default = parameter.default
    simple = isinstance(default, (*DECIDES, *NUMBERS))
    return Slot(
        parameter.name if simple else "", default, default, parameter.name, fixed=not simple or isinstance(default, DECIDES)
    )


def _without_gaps(found: list[Slot]) -> list[Slot]:
    """Clause 3."""
    last = max((i for i, slot in enumerate(found) if slot.default is EMPTY), default=-1)
    return [replace(slot, default=EMPTY) if i < last else slot for i, slot in enumerate(found)]


def call(forward: Callable[..., Any], found: list[Slot], placed: dict[str, Any]) -> Any:
    """``forward`` with what stands for every placeholder, and with what is fixed."""
    values = [(slot.keyword, slot.value if slot.fixed else placed[slot.name]) for slot in found]
    return forward(*(value for keyword, value in values if not keyword), **{k: value for k, value in values if k})
