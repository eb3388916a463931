"""Models in double and in half precision go where those in single precision go."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import fxprune
from fxprune.capture.inputs import Inputs
from fxprune.errors import UnfaithfulCaptureError
from fxprune.faithful import same_program
from tests.devices import features, networks

USUAL = {("Attention", "slim"), ("Attention", "lasso"), ("Residual", "stages"), ("Residual", "dead"), ("Residual", "training")}


def cases() -> Iterator[object]:
    for dtype in ("float64", "bfloat16", "float16"):
        for kind in networks.NETWORKS:
            for feature in features.QUICK:
                marks = () if dtype == "bfloat16" and (kind, feature) in USUAL else pytest.mark.slow
                yield pytest.param(dtype, kind, feature, marks=marks, id=f"{dtype}-{kind}-{feature}")


@pytest.mark.parametrize(("dtype", "kind", "feature"), list(cases()))
def test_a_feature_in_another_precision(dtype: str, kind: str, feature: str, tmp_path: Path) -> None:
    case = features.case(kind, tmp_path, dtype=getattr(torch, dtype))
    features.QUICK[feature](case)
    case.check()


class Rounded(networks.Attention):
    """Half precision where it was not asked for: the program is the same, and so is the rounding."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x.to(torch.bfloat16).to(self.table.dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_program_that_rounds_on_the_way(dtype: torch.dtype) -> None:
    made = fxprune.slim(networks.ready(Rounded, dtype), 0.4, networks.example(networks.Attention, dtype=dtype))
    assert made.up.weight.dtype == dtype


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_another_program_is_refused(dtype: torch.dtype) -> None:
    model, inputs = networks.ready(networks.Attention, dtype), Inputs((networks.example(networks.Attention, dtype=dtype),), {})
    same_program(model, copy.deepcopy(model), inputs)
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.head.weight.mul_(1.01)
    with pytest.raises(UnfaithfulCaptureError, match="does not compute what the model computes"):
        same_program(model, other, inputs)
