"""Sensitivity of groups: what is measured, that it is resumed and never mixed up, and what it is worth as a score."""

from __future__ import annotations

import copy
import json
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import fxprune
from fxprune.errors import BudgetError, FileFormatError
from fxprune.sensitivity import Curve, Sensitivity, sensitivity
from tests.unit.api.nets import Chain, Residual, image, seeded

SHARES = (0.2, 0.4, 0.6)


def widths(model: nn.Module) -> tuple[int, int]:
    return model.get_parameter("conv1.weight").shape[0], model.get_parameter("conv2.weight").shape[0]


def known(seen: list[tuple[int, int]], stop_after: int = 10**9) -> Callable[[nn.Module, Any], float]:
    """A metric that is known: conv1 (of 10) costs twice as much as conv2 (of 10)."""

    def metric(model: nn.Module, _: Any) -> float:
        if len(seen) >= stop_after:
            raise KeyboardInterrupt
        seen.append(widths(model))
        first, second = (1 - w / 10 for w in seen[-1])
        return 0.9 - 0.4 * first**2 - 0.2 * second**2

    return metric


def scan(seen: list[tuple[int, int]], stop_after: int = 10**9, **options: Any) -> Sensitivity:
    options = {"shares": SHARES, "example_inputs": image(), "show": False} | options
    model = options.pop("model", None) or seeded(Chain(10))
    return sensitivity(model, [], metric=known(seen, stop_after), **options)


def test_one_group_at_a_time_by_its_lowest_channels() -> None:
    model, seen = seeded(Chain(10)), []
    before = copy.deepcopy(model.state_dict())
    found = scan(seen, model=model)
    assert seen == [(10, 10), (8, 10), (6, 10), (4, 10), (10, 8), (10, 6), (10, 4)]
    assert found.baseline == pytest.approx(0.9)
    assert [(c.name, c.channels) for c in found.curves] == [("conv1.weight", 10), ("conv2.weight", 10)]
    assert found.curves[0].points == tuple((s, pytest.approx(0.9 - 0.4 * s**2)) for s in SHARES)
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert found.ranking == "gamma"


def test_a_scan_goes_on_from_where_it_was_stopped(tmp_path: Path) -> None:
    path, seen = tmp_path / "scan.json", []
    with pytest.raises(KeyboardInterrupt):
        scan(seen, 4, path=path)
    assert len(json.loads(path.read_text())["points"]) == 4
    found = scan(seen, path=path)
    assert len(seen) == 7, "points were measured twice"
    assert found == scan([], 0, path=path) == scan([])
    assert [p.name for p in tmp_path.iterdir()] == ["scan.json"]


def test_points_of_another_scan_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "scan.json"
    scan([], path=path)
    with pytest.raises(FileFormatError, match="weights differ"):
        scan([], path=path, model=seeded(Chain(10), seed=1))
    with pytest.raises(FileFormatError, match="score differ"):
        scan([], path=path, score="l1")
    with pytest.raises(FileFormatError, match="metric differ"):
        sensitivity(seeded(Chain(10)), [], SHARES, metric=lambda *_: 0.0, path=path, example_inputs=image(), show=False)
    for damage in ("", "{", "[]", '{"of": 1}', '{"of": {}, "points": 3}'):
        path.write_text(damage)
        with pytest.raises(FileFormatError, match=r"scan\.json"):
            scan([], path=path)


def test_as_a_score_it_finds_the_plan_that_costs_least() -> None:
    """C1(k) = 0.4 (k/10)^2 and C2(k) = 0.2 (k/10)^2: of 9 channels to remove, 3 and 6 cost least."""
    shares = tuple(k / 10 for k in range(1, 10))
    found = scan([], shares=shares)
    graph = fxprune.analyze(seeded(Chain(10)), image())
    plan = fxprune.plan(graph, 9 / 20, score=found, floor=0.0)
    assert len(plan.removed("conv1.weight", 0)) == 3
    assert len(plan.removed("conv2.weight", 0)) == 6
    assert plan.score == "sensitivity (gamma)"
    model = seeded(Chain(10))
    lowest = model.bn1.weight.detach().abs().argsort()[:3]
    assert sorted(plan.removed("conv1.weight", 0)) == sorted(lowest.tolist()), "within a group, the order of the score"


def test_a_score_for_slim_on_a_network_with_coupled_groups() -> None:
    model = seeded(Residual())
    found = sensitivity(model, [], (0.25, 0.5), metric=lambda m, _: 1e-4 * sum(p.numel() for p in m.parameters()), show=False)
    slim = fxprune.slim(model, 0.4, image(), score=found)
    assert fxprune.plan_of(slim).achieved == pytest.approx(0.4, abs=0.1)


def test_costs_are_monotone_and_worths_sum_to_them() -> None:
    curve = Curve("conv1.weight", 0, 10, ((0.2, 0.8), (0.4, 0.85), (0.6, 0.5)))
    found = Sensitivity(0.9, (curve,), "gamma")
    share, cost = found.cost(curve)
    assert share == (0.0, 0.2, 0.4, 0.6, 1.0)
    assert cost == pytest.approx((0.0, 0.1, 0.1, 0.4, 0.9))
    group = fxprune.analyze(seeded(Chain(10)), image()).groups[0]
    worth = found(group).sort().values
    assert float(worth.sum()) == pytest.approx(0.9)
    assert worth[:4].sum() == pytest.approx(0.1), "between measured points the straight line below them"
    assert bool((worth.diff() > 0).all()), "no ties within a group"


def test_suggestions_lie_on_the_measured_curve() -> None:
    found = scan([])
    assert found.suggest(0.4 * 0.36)["conv1.weight"] == pytest.approx(0.6)
    assert found.suggest(0.016)["conv1.weight"] == pytest.approx(0.2)
    assert found.suggest(0.04)["conv1.weight"] == pytest.approx(0.2 + 0.2 * (0.04 - 0.016) / (0.064 - 0.016))
    assert found.suggest(1.0) == {"conv1.weight": 0.6, "conv2.weight": 0.6}
    with pytest.raises(BudgetError, match="negative"):
        found.suggest(-1)


def test_groups_that_were_not_measured_are_named() -> None:
    found = scan([], groups=("conv2*",))
    assert [c.name for c in found.curves] == ["conv2.weight"]
    graph = fxprune.analyze(seeded(Chain(10)), image())
    with pytest.raises(BudgetError, match=r"conv1\.weight.*not measured"):
        fxprune.plan(graph, 0.3, score=found)
    kept = fxprune.analyze(seeded(Chain(10)), image(), keep=("conv1",))
    assert fxprune.plan(kept, 0.3, score=found).achieved == pytest.approx(0.3)


def test_groups_of_one_name_are_told_apart() -> None:
    class Split(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.a, self.b = nn.Conv2d(3, 8, 1), nn.Conv2d(4, 3, 1), nn.Conv2d(4, 3, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            left, right = self.stem(x).split([4, 4], 1)
            return self.a(left) + self.b(right).relu()

    graph = fxprune.analyze(seeded(Split()), image())
    assert [g.name for g in graph.groups] == ["stem.weight"] * 2
    found = sensitivity(seeded(Split()), [], (0.5,), metric=lambda m, _: float(m.a.weight.shape[1]), show=False)
    assert [(c.label, c.points) for c in found.curves] == [("stem.weight", ((0.5, 2.0),)), ("stem.weight@4", ((0.5, 4.0),))]
    worths = [found(group) for group in graph.groups]
    assert float(worths[0].sum()) == pytest.approx(4.0)
    assert float(worths[1].sort().values[0]) < float(worths[0].sort().values[0])


def test_pictures(tmp_path: Path) -> None:
    found = scan([])
    found.plot(tmp_path / "scan.svg")
    text = ET.fromstring((tmp_path / "scan.svg").read_text())  # noqa: S314 - our own file
    assert sum(node.tag.endswith("polyline") for node in text.iter()) == 2
    pytest.importorskip("matplotlib")
    figure = found.figure()
    assert [line.get_label() for line in figure.axes[0].lines[:2]] == ["conv1.weight", "conv2.weight"]
    assert "0.8840" in str(found)


def test_bad_arguments() -> None:
    with pytest.raises(BudgetError, match="shares"):
        scan([], shares=(0.5, 1.0))
    with pytest.raises(BudgetError, match="no group has a name like conv9"):
        scan([], groups=("conv9",))
