"""The summary says what is true of small networks."""

from __future__ import annotations

import dataclasses
import re

import pytest
import torch
from rich.console import Console
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import fxprune
from fxprune.reporting.summary import LayerRow, Summary, summary
from tests.reference.compare import Snapshot, parameters
from tests.unit.api.nets import Chain, Residual, image, seeded


def macs(model: nn.Module, x: Tensor) -> int:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(x)
    return int(counter.get_total_flops()) // 2


def layer(found: Summary, name: str) -> LayerRow:
    return next(row for row in found.layers if row.name == name)


def test_a_plain_model() -> None:
    model = seeded(Chain())
    before = Snapshot(model)
    found = summary(model, image())
    assert not before.differences(model)
    assert found.model == "Chain"
    assert [row.name for row in found.layers] == ["conv1", "bn1", "conv2", "bn2", "fc"]
    assert layer(found, "conv1") == LayerRow("conv1", "Conv2d", 8, 8, 3 * 8 * 9 + 8, 2 * 64 * 8 * 27)
    assert layer(found, "bn1") == LayerRow("bn1", "BatchNorm2d", 8, 8, 16, 0)
    assert layer(found, "fc") == LayerRow("fc", "Linear", 4, 4, 44, 2 * 40)
    assert found.parameters == found.original_parameters == parameters(model)
    assert found.macs == macs(model, image())
    assert (found.prunable, found.channels) == (18, 22)
    assert [(row.name, row.channels, row.prunable) for row in found.groups] == [("conv1.weight", 8, 8), ("conv2.weight", 10, 10)]
    assert found.groups[0].layers == ("conv1", "bn1", "conv2")
    assert not found.slim
    assert (found.asked, found.achieved, found.score) == (0.0, 0.0, "")
    assert "symbolic" in found.capture
    assert found.operators_without_rule == ()
    assert {(r.channels, r.node) for r in found.reasons} >= {(4, "output"), (3, "conv1")}
    assert [r.channels for r in found.reasons] == sorted((r.channels for r in found.reasons), reverse=True)


@pytest.mark.parametrize("build", [Chain, Residual])
def test_a_slim_model(build: type[nn.Module]) -> None:
    model = seeded(build())
    slim = fxprune.slim(model, 0.4, image())
    plan = fxprune.plan_of(slim)
    found, original = summary(slim, image()), summary(model, image())
    assert found.slim
    assert (found.asked, found.achieved, found.score) == (plan.asked, plan.achieved, plan.score)
    assert found.parameters == parameters(slim)
    assert found.original_parameters == parameters(model)
    assert found.macs == macs(slim, image()) < original.macs
    assert [(row.name, row.before) for row in found.layers] == [(row.name, row.after) for row in original.layers]
    for row in found.layers:
        kept = plan.kept[f"{row.name}.weight"][0]
        assert row.after == len(kept)
    assert sum(row.parameters for row in found.layers) == found.parameters


def test_a_model_slimmed_twice_is_held_against_the_first() -> None:
    model = seeded(Chain())
    twice = fxprune.slim(fxprune.slim(model, 0.3, image()), 0.3, image())
    found = summary(twice, image())
    assert layer(found, "conv2").before == 10
    assert found.original_parameters == parameters(model)


class Kinds(nn.Module):
    """Grouped, depthwise and transposed convolutions, a raw parameter and a product of activations."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.grouped = nn.Conv2d(3, 16, 1), nn.Conv2d(16, 24, 3, groups=4, padding=1, bias=False)
        self.deep, self.up = nn.Conv2d(24, 24, 3, groups=24, padding=1), nn.ConvTranspose2d(24, 12, 2, groups=2)
        self.scale = nn.Parameter(torch.zeros(12, 1, 1))
        self.head = nn.Linear(12, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.up(self.deep(self.grouped(self.stem(x)).relu()).relu()).relu() * self.scale
        x = x.flatten(2)
        return self.head((x @ x.transpose(1, 2)).mean(2))


def test_every_kind_of_layer() -> None:
    model = seeded(Kinds())
    slim = fxprune.slim(model, 0.4, image(), score="random")
    found = summary(slim, image())
    assert found.original_parameters == parameters(model)
    assert sum(row.parameters for row in found.layers) == found.parameters == parameters(slim)
    assert found.macs == macs(slim, image())
    assert (layer(found, "up").before, layer(found, "up").after) == (12, slim.get_submodule("up").out_channels)
    assert layer(found, "grouped").before == 24
    product = layer(found, "matmul")
    assert (product.before, product.after, product.parameters) == (0, 0, 0)
    assert product.macs > 0


def test_shared_parameters_count_once() -> None:
    class Twice(Chain):
        def forward(self, x: Tensor) -> Tensor:
            x = self.conv2(self.conv1(x).relu())
            return self.fc(x.mean((2, 3))) + self.fc(x.amax((2, 3)))

    found = summary(seeded(Twice()), image())
    assert layer(found, "fc").parameters == 44
    assert layer(found, "fc").macs == 2 * 2 * 40


def test_example_inputs_are_inferred_and_may_be_keywords() -> None:
    model = seeded(Chain())
    inferred = summary(model)
    assert inferred.macs > 0
    assert summary(model, {"x": image()}) == summary(model, image()) == summary(model, (image(),))


def test_operators_without_a_rule_and_their_reasons() -> None:
    class Spectral(Chain):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(torch.fft.fft(self.conv1(x), dim=1).real[:, :3])

    found = summary(seeded(Spectral()), image())
    assert dict(found.operators_without_rule)
    assert any("no transfer rule" in reason.reason for reason in found.reasons)
    assert "no rule: " in str(found)


def test_channels_that_were_kept_are_told() -> None:
    model = seeded(Residual())
    text = str(summary(model, image()))
    assert "a model output keeps its shape" in text
    assert "head.weight[0]" in text


def test_it_is_frozen_and_comparable() -> None:
    found = summary(seeded(Chain()), image())
    with pytest.raises(dataclasses.FrozenInstanceError):
        found.macs = 0  # type: ignore[misc]
    assert found == summary(seeded(Chain()), image())


def test_text_and_rich_show_the_same_facts() -> None:
    slim = fxprune.slim(seeded(Chain()), 0.4, image())
    found = summary(slim, image())
    console = Console(width=120, color_system=None)
    with console.capture() as captured:
        console.print(found)
    text = str(found)
    assert [line.rstrip() for line in captured.get().splitlines()] == text.splitlines()
    kept = len(fxprune.plan_of(slim).kept["conv1.weight"][0])
    assert re.search(rf"conv1 .*Conv2d .*8 -> {kept} ", text)
    assert f"{found.original_parameters:,} -> {found.parameters:,}" in text
    assert f"asked 40.0%, achieved {found.achieved:.1%}, score 'gamma'" in text
    assert f"{found.macs:,}" in text


def test_names_with_brackets_are_no_markup() -> None:
    model = seeded(nn.ModuleDict({"a": nn.Conv2d(3, 8, 1)}))

    class Bracketed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.add_module("[red]", model["a"])
            self.head = nn.Conv2d(8, 2, 1).double()

        def forward(self, x: Tensor) -> Tensor:
            return self.head(getattr(self, "[red]")(x))

    assert "[red]" in str(summary(Bracketed().eval(), image()))


def test_a_model_without_anything_to_prune_still_has_a_summary() -> None:
    found = summary(seeded(nn.Linear(4, 3)), image(2, 4))
    assert found.groups == ()
    assert found.prunable == 0
    assert len(found.reasons) >= 2


def test_errors_are_those_of_analyze() -> None:
    with pytest.raises(fxprune.InputError, match=r"torch\.nn\.Module"):
        summary(3)  # type: ignore[arg-type]
    with pytest.raises(fxprune.InputError, match="conv1"):
        summary(seeded(Chain()), image(2, 4, 8, 8))
