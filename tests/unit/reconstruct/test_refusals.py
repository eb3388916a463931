"""What channel_prune refuses or leaves, and what it says."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fxprune
from fxprune import reconstruct
from tests.unit.reconstruct.nets import Chain, Residual, conv, outputs, pictures, ready


@pytest.mark.parametrize(
    ("arguments", "error", "said"),
    [
        ({}, fxprune.BudgetError, "got none"),
        ({"ratio": 0.5, "ratios": {"conv1": 0.5}}, fxprune.BudgetError, "ratio and ratios"),
        ({"ratio": 40}, fxprune.BudgetError, r"Did you mean 0\.40"),
        ({"ratio": float("nan")}, fxprune.BudgetError, "got nan"),
        ({"budget": object()}, fxprune.BudgetError, "plan="),
        ({"ratio": 0.5, "layout": "auto"}, fxprune.BudgetError, "'coupled' or 'selection'"),
        ({"ratio": 0.5, "branches": 0.5}, fxprune.BudgetError, "takes selects"),
        (
            {"ratio": 0.5, "layout": "selection", "branches": {"conv2": 0.5}},
            fxprune.KeepError,
            "no convolution that reads a residual stream",
        ),
        ({"ratio": 0.5, "layout": "selection", "branches": 50}, fxprune.BudgetError, r"\[0, 1\)"),
        ({"budget": fxprune.Budget(latency="1ms")}, fxprune.BudgetError, "For a latency"),
        ({"ratio": 0.5, "budget": fxprune.Budget(macs=0.5)}, fxprune.BudgetError, "ratio and budget"),
        ({"budget": fxprune.Budget(macs=1e-6)}, fxprune.BudgetError, "macs"),
        ({"ratios": {}}, fxprune.BudgetError, "must name layers"),
        ({"ratios": {"conv1": 1.5}}, fxprune.BudgetError, r"\[0, 1\)"),
        ({"ratios": {"convv1": 0.5}}, fxprune.KeepError, "'conv1'"),
        ({"ratios": {"fc": 0.5}}, fxprune.KeepError, "no layer whose channels can go"),
        ({"ratio": 0.5, "select": "best"}, fxprune.BudgetError, "'lasso'"),
        ({"ratio": 0.5, "slack": -1}, fxprune.BudgetError, "slack"),
        ({"ratio": 0.5, "refine": 0.5}, fxprune.BudgetError, "refine"),
        ({"ratio": 0.5, "images": 0}, fxprune.InputError, "images"),
        ({"ratio": 0.5, "positions": True}, fxprune.InputError, "positions"),
        ({"ratio": 0.5, "keep": ["nobody"]}, fxprune.KeepError, "nobody"),
        ({"ratio": 0.5, "memory": 1}, fxprune.NothingToPruneError, "memory="),
        ({"plan": "half"}, fxprune.BudgetError, "must be a fxprune.Plan"),
    ],
)
def test_arguments_that_make_no_sense(arguments: dict[str, Any], error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        reconstruct.channel_prune(ready(Chain()), pictures(16), **arguments)


def test_two_shares_for_one_group() -> None:
    with pytest.raises(fxprune.BudgetError, match="one group of coupled channels"):
        reconstruct.channel_prune(ready(Residual()), pictures(16), ratios={"stem": 0.5, "a2": 0.25})


@pytest.mark.parametrize(
    ("loader", "said"),
    [
        (iter([torch.zeros(1, 3, 8, 8)]), "gone through once"),
        (7, "gone through once"),
        (["text"], "must be a tensor"),
        ([torch.zeros(2, 5, 8, 8, dtype=torch.float64)], "fit|expects|fails"),
    ],
)
def test_loaders_that_do_not_fit(loader: Any, said: str) -> None:
    with pytest.raises(fxprune.InputError, match=said):
        reconstruct.channel_prune(ready(Chain()), loader, ratio=0.5)


def test_an_empty_loader() -> None:
    with pytest.raises(fxprune.InputError, match="no batch"):
        reconstruct.channel_prune(ready(Chain()), [], ratio=0.5, example_inputs=pictures(16)[0])


def test_a_later_batch_that_does_not_fit_names_the_node() -> None:
    with pytest.raises(fxprune.InputError, match="conv1"):
        reconstruct.channel_prune(ready(Chain()), [*pictures(16), torch.zeros(2, 4, 8, 8, dtype=torch.float64)], ratio=0.5)


class Odd(nn.Module):
    """Groups that reconstruction cannot choose among, each for a reason of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.plain, self.up = conv(3, 8), nn.ConvTranspose2d(8, 8, 2, 2)
        self.normed, self.norm = conv(8, 8), nn.GroupNorm(1, 8)
        self.after = conv(8, 8)
        self.computed = nn.utils.parametrizations.weight_norm(conv(8, 8))
        self.raw = nn.Parameter(torch.randn(6, 8, 1, 1))
        self.last, self.fc = conv(6, 10), nn.Linear(10, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.up(F.relu(self.plain(x))))
        x = F.relu(self.norm(self.normed(x)))
        x = F.relu(self.computed(F.relu(self.after(x))))
        x = F.relu(self.last(F.conv2d(x, self.raw)))
        return self.fc(x.mean((2, 3)))


def test_what_cannot_be_treated_is_left_with_a_reason() -> None:
    model, images = ready(Odd()), pictures()
    slim = reconstruct.channel_prune(model, images, ratio=0.5)
    reasons = dict(reconstruct.report_of(slim).skipped)
    assert "transposed" in reasons["plain"]
    assert "hears" in reasons["normed"]
    assert "computed" in reasons["after"] or "weight" in reasons["after"]
    assert any("called as a module" in why for why in reasons.values())
    assert slim.get_submodule("last").out_channels == 5
    for name in ("plain", "normed"):
        assert len(slim.get_submodule(name).weight) == len(model.get_submodule(name).weight)
    assert "left as it was" in str(reconstruct.report_of(slim))
    with pytest.raises(fxprune.BudgetError, match="hears"):
        reconstruct.channel_prune(model, images, ratios={"normed": 0.5})


class Bare(nn.Module):
    """No bias and no norm behind the reader: an intercept would have no place."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.fc = conv(3, 8), conv(8, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(F.relu(self.b(F.relu(self.a(x)))).mean((2, 3)))


def test_no_place_for_an_intercept() -> None:
    model, images = ready(Bare()), pictures()
    slim = reconstruct.channel_prune(model, images, ratios={"a": 0.5})
    (layer,) = reconstruct.report_of(slim).layers
    assert "intercept" in layer.note
    assert layer.after < layer.before
    assert slim.state_dict().keys() == model.state_dict().keys()


class Seen(nn.Module):
    """Convolutions that are computed on the way: an eager module only."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = conv(3, 8), conv(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        return self.b(x if float(x.sum()) > 0 else -x)


def test_a_model_without_a_program() -> None:
    with pytest.raises(fxprune.CaptureError, match="eager"):
        reconstruct.channel_prune(ready(Seen()), pictures(16), ratio=0.5)


def test_nothing_to_choose_among() -> None:
    with pytest.raises(fxprune.NothingToPruneError):
        reconstruct.channel_prune(nn.Sequential(conv(3, 4)).double(), pictures(16), ratio=0.5)


def test_less_than_a_channel_is_nothing() -> None:
    with pytest.raises(fxprune.NothingToPruneError, match="no whole channel"):
        reconstruct.channel_prune(ready(Chain()), pictures(16), ratio=0.01)


def test_a_budget_with_a_plan_takes_its_widths() -> None:
    model, images = ready(Chain()), pictures(16)
    plan = fxprune.plan(fxprune.analyze(model, images[0]), 0.4)
    slim = reconstruct.channel_prune(model, images, plan=plan, budget=object())
    assert slim.get_submodule("conv1").out_channels == len(plan.kept["conv1.weight"][0])


def test_ratio_zero_removes_nothing() -> None:
    model, images = ready(Chain()), pictures(16)
    slim = reconstruct.channel_prune(model, images, ratio=0.0)
    assert torch.equal(outputs(slim, images), outputs(model, images))


def test_a_module_without_a_report() -> None:
    with pytest.raises(fxprune.PlanMismatchError, match="no report"):
        reconstruct.report_of(ready(Chain()))


def test_numbers_that_are_not_finite_name_the_layer() -> None:
    damaged = [*pictures(16), torch.full((2, 3, 8, 8), float("nan"), dtype=torch.float64)]
    with pytest.raises(fxprune.InputError, match=r"'conv2'.*NaN"):
        reconstruct.channel_prune(ready(Chain()), damaged, ratios={"conv1": 0.5})
    model = ready(Chain()).half()
    with torch.no_grad():
        model.conv2.weight.mul_(6e4)
    with pytest.raises(fxprune.InputError, match="float16"):
        reconstruct.channel_prune(model, [batch.half() for batch in pictures(16)], ratios={"conv1": 0.5})
