"""Whatever torch's default device is, what fxprune makes for itself is where it belongs: with meta as default, a tensor that is not breaks."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import fxprune
from tests.devices import features, networks

USUAL = ("Residual", "Attention")


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
