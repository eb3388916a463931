"""How good a network is on data: the metric that ``compare_scores`` and ``sensitivity`` use unless told otherwise."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from fxprune.errors import InputError
from fxprune.score.samples import batches

Metric = Callable[[nn.Module, Iterable[Any]], float]


@torch.no_grad()
def accuracy(model: nn.Module, loader: Iterable[Any]) -> float:
    """Share of samples whose largest output is that of their label, in [0, 1]; evaluation mode, restored afterwards.

    Args:
        model: its output is a tensor ``(n, classes, ...)``, or its first tensor is.
        loader: gives (inputs, labels), labels of shape ``(n, ...)``.

    Raises:
        InputError: batches without labels, or an empty loader.
    """
    modes = {module: module.training for module in model.modules()}
    device = next((t.device for t in (*model.parameters(), *model.buffers())), torch.device("cpu"))
    hits = total = 0
    try:
        model.eval()
        for batch in batches(loader, device):
            if not isinstance(batch.target, Tensor):
                raise InputError(
                    "accuracy needs batches (inputs, labels). Pass metric=: a function (model, loader) -> number.",
                    got=type(batch.target).__name__,
                )
            output = model(*batch.inputs.args, **batch.inputs.kwargs)
            found = next(x for x in torch.utils._pytree.tree_leaves(output) if isinstance(x, Tensor))
            hits += int((found.argmax(1) == batch.target).sum())
            total += batch.target.numel()
    finally:
        for module, mode in modes.items():
            module.training = mode
    return hits / total
