"""Facts that are computed later are what they would have been at once."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torchvision import models as tv

import fxprune
from fxprune.absorb import propagate as walk
from fxprune.absorb.arrivals import Arrival
from fxprune.solve.plans import removed_channels
from tests.property.program import randomise


class Activations(nn.Module):
    """Batch norms, and every activation that waits, alone and one behind the other, added and joined."""

    def __init__(self) -> None:
        super().__init__()
        kinds = (nn.ReLU, nn.ReLU6, nn.SiLU, nn.GELU, nn.Sigmoid, nn.Tanh, nn.Hardswish, nn.Hardsigmoid, nn.LeakyReLU, nn.Mish)
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))
        self.branches = nn.ModuleList(
            nn.Sequential(nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8), kind(), nn.Conv2d(8, 6, 1), nn.BatchNorm2d(6)) for kind in kinds
        )
        self.tail = nn.Conv2d(12 * len(kinds), 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        made = [torch.relu(branch(x)) for branch in self.branches]
        sums = [nn.functional.leaky_relu(a + b, 0.2) for a, b in zip(made, made[1:] + made[:1], strict=True)]
        together = nn.functional.max_pool2d(torch.cat([*made, *sums], 1), 2)
        return self.tail(nn.functional.gelu(together, approximate="tanh"))


@pytest.mark.parametrize(
    "make",
    [Activations, tv.resnet18, tv.mobilenet_v3_small, tv.googlenet, tv.shufflenet_v2_x0_5],
    ids=lambda make: make.__name__,
)
def test_readers_see_what_they_would_see_at_once(make: type[nn.Module], monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model = randomise(make(init_weights=False) if make is tv.googlenet else make()).eval()
    graph = fxprune.analyze(model, torch.randn(1, 3, 64, 64))
    plan = fxprune.plan(graph, 0.5, score="random")

    def found() -> list[Arrival]:
        return walk.propagate(graph, removed_channels(graph, plan), plan.silent).arrivals

    later = found()
    monkeypatch.setattr(walk, "CALM", -1.0)  # no batch norm is calm
    at_once = found()
    assert len(later) == len(at_once) > 1
    assert any(bool((arrival.std > 0).any()) for arrival in later)
    for ours, theirs in zip(later, at_once, strict=True):
        assert ours.reader.node is theirs.reader.node
        for name in ("mean", "std", "apart"):
            torch.testing.assert_close(getattr(ours, name), getattr(theirs, name), rtol=1e-9, atol=1e-9, equal_nan=True)


def test_a_gamma_that_is_nearly_nothing_makes_a_constant() -> None:
    """Behind a relu it is zero for certain, so it is zero also behind a gate of which nothing is known."""
    torch.manual_seed(0)

    class Gated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm, self.gate, self.tail = (
                nn.Conv2d(3, 6, 1),
                nn.BatchNorm2d(6),
                nn.Conv2d(3, 6, 1),
                nn.Conv2d(6, 2, 1),
            )

        def forward(self, x: Tensor) -> Tensor:
            return self.tail(torch.relu(self.norm(self.conv(x))) * torch.sigmoid(self.gate(x)))

    model = randomise(Gated()).eval()
    with torch.no_grad():
        model.norm.weight[:3], model.norm.bias[:3] = 1e-6, -0.5
    slim = fxprune.slim(model, 0.5, torch.randn(1, 3, 5, 5).double(), score="gamma")
    assert fxprune.absorption_of(slim).losses == ()
    x = torch.randn(4, 3, 9, 9).double()
    torch.testing.assert_close(slim(x), model(x), rtol=1e-5, atol=1e-6)
