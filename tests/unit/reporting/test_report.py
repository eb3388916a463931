"""The report tells what is true, holds all it needs, and stays small; what names say is never markup."""

from __future__ import annotations

import copy
import hashlib
import json
import math
import pickle
import re
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torchvision import models

import fxprune
from fxprune import zoo
from fxprune.record import record_of
from fxprune.reporting.couplings import couplings
from fxprune.reporting.html import page, page_data
from tests.unit.api.nets import Chain, Residual, image, seeded

DATA = re.compile(r'<script type="application/json" id="data">(.*?)</script>', re.DOTALL)
ECHARTS = "b66b25aeb4df84e33199dc21694014d336d222cbd9deb0e5a7c14bd6aa0d0fd0"  # echarts 6.1.0, dist/echarts.min.js


def data_of(text: str) -> Any:
    found = DATA.search(text)
    assert found is not None
    return json.loads(found.group(1))


@pytest.fixture(scope="module")
def residual() -> tuple[nn.Module, nn.Module]:
    model = seeded(Residual())
    return model, fxprune.slim(model, 0.4, image())


def test_the_story_of_a_slim_model(residual: tuple[nn.Module, nn.Module]) -> None:
    model, slim = residual
    told = fxprune.story(slim, latency=False)
    plan, before, after = fxprune.plan_of(slim), fxprune.summary(model, image()), fxprune.summary(slim, image())
    assert told.slim
    assert (told.asked, told.achieved, told.score, told.rounds) == (plan.asked, plan.achieved, plan.score, 1)
    costs = {cost.name: (cost.before, cost.after) for cost in told.costs}
    assert costs["parameters"] == (before.parameters, after.parameters)
    assert costs["MACs"] == (before.macs, after.macs)
    assert costs["channels"] == (before.channels, after.channels)
    bytes_of = [sum(t.numel() * t.element_size() for t in (*m.parameters(), *m.buffers())) for m in (model, slim)]
    assert list(costs["bytes"]) == bytes_of
    widths = {row.name: row.before for row in before.layers}
    assert {layer.name: layer.before for layer in told.layers} == widths
    assert {layer.name: layer.after for layer in told.layers} == {row.name: row.after for row in after.layers}
    assert sum(layer.macs_before for layer in told.layers) == before.macs
    assert told.evidence is not None
    assert told.evidence.outputs_compared == 1
    assert told.couplings == couplings(fxprune.analyze(model, image()))
    assert told.couplings_of == "original"


def test_the_story_is_the_same_with_the_original_at_hand(residual: tuple[nn.Module, nn.Module]) -> None:
    model, slim = residual
    assert fxprune.story(slim, model, latency=False) == fxprune.story(slim, latency=False)


def test_the_story_survives_copies_and_files(residual: tuple[nn.Module, nn.Module], tmp_path: Path) -> None:
    _, slim = residual
    told = fxprune.story(slim, latency=False)
    fxprune.save(slim, tmp_path / "slim.safetensors")
    loaded = fxprune.load(seeded(Residual(), seed=5), tmp_path / "slim.safetensors")
    assert fxprune.story(loaded, latency=False) == told
    assert fxprune.story(copy.deepcopy(slim), latency=False) == told
    pickled = fxprune.story(pickle.loads(pickle.dumps(slim)), latency=False)  # noqa: S301 - our own bytes
    assert pickled.couplings_of == "slim model"  # a pickle does not hold the original's program
    assert (pickled.evidence, pickled.ranking) == (told.evidence, told.ranking)
    assert [(c.before, c.after) for c in pickled.costs if c.name == "parameters"] == [
        (c.before, c.after) for c in told.costs if c.name == "parameters"
    ]
    assert math.isnan(next(c.before for c in pickled.costs if c.name == "MACs"))


def test_what_the_user_kept_is_told_again(residual: tuple[nn.Module, nn.Module]) -> None:
    model, _ = residual
    slim = fxprune.slim(model, 0.2, image(), keep=["conv1"])
    found = next(layer for layer in fxprune.story(slim, latency=False).couplings.layers if layer.name == "conv1")
    assert found.free == 0
    assert any("kept by the user" in pin.reason for pin in found.pins)


def test_a_second_round_tells_of_the_first_original() -> None:
    model = seeded(Chain())
    once = fxprune.slim(model, 0.3, image())
    twice = fxprune.slim(once, 0.3, image())
    told = fxprune.story(twice, latency=False)
    assert told.rounds == 2
    assert next(c.before for c in told.costs if c.name == "parameters") == sum(p.numel() for p in model.parameters())
    assert {layer.name: layer.before for layer in told.layers}["conv1"] == 8


def test_the_original_keeps_no_weights(residual: tuple[nn.Module, nn.Module]) -> None:
    _, slim = residual
    record = record_of(slim)
    assert record is not None
    assert record.original is not None
    kept = [p for p in record.original.captured.root.parameters() if not p.is_meta]
    assert not kept


def test_rankings_count_every_channel_once(residual: tuple[nn.Module, nn.Module]) -> None:
    model, slim = residual
    ranking, graph = fxprune.plan_of(slim).ranking, fxprune.analyze(model, image())
    whole, *own = ranking
    assert [histogram.group for histogram in own] == [group.name for group in graph.groups]
    assert [sum(h.kept) + sum(h.removed) for h in own] == [len(group) for group in graph.groups]
    assert (sum(whole.kept), sum(whole.removed)) == tuple(sum(sum(getattr(h, side)) for h in own) for side in ("kept", "removed"))
    for histogram in ranking:
        gone = np.flatnonzero(histogram.removed)
        if len(gone):
            assert histogram.edges[gone[-1]] - 1e-5 <= histogram.cut <= histogram.edges[gone[-1] + 1] + 1e-5
        else:
            assert math.isnan(histogram.cut)
    again = fxprune.Plan.from_json(fxprune.plan_of(slim).to_json())
    assert str(again.ranking) == str(ranking)


@pytest.mark.parametrize(
    "damage", [{"kept": [1]}, {"low": float("inf")}, {"low": 9e9}, {"group": 3}, {"kept": [-1], "removed": [1]}, {"cut": "x"}]
)
def test_damaged_rankings_are_refused(residual: tuple[nn.Module, nn.Module], damage: dict[str, Any]) -> None:
    data = fxprune.plan_of(residual[1]).to_data()
    data["ranking"][0].update(damage)
    with pytest.raises(fxprune.PlanMismatchError, match="damaged"):
        fxprune.Plan.from_data(data)


def test_a_damaged_evidence_is_refused(residual: tuple[nn.Module, nn.Module]) -> None:
    from fxprune.io.document import document
    from fxprune.io.model import described, tensors_of

    record = record_of(residual[1])
    assert record is not None
    data = json.loads(described(record, tensors_of(residual[1])).text())
    assert document(data, "file").evidence == record.evidence
    for name, value in (("nodes_compared", "many"), ("dtype", 3), ("nodes_skipped", 1), ("shapes_checked", 1)):
        with pytest.raises(fxprune.FileFormatError, match="TypeError"):
            document({**data, "evidence": {**data["evidence"], name: value}}, "file")


@pytest.mark.parametrize("build", [Chain, Residual, zoo.densenet40, zoo.resnet20], ids=["chain", "residual", "dense", "padded"])
def test_couplings_are_those_of_the_graph(build: Callable[[], nn.Module]) -> None:
    graph = fxprune.analyze(build())
    found = couplings(graph)
    axes = {axis.label: axis.name.rpartition(".")[0] for axis in graph.axes}
    expected = {frozenset((axes[a], axes[b])) for a, b in graph.to_networkx().edges() if axes[a] != axes[b]}
    names = [layer.name for layer in found.layers]
    assert {frozenset((names[link.left], names[link.right])) for link in found.links} == expected


def test_the_page_holds_its_data(residual: tuple[nn.Module, nn.Module]) -> None:
    told = fxprune.story(residual[1], latency=False)
    text = page(told)
    assert data_of(text) == json.loads(json.dumps(page_data(told)))
    assert f"{told.evidence.nodes_compared}" in text  # type: ignore[union-attr]
    assert "{" not in re.sub(r"<(script|style).*?</\1>", "", text, flags=re.DOTALL)  # no slot is left


def test_names_are_no_markup() -> None:
    class Odd(nn.Conv2d):
        pass

    Odd.__name__ = "</script><script>alert(1)</script>"
    model = seeded(Residual())
    model.conv1.__class__ = Odd  # its class name stands in a table and in the data of the charts
    text = page(fxprune.story(fxprune.slim(model, 0.3, image()), latency=False))
    assert "<script>alert" not in text
    assert "&lt;script&gt;alert" in text
    assert any(layer["kind"] == Odd.__name__ for layer in data_of(text)["layers"])


def test_a_model_that_is_not_slim(tmp_path: Path) -> None:
    model = seeded(Chain())
    path = fxprune.report(model, tmp_path / "report.html", latency=False)
    text = path.read_text(encoding="utf-8")
    assert "what can go" in text
    assert data_of(text)["slim"] is False


def test_an_eager_model_has_a_report(tmp_path: Path) -> None:
    class Deciding(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.a(x)
            return self.b(y) if float(y.sum()) > -1e9 else self.b(-y)

    model = Deciding().double()
    slim = fxprune.slim(model, 0.5, image())
    assert isinstance(slim, Deciding)
    text = fxprune.report(slim, tmp_path / "report.html", example_inputs=image(), latency=False).read_text(encoding="utf-8")
    assert data_of(text)["layers"][0]["after"] == 4


def test_latency_is_measured_in_turns(residual: tuple[nn.Module, nn.Module]) -> None:
    slow, fast = fxprune.story(residual[1], seconds=0.1).latency
    assert (slow.name, fast.name) == ("original", "slim")
    assert slow.rounds == fast.rounds >= 3
    assert min(slow.wall, slow.cpu, fast.wall, fast.speedup) > 0


@pytest.mark.slow
def test_densenet201_stays_below_two_megabytes(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = models.densenet201()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight)
    slim = fxprune.slim(model.eval(), 0.4, torch.randn(1, 3, 32, 32), verify=False)
    path = fxprune.report(slim, tmp_path / "report.html", latency=False)
    assert path.stat().st_size < 2_000_000


def test_the_plotting_library_is_what_its_makers_released() -> None:
    content = (files("fxprune.reporting") / "page" / "echarts.min.js").read_bytes()
    assert hashlib.sha256(content).hexdigest() == ECHARTS
    assert b"</script" not in content


def test_figures_for_papers(residual: tuple[nn.Module, nn.Module], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from fxprune.reporting import figures

    told = fxprune.story(residual[1], seconds=0.1)
    written = figures.save_figures(told, tmp_path / "figures", ".svg")
    assert {file.stem for file in written} == {"widths", "couplings", "scores", "costs"}
    assert all(file.stat().st_size > 1000 for file in written)
    bars = figures.widths(told).axes[0].patches
    assert len(bars) == 2 * sum(layer.before > 0 for layer in told.layers)
    with pytest.raises(fxprune.FxpruneError, match="no scores"):
        figures.scores(told, "nothing")
    with pytest.raises(fxprune.FxpruneError, match="not slim"):
        figures.costs(fxprune.story(residual[0], latency=False))


def test_a_report_of_a_budget(tmp_path: Path) -> None:
    slim = fxprune.slim(seeded(Residual()), None, image(), budget=fxprune.Budget(params=0.6))
    told = fxprune.story(slim, latency=False)
    assert told.figures == fxprune.plan_of(slim).figures
    text = fxprune.report(slim, tmp_path / "report.html", latency=False).read_text()
    assert "Made for a budget" in text
    assert "Asked for 0.0%" not in text
