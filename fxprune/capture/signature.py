"""The signature of a call: its inputs without their numbers, as plain JSON data.

1. A tensor is its shape and dtype; the dtype is "like" where it is that of the model's first floating-point parameter, so that the same
   model in another precision has the same signature. Numbers, texts, None, lists, tuples and dicts with text keys stand for themselves.
2. ``signature`` is None where an input is anything else: such a call has to be given again.
3. ``inputs_of(signature(inputs, model), model)`` has tensors without memory of their own, on the model's device. A program is captured
   and analyzed from shapes alone, so they serve as example inputs; they are not for computing.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from fxprune.capture.inputs import Inputs

LIKE = "like"


class _UnwritableError(Exception):
    """An input that clause 1 does not cover."""


def signature(inputs: Inputs, model: nn.Module) -> Any:
    """Clauses 1 and 2."""
    like = _parameter(model).dtype
    try:
        return {"args": [_plain(arg, like) for arg in inputs.args], "kwargs": _plain(dict(inputs.kwargs), like)}
    except _UnwritableError:
        return None


def _parameter(model: nn.Module) -> Tensor:
    return next((p for p in model.parameters() if p.is_floating_point()), torch.empty(0, device="cpu"))


def _plain(value: Any, like: torch.dtype) -> Any:
    kind = type(value)
    if isinstance(value, Tensor):
        return {"tensor": list(value.shape), "dtype": LIKE if value.dtype == like else str(value.dtype).removeprefix("torch.")}
    if value is None or kind in (bool, int, str) or (kind is float and math.isfinite(value)):
        return value
    if kind in (list, tuple):
        return {kind.__name__: [_plain(item, like) for item in value]}
    if kind is dict and all(type(key) is str for key in value):
        return {"dict": {key: _plain(item, like) for key, item in value.items()}}
    raise _UnwritableError


def inputs_of(data: Any, model: nn.Module) -> Inputs:
    """Clause 3.

    Raises:
        ValueError: the data is no signature.
    """
    like = _parameter(model)
    try:
        args, kwargs = data["args"], data["kwargs"]["dict"]
        return Inputs(tuple(_value(item, like) for item in args), {key: _value(item, like) for key, item in kwargs.items()})
    except (AttributeError, KeyError, TypeError, RuntimeError, OverflowError, RecursionError) as error:
        raise ValueError(f"these are no inputs: {type(error).__name__}: {error}") from error


def _value(data: Any, like: Tensor) -> Any:
    if not isinstance(data, dict):
        if isinstance(data, list):
            raise TypeError("a list without its kind")
        return data
    if "tensor" in data:
        dtype = like.dtype if data["dtype"] == LIKE else getattr(torch, data["dtype"])
        return torch.zeros((), dtype=dtype, device=like.device).expand(data["tensor"])
    ((kind, items),) = data.items()
    if kind == "dict":
        return {key: _value(item, like) for key, item in items.items()}
    if kind not in ("list", "tuple"):
        raise TypeError(f"{kind!r} is no kind of input")
    return (list if kind == "list" else tuple)(_value(item, like) for item in items)
