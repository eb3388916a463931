"""Which weights go: the smallest ones.

1. ``by_quality``: weights below ``quality * std`` of their layer go (Han et al. 2015, section 4: "a quality parameter multiplied by the
   standard deviation of a layer's weights"). The deviation is that of the weights that are still there, so a layer can be pruned again.
2. ``by_density``: the share of weights that stays, per layer, or of all layers together by one ranking (scope "global"). Exactly
   ``round(density * weights)`` stay; equal magnitudes go in the order of their position. A weight that is pruned counts as smallest.
3. Both give masks (masks.py) and change nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fxprune.errors import BudgetError
from fxprune.precision import double
from fxprune.sparse.layers import layers, parameter
from fxprune.sparse.masks import mask_of

SCOPES = ("layer", "global")


def _magnitudes(module: nn.Module) -> Tensor:
    """|w|, and -1 where the weight is pruned already; float64 would not change the order, so the dtype stays."""
    held, values = mask_of(module), parameter(module).detach().abs()
    return values if held is None else torch.where(held.keep, values, -torch.ones((), dtype=values.dtype, device=values.device))


def deviation(module: nn.Module) -> float:
    """Standard deviation of the weights of a layer that are not pruned; 0 if there are fewer than two."""
    held, values = mask_of(module), double(parameter(module).detach())
    alive = values.flatten() if held is None else values[held.keep.to(values.device)]
    return float(alive.std()) if len(alive) > 1 else 0.0


def _per_layer(given: float | Mapping[str, float], known: Mapping[str, nn.Module], what: str, top: float) -> dict[str, float]:
    values = dict(given) if isinstance(given, Mapping) else dict.fromkeys(known, given)
    for name, number in values.items():
        value: Any = number
        if name not in known:
            raise BudgetError(f"{what} is given for {name!r}, which is no chosen layer; there are {', '.join(known)}.", node=name)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value) or not 0 <= value <= top:
            limits = "[0, 1], the share of weights that STAYS" if top == 1 else "[0, inf)"
            raise BudgetError(f"{what} of {name!r} must be in {limits}, got {value!r}.", node=name, expected=limits, got=value)
    return values


def by_quality(
    model: nn.Module, quality: float | Mapping[str, float], *, only: str = "all", names: Sequence[str] = ()
) -> dict[str, Tensor]:
    """Clause 1: masks by layer name. ``quality``: one number for all chosen layers, or one per layer (others are left alone).

    Raises:
        BudgetError: a quality that is negative or not finite, or for an unknown layer.
    """
    known = layers(model, only, names)
    found = {}
    for name, value in _per_layer(quality, known, "quality", math.inf).items():
        found[name] = _magnitudes(known[name]) >= value * deviation(known[name])
    return found


def by_density(
    model: nn.Module,
    density: float | Mapping[str, float],
    *,
    scope: str = "layer",
    only: str = "all",
    names: Sequence[str] = (),
) -> dict[str, Tensor]:
    """Clause 2: masks by layer name. ``density``: the share that stays, in [0, 1]; one number, or one per layer (scope "layer").

    Raises:
        BudgetError: a density outside [0, 1], for an unknown layer, or one per layer where one ranking was asked for.
    """
    if scope not in SCOPES:
        raise BudgetError(f"scope must be one of {SCOPES}, got {scope!r}.", expected=SCOPES, got=scope)
    known = layers(model, only, names)
    wanted = _per_layer(density, known, "density", 1.0)
    if scope == "layer":
        return {name: _largest(_magnitudes(known[name]), share) for name, share in wanted.items()}
    if isinstance(density, Mapping):
        raise BudgetError("scope='global' ranks all layers together: give one density, not one per layer.", got=density)
    parts = {name: _magnitudes(known[name]) for name in wanted}
    dtype = torch.float64 if any(p.dtype == torch.float64 for p in parts.values()) else torch.float32
    joined = torch.cat([p.flatten().to("cpu", dtype) for p in parts.values()])
    chosen = _largest(joined, density).split([p.numel() for p in parts.values()])
    return {name: piece.reshape(part.shape).to(part.device) for piece, (name, part) in zip(chosen, parts.items(), strict=True)}


def _largest(values: Tensor, share: float) -> Tensor:
    stay = round(share * values.numel())
    order = values.flatten().argsort(descending=True, stable=True)[:stay]
    keep = torch.zeros(values.numel(), dtype=torch.bool, device=values.device)
    keep[order] = True
    return (keep & (values.flatten() >= 0)).reshape(values.shape)
