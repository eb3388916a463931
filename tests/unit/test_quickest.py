"""Of several plans for one budget, the fastest."""

from __future__ import annotations

import gc
import sys
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import nn

import fxprune
from fxprune import Budget, BudgetError, InputError, zoo
from fxprune import quickest as call
from tests.property.program import randomise

home = sys.modules["fxprune.quickest"]  # its name in the package is the function's


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    return randomise(zoo.resnet.ResNet(1)).float()


IMAGE = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def macs(plan: fxprune.Plan) -> float:
    return plan.figures["macs"]["achieved"] / plan.figures["macs"]["original"]


def timed_by(monkeypatch: pytest.MonkeyPatch, seconds: Callable[[nn.Module], float]) -> Callable[[nn.Module], Any]:
    """A way to run that takes that long, for the clock."""

    def interleaved(calls: Sequence[Callable[[], Any]], device: torch.device, limit: float) -> list[list[float]]:
        assert device.type == "cpu"
        assert limit > 0
        return [[one()] for one in calls]

    monkeypatch.setattr(home, "interleaved", interleaved)
    return lambda slim: lambda: seconds(slim)


def test_the_fastest_of_plans_that_meet_the_budget(model: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    def widest(slim: nn.Module) -> float:
        return float(slim.get_submodule("layer1.0.conv1").out_channels)

    found = call(model, IMAGE, Budget(macs=0.5), run=timed_by(monkeypatch, widest), round_to=(2, 4))
    names = [one.name for one in found.candidates]
    assert len(names) == len(set(names)) > 3
    assert {name.split(",")[0] for name in [*names, *found.absent]} == {"global", "isomorphic", "uniform", "threshold", "below"}
    assert all(macs(one.plan) <= 0.5 for one in found.candidates)
    seconds = [one.seconds for one in found.candidates]
    assert seconds == sorted(seconds)
    assert seconds[0] < seconds[-1]
    assert widest(found.model) == seconds[0]
    assert fxprune.plan_of(found.model).kept == found.candidates[0].plan.kept
    assert found.model(IMAGE).shape == (1, 10)
    assert str(found).splitlines()[0].endswith(names[0])
    for one in found.candidates:
        (multiple,) = (int(word) for word in one.name.split() if word.isdigit())
        slim = fxprune.apply(model, one.plan, IMAGE, verify=False)
        assert slim.get_submodule("layer3.0.conv1").out_channels % multiple == 0


def test_lean_plans_write_fewer_bytes_and_use_the_budget(model: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    found = call(model, IMAGE, Budget(macs=0.5), run=timed_by(monkeypatch, lambda _slim: 1.0), round_to=(2,))
    plans = {one.name: one.plan for one in found.candidates}
    lean, plain = plans["global, lean, multiples of 2"], plans["global, multiples of 2"]

    loose = fxprune.plan(
        fxprune.analyze(model, IMAGE), budget=Budget(macs=0.5, activation_bytes=1.0), score="auto", round_to=2
    )  # the same plan, and what it writes
    assert loose.kept == plain.kept
    assert macs(lean) >= 0.97 * macs(plain)
    assert lean.figures["activation_bytes"]["achieved"] < loose.figures["activation_bytes"]["achieved"]


def test_candidates_that_keep_too_little_are_left_out(model: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    run = timed_by(monkeypatch, lambda _slim: 1.0)
    everyone = call(model, IMAGE, Budget(macs=0.3), run=run, round_to=(2,))
    kept = sorted(one.kept for one in everyone.candidates)
    least = (kept[-1] + kept[0]) / 2 / kept[-1]
    some = call(model, IMAGE, Budget(macs=0.3), run=run, round_to=(2,), least=least)
    assert 0 < len(some.candidates) < len(everyone.candidates)
    assert all(one.kept >= least * kept[-1] for one in some.candidates)
    assert any("of the best score" in why for why in some.absent.values())


def test_deployed_and_by_the_clock_unless_told_otherwise(model: nn.Module) -> None:
    found = call(model, IMAGE, Budget(macs=0.5), round_to=(8,), seconds=0.05)
    assert 0 < found.candidates[0].seconds <= found.candidates[-1].seconds
    assert fxprune.verify(model, found.model, IMAGE) is not None


def test_refusals(model: nn.Module) -> None:
    with pytest.raises(InputError, match="quickest takes a Budget without a latency"):
        call(model, IMAGE, Budget(latency=0.5))
    with pytest.raises(InputError, match="quickest takes a Budget"):
        call(model, IMAGE, 0.5)  # type: ignore[arg-type]
    with pytest.raises(BudgetError, match="at least one multiple"):
        call(model, IMAGE, Budget(macs=0.5), round_to=())
    with pytest.raises(BudgetError, match="round_to must be a positive whole number"):
        call(model, IMAGE, Budget(macs=0.5), round_to=(16, 0))
    with pytest.raises(BudgetError, match="no plan meets"):
        call(model, IMAGE, Budget(macs=0.0001), round_to=(2,))


def test_what_is_kept_is_measured_by_one_score(model: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    """A threshold ranks plain gammas, the other scopes their logarithmic shares; the shares kept stand in one list."""
    found = call(model, IMAGE, Budget(macs=0.4), run=timed_by(monkeypatch, lambda _slim: 1.0), round_to=2)
    scores = {one.plan.score for one in found.candidates}
    assert scores == {"gamma", "gamma:log"}
    for one in found.candidates:
        if one.plan.score == "gamma:log":
            figure = one.plan.figures["kept score"]
            assert one.kept == pytest.approx(figure["achieved"] / figure["original"], rel=1e-9)
    best = max(found.candidates, key=lambda one: one.kept)
    assert best.name == "global, multiples of 2"


def test_what_cannot_be_made_or_verified_is_left_out(model: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    made = home.apply

    def refusing(model: nn.Module, plan: fxprune.Plan, inputs: Any, *, verify: bool = True) -> Any:
        if plan.kept == first.plan.kept and verify:
            raise fxprune.VerificationError("it differs")
        if plan.kept == last.plan.kept:
            raise fxprune.RewriteError("no such network")
        return made(model, plan, inputs, verify=verify)

    def seconds(slim: nn.Module) -> float:
        return float(sum(p.numel() for p in slim.parameters()))

    run = timed_by(monkeypatch, seconds)
    whole = call(model, IMAGE, Budget(macs=0.5), run=run, round_to=(2,))
    first, last = whole.candidates[0], whole.candidates[-1]
    monkeypatch.setattr(home, "apply", refusing)
    found = call(model, IMAGE, Budget(macs=0.5), run=run, round_to=(2,))
    assert [one.name for one in found.candidates] == [one.name for one in whole.candidates[1:-1]]
    assert found.absent[first.name] == "it differs"
    assert found.absent[last.name] == "no such network"
    assert fxprune.plan_of(found.model).kept == found.candidates[0].plan.kept


def test_calls_are_of_networks_in_evaluation_mode_and_the_mode_is_the_models(
    model: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    modes: list[bool] = []

    def seconds(slim: nn.Module) -> float:
        modes.append(slim.training)
        return 1.0

    for verify in (True, False):
        found = call(model.train(), IMAGE, Budget(macs=0.5), run=timed_by(monkeypatch, seconds), round_to=(4,), verify=verify)
        assert found.model.training
    assert modes
    assert not any(modes)


def test_only_calls_hold_networks(model: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    """A session of another runtime needs no module: ten candidates of a large network must not be held beside ten sessions."""
    known: list[weakref.ref[nn.Module]] = []
    alive: list[int] = []

    def run(slim: nn.Module) -> Callable[[], float]:
        known.append(weakref.ref(slim))
        return lambda: float(len(known))

    def interleaved(calls: Sequence[Callable[[], Any]], device: torch.device, limit: float) -> list[list[float]]:
        del device, limit
        gc.collect()
        alive.append(sum(one() is not None for one in known))
        return [[one()] for one in calls]

    monkeypatch.setattr(home, "interleaved", interleaved)
    found = call(model, IMAGE, Budget(macs=0.5), run=run, round_to=(2,))
    assert len(known) == len(found.candidates) > 3
    assert alive == [0]
