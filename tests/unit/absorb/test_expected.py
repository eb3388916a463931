"""Expected values of activations, against numerical integration that shares no code with them."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy import integrate
from torch import Tensor

from fxprune.absorb.expected import closed_form, quadrature

MEANS, STDS = (-3.0, -0.4, 0.0, 0.7, 5.5), (0.05, 1.0, 2.5)
FORMS: dict[str, tuple[dict[str, float], Callable[[Tensor], Tensor]]] = {
    "relu": ({}, torch.relu),
    "relu6": ({}, F.relu6),
    "hardtanh": ({"min_val": -0.5, "max_val": 2.0}, lambda x: F.hardtanh(x, -0.5, 2.0)),
    "leaky_relu": ({"negative_slope": 0.2}, lambda x: F.leaky_relu(x, 0.2)),
    "gelu": ({}, F.gelu),
    "hardswish": ({}, F.hardswish),
    "hardsigmoid": ({}, F.hardsigmoid),
}


def integral(function: Callable[[Tensor], Tensor], mean: float, std: float) -> float:
    """The expected value by adaptive quadrature, piece by piece."""

    def integrand(z: float) -> float:
        x = torch.tensor(mean + std * z, dtype=torch.float64)
        return float(function(x)) * float(np.exp(-0.5 * z * z)) / float(np.sqrt(2 * np.pi))

    kinks = [(k - mean) / std for k in (-3.0, -0.5, 0.0, 2.0, 3.0, 6.0)]
    points = sorted({-12.0, 12.0, *(k for k in kinks if -12 < k < 12)})
    return sum(integrate.quad(integrand, a, b, epsabs=1e-12)[0] for a, b in pairwise(points))


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("mean", MEANS)
def test_closed_forms(name: str, mean: float) -> None:
    settings, function = FORMS[name]
    formula = closed_form(name, dict(settings))
    assert formula is not None
    for std in STDS:
        found, deviation = formula(*(torch.tensor([v], dtype=torch.float64) for v in (mean, std)))
        first = integral(function, mean, std)
        second = integral(lambda x: function(x).square(), mean, std)
        assert float(found) == pytest.approx(first, abs=1e-9)
        assert float(deviation) == pytest.approx(max(0.0, second - first**2) ** 0.5, abs=1e-4)


@pytest.mark.parametrize("name", FORMS)
def test_without_a_spread_it_is_the_function(name: str) -> None:
    settings, function = FORMS[name]
    x = torch.linspace(-7, 7, 57, dtype=torch.float64)
    found, deviation = closed_form(name, dict(settings))(x, torch.zeros_like(x))  # type: ignore[misc]
    torch.testing.assert_close(found, function(x), rtol=1e-12, atol=1e-12)
    assert float(deviation.max()) <= 1e-6


@pytest.mark.parametrize(
    ("function", "error"), [(F.silu, 1e-9), (torch.sigmoid, 1e-9), (torch.tanh, 1e-9), (F.hardswish, 1e-3), (F.elu, 1e-3)]
)
def test_quadrature(function: Callable[[Tensor], Tensor], error: float) -> None:
    for mean in MEANS:
        for std in STDS:
            found = quadrature(function, *(torch.tensor([v], dtype=torch.float64) for v in (mean, std)))
            assert float(found) == pytest.approx(integral(function, mean, std), abs=error)


def test_what_has_no_formula() -> None:
    assert closed_form("silu", {}) is None
    assert closed_form("gelu", {"approximate": "tanh"}) is None
