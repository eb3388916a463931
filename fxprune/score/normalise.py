"""Scores of different layers made comparable: ``normalised(score, by)``.

With s the scores of one group:

| by | result | source |
|---|---|---|
| none | s | ranks within layers only |
| mean | s / mean(s) | He et al. 2019's relative norms; what ``magnitude`` uses |
| max | s / max(s) | |
| l2 | s / sqrt(sum s^2) | Molchanov et al. 2017, eq. 11, arXiv:1611.06440 |
| size | s / number of weights that produce one channel | a large filter has a large norm because it is large |
| standard | (s - mean(s)) / standard deviation | may be negative |
| log | log(1 + s / sum of all larger s) | below |

A group whose divisor is 0 keeps its scores (under ``standard`` and ``log``: zeros).

``log`` is for scores without a unit of their own (gammas, norms) under a budget. Sums of such scores price the last channels of a layer like its
first, so a budget empties the layers whose channels cost most, down to their floors. Under ``log``, channels that go from the smallest up cost
-log(share of the group's score that is kept): what is kept of the product over groups of these shares is the largest possible. The largest
channel of a group, whose removal would leave nothing, counts log(4), twice what any other can. Negative scores count as 0. To first order, and
with squares of weights for s, this is LAMP (Lee et al. 2021, arXiv:2010.07611).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from fxprune.errors import BudgetError
from fxprune.graph.channels import ChannelGraph, ChannelGroup
from fxprune.score.scores import Score, is_total, named, producers

PLAIN = ("none", "size")  # what was a total still is one; others make scores relative to their layer
NORMALISATIONS = ("none", "mean", "max", "l2", "size", "standard", "log")


class Normalised:
    """A score whose values per group are divided by something of that group's own."""

    def __init__(self, score: Any, by: str) -> None:
        self.score = score
        self.by = by
        self.__name__ = f"{getattr(score, '__name__', type(score).__name__)}:{by}"
        self.totals = by in PLAIN and is_total(score)

    def on(self, graph: ChannelGraph) -> Score:
        """The same of a score that has seen the graph, if it has to."""
        see = getattr(self.score, "on", None)
        return self if see is None else Normalised(see(graph), self.by)

    def __call__(self, group: ChannelGroup) -> Tensor:
        """Scores of a group; shape (channels,)."""
        values = torch.as_tensor(self.score(group), device="cpu").detach().cpu().to(torch.float64)
        if self.by == "none" or not values.numel():
            return values
        if self.by == "standard":
            spread = values.std(correction=0)
            return (values - values.mean()) / spread if spread > 0 else torch.zeros_like(values)
        if self.by == "log":
            return _log_shares(values)
        divisor = _weights_per_channel(group) if self.by == "size" else _divisor(values, self.by)
        return values / divisor if divisor > 0 else values


def normalised(score: Any, by: str) -> Normalised:
    """A score made comparable across groups; ``"name:by"`` is the same as a string.

    Args:
        score: a name, a callable, or a score that needs data.
        by: "none", "mean", "max", "l2", "size", "standard" or "log".

    Raises:
        BudgetError: an unknown name or normalisation.
    """
    function = named(score) if isinstance(score, str) else score
    if by not in NORMALISATIONS:
        raise BudgetError(f"a normalisation is one of {', '.join(NORMALISATIONS)}, got {by!r}.", expected=NORMALISATIONS, got=by)
    return Normalised(function, by)


def _divisor(values: Tensor, by: str) -> float:
    found = {"mean": values.abs().mean(), "max": values.abs().max(), "l2": values.norm()}[by]
    return float(found)


def _log_shares(values: Tensor) -> Tensor:
    """What each channel takes from the logarithm of the kept sum, if smaller ones have gone before; in the order of the scores."""
    ascending, order = values.clamp(min=0).sort(stable=True)
    larger = ascending.flip(0).cumsum(0).flip(0) - ascending
    larger[-1] = ascending[-1] / 3
    found = torch.empty_like(values)
    found[order] = torch.where(ascending > 0, ascending / larger, 0.0).log1p()
    return found


def _weights_per_channel(group: ChannelGroup) -> float:
    """Numbers of weights in the rows of one channel, on average."""
    total = 0.0
    for member in producers(group):
        axis = group.tensors[member.name].shape[member.dim] * member.blocks
        total += group.tensors[member.name].numel() / axis * len(np.unique(member.atom))
    return total / max(len(group), 1)
