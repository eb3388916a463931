"""Operators that work within the trailing (spatial) dimensions: pooling, interpolation, padding by reflection, sampling.

1. Factors along leading dimensions are carried.
2. A factor that also varies along the spatial dimensions is first coupled along them (``smear``): a window sees several positions.
3. Unfold and fold lay the window's positions along the channel dimension: ids are repeated, or coupled.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from math import prod
from typing import Any

import numpy as np
from torch import Tensor

from fxprune.provenance.factor import Ids, Value, compress
from fxprune.provenance.tracker import Rule, Tracker


def _spatial_rank(name: str) -> int:
    digits = [int(c) for c, d in pairwise(name) if c in "123" and d == "d"]
    return digits[-1] if digits else 2


def _carry(t: Tracker, ids: Ids, rank: int, spatial: int) -> Ids:
    return t.smear(ids, range(rank - spatial, rank))


def pool(t: Tracker, func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """Clauses 1 and 2."""
    x = args[0]
    value, rank = t.value(x), x.dim()
    spatial = _spatial_rank(func._schema.name)
    factors = [_carry(t, ids, rank, spatial) for ids in value.factors]
    if func._schema.name.startswith("aten::fractional_"):
        factors = _with_samples(t, value, factors, t.value(args[3]), spatial)
    result = func(*args, **kwargs)
    for item in (result,) if isinstance(result, Tensor) else result:
        t.bind(item, factors if item.dim() == rank else ())
    return result


def _with_samples(t: Tracker, value: Value, factors: list[Ids], samples: Value, spatial: int) -> list[Ids]:
    """Random samples of shape (n, c, spatial) meet the planes of an input elementwise (clause 1)."""
    lead = value.shape[: len(value.shape) - spatial]
    ones = (1,) * spatial
    met = []
    for ids in samples.factors:
        if ids.shape[-1] > 1:
            t.ledger.pin(ids, "coordinates of random samples")
        else:
            met.append(ids.reshape(ids.shape[-1 - len(lead) : -1] + ones))
    return t.merge(lead + ones, [Value(lead + ones, tuple(factors)), Value(lead + ones, tuple(met))])


def adaptive_pool(t: Tracker, func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    x, size = args[0], args[1]
    rank = x.dim()
    factors = [_carry(t, ids, rank, len(size)) for ids in t.value(x).factors]
    return t.new((*x.shape[: rank - len(size)], *size), x, factors)


def sample(t: Tracker, func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """``grid_sampler(input, grid, ...)``: the grid's factors are pinned, the input's channels carried."""
    result = func(*args, **kwargs)
    x, grid = args[0], args[1]
    for ids in t.value(grid).factors:
        t.ledger.pin(ids, "coordinates of a sampling grid")
    return t.bind(result, [_carry(t, ids, x.dim(), x.dim() - 2) for ids in t.value(x).factors])


def unfold(t: Tracker, func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """``im2col(x, kernel, ...)``: (n, c, h, w) -> (n, c * prod(kernel), positions). Clause 3."""
    result = func(*args, **kwargs)
    window = prod(args[1])
    factors = []
    for ids in t.value(args[0]).factors:
        ids = _carry(t, ids, args[0].dim(), 2)
        flat = ids.reshape(*ids.shape[:-2], 1)
        factors.append(np.repeat(flat, window, axis=-2) if flat.shape[-2] > 1 else flat)
    return t.bind(result, factors)


def fold(t: Tracker, func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """``col2im(x, size, kernel, ...)``: (n, c * prod(kernel), positions) -> (n, c, h, w). Clause 3."""
    result = func(*args, **kwargs)
    window = prod(args[2])
    factors = []
    for ids in t.value(args[0]).factors:
        ids = t.smear(ids, [ids.ndim - 1])
        if ids.shape[-2] > 1:
            blocks = ids.reshape(*ids.shape[:-2], -1, window)
            ids = t.smear(blocks, [blocks.ndim - 1])
        factors.append(compress(ids.reshape(*ids.shape[:-2], -1, 1, 1) if ids.ndim == result.dim() else ids[..., None]))
    return t.bind(result, factors)


POOLS = (
    "avg_pool1d avg_pool2d avg_pool3d max_pool1d max_pool2d max_pool3d max_pool2d_with_indices max_pool3d_with_indices "
    "max_pool1d_with_indices fractional_max_pool2d fractional_max_pool3d lp_pool2d adaptive_max_pool1d adaptive_max_pool2d "
    "adaptive_max_pool3d reflection_pad1d reflection_pad2d reflection_pad3d replication_pad1d replication_pad2d replication_pad3d "
    "upsample_nearest1d upsample_nearest2d upsample_nearest3d _upsample_nearest_exact1d _upsample_nearest_exact2d "
    "_upsample_nearest_exact3d upsample_linear1d upsample_bilinear2d upsample_bicubic2d upsample_trilinear3d "
    "_upsample_bilinear2d_aa _upsample_bicubic2d_aa"
)
RULES: dict[str, Rule] = {
    **dict.fromkeys(POOLS.split(), pool),
    **dict.fromkeys(
        "_adaptive_avg_pool2d _adaptive_avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d".split(),
        adaptive_pool,
    ),
    **dict.fromkeys("grid_sampler_2d grid_sampler_3d grid_sampler".split(), sample),
    "im2col": unfold,
    "col2im": fold,
}
