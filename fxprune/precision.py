"""Double precision, for models on devices that have none too (Apple's GPUs, some accelerators): such numbers are computed on the CPU."""

from __future__ import annotations

import functools

import torch
from torch import Tensor


@functools.cache
def _has_double(device: torch.device) -> bool:
    if device.type in ("cpu", "cuda", "meta"):
        return True
    try:
        ones = torch.ones(1, 1, 1, dtype=torch.float64, device=device)
        torch.conv1d(ones, ones) @ ones
    except (RuntimeError, TypeError, NotImplementedError):
        return False
    return True


def home(device: torch.device, dtype: torch.dtype = torch.float64) -> torch.device:
    """Where numbers of a device are computed in a dtype: there, or on the CPU."""
    return device if dtype not in (torch.float64, torch.complex128) or _has_double(device) else torch.device("cpu")


def double(tensor: Tensor) -> Tensor:
    """The tensor in float64; moved first, since devices convert where they are."""
    return tensor.to(home(tensor.device)).double()


def doubled(tensor: Tensor) -> Tensor:
    """The same for one of several arguments: whole numbers keep their dtype and go where the others go."""
    return double(tensor) if tensor.is_floating_point() else tensor.to(home(tensor.device))
