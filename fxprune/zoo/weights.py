"""Initial and pretrained weights of the zoo networks."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

import torch
from torch import nn

Model = TypeVar("Model", bound=nn.Module)

PREFIX = "module."  # what torch.nn.DataParallel puts before every key


def he_init(model: nn.Module) -> None:
    """Draw convolution weights from N(0, 2 / fan_out), in place (He et al. 2015, arXiv:1502.01852, eq. 14)."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


def load_pretrained(model: Model, path: str | Path) -> Model:
    """Load a checkpoint into ``model`` and return it.

    The file holds a state dict, or a dict with one under ``"state_dict"``; keys may carry the prefix ``module.``. It is read
    with ``weights_only=True``: tensors, no code.

    Raises:
        RuntimeError: a key is missing or unexpected, or a shape differs.
    """
    found = torch.load(path, map_location="cpu", weights_only=True)
    state = found.get("state_dict", found)
    model.load_state_dict({key.removeprefix(PREFIX): value for key, value in state.items()})
    return model
