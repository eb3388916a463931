"""The ranking (ranking.py) of a solution: which scores there were, and which of them went."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from fxprune.graph.channels import ChannelGraph
from fxprune.provenance.factor import Mask
from fxprune.ranking import ALL, DIGITS, Histogram, Ranking
from fxprune.score.scores import Scored

BINS_OF_ALL, BINS_OF_GROUP = 48, 24

Numbers = npt.NDArray[np.float64]


def ranking(graph: ChannelGraph, scored: Scored, removed: Mask) -> Ranking:
    """One histogram of all scores, and one per group. Linear in the channels."""
    values = [given.numpy() for given in scored.values]
    gone = [removed[group.channels] for group in graph.groups]
    if not values:
        return ()
    everything = _histogram(ALL, np.concatenate(values), np.concatenate(gone), BINS_OF_ALL)
    groups = zip(graph.groups, values, gone, strict=True)
    return (everything, *(_histogram(group.name, own, lost, BINS_OF_GROUP) for group, own, lost in groups))


def _histogram(name: str, values: Numbers, gone: Mask, bins: int) -> Histogram:
    low, high = float(values.min()), float(values.max())
    width = (high - low) / bins
    place = np.minimum(((values - low) / width).astype(np.int64), bins - 1) if width > 0 else np.zeros(len(values), np.int64)
    counts = (np.bincount(place[mask], minlength=bins) for mask in (~gone, gone))
    kept, removed = (tuple(count.tolist()) for count in counts)
    cut = float(values[gone].max()) if gone.any() else math.nan
    return Histogram(name, _short(low), _short(high), _short(cut), kept, removed)


def _short(value: float) -> float:
    return float(f"{value:.{DIGITS}g}")
