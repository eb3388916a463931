"""timm: the smallest model of every module, and 300 more by a seeded shuffle.

Which model is smallest takes minutes to find out and is therefore kept in ``timm_sizes.json`` (parameters of every architecture, built on
the meta device); ``python -m benchmarks.coverage.pytorch_image_models`` writes it anew.
"""

from __future__ import annotations

import json
import random
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.coverage.cases import Case, images

SIZES = Path(__file__).with_name("timm_sizes.json")
MORE = 300
SEED = 0
LARGEST = 120_000_000  # parameters; above that, and above WIDEST, a shuffle would mostly measure the machine
WIDEST = 512  # pixels


def sizes() -> dict[str, dict[str, int]]:
    """Parameters of every architecture, by module."""
    return json.loads(SIZES.read_text())["parameters"]


def smallest() -> list[str]:
    """The smallest model of every module, in order of size."""
    chosen = {}
    for models in sizes().values():
        name = min(models, key=lambda name: (models[name], name))
        chosen[name] = models[name]
    return sorted(chosen, key=lambda name: (chosen[name], name))


def more() -> list[str]:
    """``MORE`` other architectures of at most ``LARGEST`` parameters and ``WIDEST`` pixels, by a seeded shuffle."""
    taken = set(smallest())
    counts = {name: count for models in sizes().values() for name, count in models.items()}
    names = sorted(
        name for name, count in counts.items() if count <= LARGEST and name not in taken and max(_size(name)) <= WIDEST
    )
    random.Random(SEED).shuffle(names)  # noqa: S311 - a sample, no secret
    return sorted(names[:MORE], key=lambda name: (counts[name], name))


def case(name: str) -> Case:
    """A timm model, with an image of the size its configuration names."""

    def build() -> nn.Module:
        import timm

        return timm.create_model(name, pretrained=False)

    return Case(name, build, _Configured(name), packages=("timm",))


class _Configured:
    """Images of the size of a model's configuration."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __call__(self, batch: int, dtype: torch.dtype) -> Any:
        return images(_size(self.name))(batch, dtype)


def _size(name: str) -> tuple[int, ...]:
    """The input size of a model's configuration; of models that also take less, a smaller one where theirs makes for minutes of arithmetic."""
    import timm

    config = timm.get_pretrained_cfg(name)
    if not config:
        return (3, 224, 224)
    size = tuple(config.input_size)
    if config.fixed_input_size or max(size) <= 384:
        return size
    if config.min_input_size:
        return (size[0], *(2 * side for side in config.min_input_size[1:]))
    return size if max(size) <= WIDEST else (size[0], 256, 256)


def measure_sizes() -> None:
    """Write ``timm_sizes.json``."""
    import timm

    warnings.simplefilter("ignore")
    found: dict[str, dict[str, int]] = {}
    for module in timm.list_modules():
        for name in timm.list_models(module=module):
            try:
                with torch.device("meta"):
                    model = timm.create_model(name, pretrained=False)
            except Exception as error:  # noqa: BLE001 - some cannot be built there
                print(f"{name}: {type(error).__name__}, built on the CPU instead")
                model = timm.create_model(name, pretrained=False)
            found.setdefault(module, {})[name] = sum(p.numel() for p in model.parameters())
    SIZES.write_text(json.dumps({"timm": timm.__version__, "parameters": found}, indent=0) + "\n")


if __name__ == "__main__":
    measure_sizes()
