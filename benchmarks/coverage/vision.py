"""torchvision: every name of ``list_models()``, with inputs of the size each is made for."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torchvision import models

from benchmarks.coverage.cases import Case, floating, images, square

DETECTION = ("fasterrcnn", "fcos", "keypointrcnn", "maskrcnn", "retinanet", "ssd")
SEGMENTATION = ("deeplabv3", "fcn", "lraspp")
RESIZED = 224  # detectors scale what they get to this side (800 by default)


def names() -> list[str]:
    """Names of the suite, classifiers first; of the quantizable models the float version, under their own names."""
    return sorted(models.list_models(), key=lambda name: (not is_classifier(name), name))


def is_classifier(name: str) -> bool:
    """It is one of the 80 image classifiers."""
    return models.get_model_builder(name).__module__.split(".")[2] not in {
        "detection",
        "optical_flow",
        "quantization",
        "segmentation",
        "video",
    }


def case(name: str) -> Case:
    """The model and inputs of a name."""
    area = models.get_model_builder(name).__module__.split(".")[2]
    if name.startswith(DETECTION):
        return Case(
            name, lambda: detector(name), _photographs(300 if name.startswith("ssd300") else RESIZED), _detect, ragged=True
        )
    size: tuple[int, ...] = (3, 224, 224)
    if name.endswith("inception_v3"):
        size = (3, 299, 299)
    elif area == "video":
        frames, side = (16, 224) if name.startswith(("mvit", "s3d")) else (8, 112)
        size = (3, frames, side, side)
    elif area == "optical_flow":
        return Case(name, lambda: models.get_model(name, weights=None), _pair)
    return Case(name, lambda: plain(name), images(size), square)


FAINT = 1e-4


def plain(name: str) -> nn.Module:
    """A classifier, segmentation or video net without weights; GoogLeNet and Inception without their slow initialisation."""
    options: dict[str, Any] = {"init_weights": False} if name.endswith(("googlenet", "inception_v3")) else {}
    if name.startswith(SEGMENTATION):
        options["weights_backbone"] = None
    return models.get_model(name, weights=None, **options)


def detector(name: str) -> nn.Module:
    """A detection model without weights."""
    options: dict[str, Any] = {"weights_backbone": None}
    if not name.startswith("ssd"):
        options |= {"min_size": RESIZED, "max_size": RESIZED}
    model = models.get_model(name, weights=None, **options)
    for module in model.modules():  # random weights are sure of nothing: without boxes there would be nothing to compare
        if hasattr(module, "score_thresh"):
            module.score_thresh = FAINT
    return model


def _photographs(side: int) -> Any:
    def make(batch: int, dtype: torch.dtype) -> tuple[list[Tensor]]:
        rng = torch.Generator().manual_seed(batch)
        return ([torch.rand(3, side, side, generator=rng, dtype=torch.float64).to(dtype) for _ in range(batch)],)

    return make


def _pair(batch: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    first = images((3, 128, 128))(batch, dtype)
    return first, first.roll(2, 3)


def _detect(model: nn.Module, inputs: Any) -> Tensor:
    """The sum of the losses for one box per image."""
    (photographs,) = inputs
    targets = []
    for photograph in photographs:
        side = photograph.shape[-1]
        box = torch.tensor([[side / 4, side / 4, 3 * side / 4, 3 * side / 4]], dtype=photograph.dtype)
        mask = torch.zeros(1, side, side, dtype=torch.uint8)
        mask[:, side // 4 : 3 * side // 4, side // 4 : 3 * side // 4] = 1
        points = torch.full((1, 17, 3), side / 2, dtype=photograph.dtype)
        points[..., 2] = 1
        targets.append({"boxes": box, "labels": torch.ones(1, dtype=torch.int64), "masks": mask, "keypoints": points})
    return torch.stack(floating(model(photographs, targets))).sum()
