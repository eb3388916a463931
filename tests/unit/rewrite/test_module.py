"""Copies and pickles of slim modules are exact, whatever their programs do."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from torch import Tensor, fx, nn

import fxprune
from fxprune.io.model import tensors_of
from fxprune.rewrite.module import read, written
from tests.property.compiling import compiled
from tests.property.compiling import run as run_all
from tests.property.profile import share
from tests.property.strategies import Case, cases
from tests.reference.compare import relative_error
from tests.unit.api.nets import run, seeded
from tests.unit.io.nets import NETS, Stateful, image


def pickled(module: nn.Module) -> Any:
    return pickle.loads(pickle.dumps(module))  # noqa: S301  # its own bytes


def saved(module: nn.Module) -> Any:
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


COPIES = {
    "deepcopy": copy.deepcopy,
    "pickle": pickled,
    "torch.save": saved,
    "twice": lambda m: pickled(copy.deepcopy(pickled(m))),
}


def check(slim: fx.GraphModule, other: fx.GraphModule, x: Any) -> None:
    ours, theirs = tensors_of(slim), tensors_of(other)
    assert list(ours) == list(theirs)
    assert list(slim.state_dict()) == list(other.state_dict())
    assert all(torch.equal(ours[name], theirs[name]) and ours[name] is not theirs[name] for name in ours)
    assert slim.code == other.code
    assert [(n.name, n.op, n.target) for n in slim.graph.nodes] == [(n.name, n.op, n.target) for n in other.graph.nodes]
    assert fxprune.plan_of(other) == fxprune.plan_of(slim)
    assert type(other).__name__ == type(slim).__name__
    assert {n: m.training for n, m in slim.named_modules()} == {n: m.training for n, m in other.named_modules()}
    assert torch.equal(run(other, x), run(slim, x))


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("how", COPIES.values(), ids=COPIES)
def test_copies(name: str, how: Callable[[nn.Module], Any]) -> None:
    build, inputs = NETS[name]
    slim = fxprune.slim(seeded(build()), 0.4, inputs())
    slim.get_submodule(next(n for n, m in slim.named_modules() if n and not list(m.children()))).train()
    check(slim, how(slim), inputs())


@share(1)
@given(cases(setitem=True))
def test_pickles_of_any_network(case: Case) -> None:
    c = compiled(case)
    if c is None or any(nn.utils.parametrize.is_parametrized(m) for m in c.slim.modules()):  # torch does not pickle these
        return
    other = pickled(c.slim)
    assert other.code == c.slim.code
    assert relative_error(run_all(other, c.inputs), run_all(c.slim, c.inputs)) == 0.0


@pytest.mark.parametrize("how", COPIES.values(), ids=COPIES)
def test_operations_in_place_survive(how: Callable[[nn.Module], Any]) -> None:
    """``y`` is a second name of what is changed: out of place, the result would be another one."""
    slim = fxprune.slim(seeded(Stateful()), 0.4, image())
    other = how(slim)
    targets = [getattr(n.target, "__name__", "") for n in other.graph.nodes]
    assert {"iadd", "setitem"} <= set(targets)
    assert torch.equal(run(other, image()), run(slim, image()))


def test_a_module_with_two_names_keeps_both() -> None:
    slim = fxprune.slim(seeded(Stateful()), 0.4, image())
    assert "same.weight" in slim.state_dict()
    other = pickled(slim)
    assert other.get_submodule("same") is other.get_submodule("block.0")


def test_plain_tensors_are_no_part_of_the_state_dict() -> None:
    model = seeded(Stateful())
    slim = fxprune.slim(model, 0.4, image())
    assert set(slim.state_dict()) == set(model.state_dict())
    assert torch.equal(slim.last, model.last)
    assert "shift" not in pickled(slim).state_dict()
    again = fxprune.slim(slim, 0.2, image())
    assert set(again.state_dict()) == set(model.state_dict())


def test_hooks_and_their_module_survive() -> None:
    slim = fxprune.slim(seeded(Stateful()), 0.4, image())
    slim.calls = 0
    slim.register_forward_hook(Counting(slim))
    for other in (pickled(slim), copy.deepcopy(slim)):
        run(other, image())
        assert (other.calls, slim.calls) == (1, 0)


class Counting:
    """A hook that knows its module."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    def __call__(self, module: nn.Module, _args: Any, _out: Any) -> None:
        assert module is self.module
        module.calls += 1


def test_graphs_are_read_as_they_were_written() -> None:
    graph = fx.Graph()
    x = graph.placeholder("x")
    y = graph.call_function(torch.ops.aten.add.Tensor, (x, 1))
    z = graph.call_method("reshape", (y, [2, -1]))
    z = graph.call_function(F.max_pool1d, (z, 2))  # a function that pickle does not find by its name
    item = graph.call_function(getattr, (z, "shape"))
    part = graph.call_function(torch.narrow, (z,), {"dim": 0, "start": 0, "length": 1})
    graph.output({"a": (part, slice(None, item)), "b": None, "dtype": torch.float32})
    other = read(pickle.loads(pickle.dumps(written(graph))))  # noqa: S301  # its own bytes
    assert str(other) == str(graph)
    assert [n.target for n in other.nodes] == [n.target for n in graph.nodes]
    other.lint()


def test_a_copy_of_a_copy_trains() -> None:
    slim = pickled(fxprune.slim(seeded(Stateful()), 0.4, image())).train()
    x: Tensor = image()
    slim(x).sum().backward()
    assert all(p.grad is not None for p in slim.parameters())
