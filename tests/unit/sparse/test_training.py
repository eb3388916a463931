"""Schedules, penalties and dropout rates, against the papers' formulas written out by hand."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from fxprune import BudgetError, FxpruneError, sparse


def net() -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Linear(8, 10), nn.ReLU(), nn.Dropout(0.5), nn.Linear(10, 6), nn.ReLU(), nn.Dropout(0.4), nn.Linear(6, 3)
    )


def test_the_cubic_schedule_at_points_worked_out_by_hand() -> None:
    # s_t = 0.9 + (0 - 0.9)(1 - (t - 10) / 20)^3: at t = 20 that is 0.9 - 0.9 / 8.
    assert sparse.cubic(20, 10, 30, 0.1) == pytest.approx(1 - (0.9 - 0.9 / 8))
    assert sparse.cubic(0, 10, 30, 0.1) == sparse.cubic(10, 10, 30, 0.1) == 1
    assert sparse.cubic(30, 10, 30, 0.1) == sparse.cubic(99, 10, 30, 0.1) == pytest.approx(0.1)


@given(st.floats(0.001, 1), st.integers(1, 12), st.sampled_from(["geometric", "linear", "cubic"]))
def test_rounds_fall_to_what_was_asked(final: float, count: int, shape: str) -> None:
    found = sparse.rounds(final, count, shape)
    assert len(found) == count
    assert found[-1] == final
    assert all(a >= b - 1e-12 for a, b in zip((1.0, *found), found, strict=False))


def test_geometric_rounds_keep_the_same_share_each() -> None:
    assert sparse.rounds(0.081, 4) == pytest.approx([0.081 ** (i / 4) for i in (1, 2, 3, 4)])


def test_schedules_that_make_no_sense() -> None:
    for call in (
        lambda: sparse.cubic(0, 5, 5, 0.1),
        lambda: sparse.cubic(0, 0, 5, 0.9, 0.5),
        lambda: sparse.rounds(0.0, 3),
        lambda: sparse.rounds(0.5, 0),
        lambda: sparse.rounds(0.5, 2, "square"),
        lambda: sparse.Gradual(net(), 1.5, start=0, end=10),
        lambda: sparse.Gradual(net(), 0.5, start=0, end=10, every=0),
    ):
        with pytest.raises(BudgetError):
            call()


@pytest.mark.parametrize("final", [0.1, {"0": 0.1, "3": 0.1, "6": 0.1}])
def test_gradual_pruning_follows_the_cubic(final: float | dict[str, float]) -> None:
    model = net()
    gradual = sparse.Gradual(model, final, start=4, end=24, every=5)
    seen = {}
    for step in range(1, 31):
        if gradual.step():
            seen[step] = sparse.density(model)
    assert list(seen) == [4, 9, 14, 19, 24]
    for step, reached in seen.items():
        expected = 1 - (0.9 - 0.9 * (1 - (step - 4) / 20) ** 3)
        assert reached == pytest.approx(expected, abs=0.01)


def test_gradual_pruning_reaches_its_end_between_two_intervals() -> None:
    model = net()
    gradual = sparse.Gradual(model, 0.2, start=1, end=10, every=4, scope="global")
    for _ in range(10):
        gradual.step()
    assert gradual.density == pytest.approx(0.2, abs=0.01)


def test_rounds_of_prune_and_retrain() -> None:
    model, calls = net(), []

    def retrain(number: int) -> None:
        calls.append((number, sparse.density(model)))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(1.1)

    reached = sparse.iterate(model, sparse.rounds(0.1, 3), retrain)
    assert [number for number, _ in calls] == [0, 1, 2]
    assert reached == [share for _, share in calls]
    assert reached == pytest.approx([0.1 ** (1 / 3), 0.1 ** (2 / 3), 0.1], abs=0.01)


@pytest.mark.parametrize("order", [1, 2])
def test_the_gradient_of_a_penalty_is_that_of_its_term(order: int) -> None:
    model = net().double()
    sparse.set_masks(model, sparse.by_density(model, 0.5))
    penalty = sparse.Penalty(model, 0.3, order, names=("0", "3"))
    penalty.penalty().backward()
    expected = {name: None if p.grad is None else p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    penalty.add_gradient()
    for name, p in model.named_parameters():
        assert (p.grad is None) == (expected[name] is None) == (not name.startswith(("0.p", "3.p")))
        assert p.grad is None or torch.allclose(p.grad, expected[name], rtol=1e-12)
    weight = model[0].weight.detach()
    by_hand = 0.3 * weight.sign() if order == 1 else 0.3 * weight
    assert torch.allclose(model[0].parametrizations.weight.original.grad, by_hand)


def test_penalties_that_make_no_sense() -> None:
    for strength, order in ((0.1, 3), (-0.1, 1), (math.inf, 2)):
        with pytest.raises(BudgetError):
            sparse.Penalty(net(), strength, order)


def connections(weight: Tensor) -> int:
    return sum(1 for value in weight.flatten().tolist() if value != 0)


def test_dropout_falls_with_the_root_of_the_connections_that_are_left() -> None:
    model = net()
    sparse.set_masks(model, sparse.by_density(model, {"0": 0.25, "3": 0.5}))
    rates = sparse.adjust_dropout(model)
    # D_r = D_o sqrt(C_ir / C_io); the layer is the one whose neurons are dropped.
    assert rates["2"] == pytest.approx(0.5 * math.sqrt(connections(model[0].weight) / 80)) == pytest.approx(model[2].p)
    assert rates["5"] == pytest.approx(0.4 * math.sqrt(connections(model[3].weight) / 60)) == pytest.approx(model[5].p)


def test_dropout_is_adjusted_from_the_rate_it_was_trained_with() -> None:
    model = net()
    sparse.set_masks(model, sparse.by_density(model, 0.25))
    sparse.adjust_dropout(model)
    sparse.set_masks(model, sparse.by_density(model, 0.0625, names=("0",)))
    sparse.adjust_dropout(model, rates={"2": 0.5, "5": 0.4})
    assert model[2].p == pytest.approx(0.5 * 0.25)


class Backwards(nn.Module):
    """Registered in another order than run, with a residual sum before the dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.drop = nn.Dropout(0.5)
        self.last = nn.Linear(6, 2)
        self.left = nn.Linear(6, 6)
        self.right = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.last(self.drop((self.left(x) + self.right(x)).relu()))
        return out


def test_the_layers_before_a_dropout_are_found_in_the_program() -> None:
    model = Backwards()
    sparse.set_masks(model, sparse.by_density(model, {"left": 0.25, "right": 0.5}))
    sparse.adjust_dropout(model)
    assert model.drop.p == pytest.approx(0.5 * math.sqrt((9 + 18) / 72))
    model = Backwards()
    sparse.set_masks(model, sparse.by_density(model, {"last": 0.25}))
    sparse.adjust_dropout(model, layers={"drop": ("last",)})
    assert model.drop.p == pytest.approx(0.25)


def test_dropouts_that_cannot_be_adjusted() -> None:
    with pytest.raises(FxpruneError, match="no dropout"):
        sparse.adjust_dropout(nn.Sequential(nn.Linear(2, 2)))
    with pytest.raises(FxpruneError, match="nobody"):
        sparse.adjust_dropout(net(), layers={"2": ("nobody",)})
    with pytest.raises(FxpruneError, match="nobody"):
        sparse.adjust_dropout(net(), rates={"nobody": 0.5})
    with pytest.raises(FxpruneError, match="layers="):
        sparse.adjust_dropout(nn.Sequential(nn.Dropout(0.5), nn.Linear(2, 2)))
