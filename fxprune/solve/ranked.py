"""The ranking (ranking.py) of a solution: which scores there were, and which of them went."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from fxprune.graph.channels import ChannelGraph
from fxprune.provenance.factor import Ids, Mask
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
    flat, lost = np.concatenate(values), np.concatenate(gone)
    lengths = np.array([len(own) for own in values])
    everything = _histograms([ALL], flat, lost, lengths.sum(keepdims=True), BINS_OF_ALL)
    return (*everything, *_histograms([group.name for group in graph.groups], flat, lost, lengths, BINS_OF_GROUP))


def _histograms(names: list[str], values: Numbers, gone: Mask, lengths: Ids, bins: int) -> list[Histogram]:
    """One histogram per run of ``lengths`` values."""
    starts = np.concatenate([[0], lengths.cumsum()])[:-1]
    low, high = np.minimum.reduceat(values, starts), np.maximum.reduceat(values, starts)
    cut = np.maximum.reduceat(np.where(gone, values, -math.inf), starts)
    width = (high - low) / bins
    run = np.repeat(np.arange(len(names)), lengths)
    place = np.minimum(((values - low[run]) / np.where(width > 0, width, math.inf)[run]).astype(np.int64), bins - 1)
    counts = np.bincount(2 * (run * bins + place) + gone, minlength=2 * bins * len(names)).reshape(-1, bins, 2)
    told = zip(names, low.tolist(), high.tolist(), cut.tolist(), counts[..., 0].tolist(), counts[..., 1].tolist(), strict=True)
    return [
        Histogram(name, _short(least), _short(most), _short(last if last >= least else math.nan), tuple(kept), tuple(removed))
        for name, least, most, last, kept, removed in told
    ]


def _short(value: float) -> float:
    return float(f"{value:.{DIGITS}g}")
