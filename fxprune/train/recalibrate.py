"""Running statistics of batch norms, estimated anew.

1. After slimming, a batch norm's input has another distribution than the one its running mean and variance describe, unless what was removed was
   constant and absorbed. Recalibration needs images and no labels, no gradients and no optimizer.
2. Statistics are reset, batches are run with batch norms in training mode and everything else (dropout) in evaluation mode, and the
   result is the plain average over batches, as ``torch.optim.swa_utils.update_bn`` computes it. Momenta and modes are then what they were.
3. Where several processes train together, each runs its own share of the batches, equally many, and the averages of all are averaged. One that
   does it ``alone`` waits for nobody.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn.modules.batchnorm import _BatchNorm


@torch.no_grad()
def recalibrate(model: nn.Module, loader: Iterable[Any], batches: int | None = None, *, alone: bool = False) -> int:
    """Reset and re-estimate the running statistics of every batch norm of ``model``, in place (clauses 1 to 3).

    Args:
        model: on the device where it should run.
        loader: gives inputs: a tensor; a tuple or list, of which the first entry is the input (labels may follow); or a dict of keyword arguments.
        batches: how many are used; all unless told.
        alone: the other processes do not take part (clause 3).

    Returns:
        The number of batches that were used; 0 if the model has no batch norm with running statistics, and then nothing is run.

    Raises:
        ValueError: the loader is empty. Whatever is raised, the statistics are then what they were.
    """
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.track_running_stats and m.running_mean is not None]
    if not norms:
        return 0
    modes = {module: module.training for module in model.modules()}
    momenta = [norm.momentum for norm in norms]
    saved = [{name: buffer.clone() for name, buffer in norm.named_buffers(recurse=False)} for norm in norms]
    device = next((t.device for t in (*model.parameters(), *model.buffers())), torch.device("cpu"))
    count, done = 0, False
    try:
        model.eval()
        for norm in norms:
            norm.train()
            norm.reset_running_stats()
            norm.momentum = None  # the plain average over batches
        for batch in islice(loader, batches):
            _call(model, batch, device)
            count += 1
        if count:
            if not alone:
                _average(norms)
            done = True
    finally:
        for module, mode in modes.items():
            module.training = mode
        for norm, momentum, before in zip(norms, momenta, saved, strict=True):
            norm.momentum = momentum
            if not done:
                for name, buffer in before.items():
                    norm.get_buffer(name).copy_(buffer)
    if not count:
        raise ValueError("recalibrate got no batch: the loader is empty, or batches is 0.")
    return count


def _call(model: nn.Module, batch: Any, device: torch.device) -> None:
    if isinstance(batch, dict):
        model(**{key: value.to(device) if isinstance(value, Tensor) else value for key, value in batch.items()})
    else:
        first = batch[0] if isinstance(batch, (tuple, list)) else batch
        model(first.to(device))


def _average(norms: list[_BatchNorm]) -> None:
    """Clause 3."""
    if not (dist.is_available() and dist.is_initialized()):
        return
    for norm in norms:
        for statistic in (norm.running_mean, norm.running_var):
            if statistic is not None:
                dist.all_reduce(statistic)
                statistic /= dist.get_world_size()
