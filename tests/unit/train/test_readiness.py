"""What gammas say about slimming, and the warning of ``slim``."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

import pytest
import torch
from torch import nn

import fxprune
from fxprune import train
from fxprune.errors import BudgetError, FxpruneWarning, NothingToPruneError, WeightError
from fxprune.train.readiness import LARGE, cut_into
from tests.unit.api.nets import Chain, Residual, image, seeded


def chain(first: list[float], second: list[float]) -> Chain:
    model = seeded(Chain())
    with torch.no_grad():
        model.bn1.weight.copy_(torch.tensor(first))
        model.bn2.weight.copy_(torch.tensor(second))
    return model


def test_norms_of_different_scale_are_told_apart() -> None:
    model = chain([0, 1e-9, 0.02, 0.02, 0.03, -0.03, 0.02, 0.02], [1.0, -1.0, 1e-6, 0, 0, 0, 1.0, 1.0, 1.0, 1.0])
    found = train.readiness(model)
    assert [layer.name for layer in found.layers] == ["bn1.weight", "bn2.weight"]
    assert found.spare == pytest.approx(6 / 18)  # by the sum of all, the six of 0.02 and 0.03 would look spare as well
    assert [layer.spare for layer in found.layers] == pytest.approx([2 / 8, 4 / 10])
    assert found.overall.below == pytest.approx((6 / 18, 6 / 18, 6 / 18, 12 / 18))
    assert found.layers[0].quartiles[0] == 0
    assert found.layers[0].quartiles[4] == pytest.approx(0.03)
    assert found.layers[1].quartiles[2] == 1


def test_gammas_all_alike_free_nothing() -> None:
    found = train.readiness(chain([1.0] * 8, [1.0] * 10))
    assert found.spare == 0
    assert found.flattened() == ()
    assert train.readiness(chain([0.0] * 8, [0.0] * 10)).spare == 1


def test_a_norm_that_died_as_a_whole_is_free_and_flattened() -> None:
    found = train.readiness(chain([1e-8, 2e-8] * 4, [1.0] * 10))
    assert found.spare == pytest.approx(8 / 18)
    assert found.flattened() == ("bn1.weight",)
    assert found.flattened(0.2) == ()
    assert found.flattened(0.99) == ("bn1.weight", "bn2.weight")
    assert "a global cut there flattens bn1.weight" in str(found)


def test_the_table_shows_every_norm_and_leaves_the_model_alone() -> None:
    model = seeded(Chain())
    before = {name: value.clone() for name, value in model.state_dict().items()}
    text = str(train.readiness(model, thresholds=(0.25,)))
    assert "bn1.weight" in text
    assert "bn2.weight" in text
    assert "< 0.25" in text
    torch.testing.assert_close(dict(model.state_dict()), before)


def test_damaged_gammas_and_shares_that_make_no_sense_are_refused() -> None:
    model = nn.Sequential(nn.BatchNorm1d(4), nn.BatchNorm1d(4))
    with pytest.raises(BudgetError, match=r"ratio must be in \[0, 1\], got 40"):
        train.readiness(model).flattened(40)
    model[1].weight.data[2] = float("nan")
    with pytest.raises(WeightError, match=r"'1\.weight' holds NaN"):
        train.readiness(model)


def residual() -> Residual:
    """Norms one by one have half their channels to spare; of the sum, two channels are: 0 and 1."""
    model = seeded(Residual())
    with torch.no_grad():
        model.bn0.weight.copy_(torch.tensor([0, 1e-9, 1e-9, 0, 1.0, 1.0, 1.0, 1.0]))
        model.bn2.weight.copy_(torch.tensor([0, 1e-9, 1.0, 1.0, 0, 1e-9, 1.0, 1.0]))
        model.bn1.weight.copy_(torch.tensor([1e-9, 1.0, 0, 1.0, 1.0, -1e-8]))
    return model


def test_with_a_graph_whole_coupling_classes_are_counted_and_slim_does_not_warn() -> None:
    model = residual()
    graph = fxprune.analyze(model, image())
    found = train.readiness(model, graph=graph)
    assert found.spare == pytest.approx((2 * 2 + 3) / 22)  # a channel of the sum counts for both its norms
    assert [(layer.name, layer.channels) for layer in found.layers] == [("stem.weight", 8), ("conv1.weight", 6)]
    assert [layer.spare for layer in found.layers] == pytest.approx([2 / 8, 3 / 6])
    assert found.overall.channels == 14
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        slim = fxprune.slim(model, found.spare, image())
    assert fxprune.plan_of(slim).achieved == pytest.approx(found.spare)
    alone = train.readiness(model).spare
    assert alone > found.spare
    with pytest.warns(FxpruneWarning, match="cuts into large scale factors"):
        fxprune.slim(model, alone, image())
    assert "stem.weight" in str(found)
    assert found.flattened() == ()


def test_with_a_graph_only_channels_that_can_go_are_counted() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 6, 3), nn.BatchNorm2d(6)).double().eval()
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([0.0, 1e-9] + [1.0] * 6))
        model[4].weight.zero_()  # in front of the output
    graph = fxprune.analyze(model, image())
    assert train.readiness(model).spare > 0.5
    assert train.readiness(model, graph=graph).spare == pytest.approx(2 / 8)
    assert train.readiness(nn.DataParallel(model), graph=graph).spare == pytest.approx(2 / 8)
    kept = fxprune.analyze(model, image(), keep=("0",))
    with pytest.raises(NothingToPruneError, match="no gamma of Sequential belongs to a channel that can go"):
        train.readiness(model, graph=kept)


def test_with_a_graph_floors_hold_and_equal_gammas_go_or_stay_together() -> None:
    model = chain([1e-8, 2e-8] * 4, [1.0] * 10)
    graph = fxprune.analyze(model, image())
    assert train.readiness(model, graph=graph).spare == pytest.approx(7 / 18)
    assert train.readiness(model, graph=graph, floor=0.5).spare == pytest.approx(4 / 18)
    wide = nn.Sequential(nn.Conv2d(3, 300, 3), nn.BatchNorm2d(300), nn.Conv2d(300, 3, 3)).double().eval()
    assert train.readiness(wide, graph=fxprune.analyze(wide, image())).spare == 0
    with pytest.raises(BudgetError, match="floor must be in"):
        train.readiness(model, graph=graph, floor=-1)


def test_no_gamma_is_an_error() -> None:
    with pytest.raises(NothingToPruneError, match="Linear has no batch or instance norm with a scale"):
        train.readiness(nn.Linear(2, 2))


def test_the_plot_is_written(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    found = train.readiness(seeded(Chain()))
    figure = found.plot(tmp_path / "gammas.png")
    assert (tmp_path / "gammas.png").read_bytes().startswith(b"\x89PNG")
    axes = figure.axes[0]
    assert len(axes.lines) == 4  # two norms, all, the spare ratio
    assert axes.lines[2].get_ydata()[-1] == pytest.approx(float(torch.cat(found.values).max()))


def test_without_matplotlib_the_plot_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"pip install 'fxprune\[plot\]'"):
        train.readiness(seeded(Chain())).plot()


def test_slim_warns_when_it_cuts_into_large_gammas_and_points_at_the_caller() -> None:
    model = chain([1e-9] * 4 + [0.5] * 4, [1e-9] * 5 + [0.5] * 5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fxprune.slim(model, 0.5, image())
        fxprune.slim(model, 0.7, image(), score="magnitude")
    with pytest.warns(FxpruneWarning, match=r"the ratio 0\.7 cuts into large scale factors: .* of the channels of 'conv") as seen:
        fxprune.slim(model, 0.7, image())
    assert [warning.filename for warning in seen] == [__file__]
    graph = fxprune.analyze(model, image())
    with pytest.warns(FxpruneWarning) as seen:
        fxprune.plan(graph, 0.7)
    assert [warning.filename for warning in seen] == [__file__]


def test_the_share_that_a_cut_takes() -> None:
    model = chain([1e-9] * 4 + [0.5] * 4, [1e-9] * 5 + [0.1, 0.2, 0.3, 0.4, 1.0])
    graph = fxprune.analyze(model, image())
    removed = torch.zeros(graph.closed.count, dtype=torch.bool).numpy()
    assert cut_into(graph.groups, removed) == (0, graph.groups[1].name)
    for group in graph.groups:
        removed[group.channels[:5]] = True
    share, name = cut_into(graph.groups, removed)
    assert (share, name) == (pytest.approx(0.25), graph.groups[0].name)
    assert share > LARGE
    removed[graph.groups[1].channels[:7]] = True
    removed[graph.groups[0].channels[4]] = False
    assert cut_into(graph.groups, removed) == (pytest.approx(0.15), graph.groups[1].name)
    assert cut_into((), removed) == (0, "")
