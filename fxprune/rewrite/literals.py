"""Literal arguments of graph nodes that repeat a size, patched from the provenance (old size -> live size).

1. A patch returns new ``(target, args, kwargs)`` for a node, or None if it has nothing to say about it.
2. A size that the program computes (an argument that is a node) stays symbolic where, on slim shapes, it still gives the predicted
   size; otherwise the predicted constant takes its place. -1 stays -1.
3. Slices and constant indices are translated position by position: original position -> number of survivors before it.
4. ``Site`` is all a patch may look at.
5. A number that the program computes from shapes and uses in arithmetic with tensors is no size: it stays what it was in the original
   (the scale of attention, the divisor of a mean).
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx

from fxprune.provenance.factor import Mask, Value
from fxprune.rewrite.positions import survivors, translate, translated

Call = tuple[Any, tuple[Any, ...], dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Site:
    """One node, what it computed in the original, and what its slim arguments are.

    Attributes:
        node: the node of the new graph (its arguments are nodes of the new graph).
        original: ``Value``s of the original arguments, as (args, kwargs) pytrees.
        slim: the slim arguments themselves (meta tensors, numbers), likewise.
        predicted: slim shapes of the results, as a pytree like the original's result.
        alive: liveness per atom.
        created: live counts of the atoms without a producer that the node created, in order.
        constant: numbers of an integer tensor that a node of the graph holds, or None.
        item: ``(node, i, value)``: a new node before this one that reads entry i of what another one computes, and what it gives.
    """

    node: fx.Node
    original: tuple[tuple[Any, ...], dict[str, Any]]
    slim: tuple[tuple[Any, ...], dict[str, Any]]
    predicted: Any
    alive: Mask
    created: tuple[int, ...]
    constant: Callable[[Any], Tensor | None]
    item: Callable[[fx.Node, int, Any], fx.Node]


def patch(site: Site) -> Call | None:
    """Clause 1: by target, for functions and methods."""
    node = site.node
    key = node.target if node.op == "call_function" else str(node.target)
    rule = METHODS.get(str(key)) if node.op == "call_method" else FUNCTIONS.get(key)
    return rule(site) if rule is not None else numbers(site)


def sizes(symbols: Sequence[Any], values: Sequence[Any], predicted: Sequence[int]) -> tuple[Any, ...]:
    """Clause 2: ``symbols`` as they stand in the graph, ``values`` as they evaluate on slim shapes."""
    return tuple(s if v in (p, -1) else int(p) for s, v, p in zip(symbols, values, predicted, strict=True))


def _unpack(args: tuple[Any, ...], start: int = 1) -> tuple[Any, ...]:
    rest = args[start:]
    return tuple(rest[0]) if len(rest) == 1 and isinstance(rest[0], (list, tuple)) else tuple(rest)


def _view(site: Site) -> Call | None:
    node = site.node
    if node.kwargs or len(node.args) < 2 or isinstance(_unpack(node.args)[0] if _unpack(node.args) else None, torch.dtype):
        return None
    symbols, values = _unpack(node.args), _unpack(site.slim[0])
    if isinstance(node.args[1], fx.Node) and len(node.args) == 2 and not isinstance(site.slim[0][1], int):
        # The shape is computed as a whole: what is right in it is read out of it (clause 2).
        shape: Any = site.slim[0][1]
        if len(shape) != len(site.predicted):
            return node.target, (node.args[0], tuple(int(s) for s in site.predicted)), {}
        whole = node.args[1]
        entries = tuple(
            site.item(whole, i, v) if v in (p, -1) else int(p) for i, (v, p) in enumerate(zip(shape, site.predicted, strict=True))
        )
        return node.target, (node.args[0], entries), {}
    new = sizes(symbols, values, site.predicted)
    return node.target, (node.args[0], new), {}


def _split(site: Site) -> Call | None:
    """``split``/``chunk``/``tensor_split`` become a split with the predicted sizes."""
    node, predicted = site.node, site.predicted
    args, kwargs = node.args, dict(node.kwargs)
    dim: Any = kwargs.get("dim", args[2] if len(args) > 2 else 0)
    place = int(dim) % len(predicted[0])
    target: Any = "split" if node.op == "call_method" else torch.split
    return target, (args[0], [int(shape[place]) for shape in predicted], dim), {}


def _unflatten(site: Site) -> Call | None:
    node = site.node
    names = ("dim", "sizes")
    dim, given = (_argument(node.args, node.kwargs, i + 1, name) for i, name in enumerate(names))
    _, values = (_argument(*site.slim, i + 1, name) for i, name in enumerate(names))
    place = int(dim) % (len(site.predicted) - len(given) + 1)
    return node.target, (node.args[0], dim, sizes(given, values, site.predicted[place : place + len(given)])), {}


def _argument(args: Sequence[Any], kwargs: Mapping[str, Any], position: int, name: str, default: Any = None) -> Any:
    return args[position] if len(args) > position else kwargs.get(name, default)


def _filled(start: int) -> Callable[[Site], Call | None]:
    def rule(site: Site) -> Call | None:
        node, kwargs = site.node, dict(site.node.kwargs)
        predicted = tuple(int(s) for s in site.predicted)
        if "size" in kwargs:
            given: Any = kwargs["size"]
            kwargs["size"] = sizes(given, site.slim[1]["size"], predicted)
            return node.target, node.args, kwargs
        rest = node.args[start:]
        if rest and isinstance(rest[0], (list, tuple)):
            return node.target, (*node.args[:start], sizes(rest[0], site.slim[0][start], predicted), *rest[1:]), kwargs
        return node.target, (*node.args[:start], *sizes(rest, site.slim[0][start:], predicted)), kwargs

    return rule


def _full(start: int) -> Callable[[Site], Call | None]:
    def rule(site: Site) -> Call | None:
        node = site.node
        symbols: Any = node.args[start]
        values = site.slim[0][start]
        return (
            node.target,
            (*node.args[:start], sizes(symbols, values, site.predicted), *node.args[start + 1 :]),
            dict(node.kwargs),
        )

    return rule


def _normalized(site: Site) -> Call | None:
    node = site.node
    shape = site.slim[0][0].shape
    old = _argument(node.args, node.kwargs, 1, "normalized_shape")
    tail = tuple(int(s) for s in shape[len(shape) - len(old) :])
    kwargs = {key: value for key, value in node.kwargs.items() if key != "normalized_shape"}
    return node.target, (node.args[0], tail, *node.args[2:]), kwargs


def _convolution(site: Site) -> Call | None:
    """Functional convolutions: depthwise ones have as many groups as channels are left, grouped ones as many as blocks."""
    node = site.node
    x = site.slim[0][0]
    place = 7 if "transpose" in str(node.target) else 6
    groups = _argument(*site.original, place, "groups", 1)
    whole = _argument(*site.original, 0, "input").shape[1]
    if groups == 1 or (groups != whole and not site.created):
        return None
    left = int(x.shape[1]) if groups == whole else site.created[0]
    kwargs = {key: value for key, value in node.kwargs.items() if key != "groups"}
    args = node.args[:place]
    return node.target, args, {**kwargs, "groups": left}


def _group_norm(site: Site) -> Call | None:
    """As many groups as blocks are left."""
    node = site.node
    kwargs = {key: value for key, value in node.kwargs.items() if key != "num_groups"}
    return node.target, (node.args[0], site.created[0], *node.args[2:]), kwargs


def _pad(site: Site) -> Call | None:
    """Constant padding along a channel dimension: as many zeros as the channels they meet keep."""
    symbols = _argument(site.node.args, site.node.kwargs, 1, "pad")
    pads, now = _argument(*site.original, 1, "pad"), _argument(*site.slim, 1, "pad")
    counts = pad_counts(site, site.original[0][0], list(pads))
    new = [s if n == c else c for s, n, c in zip(symbols, now, counts, strict=True)]
    kwargs = {key: value for key, value in site.node.kwargs.items() if key != "pad"}
    return site.node.target, (site.node.args[0], tuple(new), *site.node.args[2:]), kwargs


def pad_counts(site: Site, value: Value, pads: list[int]) -> list[int]:
    """Live counts of what padding adds and cuts, in the order of ``torch.nn.functional.pad``."""
    new, created = list(pads), list(site.created)
    rank = len(value.shape)
    for ids in value.factors[:1]:
        for i in range(len(pads) // 2):
            dim = rank - 1 - i
            if ids.shape[dim] < 2:
                continue
            live = survivors(ids, dim, site.alive)
            for place, side in ((2 * i, live), (2 * i + 1, live[::-1])):
                new[place] = created.pop(0) if pads[place] > 0 else -int(side[: -pads[place]].sum()) if pads[place] < 0 else 0
    return new


def _along(site: Site, value: Value, dim: int) -> Mask | None:
    """Survivors along one dimension of an original value; None where nothing can go."""
    for ids in value.factors:
        if ids.shape[dim] > 1:
            live = survivors(ids, dim, site.alive)
            return None if live.all() else live
    return None


def _item(site: Site) -> Call | None:
    """``x[key]`` and ``x[key] = value``: clause 3."""
    node, value = site.node, site.original[0][0]
    if not isinstance(value, Value):
        return None
    key, original, slim = node.args[1], site.original[0][1], site.slim[0][1]
    parts, olds, news = ((list(k) if isinstance(k, tuple) else [k]) for k in (key, original, slim))
    new: list[Any] = []
    consumed = sum(_consumes(p) for p in parts)
    dim = 0
    for part, old, now in zip(parts, olds, news, strict=True):
        if part is Ellipsis:
            dim += len(value.shape) - consumed
            new.append(part)
            continue
        if part is None or isinstance(part, bool):
            new.append(part)
            continue
        live = _along(site, value, dim)
        new.append(part if live is None else translated(part, old, now, live, site.constant))
        dim += 1
    changed = tuple(new) if isinstance(key, tuple) else new[0]
    return node.target, (node.args[0], changed, *node.args[2:]), dict(node.kwargs)


def _consumes(part: Any) -> int:
    return 0 if part is None or part is Ellipsis or isinstance(part, bool) else 1


def _narrow(site: Site) -> Call | None:
    node, value = site.node, site.original[0][0]
    dim, start, length = (_argument(node.args, node.kwargs, i, n) for i, n in ((1, "dim"), (2, "start"), (3, "length")))
    live = _along(site, value, int(dim) % len(value.shape))
    if live is None or not isinstance(start, int) or not isinstance(length, int):
        return None
    start %= len(live)
    before = int(live[:start].sum())
    return node.target, (node.args[0], dim, before, int(live[start : start + length].sum())), {}


def _select(site: Site) -> Call | None:
    node, value = site.node, site.original[0][0]
    dim, index = (_argument(node.args, node.kwargs, i, n) for i, n in ((1, "dim"), (2, "index")))
    live = _along(site, value, int(dim) % len(value.shape))
    return None if live is None else (node.target, (node.args[0], dim, translate(index, live)), {})


def _index_select(site: Site) -> Call | None:
    """Becomes plain indexing by the translated constants."""
    node, value = site.node, site.original[0][0]
    dim, index = (_argument(node.args, node.kwargs, i, n) for i, n in ((1, "dim"), (2, "index")))
    place = int(dim) % len(value.shape)
    live = _along(site, value, place)
    if live is None:
        return None
    new = translate(index, live, site.constant)
    return operator.getitem, (node.args[0], (*(slice(None),) * place, new)), {}


def _attention(site: Site) -> Call | None:
    """The scale that a default argument implies stays that of the original head dimension."""
    node = site.node
    width = _argument(*site.original, 0, "query").shape[-1]
    if _argument(node.args, node.kwargs, 6, "scale") is not None or _argument(*site.slim, 0, "query").shape[-1] == width:
        return None
    return node.target, node.args[:6], {**node.kwargs, "scale": width**-0.5}


def numbers(site: Site) -> Call | None:
    """Clause 5: what a tensor is multiplied with stays the number it was."""
    node = site.node
    if (node.target if node.op == "call_function" else str(node.target)) not in ARITHMETIC:
        return None
    originals, slims = site.original[0], site.slim[0]
    args = [
        old if isinstance(arg, fx.Node) and isinstance(old, (int, float)) and old != now else arg
        for arg, old, now in zip(node.args, originals, slims, strict=True)
    ]
    return None if args == list(node.args) else (node.target, tuple(args), dict(node.kwargs))


def _roll(site: Site) -> Call | None:
    node, value = site.node, site.original[0][0]
    shifts, dims = (_argument(node.args, node.kwargs, i, n) for i, n in ((1, "shifts"), (2, "dims")))
    listed = isinstance(shifts, (list, tuple))
    many, places = (
        (list(shifts), list(dims)) if listed else ([shifts], [dims if not isinstance(dims, (list, tuple)) else dims[0]])
    )
    for i, (shift, dim) in enumerate(zip(many, places, strict=True)):
        live = _along(site, value, int(dim) % len(value.shape))
        if live is not None:
            many[i] = int(live[len(live) - shift % len(live) :].sum())
    return node.target, (node.args[0], tuple(many) if listed else many[0], dims), {}


METHODS: dict[str, Callable[[Site], Call | None]] = {
    **dict.fromkeys(("view", "reshape", "expand", "broadcast_to"), _view),
    **dict.fromkeys(("split", "chunk", "tensor_split", "split_with_sizes"), _split),
    "unflatten": _unflatten,
    **dict.fromkeys(("new_zeros", "new_ones", "new_empty"), _filled(1)),
    "new_full": _full(1),
    "narrow": _narrow,
    "select": _select,
    "index_select": _index_select,
    "roll": _roll,
    "__getitem__": _item,
}
FUNCTIONS: dict[Any, Callable[[Site], Call | None]] = {
    **dict.fromkeys((torch.reshape, torch.broadcast_to), _view),
    **dict.fromkeys((torch.split, torch.chunk, torch.functional.split, torch.tensor_split), _split),
    torch.unflatten: _unflatten,
    **dict.fromkeys((torch.zeros, torch.ones, torch.empty, torch.rand, torch.randn), _filled(0)),
    torch.full: _full(0),
    **dict.fromkeys((F.layer_norm, torch.layer_norm, F.rms_norm), _normalized),
    **dict.fromkeys((F.conv1d, F.conv2d, F.conv3d, F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d), _convolution),
    **dict.fromkeys((F.group_norm, torch.group_norm), _group_norm),
    F.pad: _pad,
    torch.narrow: _narrow,
    torch.select: _select,
    torch.index_select: _index_select,
    torch.roll: _roll,
    F.scaled_dot_product_attention: _attention,
    operator.getitem: _item,
    operator.setitem: _item,
}
_NAMES = "add sub mul truediv floordiv mod pow iadd isub imul itruediv ifloordiv imod ipow"
ARITHMETIC = frozenset(
    {
        *(getattr(operator, name) for name in _NAMES.split()),
        *(getattr(torch, name) for name in "add sub mul div true_divide floor_divide pow remainder tensor as_tensor".split()),
        *(name + end for name in "add sub mul div true_divide floor_divide pow".split() for end in ("", "_")),
    }
)
BLOCKS = frozenset({F.group_norm, torch.group_norm})
ALWAYS = frozenset(
    {
        operator.getitem,
        operator.setitem,
        F.scaled_dot_product_attention,
        F.pad,
        torch.roll,
        torch.narrow,
        torch.select,
        torch.index_select,
        torch.tensor,
        torch.as_tensor,
        "roll",
        "narrow",
        "select",
        "index_select",
    }
)
