"""What cannot be verified is not cut: wrong rules lead to pinned groups and notes, never to a wrong model."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxprune
from fxprune.provenance import rules
from fxprune.provenance.rules.pointwise import identity
from tests.reference.compare import relative_error


class Flipped(nn.Module):
    """Three layers of their own, one of which passes through a flip of its channels."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 12, 3)
        self.second = nn.Conv2d(12, 10, 3)
        self.third = nn.Conv2d(10, 16, 3)
        self.last = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x).relu()
        x = self.second(x).relu().flip(1)
        return self.last(self.third(x).relu().mean((2, 3)))  # type: ignore[no-any-return]


@pytest.fixture
def wrong_flip(monkeypatch: pytest.MonkeyPatch) -> None:
    """The analysis takes a flip for a copy; so does the run of the slim program, and only the verifier knows better."""
    monkeypatch.setitem(rules.TABLE, "flip", identity)


def network() -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    return Flipped().double().eval(), torch.randn(2, 3, 12, 12, dtype=torch.float64)


@pytest.mark.usefixtures("wrong_flip")
def test_the_group_to_blame_stays_and_the_rest_goes() -> None:
    model, x = network()
    slim = fxprune.slim(model, 0.5, x)
    widths = {name: m.out_channels for name, m in slim.named_modules() if isinstance(m, nn.Conv2d)}
    assert widths["second"] == 10
    assert widths["first"] < 12
    assert widths["third"] < 16
    notes = [note for note in fxprune.plan_of(slim).notes if "could not be verified" in note]
    assert len(notes) == 1
    assert "second.weight" in notes[0]
    assert "10 channels" in notes[0]


@pytest.mark.usefixtures("wrong_flip")
def test_strict_raises_and_changes_nothing() -> None:
    model, x = network()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(fxprune.VerificationError) as caught:
        fxprune.slim(model, 0.5, x, strict=True)
    assert caught.value.node
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


def test_a_right_rule_pins_nothing() -> None:
    model, x = network()
    slim = fxprune.slim(model, 0.5, x)
    assert slim.get_submodule("second").out_channels < 10
    assert not any("verified" in note for note in fxprune.plan_of(slim).notes)


@pytest.mark.usefixtures("wrong_flip")
def test_a_failure_far_from_its_cause_is_found_by_halving(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the node that differs shows no removed channel, groups are tried."""
    from fxprune import failsafe

    def nowhere(*given: Any) -> Any:
        try:
            return failsafe_verified(*given)
        except fxprune.VerificationError as error:
            raise fxprune.VerificationError(str(error), node="output") from error

    failsafe_verified = failsafe.verified
    monkeypatch.setitem(failsafe.emit_verified.__kwdefaults__, "check", nowhere)
    model, x = network()
    slim = fxprune.slim(model, 0.5, x)
    assert slim.get_submodule("second").out_channels == 10
    assert slim.get_submodule("first").out_channels < 12
    reference = fxprune.apply(model, fxprune.plan_of(slim), x)
    assert relative_error(slim(x), reference(x)) <= 1e-12


class Deciding(Flipped):
    """A branch that depends on numbers: no tracer takes it."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(-x if x.sum() > 0 else x)


@pytest.mark.usefixtures("wrong_flip")
def test_an_eager_module_keeps_what_cannot_be_verified() -> None:
    _, x = network()
    model = Deciding().double().eval()
    slim = fxprune.slim(model, 0.5, x)
    assert isinstance(slim, Deciding)
    assert slim.second.out_channels == 10
    assert slim.first.out_channels < 12
    assert slim.third.out_channels < 16
    assert sum("could not be verified" in note for note in fxprune.plan_of(slim).notes) == 1


@pytest.mark.usefixtures("wrong_flip")
def test_a_budget_holds_though_a_group_stays() -> None:
    model, x = network()
    slim = fxprune.slim(model, None, x, budget=fxprune.Budget(params=0.75))
    figures = fxprune.plan_of(slim).figures["params"]
    assert sum(p.numel() for p in slim.parameters()) == figures["achieved"] <= figures["asked"]
    assert any("could not be verified" in note for note in fxprune.plan_of(slim).notes)


@pytest.mark.usefixtures("wrong_flip")
def test_a_budget_out_of_reach_once_a_group_stays_says_why() -> None:
    model, x = network()
    with pytest.raises(fxprune.BudgetError, match="stay because the network without them could not be verified"):
        fxprune.slim(model, None, x, budget=fxprune.Budget(params=0.1))
