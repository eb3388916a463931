"""Nodes whose slim result is known without running it.

1. What is not thinned in step stands in the order of the original everywhere, so no order has to be followed.
2. A plain layer and an elementwise function of tensors have no literal that repeats a width. What provenance predicts is held against
   the widths that arrive and the layer's own, by arithmetic; where that does not come out even, the node is run like any other.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from fxprune.provenance.factor import Ids, Mask, support

Shape = tuple[int, ...]


def _convolution(m: Any, given: Shape, predicted: Shape) -> bool:
    return bool(
        given[1] == m.weight.shape[1] * m.groups
        and predicted[1] == m.weight.shape[0]
        and (m.in_channels, m.out_channels) == (given[1], predicted[1])
        and m.weight.shape[0] % m.groups == 0
    )


def _linear(m: Any, given: Shape, predicted: Shape) -> bool:
    return bool(given[:-1] == predicted[:-1] and (predicted[-1], given[-1]) == tuple(m.weight.shape))


def _batch_norm(m: Any, given: Shape, predicted: Shape) -> bool:
    held = (m.weight, m.bias, m.running_mean, m.running_var)
    return given == predicted and all(t is None or t.shape[0] == given[1] for t in held)


def _layer_norm(m: Any, given: Shape, predicted: Shape) -> bool:
    shape = tuple(m.normalized_shape)
    held = (m.weight, m.bias)
    return (
        given == predicted
        and given[len(given) - len(shape) :] == shape
        and all(t is None or tuple(t.shape) == shape for t in held)
    )


def _elementwise(_: Any, given: Shape, predicted: Shape) -> bool:
    return given == predicted


def _pool(_: Any, given: Shape, predicted: Shape) -> bool:
    return given[:2] == predicted[:2]


LAYERS: dict[type[nn.Module], Callable[[Any, Shape, Shape], bool]] = {
    nn.Conv2d: _convolution,
    nn.BatchNorm2d: _batch_norm,
    nn.Linear: _linear,
    nn.LayerNorm: _layer_norm,
    **dict.fromkeys((nn.ReLU, nn.ReLU6, nn.SiLU, nn.Hardswish, nn.Hardsigmoid, nn.Sigmoid, nn.GELU, nn.Tanh), _elementwise),
    **dict.fromkeys((nn.Dropout, nn.Identity), _elementwise),
    **dict.fromkeys((nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d), _pool),
}
FUNCTIONS = frozenset(
    {operator.add, operator.mul, operator.iadd, operator.imul, torch.add, torch.mul, F.relu, torch.relu, torch.sigmoid, F.silu}
)


def plain(module: nn.Module) -> bool:
    """A layer that clause 2 can be asked about."""
    return type(module) in LAYERS and not module._forward_hooks and not module._forward_pre_hooks


def holds(node: fx.Node, module: nn.Module | None, given: Sequence[Any], predicted: Shape) -> bool:
    """Clause 2: the node gives ``predicted`` for what arrives."""
    if node.kwargs and set(node.kwargs) - {"inplace"}:
        return False
    if module is not None:
        return len(given) == 1 and isinstance(given[0], Tensor) and LAYERS[type(module)](module, tuple(given[0].shape), predicted)
    if node.target is torch.cat:
        return _joins(given, predicted)
    if node.target not in FUNCTIONS or not all(isinstance(x, Tensor) for x in given):
        return False
    shapes = [tuple(x.shape) for x in given]
    return all(s == predicted for s in shapes) or _broadcast(shapes) == predicted


def _broadcast(shapes: list[Shape]) -> Shape | None:
    try:
        return tuple(torch.broadcast_shapes(*shapes))
    except RuntimeError:
        return None


def _joins(given: Sequence[Any], predicted: Shape) -> bool:
    if len(given) != 2 or not isinstance(given[1], int) or not all(isinstance(x, Tensor) for x in given[0]):
        return False
    dim, shapes = given[1] % len(predicted), [tuple(x.shape) for x in given[0]]
    if any(len(s) != len(predicted) for s in shapes):
        return False
    across = all(s[:dim] + s[dim + 1 :] == predicted[:dim] + predicted[dim + 1 :] for s in shapes)
    return across and sum(s[dim] for s in shapes) == predicted[dim]


def packed(ids: Ids, alive: Mask) -> Ids | None:
    """What is left of a factor along one dimension; None for others."""
    if len(support(ids)) != 1:
        return None
    live: Ids = ids.ravel()[alive[ids].ravel()]
    return live.reshape([len(live) if size > 1 else 1 for size in ids.shape])


def dtype(given: Sequence[Any]) -> torch.dtype | None:
    """The one floating dtype of all tensors that arrive, or None."""
    leaves = [x for part in given for x in (part if isinstance(part, (list, tuple)) else (part,)) if isinstance(x, Tensor)]
    kinds = {x.dtype for x in leaves}
    found = kinds.pop() if len(kinds) == 1 else None
    return found if found is not None and found.is_floating_point else None
