"""Property 6: permuting a layer's channels, and their readers, permutes the plan and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import fxprune
from fxprune.errors import BudgetError
from tests.property.compiling import TOLERANCE, run
from tests.property.modern import LAYERS
from tests.property.profile import share
from tests.property.program import randomise
from tests.reference.compare import relative_error

Axis = tuple[str, int]


@dataclass(frozen=True)
class Tower:
    """A stem, then plain and residual blocks; ``("plain", 4)`` changes the width, ``("residual", 4)`` has that inner width."""

    stem: int
    blocks: tuple[tuple[str, int], ...]
    head: str = "linear"


class TowerNet(nn.Module):
    """The network of a tower; ``couplings`` lists, for every layer's channels, the parameter axes they lie on."""

    def __init__(self, tower: Tower) -> None:
        super().__init__()
        self.couplings: list[list[Axis]] = []
        self.steps: list[tuple[str, str]] = []
        stream = self.layer("stem", 3, tower.stem, [])
        for i, (kind, width) in enumerate(tower.blocks):
            name = f"block{i}"
            if kind == "plain":
                stream = self.layer(name, len_of(self, stream), width, stream)
            else:
                inner = self.layer(f"{name}_in", len_of(self, stream), width, stream)
                back = self.layer(f"{name}_out", width, len_of(self, stream), inner)
                stream += back
                self.couplings.remove(back)
            self.steps.append((kind, name))
        size = len_of(self, stream)
        self.head = nn.Linear(size, 3) if tower.head == "linear" else nn.Conv2d(size, 3, 1)
        stream.append(("head.weight", 1))

    def layer(self, name: str, before: int, width: int, read: list[Axis]) -> list[Axis]:
        """A convolution with batch norm; adds its input axis to ``read`` and returns the axes of its own channels."""
        self.add_module(f"{name}_conv", nn.Conv2d(before, width, 3, padding=1, bias=False))
        self.add_module(f"{name}_bn", nn.BatchNorm2d(width))
        read.append((f"{name}_conv.weight", 1))
        norm = [(f"{name}_bn.{part}", 0) for part in ("weight", "bias", "running_mean", "running_var")]
        self.couplings.append([(f"{name}_conv.weight", 0), *norm])
        return self.couplings[-1]

    def call(self, name: str, x: Tensor) -> Tensor:
        return getattr(self, f"{name}_bn")(getattr(self, f"{name}_conv")(x))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.call("stem", x))
        for kind, name in self.steps:
            if kind == "plain":
                x = torch.relu(self.call(name, x))
            else:
                x = torch.relu(x + self.call(f"{name}_out", torch.relu(self.call(f"{name}_in", x))))
        return self.head(x.mean((2, 3)) if isinstance(self.head, nn.Linear) else x)


def len_of(model: nn.Module, axes: list[Axis]) -> int:
    """Number of channels on coupled axes."""
    name, dim = axes[0]
    return model.get_parameter(name).shape[dim]


@st.composite
def towers(draw: Callable[[st.SearchStrategy[Any]], Any]) -> tuple[Tower, int, list[int]]:
    """A tower, one of its couplings, and a permutation of the channels there."""
    block = st.tuples(st.sampled_from(["plain", "residual"]), st.integers(2, 8))
    tower = Tower(draw(st.integers(2, 8)), tuple(draw(st.lists(block, max_size=4))), draw(st.sampled_from(["linear", "conv"])))
    model = TowerNet(tower)
    which = draw(st.integers(0, len(model.couplings) - 1))
    order = draw(st.permutations(range(len_of(model, model.couplings[which]))))
    return tower, which, list(order)


def slim_or_error(model: nn.Module, ratio: float, x: Tensor, **options: Any) -> Any:
    """The slim network, or the type of the error that the ratio raises."""
    try:
        return fxprune.slim(model, ratio, x, **options, absorb=False, verify=False)
    except BudgetError as error:
        return type(error)


@share(1)
@given(towers(), st.integers(0, 99), st.sampled_from([0.5, 0.3, 0.7]), st.sampled_from([0.1, 0.0, 0.3]), st.sampled_from([1, 2]))
def test_permuting_channels_permutes_the_plan(
    drawn: tuple[Tower, int, list[int]], seed: int, ratio: float, floor: float, round_to: int
) -> None:
    tower, which, order = drawn
    model, other = TowerNet(tower), TowerNet(tower)
    randomise(model, seed)
    randomise(other, seed)
    axes = model.couplings[which]
    state = model.state_dict()
    for name, dim in axes:
        state[name] = state[name].index_select(dim, torch.tensor(order))
    other.load_state_dict(state)
    x = torch.randn(2, 3, 5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    assert relative_error(run(other, (x,)), run(model, (x,))) <= TOLERANCE

    slims = [slim_or_error(network, ratio, x, floor=floor, round_to=round_to) for network in (model, other)]
    if not all(isinstance(s, nn.Module) for s in slims):
        assert slims[0] == slims[1]
        return
    first, second = (fxprune.plan_of(s) for s in slims)
    assert first.kept.keys() == second.kept.keys()
    for name, dims in first.kept.items():
        for dim, rows in dims.items():
            found = set(second.kept[name][dim])
            expected = {new for new, old in enumerate(order) if old in rows} if (name, dim) in axes else set(rows)
            assert found == expected, f"{name}[{dim}]"
    assert first.achieved == second.achieved
    assert relative_error(run(slims[1], (x,)), run(slims[0], (x,))) <= TOLERANCE


class Unrolled(nn.Module):
    """Two recurrent layers in two directions between linear layers."""

    def __init__(self, kind: str, hidden: int) -> None:
        super().__init__()
        self.before, self.after = nn.Linear(3, 5), nn.Linear(2 * hidden, 3)
        self.recurrent = LAYERS[kind](5, hidden, 2, batch_first=True, bidirectional=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.after(self.recurrent(self.before(x))[0])


@share(0.3)
@given(st.sampled_from(sorted(LAYERS)), st.integers(5, 8), st.integers(0, 99), st.sampled_from([0.5, 0.3, 0.7]), st.data())
def test_permuting_units_permutes_the_plan(kind: str, hidden: int, seed: int, ratio: float, data: Any) -> None:
    """The units of the second layer's backward direction: rows of every gate, recurrent columns, and their columns behind.

    Four units or fewer in four rows of states are thinned at the same places in all of them (graph/closure.py, clause 3).
    """
    model, other = Unrolled(kind, hidden), Unrolled(kind, hidden)
    randomise(model, seed)
    order = data.draw(st.permutations(range(hidden)))
    gates = model.recurrent.weight_hh_l0.shape[0] // hidden
    rows = [g * hidden + i for g in range(gates) for i in order]
    moved = {f"recurrent.{part}_l1_reverse": {0: rows} for part in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")}
    moved["recurrent.weight_hh_l1_reverse"][1] = list(order)
    moved["after.weight"] = {1: [*range(hidden), *[hidden + i for i in order]]}
    state = model.state_dict()
    for name, dims in moved.items():
        for dim, index in dims.items():
            state[name] = state[name].index_select(dim, torch.tensor(index))
    other.double().eval().load_state_dict(state)
    x = torch.randn(2, 4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    assert relative_error(run(other, (x,)), run(model, (x,))) <= TOLERANCE
    slims = [slim_or_error(network, ratio, x) for network in (model, other)]
    if not all(isinstance(s, nn.Module) for s in slims):
        assert slims[0] == slims[1]
        return
    first, second = (fxprune.plan_of(s) for s in slims)
    for name, dims in first.kept.items():
        for dim, kept in dims.items():
            index = moved.get(name, {}).get(dim, range(first.sizes[name][dim]))
            assert set(second.kept[name][dim]) == {new for new, old in enumerate(index) if old in set(kept)}, f"{name}[{dim}]"
    assert relative_error(run(slims[1], (x,)), run(slims[0], (x,))) <= TOLERANCE
