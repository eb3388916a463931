"""What a program computes: its outputs, how far apart two of them are, shapes and dtypes of its nodes; and tensors without denormals."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, fx, nn

from fxprune.capture.inputs import Inputs
from fxprune.capture.objects import held
from fxprune.errors import InputError
from fxprune.inference.layout import Facts
from fxprune.precision import double


def outputs(module: nn.Module, inputs: Inputs, of: str) -> list[Tensor]:
    """The tensors of one call, random numbers seeded.

    Raises:
        InputError: the call fails.
    """
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        call = inputs.map(torch.clone)
        try:
            result = module(*call.args, **call.kwargs)
        except Exception as error:
            raise InputError(f"{of} fails on these example inputs: {line(error)}", node="output", got=line(error)) from error
        return [tensor.clone() for tensor in held(result)]


def difference(found: list[Tensor], expected: list[Tensor]) -> float:
    """The largest difference, relative to the largest value of the output in question; infinite for other shapes."""
    if len(found) != len(expected):
        return math.inf
    worst = 0.0
    for one, other in zip(found, expected, strict=True):
        if one.shape != other.shape or one.dtype != other.dtype:
            return math.inf
        if not one.numel():
            continue
        if not one.is_floating_point():
            worst = max(worst, 0.0 if torch.equal(one, other) else math.inf)
            continue
        a, b = double(one), double(other)
        same = (a == b) | (a.isnan() & b.isnan())
        apart = torch.where(same, 0.0, (a - b).abs())
        scale = float(b[b.isfinite()].abs().max()) if bool(b.isfinite().any()) else 0.0
        largest = float(apart.max())
        worst = max(worst, 0.0 if largest == 0 else largest / scale if scale else math.inf)
    return math.inf if math.isnan(worst) else worst


class _Observing(fx.Interpreter):
    def __init__(self, module: fx.GraphModule, inputs: Inputs) -> None:
        super().__init__(module)
        self.inputs = inputs
        self.facts: dict[str, tuple[tuple[int, ...], torch.dtype]] = {}

    def placeholder(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        name = str(target).lstrip("*")
        return self.inputs.kwargs[name] if name in self.inputs.kwargs else super().placeholder(target, args, kwargs)

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if isinstance(result, Tensor):
            self.facts[n.name] = (tuple(result.shape), result.dtype)
        return result


def flushed(tensor: Tensor) -> Tensor:
    """The tensor without denormals; the same object if it has none."""
    if not tensor.is_floating_point() or tensor.is_meta or not tensor.numel():
        return tensor
    small = tensor.abs() < torch.finfo(tensor.dtype).tiny
    return torch.where(small, 0, tensor) if bool((small & (tensor != 0)).any()) else tensor


def facts_of(module: fx.GraphModule, inputs: Inputs) -> Facts:
    """Shape and dtype of what every node computes."""
    call = inputs.map(torch.clone)
    observing = _Observing(module, call)
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        observing.run(*call.args)
    return observing.facts


def line(error: Exception) -> str:
    """The first line of what an error says."""
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
