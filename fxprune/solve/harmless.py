"""How far the elimination order goes before it takes anything that counts.

1. What a group holds is the sum of its scores. A score below ``negligible`` times the mean of all counts as zero: what died as a whole holds nothing.
2. The cut is the longest prefix of the elimination order (ratio.py, clauses 1 to 3: blocks and floors included) that takes no more than ``tolerance``
   of what any group holds. Equal scores go or stay together. Groups that have no score (an infinite one) lose nothing.
3. Its share is counted as that of a ratio is, so ``solve_ratio`` for that share removes exactly this.
"""

from __future__ import annotations

import numpy as np

from fxprune.graph.channels import ChannelGraph
from fxprune.provenance.factor import Ids, Mask
from fxprune.score.scores import Scored
from fxprune.solve.ratio import Numbers, Order, _order, channel_weights


def harmless(graph: ChannelGraph, scored: Scored, floor: float, *, tolerance: float, negligible: float) -> tuple[Mask, float]:
    """Clauses 1 to 3: the mask of the components that go, and their share. The scores are not negative."""
    share, group_of = _held(graph, scored, negligible)
    order = _order(graph, scored, floor, 1)
    count = _within(order, share, group_of, tolerance)
    if 0 < count < len(order):
        means = _means(order, scored, graph)
        count = int(np.searchsorted(means[:count], means[count], "left"))
    removed = np.zeros(graph.closed.count, np.bool_)
    removed[order.first(count)] = True
    weight = np.where(group_of >= 0, channel_weights(graph), 0)
    return removed & (group_of >= 0), float(weight[removed].sum() / max(1, weight.sum()))


def _held(graph: ChannelGraph, scored: Scored, negligible: float) -> tuple[Numbers, Ids]:
    """Per component, the share of what its group holds (clause 1), and the number of its group."""
    values = [numbers.numpy() for numbers in scored.values]
    known = np.concatenate([own[np.isfinite(own)] for own in values])
    least = negligible * known.mean() if len(known) else 0.0
    share = np.zeros(graph.closed.count)
    group_of = np.full(graph.closed.count, -1, np.int64)
    for number, (group, own) in enumerate(zip(graph.groups, values, strict=True)):
        finite = bool(np.isfinite(own).all())
        counted = np.where(own > least, own, 0.0) if finite else own
        share[group.channels] = counted / max(counted.sum(), 1e-300) if finite else np.inf
        group_of[group.channels] = number
    return share, group_of


def _within(order: Order, share: Numbers, group_of: Ids, tolerance: float) -> int:
    """The number of units before the first that takes too much of a group."""
    first = len(order.channels)
    owner = group_of[order.channels]
    for places in np.split(np.argsort(owner, kind="stable"), np.flatnonzero(np.diff(np.sort(owner))) + 1):
        over = places[share[order.channels[places]].cumsum() > tolerance * (1 + 1e-9)]
        first = min(first, *over[:1].tolist(), first)
    return int(np.searchsorted(order.starts, first, "right")) - 1 if first < len(order.channels) else len(order)


def _means(order: Order, scored: Scored, graph: ChannelGraph) -> Numbers:
    """What units are ordered by: the mean score of their channels; those without a score do not count."""
    value = np.full(graph.closed.count, np.nan)
    for group, own in zip(graph.groups, scored.values, strict=True):
        value[group.channels] = own.numpy()
    flat = value[order.channels]
    has = ~np.isnan(flat)
    counts = np.maximum(np.add.reduceat(has.astype(np.int64), order.starts), 1)
    means: Numbers = np.add.reduceat(np.where(has, flat, 0.0), order.starts) / counts
    return means
