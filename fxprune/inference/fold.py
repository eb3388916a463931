"""Batch norms and other per-channel affine maps, folded into the convolution or linear layer before them.

1. An *affine* node maps every channel of its input by y = scale * x + shift with constants: a batch norm in evaluation mode (module or function),
   and products and sums with a constant per channel or a number.
2. It is folded if its input is a plain convolution or linear layer (module or function, with constant weights) whose output nobody else reads:
   W' = scale * W along the output channels, b' = scale * b + shift, computed in float64 (``torch.nn.utils.fusion`` where it serves; it
   knows no transposed convolution with groups). A layer that is called several times gets a copy for the call in question, so a convolution
   read by two norms and a norm shared by two convolutions stay what they are.
3. The channels of a convolution are dimension 1 (0 without a batch), those of a linear layer the last one; a norm over dimension 1
   is folded into a linear layer for inputs ``(n, c)`` only.
4. Between the layer and the norm may stand a border map (absorb/border.py), which adds ``conv(ones, K)``: then K' = scale * K as well.
5. A norm that comes before its convolution (pre-activation) stays: a ReLU stands between them, or zeros that padding adds after the norm.
"""

from __future__ import annotations

import copy
import inspect
import operator
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.utils import parametrize
from torch.nn.utils.fusion import fuse_conv_bn_weights

from fxprune.absorb.border import bordered
from fxprune.capture.clone import module_at
from fxprune.precision import double
from fxprune.provenance.interpret import attribute

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
LAYERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d, nn.Linear)
STRAIGHT = (F.conv1d, F.conv2d, F.conv3d)
TRANSPOSED = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)
PRODUCTS = (operator.mul, operator.imul, torch.mul)
SUMS = (operator.add, operator.iadd, torch.add)
CONV = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
CONV_TRANSPOSE = ("input", "weight", "bias", "stride", "padding", "output_padding", "groups", "dilation")
LINEAR = ("input", "weight", "bias")


@dataclass(frozen=True, slots=True)
class Folded:
    """Names of the nodes that were folded, and of the norms that stay, with the reason."""

    nodes: tuple[str, ...]
    left: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Affine:
    """A per-channel map (clause 1): ``scale`` and ``shift`` in float64, of shape (channels,) or (1,)."""

    source: fx.Node
    scale: Tensor
    shift: Tensor
    norm: bool


@dataclass(frozen=True, slots=True)
class Layer:
    """A convolution or linear layer: its constant weight and bias, where its output channels are."""

    weight: Tensor
    bias: Tensor | None
    kind: str
    groups: int

    @property
    def channels(self) -> int:
        return self.weight.shape[1] * self.groups if self.kind == "transposed" else self.weight.shape[0]


class Refused(Exception):  # noqa: N818 - a reason for people, caught in this file
    """Why a norm stays."""


@torch.no_grad()
def fold_affine(graph: fx.Graph, root: nn.Module, ranks: Mapping[str, int]) -> Folded:
    """Clauses 1 to 5, in place. ``ranks``: the number of dimensions of what each node computes."""
    calls: dict[str, int] = {}
    for node in graph.nodes:
        if node.op == "call_module":
            calls[str(node.target)] = calls.get(str(node.target), 0) + 1
    folded, left = [], {}
    for node in list(graph.nodes):
        affine = _affine(node, root, ranks)
        if affine is None:
            continue
        try:
            source, kernel = _behind(affine.source, root)
            layer = _layer(source, root)
            scale, shift = _fitting(replace(affine, source=source), layer, ranks)
            _replace(graph, root, source, scaled(layer, scale, shift), calls)
            if kernel is not None:
                _replace_kernel(graph, root, affine.source, replace(layer, weight=kernel, bias=None, groups=1), scale)
        except Refused as reason:
            if affine.norm:
                left[node.name] = str(reason)
            continue
        node.replace_all_uses_with(affine.source)
        graph.erase_node(node)
        folded.append(node.name)
    return Folded(tuple(folded), left)


def _affine(node: fx.Node, root: nn.Module, ranks: Mapping[str, int]) -> Affine | None:
    if node.op == "call_module":
        module: Any = module_at(root, str(node.target))
        plain = isinstance(module, _BatchNorm) and type(module).forward in [norm.forward for norm in NORMS]
        source = node.args[0] if node.args else node.kwargs.get("input")
        if not plain or not isinstance(source, fx.Node) or module.running_mean is None or hooked(module):
            return None
        return _norm(source, module.running_mean, module.running_var, module.weight, module.bias, module.eps)
    if node.op == "call_function" and node.target in (F.batch_norm, torch.batch_norm):
        return _functional_norm(node, root)
    if node.op == "call_function" and node.target in (*PRODUCTS, *SUMS) and len(node.args) == 2 and not node.kwargs:
        return _arithmetic(node, root, ranks)
    return None


def _norm(source: fx.Node, mean: Any, var: Any, weight: Any, bias: Any, eps: Any) -> Affine:
    scale = torch.rsqrt(double(var) + eps)
    if weight is not None:
        scale = scale * double(weight)
    shift = -double(mean) * scale
    return Affine(source, scale, shift if bias is None else shift + double(bias), norm=True)


def _functional_norm(node: fx.Node, root: nn.Module) -> Affine | None:
    if node.target is F.batch_norm:
        call = inspect.signature(F.batch_norm).bind(*node.args, **node.kwargs)
        call.apply_defaults()
        given = call.arguments
    else:
        names = ("input", "weight", "bias", "running_mean", "running_var", "training", "momentum", "eps", "cudnn_enabled")
        given = dict(zip(names, node.args, strict=False)) | dict(node.kwargs)
    values = {key: constant(given.get(key), root) for key in ("running_mean", "running_var", "weight", "bias")}
    bad = any(isinstance(given.get(key), fx.Node) and values[key] is None for key in values)
    known = given["training"] is False and values["running_mean"] is not None and values["running_var"] is not None
    if bad or not known or not isinstance(given["input"], fx.Node):
        return None
    mean, var, weight, bias = values.values()
    return _norm(given["input"], mean, var, weight, bias, given["eps"])


def _arithmetic(node: fx.Node, root: nn.Module, ranks: Mapping[str, int]) -> Affine | None:
    left, right = node.args
    source, other = (left, right) if constant(left, root) is None and isinstance(left, fx.Node) else (right, left)
    if not isinstance(source, fx.Node) or (isinstance(other, fx.Node) and constant(other, root) is None):
        return None
    if isinstance(other, bool) or (node.target in (operator.imul, operator.iadd) and source is right):
        return None
    if isinstance(other, (int, float)):
        values: Tensor | None = torch.tensor([float(other)], dtype=torch.float64, device="cpu")
    else:
        value = constant(other, root)
        if value is None or not value.is_floating_point() or value.dim() > ranks.get(source.name, 0):
            return None
        values = _per_channel(source, value, root, ranks)
    if values is None:
        return None
    one, zero = torch.ones_like(values), torch.zeros_like(values)
    return Affine(source, values, zero, norm=False) if node.target in PRODUCTS else Affine(source, one, values, norm=False)


def _per_channel(source: fx.Node, value: Tensor, root: nn.Module, ranks: Mapping[str, int]) -> Tensor | None:
    """A constant that varies along the channels of a layer's output and nothing else; else None."""
    try:
        layer = _layer(source, root)
    except Refused:
        return None
    rank = ranks[source.name]
    dim = rank - 1 if layer.kind == "linear" else _channel_dim(layer, rank)
    aligned = (1,) * (rank - value.dim()) + tuple(value.shape)
    others = all(size == 1 for d, size in enumerate(aligned) if d != dim)
    if not others or aligned[dim] not in (1, layer.channels) or value.dtype != layer.weight.dtype:
        return None
    return double(value).flatten()


def _channel_dim(layer: Layer, rank: int) -> int:
    return 1 if rank == layer.weight.dim() else 0


def constant(value: Any, root: nn.Module) -> Tensor | None:
    """The tensor that an argument reads from the module, or None."""
    if isinstance(value, fx.Node) and value.op == "get_attr":
        found = attribute(root, str(value.target))
        return found.detach() if isinstance(found, Tensor) else None
    return None


def hooked(module: nn.Module) -> bool:
    """Somebody else's code runs when the module is called."""
    return bool(module._forward_hooks or module._forward_pre_hooks)


def _behind(node: fx.Node, root: nn.Module) -> tuple[fx.Node, Tensor | None]:
    """Clause 4: the layer behind a border map, and the map's kernel; else the node itself."""
    if node.op != "call_function" or node.target is not bordered or not isinstance(node.args[0], fx.Node):
        return node, None
    if len(node.users) > 1:
        raise Refused(f"{len(node.users)} nodes read {node.name!r}, and folding would change it for all of them")
    kernel = constant(node.args[2], root)
    if kernel is None:
        raise Refused(f"the kernel of {node.name!r} is computed from the input")
    return node.args[0], kernel


def _replace_kernel(graph: fx.Graph, root: nn.Module, node: fx.Node, own: Layer, scale: Tensor) -> None:
    """Clause 4: the border map at ``node`` gets a kernel of its own."""
    weight, _ = scaled(own, scale, torch.zeros_like(scale))
    name = f"_folded_{node.name}"
    root.register_parameter(name, nn.Parameter(weight, requires_grad=False))
    with graph.inserting_before(node):
        node.update_arg(2, graph.get_attr(name))


def _layer(node: fx.Node, root: nn.Module) -> Layer:
    """Clause 2."""
    if node.op == "call_module":
        module = module_at(root, str(node.target))
        if not isinstance(module, (_ConvNd, nn.Linear)):
            raise Refused(f"it reads {node.name!r} ({type(module).__name__}), which is no convolution or linear layer")
        if type(module).forward not in [kind.forward for kind in LAYERS] or hooked(module) or parametrize.is_parametrized(module):
            raise Refused(f"{node.target!r} computes its weights or its output in a way of its own")
        if isinstance(module, _ConvNd) and type(module)._conv_forward not in _CONV_FORWARDS:
            raise Refused(f"{node.target!r} computes its output in a way of its own")
        kind = "linear" if isinstance(module, nn.Linear) else "transposed" if isinstance(module, _ConvTransposeNd) else "conv"
        layer = Layer(module.weight.detach(), module.bias, kind, getattr(module, "groups", 1))
    elif node.op == "call_function" and node.target in (*STRAIGHT, *TRANSPOSED, F.linear):
        given = _given(node)
        weight, bias = constant(given["weight"], root), constant(given.get("bias"), root)
        if weight is None or (isinstance(given.get("bias"), fx.Node) and bias is None):
            raise Refused(f"the weights of {node.name!r} are computed from the input")
        kind = "linear" if node.target is F.linear else "transposed" if node.target in TRANSPOSED else "conv"
        layer = Layer(weight, bias, kind, given.get("groups", 1))
    else:
        raise Refused(f"it reads {node.name!r}, which is no convolution or linear layer")
    if len(node.users) > 1:
        raise Refused(f"{len(node.users)} nodes read {node.name!r}, and folding would change it for all of them")
    if not layer.weight.is_floating_point() or layer.weight.is_quantized:
        raise Refused(f"the weights of {node.name!r} are no floating-point numbers")
    return layer


_CONV_FORWARDS = tuple(kind._conv_forward for kind in (nn.Conv1d, nn.Conv2d, nn.Conv3d, _ConvNd))


def _given(node: fx.Node) -> dict[str, Any]:
    names = LINEAR if node.target is F.linear else CONV_TRANSPOSE if node.target in TRANSPOSED else CONV
    return dict(zip(names, node.args, strict=False)) | dict(node.kwargs)


def _fitting(affine: Affine, layer: Layer, ranks: Mapping[str, int]) -> tuple[Tensor, Tensor]:
    """Scale and shift of every output channel (clause 3)."""
    if affine.norm and layer.kind == "linear" and ranks.get(affine.source.name) != 2:
        raise Refused(f"its channels are not the outputs of the linear layer {affine.source.name!r}")
    if affine.scale.numel() not in (1, layer.channels) or (affine.norm and affine.scale.numel() != layer.channels):
        raise Refused(f"it has {affine.scale.numel()} channels and {affine.source.name!r} {layer.channels}")
    if not bool(torch.isfinite(affine.scale).all() and torch.isfinite(affine.shift).all()):
        raise Refused("its scale or shift is not finite")
    return affine.scale.expand(layer.channels), affine.shift.expand(layer.channels)


def scaled(layer: Layer, scale: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
    """Clause 2: weight and bias of the layer followed by ``scale * x + shift``, in the layer's dtype."""
    weight, bias = double(layer.weight), None if layer.bias is None else double(layer.bias.detach())
    scale, shift = scale.to(weight.device), shift.to(weight.device)
    if layer.kind == "transposed" and layer.groups > 1:
        rows = scale.reshape(layer.groups, 1, -1).expand(-1, weight.shape[0] // layer.groups, -1).flatten(0, 1)
        new = weight * rows.reshape(*rows.shape, *(1,) * (weight.dim() - 2))
        moved = shift if bias is None else scale * bias + shift
    else:
        zero, one = torch.zeros_like(scale), torch.ones_like(scale)
        new, moved = fuse_conv_bn_weights(weight, bias, zero, one, 0.0, scale, shift, layer.kind == "transposed")
    memory = (
        torch.channels_last if layer.weight.dim() == 4 and layer.weight.is_contiguous(memory_format=torch.channels_last) else None
    )
    result = new.detach().to(layer.weight)
    result = result.contiguous() if memory is None else result.contiguous(memory_format=memory)
    return result, moved.detach().to(layer.weight)


def _replace(graph: fx.Graph, root: nn.Module, node: fx.Node, new: tuple[Tensor, Tensor], calls: dict[str, int]) -> None:
    """The layer at ``node`` gets new weights; other calls of it keep the old ones (clause 2)."""
    weight, bias = (nn.Parameter(tensor, requires_grad=False) for tensor in new)
    if node.op == "call_module":
        target = str(node.target)
        module = module_at(root, target)
        fresh = copy.copy(module)
        fresh._parameters = {**module._parameters, "weight": weight, "bias": bias}
        if calls[target] > 1:
            calls[target] -= 1
            number = 1
            while f"{target}_{number}" in calls:
                number += 1
            target = f"{target}_{number}"
            calls[target] = 1
            node.target = target
        _set(root, target, fresh)
        return
    number = sum(name.startswith("_folded_") and name.endswith("_weight") for name in root._parameters)
    given = _given(node)
    with graph.inserting_before(node):
        for key, value in (("weight", weight), ("bias", bias)):
            root.register_parameter(f"_folded_{number}_{key}", value)
            given[key] = graph.get_attr(f"_folded_{number}_{key}")
    node.args, node.kwargs = (given.pop("input"), given.pop("weight"), given.pop("bias")), given


def _set(root: nn.Module, target: str, module: nn.Module) -> None:
    parent, _, leaf = target.rpartition(".")
    setattr(module_at(root, parent), leaf, module)
