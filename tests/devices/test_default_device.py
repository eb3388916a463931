"""Whatever torch's default device is, tensors that fxprune makes for itself are where they belong: with the meta device as default, one that is not breaks."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import fxprune
from tests.devices import features, networks

USUAL = ("Residual", "Attention", "Recurrent")


def cases() -> Iterator[object]:
    for kind in networks.NETWORKS:
        for feature in features.QUICK:
            yield pytest.param(kind, feature, marks=() if kind in USUAL else pytest.mark.slow, id=f"{kind}-{feature}")


@pytest.mark.parametrize(("kind", "feature"), list(cases()))
def test_a_feature_under_another_default_device(kind: str, feature: str, tmp_path: Path) -> None:
    case = features.case(kind, tmp_path)
    with torch.device("meta"):
        features.QUICK[feature](case)
    case.check()


@pytest.mark.parametrize("kind", networks.NETWORKS)
def test_the_slim_model_is_the_same(kind: str, tmp_path: Path) -> None:
    case = features.case(kind, tmp_path)
    expected = fxprune.slim(case.model, 0.4, case.inputs)
    with torch.device("meta"):
        got = fxprune.slim(case.model, 0.4, case.inputs)
    assert fxprune.plan_of(got).kept == fxprune.plan_of(expected).kept
    for (name, a), (other, b) in zip(expected.state_dict().items(), got.state_dict().items(), strict=True):
        assert name == other
        assert torch.equal(a, b), name


class Trusting(nn.Module):
    """Makes its tensors on the default device, as scripts that set one do."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.places, self.head = nn.Linear(6, 16), nn.Embedding(10, 16), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        places = torch.arange(x.shape[1])
        scale = torch.linspace(0.5, 1.5, x.shape[1])
        return self.head(torch.relu(self.embed(x) * scale[:, None] + self.places(places)).mean(1))


def test_a_model_that_trusts_the_default_device() -> None:
    torch.manual_seed(0)
    model, x = Trusting().eval(), torch.randn(2, 6, 6)
    with torch.device("cpu"):  # the model's own; with none it is the same device, by another way through torch
        made = fxprune.slim(model, 0.4, x)
        assert made.embed.weight.shape[0] < 16
        assert made(x).shape == (2, 5)
