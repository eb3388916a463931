"""Expected values of functions of a normal variable x = mean + std * z, z standard normal.

1. ``E[relu(x)] = mean * Phi(t) + std * phi(t)``, t = mean / std, where Phi and phi are the normal distribution and its density.
2. ``clip(x, low, high) = low + relu(x - low) - relu(x - high)`` (relu6, hardtanh), and leaky relu with slope s is
   ``s * x + (1 - s) * relu(x)``: by linearity from clause 1.
3. ``gelu(x) = x * Phi(x)``: ``E = mean * Phi(u) + std**2 / sqrt(1 + std**2) * phi(u)``, u = mean / sqrt(1 + std**2) (integration by parts).
4. ``E[relu(x)**k] = mean * E[relu(x)**(k - 1)] + (k - 1) * std**2 * E[relu(x)**(k - 2)]`` (integration by parts), so pieces of polynomials have
   formulas: with u = relu(x + 3) and v = relu(x - 3), ``hardswish(x) = (u**2 - 3 u - v**2 - 3 v) / 6`` and
   ``hardswish(x)**2 = (u**4 - 6 u**3 + 9 u**2 - v**4 - 18 v**3 - 81 v**2 - 108 v) / 36``.
5. Everything else by the trapezoidal rule on ``NODES``: for smooth functions its error falls faster than any power of the step; a kink costs
   some 3e-4 of the jump in slope times std.
6. Where std is 0 the expected value is the function's value.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

NODES = torch.arange(-80, 81, dtype=torch.float64, device="cpu") / 10
_DENSITY = torch.exp(-0.5 * NODES.square())
WEIGHTS = _DENSITY / _DENSITY.sum()


def distribution(t: Tensor) -> Tensor:
    """Phi."""
    return 0.5 * torch.erfc(-t / math.sqrt(2))


def density(t: Tensor) -> Tensor:
    """Phi."""
    return torch.exp(-0.5 * t.square()) / math.sqrt(2 * math.pi)


def relu(mean: Tensor, std: Tensor) -> Tensor:
    """Clauses 1 and 6."""
    t = mean / std.clamp(min=1e-300)
    return torch.where(std > 0, mean * distribution(t) + std * density(t), mean.clamp(min=0))


def relu_squared(mean: Tensor, std: Tensor) -> Tensor:
    """``E[relu(x)**2] = (mean**2 + std**2) * Phi(t) + mean * std * phi(t)``."""
    t = mean / std.clamp(min=1e-300)
    squares = (mean.square() + std.square()) * distribution(t) + mean * std * density(t)
    return torch.where(std > 0, squares, mean.clamp(min=0).square())


def clip(mean: Tensor, std: Tensor, low: float, high: float) -> Tensor:
    """Clause 2."""
    return low + relu(mean - low, std) - relu(mean - high, std)


def clip_squared(mean: Tensor, std: Tensor, low: float, high: float) -> Tensor:
    """``clip(x)**2 = low**2 + 2 low r + r**2 - 2 high q - q**2`` with r = relu(x - low), q = relu(x - high): above ``high`` r is q + high - low."""
    r, q = mean - low, mean - high
    return low**2 + 2 * low * relu(r, std) + relu_squared(r, std) - 2 * high * relu(q, std) - relu_squared(q, std)


def leaky_relu(mean: Tensor, std: Tensor, slope: float) -> Tensor:
    """Clause 2."""
    return slope * mean + (1 - slope) * relu(mean, std)


def leaky_squared(mean: Tensor, std: Tensor, slope: float) -> Tensor:
    """``leaky(x)**2 = slope**2 * x**2 + (1 - slope**2) * relu(x)**2``."""
    return slope**2 * (mean.square() + std.square()) + (1 - slope**2) * relu_squared(mean, std)


def gelu(mean: Tensor, std: Tensor) -> Tensor:
    """Clause 3."""
    far = torch.sqrt(1 + std.square())
    u = mean / far
    return mean * distribution(u) + std.square() / far * density(u)


def relu_powers(mean: Tensor, std: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Clause 4: the expected values of the first four powers of relu(x)."""
    t, variance = mean / std.clamp(min=1e-300), std.square()
    none = distribution(t)
    first = mean * none + std * density(t)
    second = mean * first + variance * none
    third = mean * second + 2 * variance * first
    return first, second, third, mean * third + 3 * variance * second


def hardswish(mean: Tensor, std: Tensor) -> tuple[Tensor, Tensor]:
    """Clause 4: of the function and of its square."""
    u, v = relu_powers(mean + 3, std), relu_powers(mean - 3, std)
    squares = u[3] - 6 * u[2] + 9 * u[1] - v[3] - 18 * v[2] - 81 * v[1] - 108 * v[0]
    return (u[1] - 3 * u[0] - v[1] - 3 * v[0]) / 6, squares / 36


def quadrature(function: Callable[[Tensor], Tensor], mean: Tensor, std: Tensor) -> Tensor:
    """Clause 5."""
    shape = (-1, *[1] * mean.dim())
    values = function(mean + std * NODES.to(mean.device).view(shape))
    return (values * WEIGHTS.to(mean.device).view(shape)).sum(0)


Moments = tuple[Tensor, Tensor]


def closed_form(name: str, settings: dict[str, Any]) -> Callable[[Tensor, Tensor], Moments] | None:
    """Mean and standard deviation of an activation of a normal variable, where there are formulas."""
    if name == "relu":
        return lambda mean, std: _moments(relu(mean, std), relu_squared(mean, std))
    if name in ("relu6", "hardtanh"):
        low, high = (0.0, 6.0) if name == "relu6" else (float(settings.get("min_val", -1.0)), float(settings.get("max_val", 1.0)))
        return lambda mean, std: _moments(clip(mean, std, low, high), clip_squared(mean, std, low, high))
    if name == "hardswish":
        return lambda mean, std: _moments(*hardswish(mean, std))
    if name == "hardsigmoid":  # clip(x, -3, 3) / 6 + 1 / 2
        return lambda mean, std: _scaled(_moments(clip(mean, std, -3, 3), clip_squared(mean, std, -3, 3)), 1 / 6, 0.5)
    if name == "leaky_relu":
        slope = float(settings.get("negative_slope", 0.01))
        return lambda mean, std: _moments(leaky_relu(mean, std, slope), leaky_squared(mean, std, slope))
    if name == "gelu" and settings.get("approximate", "none") == "none":
        return lambda mean, std: _moments(gelu(mean, std), quadrature(lambda x: F.gelu(x).square(), mean, std))
    return None


def _scaled(moments: Moments, factor: float, shift: float) -> Moments:
    return factor * moments[0] + shift, factor * moments[1]


def _moments(mean: Tensor, squares: Tensor) -> Moments:
    return mean, (squares - mean.square()).clamp(min=0).sqrt()
