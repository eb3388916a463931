"""Whole networks with reconstruction: torchvision's and the pretrained ResNet-20."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from torchvision import models

import fxprune
from fxprune import data as images_by_name
from fxprune import reconstruct, zoo
from fxprune.zoo.weights import load_pretrained

NETS = ("mobilenet_v2", "resnet18", "squeezenet1_1", "regnet_y_400mf", "shufflenet_v2_x0_5")


def random_network(name: str) -> nn.Module:
    """Untrained, with every batch norm of its own, in float64."""
    torch.manual_seed(0)
    model = zoo.resnet56() if name == "resnet56" else models.get_model(name, weights=None)
    for module in model.eval().modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.1)
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 2)
    return model.double()


@pytest.mark.slow
@pytest.mark.parametrize("name", NETS)
def test_networks_of_torchvision(name: str) -> None:
    model = random_network(name)
    batches = [torch.randn(4, 3, 64, 64, dtype=torch.float64) for _ in range(2)]
    slim = reconstruct.channel_prune(model, batches, ratio=0.4, cache=True, ridge=1e-3)
    layers = reconstruct.report_of(slim).layers
    assert len(layers) > 5
    assert all(layer.after <= layer.before * (1 + 1e-9) for layer in layers)
    assert sum(p.numel() for p in slim.parameters()) < 0.8 * sum(p.numel() for p in model.parameters())
    assert slim(batches[0]).shape == (4, 1000)
    again = fxprune.apply(model, fxprune.plan_of(slim), batches[0][:2], verify=False)
    again.load_state_dict(slim.state_dict())


@pytest.mark.slow
def test_a_trained_network_keeps_most_of_its_accuracy(data: Path) -> None:
    files = list((data / "resnet-cifar10").glob("resnet20-*.th"))
    if not files or not (data / "cifar10-jpeg").is_dir():
        pytest.skip(f"no trained network or no images in {data}")
    model = load_pretrained(zoo.resnet20(), files[0]).eval()
    images = images_by_name.load("cifar10-jpeg", data / "cifar10-jpeg")
    x, y = images.test.batch(torch.arange(1000))
    batches = [images.train.batch(part)[0] for part in torch.arange(512).split(128)]

    def accuracy(network: nn.Module) -> float:
        with torch.no_grad():
            return float((network.eval()(x).argmax(1) == y).float().mean())

    slim = reconstruct.channel_prune(model, batches, ratio=0.5, cache=True)
    alone = reconstruct.channel_prune(model, batches, ratio=0.5, cache=True, refit=False)
    cut = fxprune.apply(model, fxprune.plan_of(alone), batches[0][:2])
    fixed = reconstruct.repair(model, cut, batches, cache=True)
    assert accuracy(slim) > 0.6
    assert accuracy(alone) < 0.4
    assert abs(accuracy(fixed) - accuracy(slim)) < 0.08


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2", "resnet56"])
def test_branches_select_in_whole_networks(name: str) -> None:
    model = random_network(name)
    side = 32 if name == "resnet56" else 64
    batches = [torch.randn(4, 3, side, side, dtype=torch.float64) for _ in range(2)]
    how = "lasso" if name == "resnet18" else "elimination"
    slim = reconstruct.channel_prune(model, batches, ratio=0.4, cache=True, ridge=1e-3, layout="selection", select=how)
    layers = reconstruct.report_of(slim).layers
    branches = [layer for layer in layers if layer.producer.startswith("stream -> ")]
    assert len(branches) >= 5
    assert all(slim.get_submodule(layer.name).in_channels == layer.kept < layer.inputs for layer in branches)
    again = fxprune.apply(model, fxprune.plan_of(slim), batches[0][:2], verify=False)
    again.load_state_dict(slim.state_dict())
    with torch.no_grad():
        assert torch.equal(again.eval()(batches[0]), slim.eval()(batches[0]))
