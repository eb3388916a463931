"""Sensitivity: what is measured, that it is resumed and never mixed up, and what is suggested from it."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from fxprune import BudgetError, sparse
from fxprune.sparse.errors import SparseFileError

DENSITIES = (0.5, 0.25, 0.1)


def net(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(10, 20), nn.ReLU(), nn.Linear(20, 4))


def counting(calls: list[dict[str, float]], stop_after: int = 10**9) -> Callable[[nn.Module], float]:
    """An "accuracy" that is known: each layer's density costs, the first one twice as much."""

    def accuracy(model: nn.Module) -> float:
        if len(calls) >= stop_after:
            raise KeyboardInterrupt
        shares = sparse.densities(model)
        calls.append(shares)
        return 0.9 - 0.4 * (1 - shares["0"]) ** 2 - 0.2 * (1 - shares["2"]) ** 2

    return accuracy


def test_one_layer_at_a_time_at_the_densities_asked_for() -> None:
    model, calls = net(), []
    before = {k: v.clone() for k, v in model.state_dict().items()}
    found = sparse.scan(model, counting(calls), DENSITIES)
    assert calls == [
        {"0": 1.0, "2": 1.0},
        *({"0": d, "2": 1.0} for d in DENSITIES),
        *({"0": 1.0, "2": pytest.approx(d, abs=0.01)} for d in DENSITIES),
    ]
    assert found.baseline == pytest.approx(0.9)
    assert dict(found.accuracy["0"])[0.5] == pytest.approx(0.9 - 0.4 * 0.25)
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert found.sizes == {"0": 200, "2": 80}


def test_the_threshold_is_the_smallest_weight_that_stays() -> None:
    model = net()
    found = sparse.scan(model, lambda _: 1.0, (0.5,))
    weight = model[0].weight.detach().abs().flatten().sort().values
    assert found.magnitudes["0"][0][1] == pytest.approx(float(weight[100]))
    assert found.magnitudes["0"][0][2] == pytest.approx(float(weight[100] / model[0].weight.detach().double().std()))
    assert sparse.by_quality(model, {"0": found.suggest(0.0)["0"].quality})["0"].float().mean() == pytest.approx(0.5, abs=0.006)


def test_a_scan_goes_on_from_where_it_was_stopped(tmp_path: Path) -> None:
    path, calls = tmp_path / "scan.json", []
    with pytest.raises(KeyboardInterrupt):
        sparse.scan(net(), counting(calls, 4), DENSITIES, path=path)
    assert len(json.loads(path.read_text())["points"]) == 4
    found = sparse.scan(net(), counting(calls), DENSITIES, path=path)
    assert len(calls) == 7, "points were measured twice"
    assert found == sparse.scan(net(), counting([], 0), DENSITIES, path=path)
    assert found == sparse.scan(net(), counting([]), DENSITIES)
    assert [p.name for p in tmp_path.iterdir()] == ["scan.json"]


def test_points_of_other_weights_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "scan.json"
    sparse.scan(net(), lambda _: 0.5, DENSITIES, path=path)
    with pytest.raises(SparseFileError, match="another model"):
        sparse.scan(net(1), lambda _: 0.5, DENSITIES, path=path)
    for damage in ("", "{", "[]", '{"digest": 1}', '{"digest": "x", "points": 3}'):
        path.write_text(damage)
        with pytest.raises(SparseFileError, match=r"scan\.json"):
            sparse.scan(net(), lambda _: 0.5, DENSITIES, path=path)


def test_masks_of_the_model_count_as_zeros() -> None:
    model = net()
    sparse.set_masks(model, sparse.by_density(model, {"0": 0.5}))
    seen: list[float] = []
    sparse.scan(model, lambda m: seen.append(sparse.densities(m)["0"]) or 0.5, (0.8, 0.2), names=("0",))
    assert seen == [0.5, 0.5, 0.2]


def test_suggestions_lie_on_the_measured_curve() -> None:
    found = sparse.scan(net(), counting([]), (0.75, 0.5, 0.25))
    assert found.suggest(0.1)["0"].density == pytest.approx(0.5)  # 0.4 * 0.5^2
    # between 0.75 (cost 0.025) and 0.5 (cost 0.1): linear
    assert found.suggest(0.0625)["0"].density == pytest.approx(0.625)
    assert found.suggest(0.0)["0"].density == 1.0
    assert found.suggest(1.0)["0"].density == 0.25
    assert found.suggest(0.05)["2"].density < found.suggest(0.05)["0"].density, "the less sensitive layer loses more"
    with pytest.raises(BudgetError):
        found.suggest(1.5)


def test_a_dip_does_not_count_as_a_recovery() -> None:
    values = iter([0.9, 0.9, 0.5, 0.88])  # baseline, then 0.6, 0.4, 0.2
    found = sparse.scan(net(), lambda _: next(values), (0.6, 0.4, 0.2), names=("0",))
    assert found.suggest(0.1)["0"].density == pytest.approx(0.6 - 0.2 * 0.1 / 0.4)


@pytest.mark.parametrize("density", [0.9, 0.5, 0.3, 0.12])
def test_one_loss_for_all_layers_gives_the_density_asked_for(density: float) -> None:
    found = sparse.scan(net(), counting([]), (0.75, 0.5, 0.25, 0.1))
    share = found.allocate(density)
    assert (200 * share["0"] + 80 * share["2"]) / 280 == pytest.approx(density, abs=1e-3)
    assert share["2"] <= share["0"]
    with pytest.raises(BudgetError, match="below what was measured"):
        found.allocate(0.05)


def test_table_and_plot(tmp_path: Path) -> None:
    found = sparse.scan(net(), counting([]), DENSITIES)
    lines = found.table().splitlines()
    assert lines[0] == "| layer | 100 % | 50 % | 25 % | 10 % |"
    assert lines[2].startswith("| 0 | 90.00 | 80.00 |")
    found.plot(tmp_path / "plot.svg", title="a < b")
    root = ET.fromstring((tmp_path / "plot.svg").read_text())  # noqa: S314 - our own file
    lines = [e for e in root.iter() if e.tag.endswith("polyline")]
    assert len(lines) == 2
    for line in lines:
        places = [tuple(map(float, p.split(","))) for p in line.attrib["points"].split()]
        assert len(places) == 4
        assert [x for x, _ in places] == sorted(x for x, _ in places)
        assert [y for _, y in places] == sorted((y for _, y in places), reverse=True), "accuracy rises with density"
    flat = sparse.scan(net(), lambda _: 0.5, (0.5,))
    flat.plot(tmp_path / "flat.svg")


def test_densities_that_make_no_sense() -> None:
    for densities in ((), (1.0,), (0.0, 0.5), (1.5,)):
        with pytest.raises(BudgetError):
            sparse.scan(net(), lambda _: 0.5, densities)
