"""torchvision's convolutional networks at three ratios against the zeroed oracle."""

from __future__ import annotations

from typing import Any

import pytest
import torchvision

from tests.models.compiled import RATIOS, check_slim, image

# name, side of the input, arguments
QUICK = [
    ("alexnet", 96, {}),
    ("resnet18", 64, {}),
    ("mobilenet_v2", 64, {}),
    ("shufflenet_v2_x1_0", 64, {}),
    ("densenet121", 64, {}),
    ("squeezenet1_1", 64, {}),
]
SLOW = [
    ("vgg11_bn", 64, {}),
    ("resnet50", 64, {}),
    ("resnext50_32x4d", 64, {}),
    ("wide_resnet50_2", 64, {}),
    ("regnet_x_400mf", 64, {}),
    ("regnet_y_400mf", 64, {}),
    ("googlenet", 64, {"init_weights": False}),
    ("inception_v3", 96, {"init_weights": False}),
    ("mobilenet_v3_large", 64, {}),
    ("mnasnet1_0", 64, {}),
    ("efficientnet_b0", 64, {}),
    ("efficientnet_v2_s", 64, {}),
    ("fcn_resnet50", 64, {"weights_backbone": None}),
    ("deeplabv3_resnet50", 64, {"weights_backbone": None}),
    ("lraspp_mobilenet_v3_large", 64, {"weights_backbone": None}),
]
SEGMENTATION = ("fcn_", "deeplab", "lraspp")


def check(name: str, side: int, arguments: dict[str, Any], ratio: float) -> None:
    home = torchvision.models.segmentation if name.startswith(SEGMENTATION) else torchvision.models
    check_slim(getattr(home, name)(weights=None, **arguments), image(side), ratio)


@pytest.mark.parametrize("ratio", RATIOS)
@pytest.mark.parametrize(("name", "side", "arguments"), QUICK, ids=[name for name, *_ in QUICK])
def test_quick(name: str, side: int, arguments: dict[str, Any], ratio: float) -> None:
    check(name, side, arguments, ratio)


@pytest.mark.slow
@pytest.mark.parametrize("ratio", RATIOS)
@pytest.mark.parametrize(("name", "side", "arguments"), SLOW, ids=[name for name, *_ in SLOW])
def test_slow(name: str, side: int, arguments: dict[str, Any], ratio: float) -> None:
    check(name, side, arguments, ratio)
