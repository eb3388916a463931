"""The networks of the papers at three ratios against the zeroed oracle."""

from __future__ import annotations

import pytest

from fxprune import zoo
from tests.models.compiled import RATIOS, check_slim, image

QUICK = ["vgg19_bn", "resnet20", "densenet40"]
SLOW = ["resnet164", "resnet32", "resnet44", "resnet56", "resnet110"]


@pytest.mark.parametrize("ratio", RATIOS)
@pytest.mark.parametrize("name", [*QUICK, *[pytest.param(name, marks=pytest.mark.slow) for name in SLOW]])
def test_zoo(name: str, ratio: float) -> None:
    check_slim(getattr(zoo, name)(), image(32), ratio)
