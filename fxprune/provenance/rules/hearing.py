"""Which operators hear channels other than through the columns of a weight (cuts.py, clause 3).

1. Elementwise operators, data movement and batch norms hear nothing: each channel of the result stands for itself.
2. Reductions, pooling and indexing hear what they do not carry on, unchanged.
3. Convolutions and products with a matrix hear their input through the columns of that matrix, a pair.
4. Everything else (softmax, norms over channels, attention, recurrence, operators without a rule) hears all that it touches.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor

from fxprune.provenance.factor import Ids
from fxprune.provenance.rules import creation, indexing, movement, normalization, pointwise, reduction, spatial
from fxprune.provenance.tracker import Rule

Pair = tuple[Ids, Ids]
NO_IDS: Ids = np.zeros(0, np.int64)

DEAF = frozenset({movement.__name__, pointwise.__name__, creation.__name__})
CARRIERS = frozenset({reduction.__name__, spatial.__name__, indexing.__name__})
SOFT = frozenset({"_softmax", "_log_softmax", "_safe_softmax", "softmax", "log_softmax"})


def heard(
    rule: Rule, func: Any, args: Sequence[Any], before: Sequence[tuple[Tensor, tuple[Ids, ...]]], carried: Ids
) -> list[Pair]:
    """What one call hears: atoms, and those they are heard through (none: it hears them by itself).

    Args:
        rule: the transfer rule of the operator.
        func: the operator.
        args: its arguments.
        before: its tensor arguments with their factors as they were before the call.
        carried: the atoms that its results carry, ascending.
    """
    name = func._schema.name.removeprefix("aten::")
    home = getattr(rule, "__module__", "")
    if rule is normalization.batch_norm or (home in DEAF and name not in SOFT):
        return []
    if name in ("convolution", "_convolution", "linear", "mm", "addmm"):
        return _products(name, args, before, carried)
    everything = home not in CARRIERS
    return [(ids.ravel(), NO_IDS) for _, own in before for ids in own if everything or not np.isin(ids, carried).all()]


def _products(name: str, args: Sequence[Any], before: Sequence[tuple[Tensor, tuple[Ids, ...]]], carried: Ids) -> list[Pair]:
    """Clause 3."""
    place = 2 if name == "addmm" else 1
    weight = args[place]
    dim = 1 if name == "linear" or (name.endswith("convolution") and not args[6]) else 0
    if name.endswith("convolution") and weight.shape[1] == 1 and args[8] > 1:
        return []  # depthwise: channel by channel
    factors = next(own for x, own in before if x is weight)
    columns = [ids.ravel() for ids in factors if ids.shape[dim] > 1]
    through = np.concatenate(columns) if columns else NO_IDS
    found = [
        (ids.ravel(), through) for x, own in before if x is args[place - 1] for ids in own if not np.isin(ids, carried).all()
    ]
    return found + [(ids.ravel(), ids.ravel()) for ids in factors if not np.isin(ids, carried).all()]
