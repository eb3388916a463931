"""A small network as data.

1. A *value* is a tensor; values are numbered: the inputs first, then what the steps return, in order.
2. A *step* is a tuple ``(op, *args)``: an operator description and the numbers of the values it reads.
   Steps that return several tensors define several values.
3. A *program* is inputs (shapes without the batch dimension; channels first), steps and outputs. Its ``repr`` is Python that
   builds the same program: a failing example can be pasted into a test as it is printed.
4. ``build(program)`` is an ``nn.Module`` whose submodule ``v7`` holds the weights of the step that defines value 7.

Shapes are found by running each step once on zeros, so there is no second account of what an operator does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import lru_cache
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

Shape = tuple[int, ...]
Step = tuple[Any, ...]


@dataclass(frozen=True)
class Op:
    """What one step does. Subclasses give ``module``, ``run`` or both.

    Attributes:
        mixes: True if one output element hears several channels without a weight in between (means, norms, maxima over channels).
        traceable: False if plain ``torch.fx`` cannot trace it.
    """

    mixes: ClassVar[bool] = False
    traceable: ClassVar[bool] = True

    def module(self, *shapes: Shape) -> nn.Module | None:
        """The weights of this step for arguments of these shapes."""
        return None

    def run(self, module: nn.Module | None, *xs: Tensor) -> Any:
        """What this step computes."""
        assert module is not None
        return module(*xs)


@dataclass(frozen=True)
class Again(Op):
    """Call the module of an earlier step once more: weight sharing."""

    step: int


@dataclass(frozen=True, repr=False)
class Program:
    """A network (module docstring, clause 3).

    ``container`` is how it returns: tensor, tuple, list, dict or nested.
    """

    inputs: tuple[Shape, ...]
    steps: tuple[Step, ...]
    outputs: tuple[int, ...]
    container: str = "tensor"

    def op(self, number: int) -> Op:
        """The operator of a step, an ``Again`` resolved."""
        op = self.steps[number][0]
        return self.op(op.step) if isinstance(op, Again) else op

    @property
    def shapes(self) -> tuple[Shape, ...]:
        """Shape of every value, without the batch dimension."""
        shapes = list(self.inputs)
        for number, (_, *args) in enumerate(self.steps):
            shapes += result_shapes(self.op(number), *[shapes[a] for a in args])
        return tuple(shapes)

    @property
    def firsts(self) -> tuple[int, ...]:
        """Number of the first value that each step defines."""
        firsts, shapes = [], list(self.inputs)
        for number, (_, *args) in enumerate(self.steps):
            firsts.append(len(shapes))
            shapes += result_shapes(self.op(number), *[shapes[a] for a in args])
        return tuple(firsts)

    @property
    def mixes(self) -> bool:
        """True if any step mixes channels without a weight in between."""
        return any(self.op(i).mixes for i in range(len(self.steps)))

    @property
    def traceable(self) -> bool:
        """True if plain ``torch.fx`` can trace it."""
        return all(self.op(i).traceable for i in range(len(self.steps)))

    def __repr__(self) -> str:
        shapes, firsts = self.shapes, (*self.firsts, len(self.shapes))
        lines = ["Program(", f"    inputs={self.inputs},", "    steps=("]
        for number, (op, *args) in enumerate(self.steps):
            made = range(firsts[number], firsts[number + 1])
            note = ", ".join(f"v{v}: {shapes[v]}" for v in made)
            lines.append(f"        ({', '.join([describe(op), *map(str, args)])}{'' if args else ','}),  # {note}")
        lines += ["    ),", f"    outputs={self.outputs},", f"    container={self.container!r},", ")"]
        return "\n".join(lines)

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        """How hypothesis prints it."""
        printer.text(repr(self))


def describe(op: Op) -> str:
    """Python that builds an operator description, defaults left out."""
    said = [f"{f.name}={getattr(op, f.name)!r}" for f in fields(op) if getattr(op, f.name) != f.default]
    return f"{type(op).__name__}({', '.join(said)})"


@lru_cache(maxsize=20_000)
def result_shapes(op: Op, *shapes: Shape) -> tuple[Shape, ...]:
    """Shapes (without batch) of what an operator returns for arguments of these shapes."""
    module = op.module(*shapes)
    if module is not None:
        module.eval()
    with torch.no_grad():
        result = op.run(module, *[torch.zeros(2, *shape) for shape in shapes])
    results = result if isinstance(result, tuple | list) else (result,)
    return tuple(tuple(r.shape[1:]) for r in results)


class Net(nn.Module):
    """A program as a module; its forward is straight-line torch code, unrolled over the steps."""

    def __init__(self, program: Program) -> None:
        super().__init__()
        self.program = program
        shapes, firsts = program.shapes, program.firsts
        for number, (op, *args) in enumerate(program.steps):
            module = None if isinstance(op, Again) else op.module(*[shapes[a] for a in args])
            if module is not None:
                self.add_module(f"v{firsts[number]}", module)

    def compute(self, values: list[Any]) -> Any:
        """Run every step, then pack the outputs."""
        program, firsts = self.program, self.program.firsts
        for number, (op, *args) in enumerate(program.steps):
            home = op.step if isinstance(op, Again) else number
            module = getattr(self, f"v{firsts[home]}", None)
            result = program.op(number).run(module, *[values[a] for a in args])
            values += result if isinstance(result, tuple | list) else [result]
        return pack([values[v] for v in program.outputs], program.container)


class OneInput(Net):
    def forward(self, x0: Tensor) -> Any:
        return self.compute([x0])


class TwoInputs(Net):
    def forward(self, x0: Tensor, x1: Tensor) -> Any:
        return self.compute([x0, x1])


def pack(results: Sequence[Any], container: str) -> Any:
    """The return value of a network."""
    match container:
        case "tensor":
            return results[0]
        case "tuple":
            return tuple(results)
        case "list":
            return list(results)
        case "dict":
            return {f"y{i}": y for i, y in enumerate(results)}
        case "nested":
            return {"out": results[0], "features": tuple(results[1:])}
    raise ValueError(f"container must be tensor, tuple, list, dict or nested, got {container!r}")


def build(program: Program) -> Net:
    """The network that a program describes, with PyTorch's initial weights, in train mode."""
    return (OneInput, TwoInputs)[len(program.inputs) - 1](program)


def randomise(model: nn.Module, seed: int = 0) -> nn.Module:
    """Give a model random float64 weights, norm parameters and running statistics (variances in [0.5, 2]), and eval mode.

    In place; returns the model. Weights are scaled by fan-in, so activations stay near 1 through deep nets.
    """
    model.double().eval()
    rng = torch.Generator().manual_seed(seed)

    def normal(t: Tensor) -> Tensor:
        return torch.randn(t.shape, generator=rng, dtype=torch.float64)

    def uniform(t: Tensor, low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(t.shape, generator=rng, dtype=torch.float64)

    with torch.no_grad():
        for name, value in [*model.named_parameters(), *model.named_buffers()]:
            if name.endswith("running_mean"):
                value.copy_(0.3 * normal(value))
            elif name.endswith("running_var"):
                value.copy_(uniform(value, 0.5, 2.0))
            elif not value.is_floating_point() or not isinstance(value, nn.Parameter):
                continue
            elif name.endswith("original0"):  # weight_norm's magnitude
                value.copy_(uniform(value, 0.5, 1.5))
            elif value.ndim > 1:
                value.copy_(normal(value) * (2 / max(1, value.shape[1:].numel())) ** 0.5)
            elif name.endswith("weight"):  # scales of norms, both signs
                value.copy_(uniform(value, 0.3, 1.5) * torch.sign(normal(value) + 0.8))
            else:
                value.copy_(0.5 * normal(value))
    return model


def example(program: Program, seed: int = 0, batch: int = 2) -> tuple[Tensor, ...]:
    """Random float64 inputs for a program."""
    rng = torch.Generator().manual_seed(seed + 1)
    return tuple(torch.randn(batch, *shape, generator=rng, dtype=torch.float64) for shape in program.inputs)
