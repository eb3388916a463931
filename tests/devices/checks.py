"""What has to hold on an accelerator, beside the list of features: the accelerator itself, default devices, detectors, models on two devices."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import fxprune
from tests.devices import accelerator, features, networks

HERE, THERE = f"{accelerator.NAME}:0", f"{accelerator.NAME}:1"


def what_cuda_refuses(_folder: Path) -> None:
    here, cpu = torch.randn(3, 4, device=HERE), torch.randn(3, 4)
    rows = torch.tensor([0, 2])
    refused: list[Callable[[], object]] = [
        lambda: here + cpu,
        lambda: cpu + here,
        lambda: here + here.to(THERE),
        lambda: here.index_select(0, rows),
        lambda: here.gather(0, torch.zeros(1, 4, dtype=torch.int64)),
        lambda: here.index_add_(0, rows, here[:2]),
        lambda: torch.cat([here, cpu]),
        lambda: torch.where(cpu > 0, here, here),
        lambda: cpu[rows.to(HERE)],
        lambda: cpu.add_(here),
        lambda: torch.tensor(1.0).add_(here.sum()),
        lambda: nn.functional.linear(here, cpu),
        lambda: nn.functional.conv1d(here[None], cpu[:, None, :1].repeat(1, 3, 1)),
        lambda: torch.randn(3, device=HERE, generator=torch.Generator()),
    ]
    for call in refused:
        with pytest.raises(RuntimeError, match="device"):
            call()
    with pytest.raises(TypeError, match="numpy"):
        here.numpy()
    allowed = [here[rows], here * torch.tensor(2.0), here.to(THERE).cpu() + cpu, here[cpu > 0].cpu()]
    assert all(isinstance(found, Tensor) for found in allowed)


def what_it_computes(_folder: Path) -> None:
    """The same as the CPU does, forward, backward and in place."""
    for kind in networks.NETWORKS.values():
        model, x = networks.ready(kind).train(), networks.example(kind)
        twin = copy.deepcopy(model).to(HERE)
        torch.manual_seed(0)
        expected = model(x)
        torch.manual_seed(0)
        got = twin(x.to(HERE))
        assert torch.allclose(got.cpu(), expected, atol=1e-5)
        expected.square().sum().backward()
        got.square().sum().backward()
        for (name, a), b in zip(model.named_parameters(), twin.parameters(), strict=True):
            assert torch.allclose(a.grad, b.grad.cpu(), atol=1e-3), name  # type: ignore[union-attr]
        for (name, c), d in zip(model.named_buffers(), twin.buffers(), strict=True):
            assert torch.allclose(c, d.cpu()), name


def slim_as_on_the_cpu(_folder: Path) -> None:
    for kind in networks.NETWORKS.values():
        model, x = networks.ready(kind), networks.example(kind)
        expected = fxprune.slim(model, 0.4, x)
        got = fxprune.slim(copy.deepcopy(model).to(THERE), 0.4, x.to(THERE))
        assert fxprune.plan_of(got).kept == fxprune.plan_of(expected).kept
        assert torch.allclose(got(x.to(THERE)).cpu(), expected(x), atol=1e-5)


def default_device(folder: Path) -> None:
    """A script that sets the accelerator as default device: its models are there, or stay on the CPU."""
    for kind in ("Residual", "Attention", "Bare"):
        for device in ("cpu", HERE):
            for name in (
                "stages",
                "inferred",
                "data_scores",
                "dead",
                "lasso",
                "training",
                "persistence",
                "single_weights",
                "neurons",
            ):
                own = folder / f"{kind}-{device}-{name}".replace(":", "")
                own.mkdir()
                case = features.case(kind, own, device=device)
                with torch.device(HERE):
                    features.QUICK[name](case)
                case.check()


class Trusting(nn.Module):
    """Makes its tensors on the default device, as scripts that set one do."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.places, self.head = nn.Linear(6, 16), nn.Embedding(10, 16), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        places = torch.arange(x.shape[1])
        scale = torch.linspace(0.5, 1.5, x.shape[1])
        return self.head(torch.relu(self.embed(x) * scale[:, None] + self.places(places)).mean(1))


def a_model_that_trusts_it(_folder: Path) -> None:
    torch.set_default_device(HERE)
    try:
        model, x = Trusting().eval(), torch.randn(2, 6, 6)
        slim = fxprune.slim(model, 0.4, x)
        assert slim(x).device == torch.device(HERE)
        assert slim.embed.weight.shape[0] < 16
    finally:
        torch.set_default_device(None)


def a_detector(_folder: Path) -> None:
    model = networks.ready(networks.Detecting).to(THERE)
    images = [torch.randn(3, 8, 8).to(THERE), torch.randn(3, 10, 8).to(THERE)]
    slim = fxprune.slim(model, 0.4, (images,))
    assert sum(p.numel() for p in slim.parameters()) < sum(p.numel() for p in model.parameters())
    assert all(value.device == torch.device(THERE) for found in slim(images) for value in found.values())


class Split(nn.Module):
    """One half on one device, the other on another."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = (
            networks.Residual().stem.to(HERE),
            nn.Sequential(nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), nn.ReLU()).to(THERE),
        )
        self.head = nn.Linear(8, 5).to(THERE)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.second(self.first(x).to(THERE)).mean((2, 3)))


def a_model_on_two_devices(_folder: Path) -> None:
    torch.manual_seed(0)
    model, x = Split().eval(), torch.randn(2, 3, 8, 8).to(HERE)
    for absorb in (True, False):
        slim = fxprune.slim(model, 0.4, x, absorb=absorb)
        for name, tensor in slim.named_parameters():
            assert (
                tensor.device == dict(model.named_parameters())[name].device if name in dict(model.named_parameters()) else True
            )
        assert slim(x).device == torch.device(THERE)
    fxprune.slim(model, 0.4, x, layout="selection")


def inputs_elsewhere(_folder: Path) -> None:
    """Example inputs on the CPU for a model on the accelerator: refused as the model refuses them, with words that help."""
    model, x = networks.ready(networks.Residual).to(THERE), networks.example(networks.Residual)
    with pytest.raises(fxprune.InputError, match="type"):
        fxprune.slim(model, 0.4, x)


CHECKS = {
    check.__name__: check
    for check in (
        what_cuda_refuses,
        what_it_computes,
        slim_as_on_the_cpu,
        default_device,
        a_model_that_trusts_it,
        a_detector,
        a_model_on_two_devices,
        inputs_elsewhere,
    )
}
