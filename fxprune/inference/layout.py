"""Variants of a folded program that some devices run faster: activations in place, channels last.

1. A value is *fresh* if the node that computes it has just allocated its memory (convolutions, linear layers, norms, pooling, sums,
   concatenations, activations out of place). An activation or a sum may overwrite its fresh operand if nobody else reads it and the result
   has its shape and dtype. Nothing that a caller or another node can see changes.
2. Channels last: weights of 2-d and 3-d convolutions are laid out so; activations follow them. ``view`` becomes ``reshape``, since the memory
   of a value is then no longer in the order of its dimensions.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from fxprune.absorb.border import bordered
from fxprune.capture.clone import module_at
from fxprune.inference.constants import mutates

Facts = Mapping[str, tuple[tuple[int, ...], torch.dtype]]

FRESH_MODULES = (_ConvNd, nn.Linear, _BatchNorm, nn.MaxPool2d, nn.AvgPool2d, nn.LayerNorm, nn.GroupNorm)
FRESH_FUNCTIONS = frozenset(
    {
        *(F.conv1d, F.conv2d, F.conv3d, F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d, F.linear),
        *(F.batch_norm, bordered, torch.cat, operator.add, torch.add, operator.mul, torch.mul, operator.matmul),
    }
)
ACTIVATIONS: dict[type[nn.Module], Any] = {
    nn.ReLU: F.relu,
    nn.ReLU6: F.relu6,
    nn.SiLU: F.silu,
    nn.Hardswish: F.hardswish,
    nn.Hardsigmoid: F.hardsigmoid,
    nn.Mish: F.mish,
}
OUT_OF_PLACE = frozenset({torch.relu, *ACTIVATIONS.values()})


def in_place(graph: fx.Graph, root: nn.Module, facts: Facts) -> int:
    """Clause 1; the number of nodes that changed. ``facts``: shape and dtype of what each node computes."""
    fresh: set[fx.Node] = set()
    changed = 0
    for node in graph.nodes:
        function = _activation(node, root)
        if function is not None:
            source = node.args[0]
            if source in fresh and len(source.users) == 1:
                node.op, node.target = "call_function", F.relu if function is torch.relu else function
                node.args, node.kwargs = (source,), {"inplace": True}
                changed += 1
            fresh.add(node)
        elif node.op == "call_module":
            module = module_at(root, str(node.target))
            if isinstance(module, FRESH_MODULES):
                fresh.add(node)
            elif type(module) in ACTIVATIONS and node.args[0] in fresh and len(node.args[0].users) == 1:
                fresh.add(node)  # in place already
        elif node.op == "call_function" and node.target in FRESH_FUNCTIONS:
            fresh.add(node)
            if node.target in (operator.add, torch.add) and not node.kwargs and len(node.args) == 2:
                changed += _sum(node, fresh, facts)
    return changed


def _activation(node: fx.Node, root: nn.Module) -> Any:
    """The function of an activation that works out of place on one node; else None."""
    if len(node.args) != 1 or not isinstance(node.args[0], fx.Node):
        return None
    if node.op == "call_module":
        module = module_at(root, str(node.target))
        plain = type(module) in ACTIVATIONS and not getattr(module, "inplace", False)
        return ACTIVATIONS[type(module)] if plain and not (module._forward_hooks or module._forward_pre_hooks) else None
    if node.op == "call_function" and node.target in OUT_OF_PLACE and not any(node.kwargs.values()):
        return node.target
    return torch.relu if node.op == "call_method" and node.target == "relu" else None


def _sum(node: fx.Node, fresh: set[fx.Node], facts: Facts) -> int:
    left: Any = node.args[0]
    right: Any = node.args[1]
    for one, other in ((left, right), (right, left)):
        alone = isinstance(one, fx.Node) and one in fresh and len(one.users) == 1 and one is not other
        if alone and facts.get(one.name) == facts.get(node.name) is not None:
            node.target, node.args = operator.iadd, (one, other)
            return 1
    return 0


def channels_last(graph: fx.Graph, root: nn.Module) -> int:
    """Clause 2; the number of convolutions that were laid out anew. Their parameters are new objects."""
    count = 0
    for module in root.modules():
        weight = module._parameters.get("weight") if isinstance(module, _ConvNd) else None
        if isinstance(weight, Tensor) and weight.dim() in (4, 5):
            memory = torch.channels_last if weight.dim() == 4 else torch.channels_last_3d
            module._parameters["weight"] = nn.Parameter(weight.detach().contiguous(memory_format=memory), requires_grad=False)
            count += 1
    if count:
        for node in graph.nodes:
            if node.op == "call_method" and node.target == "view" and not any(mutates(user) for user in node.users):
                node.target = "reshape"
    return count
