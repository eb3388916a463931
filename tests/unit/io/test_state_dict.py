"""``Plan.apply_to_state_dict`` against the rewriter, which cuts by other means."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from torch import Tensor

import fxprune
from fxprune.plan import Plan
from fxprune.slices import slices
from tests.property.compiling import compiled
from tests.property.profile import share
from tests.property.strategies import Case, cases
from tests.unit.api.nets import Chain, seeded
from tests.unit.io.nets import NETS, Tied, image, tokens


@pytest.mark.parametrize("name", NETS)
def test_the_state_dict_of_the_slim_model(name: str) -> None:
    build, inputs = NETS[name]
    model = seeded(build())
    slim = fxprune.slim(model, 0.4, inputs(), floor=0, absorb=False)
    state = fxprune.plan_of(slim).apply_to_state_dict(model.state_dict())
    assert list(state) == list(model.state_dict())
    assert all(torch.equal(tensor, state[name]) for name, tensor in slim.state_dict().items())
    slim.load_state_dict(state, strict=True)


@share(1)
@given(cases(setitem=True))
def test_of_any_network(case: Case) -> None:
    c = compiled(case)
    if c is None:
        return
    state = c.plan.apply_to_state_dict(c.model.state_dict())
    assert all(torch.equal(tensor, state[name]) for name, tensor in c.slim.state_dict().items())


def test_nothing_is_shared_with_the_original() -> None:
    model = seeded(Chain())
    state = fxprune.plan_of(fxprune.slim(model, 0.4, image())).apply_to_state_dict(model.state_dict())
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for tensor in state.values():
        tensor.zero_()
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_ties_stay_ties() -> None:
    model = seeded(Tied())
    state = fxprune.plan_of(fxprune.slim(model, 0.4, tokens())).apply_to_state_dict(model.state_dict())
    assert state["embed.weight"] is state["head.weight"]


def test_a_part_of_a_state_dict_and_a_plan_of_two_rounds() -> None:
    model = seeded(Chain())
    slim = fxprune.slim(fxprune.slim(model, 0.3, image(), absorb=False), 0.3, image(), absorb=False)
    part = {name: tensor for name, tensor in model.state_dict().items() if name.startswith("conv")}
    found = fxprune.plan_of(slim).apply_to_state_dict(part)
    assert found.keys() == part.keys()
    assert all(torch.equal(found[name], slim.state_dict()[name]) for name in part)


def test_tensors_without_memory() -> None:
    model = seeded(Chain())
    slim = fxprune.slim(model, 0.4, image())
    state = fxprune.plan_of(slim).apply_to_state_dict(Chain().to("meta").state_dict())
    assert all(tensor.shape == slim.state_dict()[name].shape and tensor.is_meta for name, tensor in state.items())


def test_refusals() -> None:
    plan = fxprune.plan_of(fxprune.slim(seeded(Chain()), 0.4, image()))
    with pytest.raises(fxprune.PlanMismatchError, match=r"8 channels for 'conv1.weight', dimension 0; the tensor has 12"):
        plan.apply_to_state_dict(Chain(12).state_dict())
    with pytest.raises(
        fxprune.PlanMismatchError, match=r"none of the tensors that the plan names; it has .module\.conv1\.weight"
    ):
        plan.apply_to_state_dict({f"module.{name}": tensor for name, tensor in Chain().state_dict().items()})
    with pytest.raises(fxprune.PlanMismatchError, match="unequal numbers"):
        slices("w", (4, 2), {1: (0, 1, 2)}, {1: 4}, {})
    for shape, size in (((4, 3), 4), ((3, 2), 4), ((4,), 4), ((4, 0), 4)):
        with pytest.raises(fxprune.PlanMismatchError):
            slices("w", shape, {1: (0,)}, {1: size}, {})
    with pytest.raises(fxprune.PlanMismatchError):
        Plan({"w": {0: (5,)}}, {"w": {0: 3}}).apply_to_state_dict({"w": torch.zeros(3)})


def by_hand(tensor: Tensor, kept: Any, silent: Any, blocks: int) -> Tensor:
    """Clauses 1 to 3 of fxprune/slices.py, entry by entry."""
    rows, columns, width = kept[0], kept[1], tensor.shape[1]
    result = []
    for row in rows:
        block = row // (tensor.shape[0] // blocks)
        own = [atom for atom in columns if atom // width == block] if blocks > 1 else columns
        result.append([0.0 if atom in silent else float(tensor[row, atom % width]) for atom in own])
    return torch.tensor(result, dtype=tensor.dtype)


@pytest.mark.parametrize(
    ("shape", "kept", "silent", "blocks"),
    [
        ((6, 5), {0: (0, 2, 5), 1: (1, 3)}, (), 1),
        ((6, 5), {0: (5, 0, 3), 1: (4, 0, 1)}, (0,), 1),
        ((40, 5), {0: (0, 39), 1: (2,)}, (2,), 1),
        ((6, 2), {0: (0, 1, 4, 5), 1: (0, 4, 5, 1)}, (), 3),
        ((6, 3), {0: (1, 3, 2), 1: (2, 0, 3, 5)}, (0, 5), 2),
        ((6, 3), {0: (0, 5), 1: (1, 3)}, (3,), 2),
    ],
)
@pytest.mark.parametrize("step", [1, 2, 100])
def test_slices_by_hand(shape: Any, kept: Any, silent: Any, blocks: int, step: int) -> None:
    tensor = torch.arange(1.0, 1 + shape[0] * shape[1], dtype=torch.float64).reshape(shape)
    cut = slices("w", shape, kept, {0: shape[0], 1: shape[1] * blocks}, {1: silent} if silent else {})
    expected = by_hand(tensor, kept, silent, blocks)
    assert cut.shape == expected.shape
    assert torch.equal(cut.whole(tensor), expected)
    ranges = list(cut.ranges(1, step))
    assert [start for start, _ in ranges] == [0, *(stop for _, stop in ranges[:-1])]
    assert torch.equal(torch.cat([cut.rows(lambda a, b: tensor[a:b].clone(), a, b) for a, b in ranges]), expected)
