"""compare_scores: every score at every ratio, on networks that are really slimmed, and nothing of the model changed."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxprune
from fxprune.errors import BudgetError, InputError
from fxprune.evaluate import accuracy
from fxprune.score import l1
from tests.unit.api.nets import Chain, Residual, image, seeded

LOADER = [(image(3, 3, 8, 8, seed=1), torch.tensor([0, 1, 2]))]


def parameters(model: nn.Module, _: Any) -> float:
    return float(sum(p.numel() for p in model.parameters()))


def test_the_values_are_those_of_the_slim_networks() -> None:
    model = seeded(Residual())
    before = copy.deepcopy(model.state_dict())
    found = fxprune.compare_scores(
        model,
        LOADER,
        {"one": l1, "g": "gamma", "t": "taylor"},
        (0.25, 0.5),
        metric=parameters,
        example_inputs=image(),
        show=False,
    )
    assert list(found.curves) == ["one", "g", "t"]
    assert found.baseline == parameters(model, None)
    for name, how in (("one", l1), ("g", "gamma"), ("t", fxprune.score.taylor(LOADER))):
        for point, ratio in zip(found.curves[name], (0.25, 0.5), strict=True):
            slim = fxprune.slim(model, ratio, image(), score=how)
            assert point.value == point.parameters == parameters(slim, None)
            assert (point.asked, point.achieved) == (ratio, fxprune.plan_of(slim).achieved)
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


def test_scores_of_data_are_normalised_by_name() -> None:
    model = seeded(Residual())
    names = ("taylor:mean", "activation:l2")
    found = fxprune.compare_scores(model, LOADER, names, (0.5,), metric=parameters, example_inputs=image(), show=False)
    assert list(found.curves) == list(names)
    for name, score, by in (("taylor:mean", fxprune.score.taylor, "mean"), ("activation:l2", fxprune.score.activation, "l2")):
        slim = fxprune.slim(model, 0.5, image(), score=fxprune.score.normalised(score(LOADER), by))
        assert found.curves[name][0].value == parameters(slim, None)
    with pytest.raises(BudgetError, match="a normalisation is one of"):
        fxprune.compare_scores(model, LOADER, ("taylor:average",), (0.5,), metric=parameters, example_inputs=image(), show=False)
    with pytest.raises(
        BudgetError, match=r"callables: fxprune\.score\.normalised\(fxprune\.score\.taylor\(loader, loss\), 'mean'\)"
    ):
        fxprune.slim(model, 0.5, image(), score="taylor:mean")


def test_the_default_scores_and_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    found = fxprune.compare_scores(seeded(Residual()), LOADER, ratios=(0.3,), example_inputs=image())
    assert list(found.curves) == ["gamma", "magnitude", "fpgm:mean", "lamp", "taylor", "random"]
    printed = capsys.readouterr().out
    assert "accuracy against ratio" in " ".join(printed.split())
    assert all(name in printed for name in found.curves)
    assert all(name in str(found) for name in found.curves)
    assert found.best()[0.3] in found.curves


def test_a_ratio_out_of_reach_has_a_reason() -> None:
    found = fxprune.compare_scores(
        seeded(Chain()), LOADER, ("l1", "random"), (0.3, 0.99), metric=parameters, example_inputs=image(), floor=0.5, show=False
    )
    for points in found.curves.values():
        assert not math.isnan(points[0].value)
        assert math.isnan(points[1].value)
        assert "cannot be reached" in points[1].reason
    assert list(found.best()) == [0.3]
    assert " -" in str(found)


def test_batch_norms_are_estimated_anew_in_the_slim_networks_only() -> None:
    model = seeded(Residual())
    means = []

    def metric(net: nn.Module, _: Any) -> float:
        means.append(net.get_buffer("bn1.running_mean").clone())
        return 0.0

    fxprune.compare_scores(model, LOADER, ("gamma",), (0.3,), metric=metric, example_inputs=image(), recalibrate=1, show=False)
    assert torch.equal(means[0], model.bn1.running_mean)
    kept = fxprune.plan_of(fxprune.slim(model, 0.3, image(), score="gamma")).kept["bn1.running_mean"][0]
    assert not torch.isclose(means[1], model.bn1.running_mean[list(kept)]).any()


def test_errors() -> None:
    with pytest.raises(BudgetError, match="'l3'"):
        fxprune.compare_scores(seeded(Chain()), LOADER, ("l3",), (0.3,), example_inputs=image(), show=False)
    with pytest.raises(BudgetError, match=r"Did you mean 0\.30"):
        fxprune.compare_scores(seeded(Chain()), LOADER, ("l1",), (30,), example_inputs=image(), show=False)


def test_a_picture() -> None:
    pytest.importorskip("matplotlib")
    found = fxprune.compare_scores(
        seeded(Chain()), LOADER, ("l1",), (0.3,), metric=parameters, example_inputs=image(), show=False
    )
    assert found.plot().axes[0].lines[0].get_label() == "l1"


class Answers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.drop = nn.Dropout(1.0)

    def forward(self, x: Tensor) -> tuple[Tensor, None]:
        return self.drop(x), None


def test_accuracy() -> None:
    model = Answers().train()
    x = torch.eye(4)
    assert accuracy(model, [(x, torch.tensor([0, 1, 2, 0])), (x[:1], torch.tensor([0]))]) == 4 / 5
    assert model.training
    assert model.drop.training
    with pytest.raises(InputError, match="labels"):
        accuracy(model, [x])
    with pytest.raises(InputError, match="no batch"):
        accuracy(model, [])
