"""What a coverage case is: how to build a model, what to feed it, how to make it train."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import torch
from torch import Tensor, nn

LARGE = 300_000_000  # parameters above which a model is built in float32

Make = Callable[[int, torch.dtype], Any]
Loss = Callable[[nn.Module, Any], Tensor]


def call(model: nn.Module, inputs: Any) -> Any:
    """The model's output for a tensor, a tuple of arguments or a dict of keyword arguments."""
    if isinstance(inputs, Mapping):
        return model(**inputs)
    return model(*inputs) if isinstance(inputs, tuple) else model(inputs)


def floating(output: Any) -> list[Tensor]:
    """Every floating tensor of a nested output: tensors, mappings, sequences and dataclasses."""
    if isinstance(output, Tensor):
        return [output] if output.is_floating_point() else []
    if isinstance(output, Mapping):
        parts: Sequence[Any] = list(output.values())
    elif is_dataclass(output):
        parts = [getattr(output, f.name) for f in fields(output)]
    else:
        parts = output if isinstance(output, list | tuple) else []
    return [tensor for part in parts for tensor in floating(part)]


def square(model: nn.Module, inputs: Any) -> Tensor:
    """The mean square of every floating output, summed: a loss for any model."""
    return torch.stack([y.square().mean() for y in floating(call(model, inputs)) if y.requires_grad]).sum()


def images(size: tuple[int, ...]) -> Make:
    """Random batches of this size."""

    def make(batch: int, dtype: torch.dtype) -> Tensor:
        return torch.randn(batch, *size, generator=torch.Generator().manual_seed(batch), dtype=torch.float64).to(dtype)

    return make


@dataclass(frozen=True, slots=True)
class Case:
    """One model.

    Attributes:
        name: unique within its suite.
        build: makes the model, with random weights.
        inputs: ``(batch, dtype) -> example inputs``.
        loss: what one training step minimises.
        packages: import names of what it needs.
        ragged: how many rows its outputs have depends on the weights, as a detector's boxes do.
    """

    name: str
    build: Callable[[], nn.Module]
    inputs: Make
    loss: Loss = square
    packages: tuple[str, ...] = ()
    ragged: bool = False
