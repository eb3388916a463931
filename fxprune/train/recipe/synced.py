"""Batch norm over the global batch, on any device and backend.

1. Inside ``synchronized(model)`` every batch norm in training mode takes its mean and variance over the batches of all processes, and
   gradients flow through both; outside, and in evaluation mode, it is what it was. Modules are not replaced, so names, classes and
   parameters stay.
2. With the same number of images in every process, forward, backward and running statistics are those of one process with the whole
   batch, up to the order in which sums are taken. (``torch.nn.SyncBatchNorm`` computes the same, for GPUs only.)
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn.modules.batchnorm import _BatchNorm


class _Sum(torch.autograd.Function):
    """The sum over all processes; so is the gradient's."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        del ctx
        total = x.detach().clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        del ctx
        total = gradients[0].clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total


def _normalized(norm: _BatchNorm, x: Tensor) -> Tensor:
    """What ``norm`` computes from the batches of all processes (clause 2)."""
    if not norm.training:
        return type(norm).forward(norm, x)
    exact = x if x.dtype == torch.float64 else x.float()
    dims = [d for d in range(x.dim()) if d != 1]
    shape = [1, -1, *([1] * (x.dim() - 2))]
    count = x.numel() // x.shape[1] * dist.get_world_size()
    mean = _summed(exact.sum(dims)) / count
    centred = exact - mean.view(shape)
    variance = _summed(centred.square().sum(dims)) / count
    _track(norm, mean.detach(), variance.detach() * count / max(1, count - 1))
    result = centred * (variance + norm.eps).rsqrt().view(shape)
    if norm.affine:
        result = result * norm.weight.view(shape) + norm.bias.view(shape)
    return result.to(x.dtype)


def _summed(x: Tensor) -> Tensor:
    total: Tensor = _Sum.apply(x)  # type: ignore[no-untyped-call, unused-ignore]
    return total


@torch.no_grad()
def _track(norm: _BatchNorm, mean: Tensor, variance: Tensor) -> None:
    if not norm.track_running_stats or norm.running_mean is None or norm.running_var is None:
        return
    assert norm.num_batches_tracked is not None
    norm.num_batches_tracked += 1
    share = 1 / float(norm.num_batches_tracked) if norm.momentum is None else norm.momentum
    norm.running_mean.mul_(1 - share).add_(mean.to(norm.running_mean.dtype), alpha=share)
    norm.running_var.mul_(1 - share).add_(variance.to(norm.running_var.dtype), alpha=share)


@contextmanager
def synchronized(model: nn.Module) -> Iterator[None]:
    """Clause 1. Does nothing where one process trains alone."""
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        yield
        return
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    try:
        for norm in norms:
            norm.__dict__["forward"] = partial(_normalized, norm)
        yield
    finally:
        for norm in norms:
            norm.__dict__.pop("forward", None)
