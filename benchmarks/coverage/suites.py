"""The suites by name: which cases they hold, and how to find one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from benchmarks.coverage import others, pytorch_image_models, vision
from benchmarks.coverage.cases import Case


@dataclass(frozen=True, slots=True)
class Suite:
    """A set of models.

    Attributes:
        title: heading in the report.
        names: lists the cases.
        find: the case of a name.
    """

    title: str
    names: Callable[[], list[str]]
    find: Callable[[str], Case]


SUITES = {
    "torchvision": Suite("torchvision: every model of `list_models()`", vision.names, vision.case),
    "timm": Suite("timm: the smallest model of every module", pytorch_image_models.smallest, pytorch_image_models.case),
    "timm300": Suite("timm: 300 more, by a seeded shuffle", pytorch_image_models.more, pytorch_image_models.case),
    "others": Suite("Other libraries", others.names, others.case),
}
