"""The random networks themselves: they run, trace, train, repeat and read back, and every kind of step occurs."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from hypothesis import given, settings
from torch import fx

from tests.property import layers, modern, moves, program
from tests.property.compiling import run
from tests.property.profile import share
from tests.property.program import Again, Op, Program, build, example, randomise
from tests.property.strategies import FAMILIES, programs
from tests.reference.compare import backward, leaves, relative_error

NAMES: dict[str, Any] = {**vars(layers), **vars(modern), **vars(moves), **vars(program)}


@share(1)
@given(programs(opaque=True))
def test_programs_run_trace_and_repeat(p: Program) -> None:
    model, inputs = randomise(build(p), 3), example(p)
    output = run(model, inputs)
    assert [tuple(y.shape[1:]) for y in leaves(output).values()] == [p.shapes[v] for v in p.outputs]
    assert relative_error(run(fx.symbolic_trace(model), inputs), output) == 0.0
    assert relative_error(run(randomise(build(p), 3), inputs), output) == 0.0
    assert all(y.abs().max() < 1e9 for y in leaves(output).values())


@share(0.5)
@given(programs(setitem=True))
def test_programs_train(p: Program) -> None:
    model = randomise(build(p))
    gradients = backward(model, *example(p))
    assert all(g.isfinite().all() for g in gradients.values())
    assert gradients


@share(0.5)
@given(programs(setitem=True, opaque=True))
def test_the_printed_form_builds_the_same_program(p: Program) -> None:
    assert eval(repr(p), dict(NAMES)) == p  # noqa: S307


def test_every_kind_of_step_occurs() -> None:
    """A step that is never drawn tests nothing."""
    seen: Counter[str] = Counter()

    @settings(max_examples=900, derandomize=True, database=None, deadline=None)
    @given(programs(setitem=True, opaque=True))
    def collect(p: Program) -> None:
        seen.update(type(op).__name__ for op, *_ in p.steps)

    collect()
    kinds = {cls.__name__ for cls in (*Op.__subclasses__(), Again)}
    assert kinds <= seen.keys(), f"never drawn: {sorted(kinds - seen.keys())}"
    assert len({f.name for f in FAMILIES}) >= 40


def test_values_reach_the_output() -> None:
    """A network whose output does not depend on its weights would pass every test."""
    weak = []

    @settings(max_examples=100, derandomize=True, database=None, deadline=None)
    @given(programs(mixing=False))
    def collect(p: Program) -> None:
        model, inputs = randomise(build(p), 1), example(p)
        before = run(model, inputs)
        with torch.no_grad():
            first = next(m for m in model.children() if any(True for _ in m.parameters()))
            for parameter in first.parameters():
                parameter.mul_(1.5).add_(0.1)
        weak.append(relative_error(run(model, inputs), before) < 1e-6)

    collect()
    assert sum(weak) / len(weak) < 0.15
