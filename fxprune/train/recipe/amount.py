"""How much goes in one of several passes.

1. Liu et al. 2017 (multi-pass slimming, arXiv:1708.06519): what is below the median of all scale factors goes, but at most half of a layer.
   Here ``ratio`` stands for the half that makes the median, ``1 - floor`` for the share that a layer may lose, and a group of coupled channels for
   the layer. So a pass removes less than ``ratio`` where small scale factors crowd in few layers.
2. The answer is a ratio for ``fxprune.slim`` with that floor, which then removes just these: the same order of the same scores.
3. Below the quantile are floor(ratio * (n - 1)) of n, where all differ. Equal ones are taken evenly from all groups.
4. Scale factors are counted as ``fxprune.slim`` counts them: a coupled channel as often as it has some. Where a group has none, channels are ranked
   by the score that "auto" stands for.
"""

from __future__ import annotations

import math

import numpy as np

from fxprune.graph.channels import ChannelGraph
from fxprune.layouts import in_layout
from fxprune.score.scores import score
from fxprune.solve.ratio import channel_weights
from fxprune.solve.selection import ranked

CLOSE = 1e-9  # what rounding may add to a product that is whole


def below_quantile(graph: ChannelGraph, ratio: float, floor: float, layout: str = "coupled") -> float:
    """The share of all channels that one of several passes removes (clauses 1 to 4).

    Args:
        graph: what ``fxprune.analyze`` returned.
        ratio: which quantile, in [0, 1).
        floor: share of each group that stays, in [0, 1].
        layout: "coupled" or "selection".
    """
    among = ranked(in_layout(graph, layout)) if layout == "selection" else graph
    if not among.groups:
        return ratio
    values = [own.numpy() for own in score(among.groups, "gamma_max" if layout == "selection" else "auto").values]
    weight = channel_weights(among)
    weights = [weight[group.channels] for group in among.groups]
    total = int(sum(own.sum() for own in weights))
    orders = [np.argsort(own, kind="stable") for own in values]
    owner = np.repeat(np.arange(len(values)), [len(own) for own in values])
    flat, counts = (np.concatenate([own[order] for own, order in zip(of, orders, strict=True)]) for of in (values, weights))
    place = np.concatenate([np.arange(len(own)) / len(own) for own in values])
    ranks = np.lexsort((place, flat))
    below = np.zeros(len(flat), np.bool_)
    below[ranks[counts[ranks].cumsum() <= ratio * (total - 1) + CLOSE]] = True
    gone = 0
    for index, own in enumerate(values):
        here = counts[owner == index]
        most = len(own) - max(1, math.ceil(floor * len(own) - CLOSE))
        gone += int(here[: min(most, int(below[owner == index].sum()))].sum())
    return gone / total
