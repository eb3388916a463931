"""The zeroed oracle against networks sliced by hand, and its ability to say no."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fxprune.plan import Plan
from tests.property.program import randomise
from tests.reference.compare import relative_error
from tests.reference.zeroed import zeroed


def plan(**axes: tuple[int, int, list[int]]) -> Plan:
    """``a__b=(dim, size, removed)`` for one dimension of parameter ``a.b``."""
    kept: dict[str, dict[int, tuple[int, ...]]] = {}
    sizes: dict[str, dict[int, int]] = {}
    for key, (dim, size, removed) in axes.items():
        name = key.replace("__", ".")
        kept.setdefault(name, {})[dim] = tuple(i for i in range(size) if i not in removed)
        sizes.setdefault(name, {})[dim] = size
    return Plan(kept, sizes)


def rows(t: Tensor, keep: list[int], dim: int = 0) -> Tensor:
    return t.index_select(dim, torch.tensor(keep))


class Block(nn.Module):
    """conv, batch norm, and a reader of some kind."""

    def __init__(self, reader: nn.Module, width: int = 4) -> None:
        super().__init__()
        self.conv, self.bn, self.reader = nn.Conv2d(3, width, 3), nn.BatchNorm2d(width), reader

    def features(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)))

    def forward(self, x: Tensor) -> Tensor:
        return self.reader(self.features(x))


X = torch.randn(2, 3, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def block(reader: nn.Module, width: int = 4) -> Block:
    model = Block(reader, width)
    randomise(model, 1)
    return model


def test_convolution() -> None:
    model = block(nn.Conv2d(4, 2, 3))
    h = model.features(X)[:, [0, 3]]
    expected = F.conv2d(h, rows(model.reader.weight, [0, 3], 1), model.reader.bias)
    assert relative_error(zeroed(model, plan(reader__weight=(1, 4, [1, 2])), X), expected) < 1e-12
    assert relative_error(zeroed(model, plan(reader__weight=(1, 4, [1])), X), expected) > 1e-3


@pytest.mark.parametrize("groups", [2, 4])
def test_grouped_convolution(groups: int) -> None:
    """One channel goes from every group of two, a different one each; or every channel of some groups."""
    model = block(nn.Conv2d(8, 8, 1, groups=groups), 8)
    h, w, b = model.features(X), model.reader.weight, model.reader.bias
    removed = {2: [1, 4], 4: [0, 3, 5, 6]}[groups]
    per = 8 // groups
    parts = []
    for g in range(groups):
        live = [g * per + j for j in range(per) if g * per + j not in removed]
        weight = rows(w[g * per : (g + 1) * per], [i - g * per for i in live], 1)
        parts.append(F.conv2d(h[:, live], weight, b[g * per : (g + 1) * per]))
    found = zeroed(model, plan(reader__weight=(1, 8, removed)), X)
    assert relative_error(found, torch.cat(parts, 1)) < 1e-12


def test_depthwise_then_pointwise() -> None:
    """The depthwise filter of a removed channel hears nothing, and the pointwise layer does not hear it."""
    model = block(nn.Sequential(nn.Conv2d(4, 4, 3, groups=4), nn.Conv2d(4, 2, 1)))
    first, second = model.reader
    h = F.conv2d(model.features(X)[:, [1, 2]], first.weight[[1, 2]], first.bias[[1, 2]], groups=2)
    expected = F.conv2d(h, second.weight[:, [1, 2]], second.bias)
    wanted = plan(reader__0__weight=(1, 4, [0, 3]), reader__1__weight=(1, 4, [0, 3]))
    assert relative_error(zeroed(model, wanted, X), expected) < 1e-12


@pytest.mark.parametrize("groups", [1, 2])
def test_transposed_convolution(groups: int) -> None:
    model = block(nn.ConvTranspose2d(4, 2, 2, stride=2, groups=groups))
    keep = [0, 3]
    expected = F.conv_transpose2d(
        model.features(X)[:, keep], model.reader.weight[keep], model.reader.bias, stride=2, groups=groups
    )
    assert relative_error(zeroed(model, plan(reader__weight=(0, 4, [1, 2])), X), expected) < 1e-12


def test_flatten_then_linear() -> None:
    model = block(nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 3)))
    keep = [4, 5, 6, 7, 12, 13, 14, 15]
    h = F.adaptive_avg_pool2d(model.features(X)[:, [1, 3]], 2).flatten(1)
    expected = F.linear(h, model.reader[2].weight[:, keep], model.reader[2].bias)
    removed = [i for i in range(16) if i not in keep]
    assert relative_error(zeroed(model, plan(reader__2__weight=(1, 16, removed)), X), expected) < 1e-12


class Products(nn.Module):
    """Raw parameters on either side of a product."""

    def __init__(self) -> None:
        super().__init__()
        self.right, self.left = nn.Parameter(torch.randn(4, 3)), nn.Parameter(torch.randn(2, 4))
        self.plain = nn.Parameter(torch.randn(3, 4))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        v = x.mean((2, 3))
        return v @ self.right, torch.matmul(self.left, x.flatten(2)), v @ self.plain.t(), v @ self.plain.T


def test_matrix_products() -> None:
    model = block(Products())
    h = model.features(X)[:, [0, 2]]
    v, p = h.mean((2, 3)), model.reader
    expected = (v @ p.right[[0, 2]], p.left[:, [0, 2]] @ h.flatten(2), v @ p.plain[:, [0, 2]].t(), v @ p.plain[:, [0, 2]].t())
    wanted = plan(reader__right=(0, 4, [1, 3]), reader__left=(1, 4, [1, 3]), reader__plain=(1, 4, [1, 3]))
    assert relative_error(zeroed(model, wanted, X), expected) < 1e-12


class Residual(nn.Module):
    """Two branches that add up, and a concatenation of the sum with one of them, twice."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.out = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1), nn.Conv2d(12, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.a(x), self.b(x)
        return self.out(torch.cat([a + b, a, a], 1))


def test_residual_and_concatenation() -> None:
    model = Residual()
    randomise(model)
    keep, wide = [1, 2], [1, 2, 5, 6, 9, 10]
    a, b = model.a(X)[:, keep], model.b(X)[:, keep]
    expected = F.conv2d(torch.cat([a + b, a, a], 1), model.out.weight[:, wide], model.out.bias)
    wanted = plan(out__weight=(1, 12, [i for i in range(12) if i not in wide]))
    assert relative_error(zeroed(model, wanted, X), expected) < 1e-12


def test_shared_weight_is_zeroed_at_every_call() -> None:
    conv = nn.Conv2d(3, 3, 1)
    model = nn.Sequential(conv, nn.ReLU(), conv)
    randomise(model)
    weight = conv.weight * torch.tensor([1.0, 0.0, 1.0]).view(1, 3, 1, 1)
    expected = F.conv2d(F.relu(F.conv2d(X, weight, conv.bias)), weight, conv.bias)
    name = next(n for n, _ in model.named_parameters() if n.endswith("weight"))
    assert relative_error(zeroed(model, Plan({name: {1: (0, 2)}}, {name: {1: 3}}), X), expected) < 1e-12


def test_an_emptied_layer_leaves_its_bias() -> None:
    model = block(nn.Conv2d(4, 2, 1))
    found = zeroed(model, plan(reader__weight=(1, 4, [0, 1, 2, 3])), X)
    assert torch.equal(found, model.reader.bias.view(1, 2, 1, 1).expand_as(found))


def test_an_empty_plan_changes_nothing() -> None:
    model = block(nn.Conv2d(4, 2, 3))
    assert torch.equal(zeroed(model, Plan({}, {}), X), model(X))


def test_relative_error_says_no() -> None:
    ones = torch.ones(3)
    assert relative_error(ones, {"y": ones}) == float("inf")
    assert relative_error(ones, torch.ones(4)) == float("inf")
    assert relative_error(ones * float("nan"), ones) == float("inf")
    assert relative_error({"a": [ones]}, {"a": (1.5 * ones,)}) == pytest.approx(1 / 3)
