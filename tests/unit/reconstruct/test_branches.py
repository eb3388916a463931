"""The first convolution of a residual branch reads a part of the stream, behind a select."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torchvision.models.resnet import BasicBlock

import fxprune
from fxprune import reconstruct, zoo
from tests.unit.reconstruct.nets import Chain, Residual, conv, outputs, pictures, ready
from tests.unit.reconstruct.test_channel_prune import rows_by_hand


class PreActivation(nn.Module):
    """Batch norms in front of convolutions, on a stream that is a sum."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv(3, 8)
        self.n1, self.a1, self.m1, self.a2 = nn.BatchNorm2d(8), conv(8, 10), nn.BatchNorm2d(10), conv(10, 8)
        self.n2, self.b1, self.m2, self.b2 = nn.BatchNorm2d(8), conv(8, 10), nn.BatchNorm2d(10), conv(10, 8)
        self.norm, self.fc = nn.BatchNorm2d(8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.a2(F.relu(self.m1(self.a1(F.relu(self.n1(x))))))
        x = x + self.b2(F.relu(self.m2(self.b1(F.relu(self.n2(x))))))
        return self.fc(F.relu(self.norm(x)).mean((2, 3)))


class Projected(nn.Module):
    """torchvision's blocks: the second one has a projection in the place of its shortcut."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv(3, 8)
        self.one = BasicBlock(8, 8)
        self.two = BasicBlock(8, 12, 2, nn.Sequential(nn.Conv2d(8, 12, 1, 2, bias=False), nn.BatchNorm2d(12)))
        self.three = BasicBlock(12, 12)
        self.fc = nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.three(self.two(self.one(F.relu(self.stem(x))))).mean((2, 3)))


class NoNorms(nn.Module):
    """Residual branches without any batch norm, and a linear layer that reads the stream too."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.a1, self.a2 = nn.Conv2d(8, 6, 3, padding=1), nn.Conv2d(6, 8, 3, padding=1)
        self.b1, self.b2 = nn.Conv2d(8, 6, 1), nn.Conv2d(6, 8, 1)
        self.fc = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        x = F.relu(x + self.a2(F.relu(self.a1(x))))
        x = F.relu(x + self.b2(F.relu(self.b1(x))))
        return self.fc(x.mean((2, 3)))


channel_prune = partial(reconstruct.channel_prune, layout="selection")

NETS: dict[str, Callable[[], nn.Module]] = {
    "residual": Residual,
    "pre-activation": PreActivation,
    "projected": Projected,
    "no norms": NoNorms,
}


def selects(module: fx.GraphModule) -> list[str]:
    return [node.name for node in module.graph.nodes if "select" in node.name and node.op == "call_function"]


@pytest.mark.parametrize("select", ["lasso", "elimination", "magnitude", "random"])
@pytest.mark.parametrize("name", NETS)
def test_every_branch_reads_a_part_of_its_own(name: str, select: str) -> None:
    model, images = ready(NETS[name]()), pictures()
    slim = channel_prune(model, images, ratio=0.5, select=select)
    plan = fxprune.plan_of(slim)
    assert plan.layout == "selection"
    assert selects(slim)
    layers = {layer.name: layer for layer in reconstruct.report_of(slim).layers}
    branches = [layer for layer in layers.values() if layer.producer.startswith("stream -> ")]
    assert len(branches) >= 2
    for layer in branches:
        assert layer.kept == slim.get_submodule(layer.name).in_channels == layer.inputs // 2
        assert layer.after <= layer.before + 1e-12
    again = fxprune.apply(model, plan, images[0])  # proves it equal to the masked original
    fxprune.verify(model, again, images[0])
    again.load_state_dict(slim.state_dict())
    assert torch.equal(outputs(again, images), outputs(slim, images))
    stems = [
        name for name in ("stem", "a2", "b2", "one.conv2", "two.conv2", "two.downsample.0") if name in dict(model.named_modules())
    ]
    for stem in stems:
        assert slim.get_submodule(stem).out_channels == model.get_submodule(stem).out_channels, "the stream stays whole"


def test_branches_read_different_parts() -> None:
    model, images = ready(Residual()), pictures()
    plan = fxprune.plan_of(channel_prune(model, images, ratio=0.5))
    assert set(plan.kept["a1.weight"][1]) != set(plan.kept["b1.weight"][1])
    assert sorted(plan.kept["stem.weight"][0]) == list(range(8))


def test_weights_are_those_of_least_squares_on_the_part() -> None:
    """Against numpy on raw rows: the first layer of the first branch reads what it read before, less what it drops."""
    model, images = ready(Residual()), pictures()
    slim = channel_prune(model, images, ratios={"b1": 0.2}, branches={"a1": 0.5}, positions=64)
    kept = list(fxprune.plan_of(slim).kept["a1.weight"][1])
    x, y = rows_by_hand(model.a1, model, images)
    columns = np.concatenate([np.arange(9) + 9 * c for c in kept])
    solution, *_ = np.linalg.lstsq(np.concatenate([x[:, columns], np.ones((len(x), 1))], 1), y, rcond=None)
    assert np.allclose(slim.get_submodule("a1").weight.detach().flatten(1).numpy().T, solution[:-1], rtol=0, atol=1e-9)
    shift = (model.n1.running_mean - slim.get_submodule("n1").running_mean).numpy()
    assert np.allclose(shift, solution[-1], rtol=0, atol=1e-9)
    assert slim.get_submodule("b1").in_channels == 8


def test_copies_in_the_stream_cost_nothing() -> None:
    """Of two equal channels of the stream a branch needs one; its weights for both are added up."""
    model, images = ready(Residual()), pictures()
    with torch.no_grad():
        for layer, norm in ((model.stem, model.norm), (model.a2, model.n2)):
            layer.weight[4:] = layer.weight[:4]
            for tensor in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
                tensor[4:] = tensor[:4]
    slim = channel_prune(model, images, ratios={"a1": 0.0}, branches=0.5, select="elimination")
    assert sorted(c % 4 for c in fxprune.plan_of(slim).kept["b1.weight"][1]) == [0, 1, 2, 3]
    wanted = outputs(model, pictures(seed=9))
    assert (outputs(slim, pictures(seed=9)) - wanted).abs().max() <= 1e-6 * wanted.abs().max()


def test_pre_activation_norms_lose_the_channels_too() -> None:
    model, images = ready(PreActivation()), pictures()
    slim = channel_prune(model, images, ratio=0.5)
    for norm, layer in (("n1", "a1"), ("n2", "b1")):
        assert slim.get_submodule(norm).num_features == slim.get_submodule(layer).in_channels == 4
    assert slim.get_submodule("norm").num_features == 8, "it serves no convolution"


def test_projections_read_the_whole_stream() -> None:
    slim = channel_prune(ready(Projected()), pictures(), ratio=0.5)
    assert slim.get_submodule("two.downsample.0").in_channels == 8
    assert [slim.get_submodule(f"{block}.conv1").in_channels for block in ("one", "two", "three")] == [4, 4, 6]


def test_what_branches_read_can_be_said() -> None:
    model, images = ready(Residual()), pictures()
    widths = []
    how: list[dict[str, Any]] = [
        {"ratio": 0.5, "branches": 0.25},
        {"ratio": 0.5, "branches": 0},
        {"ratio": 0.5, "layout": "coupled"},
        {"ratios": {"a1": 0.5}},
        {"ratios": {"a1": 0.5}, "branches": {"b*": 0.75}},
        {"budget": fxprune.Budget(macs=0.6)},
    ]
    for given in how:
        slim = channel_prune(model, images, **given)
        widths.append([slim.get_submodule(name).in_channels for name in ("a1", "b1")])
        assert (fxprune.plan_of(slim).layout == "selection") == (widths[-1] != [8, 8])
    assert widths == [[6, 6], [8, 8], [8, 8], [8, 8], [8, 2], [8, 8]]


def test_a_network_without_branches_is_the_same_in_both_layouts() -> None:
    model, images = ready(Chain()), pictures()
    one, other = (reconstruct.channel_prune(model, images, ratio=0.5, layout=layout) for layout in ("selection", "coupled"))
    assert fxprune.plan_of(one) == fxprune.plan_of(other)
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in one.state_dict().items())


@pytest.mark.parametrize("name", NETS)
def test_files_rounds_and_repair(name: str, tmp_path: Path) -> None:
    model, images = ready(NETS[name]()), pictures()
    slim = channel_prune(model, images, ratio=0.4)
    fxprune.save(slim, tmp_path / "slim.fxp")
    loaded = fxprune.load(ready(NETS[name](), 7), tmp_path / "slim.fxp")
    assert torch.equal(outputs(loaded, images), outputs(slim, images))
    second = channel_prune(slim, images, ratio=0.4)
    again = fxprune.apply(model, fxprune.plan_of(second), images[0])
    again.load_state_dict(second.state_dict())
    assert torch.equal(outputs(again, images), outputs(second, images))
    cut = fxprune.apply(model, fxprune.plan_of(slim), images[0])
    fixed = reconstruct.repair(model, cut, images)
    wanted = outputs(model, images)
    assert len(reconstruct.report_of(fixed).layers) == len(reconstruct.report_of(slim).layers)
    assert (outputs(fixed, images) - wanted).norm() < 0.7 * (outputs(cut, images) - wanted).norm()


def test_resnet20(tmp_path: Path) -> None:
    model = ready(zoo.resnet20())
    images = [torch.randn(4, 3, 32, 32, dtype=torch.float64) for _ in range(2)]
    slim = channel_prune(model, images, ratio=0.5, cache=True, ridge=1e-3)
    branches = [layer for layer in reconstruct.report_of(slim).layers if layer.producer.startswith("stream")]
    assert [layer.name for layer in branches] == [f"layer{s}.{b}.conv1" for s in (1, 2, 3) for b in range(3)]
    assert all(slim.get_submodule(layer.name).in_channels == layer.inputs // 2 for layer in branches)
    fxprune.apply(model, fxprune.plan_of(slim), images[0][:2]).load_state_dict(slim.state_dict())


def test_plans_and_networks_of_the_selection_layout() -> None:
    """Widths of a plan that batch norms were ranked for, channels chosen anew; and repair of what it made."""
    model = ready(zoo.preresnet(11))
    images = [torch.randn(4, 3, 32, 32, dtype=torch.float64) for _ in range(2)]
    plan = fxprune.plan(fxprune.analyze(model, images[0]), 0.2, layout="selection")
    cut = fxprune.apply(model, plan, images[0])
    fixed = reconstruct.repair(model, cut, images, ridge=1e-3)
    wanted = outputs(model, images)
    assert (outputs(fixed, images) - wanted).norm() < (outputs(cut, images) - wanted).norm()
    slim = channel_prune(model, images, plan=plan, ridge=1e-3, slack=0)
    own = fxprune.plan_of(slim)
    for layer in reconstruct.report_of(slim).layers:
        assert layer.kept == len(plan.kept[f"{layer.name}.weight"][1])
    assert own.kept != plan.kept
    fxprune.apply(model, own, images[0]).load_state_dict(slim.state_dict())
