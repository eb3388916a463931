"""Layers that are refitted: what multiplies the channels that are chosen among.

1. A *reader* is a convolution or a linear layer of ``torch.nn``, called as a module, whose weight is a plain parameter of its own. All
   its calls count: a layer that is called twice has the rows of both. ``refusal`` says why a module is none.
2. Its weight as a matrix is ``(blocks, rows, columns)``: ``blocks`` is a convolution's groups; columns run over input channels, then the
   window.
3. An intercept goes into the bias. A layer without one, whose only use is a batch norm with running statistics that is used nowhere else,
   has it taken from the norm's running mean: ``norm(y + b)`` with mean ``m`` is ``norm(y)`` with mean ``m - b``. Otherwise none is
   fitted, so that no parameter gets a new name.
4. The *tail* of a layer at the end of a residual branch is the sum that its output goes into, through at most a batch norm and what does
   nothing in evaluation mode. What the shortcut lost can then be asked of the layer (He et al. 2017, section 3.3): ``y + (shortcut -
   current shortcut)``, the difference divided by the norm's scale. A channel that the norm all but silences (``FAINT`` of the median
   scale) is not asked.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torchvision.ops.misc import FrozenBatchNorm2d

from fxprune.capture.clone import module_at
from fxprune.precision import double
from fxprune.reconstruct.numbers import Array
from fxprune.reconstruct.program import Program

ADDING = (operator.add, operator.iadd, torch.add)
ADDING_METHODS = ("add", "add_")
STILL = (nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)
STILL_NAMES = ("StochasticDepth", "DropPath")
FAINT = 0.1


@dataclass(frozen=True, slots=True)
class Tail:
    """Clause 4: ``total`` adds ``other`` to the layer's output."""

    total: fx.Node
    other: fx.Node


@dataclass(frozen=True, slots=True)
class Call:
    """One call of a reader: what it reads, the batch norm that alone reads it (or None), the sum that it ends in (or None)."""

    node: fx.Node
    source: fx.Node
    norm: Any
    tail: Tail | None


@dataclass(frozen=True, slots=True)
class Reader:
    """Clauses 1 to 4.

    Attributes:
        path: name of the module.
        weight: name of its weight.
        module: the module as captured.
        calls: all its calls.
        bias: name of the tensor that takes the intercept, or "".
        sign: +1 if the intercept is added to it, -1 if it is subtracted.
    """

    path: str
    weight: str
    module: Any
    calls: tuple[Call, ...]
    bias: str
    sign: int

    @property
    def blocks(self) -> int:
        return int(getattr(self.module, "groups", 1))

    @property
    def taps(self) -> int:
        """Places of the window."""
        return int(np.prod(self.module.weight.shape[2:], dtype=np.int64))

    def matrix(self, weight: Tensor) -> Array:
        """Clause 2, in float64."""
        found: Array = weight.detach().cpu().double().reshape(self.blocks, weight.shape[0] // self.blocks, -1).numpy()
        return found


def refusal(module: nn.Module) -> str:
    """Why a module cannot be refitted; "" if it can (clause 1)."""
    if isinstance(module, _ConvTransposeNd):
        return "transposed convolutions are not refitted"
    if not isinstance(module, (_ConvNd, nn.Linear)):
        return f"{type(module).__name__} is no convolution or linear layer"
    if not type(module).__module__.startswith("torch.nn.modules."):
        return f"{type(module).__name__} may not use its weight as it is"
    if "weight" not in module._parameters or module._modules.get("parametrizations") is not None:
        return "its weight is computed from other parameters"
    if module._forward_hooks or module._forward_pre_hooks:
        return "it has hooks, which may change what it computes"
    return ""


def readers(program: Program) -> dict[str, Reader | str]:
    """Every convolution and linear layer that the program calls, by the name of its weight: a reader, or why it is none."""
    names = {id(tensor): name for name, tensor in program.tensors.items()}
    calls: dict[str, list[tuple[str, Any, fx.Node]]] = {}
    used_otherwise: set[str] = set()
    for node in program.graph.nodes:
        if node.op == "get_attr":
            used_otherwise.add(names.get(id(_tensor(program.root, str(node.target))), ""))
        if node.op == "call_module":
            module = module_at(program.root, str(node.target))
            if isinstance(module, (_ConvNd, nn.Linear)) and isinstance(module.weight, Tensor):
                calls.setdefault(names.get(id(module.weight), ""), []).append((str(node.target), module, node))
    found: dict[str, Reader | str] = {}
    for name, own in calls.items():
        path, module, _ = own[0]
        why = refusal(module)
        if not name or name in used_otherwise or len({id(m) for _, m, _ in own}) > 1:
            why = why or "its weight is used elsewhere too"
        sources = [node.args[0] if node.args else node.kwargs.get("input") for _, _, node in own]
        if not all(isinstance(source, fx.Node) for source in sources):
            why = why or "what it reads is no value of the program"
        found[name] = why or _reader(program, path, name, module, [node for *_, node in own], sources)
    return found


def _tensor(root: nn.Module, target: str) -> Any:
    found: Any = root
    for part in target.split("."):
        found = getattr(found, part, None)
    return found


def _reader(program: Program, path: str, name: str, module: Any, nodes: Sequence[fx.Node], sources: Sequence[Any]) -> Reader:
    calls = tuple(
        Call(node, source, _norm_behind(program, node), tail(program, node)) for node, source in zip(nodes, sources, strict=True)
    )
    if module.bias is not None:
        own = [m for m in program.root.modules() if getattr(m, "bias", None) is module.bias]
        return Reader(path, name, module, calls, _name(program, module.bias) if len(own) == 1 else "", 1)
    norm = calls[0].norm
    users = [n for n in program.graph.nodes if n.op == "call_module" and module_at(program.root, str(n.target)) is norm]
    alone = norm is not None and len(calls) == len(users) == 1
    return Reader(path, name, module, calls, _name(program, norm.running_mean) if alone else "", -1)


def _name(program: Program, tensor: Tensor) -> str:
    return next((name for name, own in program.tensors.items() if own is tensor), "")


def _norm_behind(program: Program, node: fx.Node) -> Any:
    users = list(node.users)
    return norm_at(program, users[0]) if len(users) == 1 else None


def norm_at(program: Program, node: fx.Node) -> Any:
    """The batch norm with running statistics that a node calls, or None."""
    if node.op != "call_module":
        return None
    module: Any = module_at(program.root, str(node.target))
    plain = isinstance(module, FrozenBatchNorm2d) or (
        isinstance(module, _BatchNorm) and type(module).__module__.startswith("torch.nn.modules.")
    )
    return module if plain and module.running_mean is not None else None


def tail(program: Program, node: fx.Node) -> Tail | None:
    """Clause 4."""
    here = node
    while len(here.users) == 1:
        (user,) = here.users
        if _adds(user):
            first, second = user.args[:2]
            other = second if first is here else first
            if not isinstance(other, fx.Node) or other is here or other.op == "get_attr" or node in ancestors(other):
                return None
            return Tail(user, other)
        if user.op != "call_module" or user.args[:1] != (here,):
            return None
        module = module_at(program.root, str(user.target))
        first_norm = here is node and norm_at(program, user) is not None
        if not first_norm and not isinstance(module, STILL) and type(module).__name__ not in STILL_NAMES:
            return None
        here = user
    return None


def _adds(node: fx.Node) -> bool:
    adds = (node.op == "call_function" and node.target in ADDING) or (
        node.op == "call_method" and str(node.target) in ADDING_METHODS
    )
    return adds and len(node.args) == 2 and not node.kwargs


def sums(graph: fx.Graph) -> list[tuple[fx.Node, fx.Node]]:
    """The operands of every addition of two values that the program computes."""
    found = []
    for node in graph.nodes:
        if _adds(node):
            first, second = node.args[:2]
            if isinstance(first, fx.Node) and isinstance(second, fx.Node) and "get_attr" not in (first.op, second.op):
                found.append((first, second))
    return found


def ancestors(node: fx.Node) -> set[fx.Node]:
    """The nodes that a node depends on, itself included."""
    found: set[fx.Node] = set()
    stack = [node]
    while stack:
        here = stack.pop()
        if here not in found:
            found.add(here)
            stack.extend(here.all_input_nodes)
    return found


def affine(norm: Any) -> tuple[Array, Array] | None:
    """Scale and shift of a batch norm in evaluation mode, per channel: ``norm(y) = scale y + shift``."""
    if norm is None:
        return None
    scale = (double(norm.running_var.detach()) + float(norm.eps)).rsqrt()
    scale = scale if norm.weight is None else scale * double(norm.weight.detach())
    shift = -double(norm.running_mean.detach()) * scale
    shift = shift if norm.bias is None else shift + double(norm.bias.detach())
    return scale.cpu().numpy(), shift.cpu().numpy()
