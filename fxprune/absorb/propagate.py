"""Constants through the original program: what is known of every value, and what arrives at every reader.

1. The captured program is walked once, node by node, on facts (fact.py); shapes are those the analysis found, so a node of which nothing is known
   is not run. Nothing here knows of pixels, except where a constant differs from pixel to pixel.
2. *Sources*. A batch norm with statistics of its own: a channel with gamma = 0 is beta; one whose input is constant is that constant, scaled; one
   that goes has the expected value beta and the standard deviation |gamma| (its running statistics are those of its input). A contraction's
   output channel is constant if every input it has a weight for is.
3. At a reader the facts about its removed input channels are taken down (``Arrival``), one number per channel; where a constant differs from
   pixel to pixel, the middle one, and by how much the others differ; and of how many elements it is a maximum (windows.py).
4. A node without a rule, or one that mixes channels (a mean over channels, a softmax, a product of two values), ends the constants of
   the removed channels it meets: a loss.
5. An in-place operator gives its operand another value; other names of the same memory are unknown from there on.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from fxprune.absorb.arrivals import Arrival, arrivals
from fxprune.absorb.border import bordered
from fxprune.absorb.contract import contracted
from fxprune.absorb.deferred import CALM, Deferred, Joined, Leaf, deferred, joined, link
from fxprune.absorb.fact import Fact, full_rank, narrowed, normal, pointwise, settled, small, unknown
from fxprune.absorb.operators import (
    ALIASES,
    CONTRACTION,
    IDENTITY,
    NORM,
    POINTWISE,
    POOLING,
    REDUCTION,
    RULED,
    Operation,
    operation,
)
from fxprune.absorb.readers import Reader, reader
from fxprune.absorb.windows import window
from fxprune.folds import Loss
from fxprune.graph.channels import ChannelGraph
from fxprune.plan import Kept
from fxprune.provenance.factor import Ids, Mask, Value
from fxprune.provenance.interpret import attribute

RESHAPED: dict[str, Callable[..., Any]] = {"view": torch.Tensor.reshape, "view_as": torch.Tensor.reshape_as}


@dataclass(slots=True)
class Findings:
    """The arrivals and losses of a program, in its order. ``met``: components at nodes that end constants (clause 4), with the node."""

    arrivals: list[Arrival] = field(default_factory=list)
    losses: list[Loss] = field(default_factory=list)
    met: list[tuple[str, Ids]] = field(default_factory=list)


def propagate(graph: ChannelGraph, gone: Mask, silent: Kept, *, expected: bool = True, everywhere: bool = False) -> Findings:
    """Clauses 1 to 5.

    Args:
        graph: the original's.
        gone: per component, whether it is removed; ``silent``: atoms that are read with weight zero.
        silent: see above.
        expected: channels with gamma != 0 have an expected value; otherwise they are not known.
        everywhere: look at channels that stay, too, as if all of them could go.
    """
    return _Walk(graph, gone, silent, expected, everywhere).run()


class _Walk:
    """One walk over the program; all that changes while it is under way."""

    def __init__(self, graph: ChannelGraph, gone: Mask, silent: Kept, expected: bool, everywhere: bool) -> None:
        self.graph, self.expected, self.everywhere = graph, expected, everywhere
        self.captured = graph.program.captured
        self.modules = dict(self.captured.modules)
        self.names = {id(t): name for name, t in self.captured.tensors.items()}
        self.axes = {(a.name, a.dim): a for a in graph.axes}
        component = graph.closed.component
        heard = gone.copy()
        for name, dims in silent.items():
            for dim, atoms in dims.items():
                axis = self.axes[name, dim]
                heard[component[axis.start + np.array(atoms, np.int64)]] = True
        self.dead = np.ones_like(heard) if everywhere else heard
        self.env: dict[fx.Node, Any] = {}
        self.alias: dict[fx.Node, set[fx.Node]] = {}
        self.seen: dict[int, Ids] = {}
        self.found = Findings()
        self.read: list[tuple[Reader, Fact, Ids, int]] = []
        self.windows: dict[fx.Node, int] = {}

    def run(self) -> Findings:
        with torch.no_grad():
            for node in self.captured.graph.nodes:
                if node.op != "output":
                    self.env[node] = self.step(node)
            self.found.arrivals.extend(arrivals(self.read))
        return self.found

    # ---- values ----

    def blank(self, node: fx.Node) -> Any:
        """Nothing is known of what a node computes."""
        made = self.graph.nodes[node.name]
        if isinstance(made, Value):
            return unknown(made.shape)
        return torch.utils._pytree.tree_map(lambda leaf: unknown(leaf.shape) if isinstance(leaf, Value) else leaf, made)

    def of(self, part: Any) -> Any:
        return fx.node.map_aggregate(part, lambda leaf: self.env[leaf] if isinstance(leaf, fx.Node) else leaf)

    def step(self, node: fx.Node) -> Any:
        if node.op == "placeholder":
            return self.blank(node)
        if node.op == "get_attr":
            return attribute(self.captured.root, str(node.target))
        module = None
        if node.op == "call_module":
            module = self.modules.get(str(node.target)) or self.captured.root.get_submodule(str(node.target))
        what = operation(node, module)
        if not node.kwargs and len(node.args) == 1 and isinstance(node.args[0], fx.Node):
            args, kwargs, leaves = (self.env[node.args[0]],), {}, [self.env[node.args[0]]]
        else:
            args, kwargs, leaves = self.of(node.args), self.of(node.kwargs), []
        if not leaves or not isinstance(leaves[0], Fact):
            leaves = torch.utils._pytree.tree_leaves((args, kwargs))
        facts = [leaf for leaf in leaves if isinstance(leaf, Fact)]
        try:
            result = self.ruled(node, what, module, args, kwargs, facts)
        except Exception:  # noqa: BLE001 - whatever a node needs that constants do not have, nothing is known behind it
            result = None
        if result is None:
            result = self.ended(node, what)
        self.remember(node, what, result)
        values = [self.graph.nodes[n.name] for n in (*node.all_input_nodes[:1], node)]
        shapes = [value.shape for value in values if isinstance(value, Value)]
        self.windows[node] = window(node, what, module, [self.windows.get(n, 1) for n in node.all_input_nodes], shapes)
        return result

    def ruled(self, node: fx.Node, what: Operation, module: nn.Module | None, args: Any, kwargs: Any, facts: list[Fact]) -> Any:
        """What is known of a node's result; None: it has no rule."""
        name = what.name
        if name in NORM:
            return self.norm(node, module, args, kwargs)
        if name in CONTRACTION:
            return self.contraction(node, what, module, args)
        if name == "bordered":  # the border map of an earlier round
            made, image, kernels = args[:3]
            return settled(bordered(made.mean, image.mean, kernels.detach().cpu().to(torch.float64), *args[3:]), made.std)
        if name in ("getattr", "size", "dim", "numel", "stride"):
            return _plain(what.call(*_means(args), **_means(kwargs)))
        if not facts and not any(isinstance(x, Tensor) for x in torch.utils._pytree.tree_leaves((args, kwargs))):
            return what.call(*args, **kwargs)
        if name not in RULED:
            return None
        if name in REDUCTION and self.vanished(node):
            return None
        if not any(fact.known for fact in facts):
            return self.blank(node)
        if name in IDENTITY:
            return args[0]
        if name in POINTWISE:
            return self.pointwise(what, module, args, kwargs)
        return self.moved(node, what, module, args, kwargs)

    def pointwise(self, what: Operation, module: nn.Module | None, args: Any, kwargs: Any) -> Any:
        call: Callable[..., Any] = what.call
        if isinstance(module, nn.PReLU):
            args, call = (args[0], module.weight), torch.prelu
        if what.name == "prelu":
            weight = args[1]
            if weight.numel() > 1:
                shape = [1] * args[0].mean.dim()
                shape[1] = -1
                args = (args[0], weight.reshape(shape))
            return pointwise(what.name, lambda x, w: torch.where(x > 0, x, x * w), tuple(args), {})
        if any(isinstance(v, (Fact, Tensor)) for v in kwargs.values()):
            return None
        given = kwargs
        if what.inplace and "inplace" in kwargs:
            given = {key: value for key, value in kwargs.items() if key != "inplace"}

        def called(*values: Any) -> Any:
            return call(*values, **given)

        if len(args) == 1 and isinstance(args[0], Fact):
            calm, one = deferred(args[0]), link(what, module, called)
            if calm is not None and one is not None:
                return calm.then(one)
        return pointwise(what.name, called, tuple(args), what.settings, inplace=what.inplace)

    def moved(self, node: fx.Node, what: Operation, module: nn.Module | None, args: Any, kwargs: Any) -> Any:
        """Data movement, pooling and reductions."""
        fact = args[0]
        expected = self.graph.nodes[node.name]
        if what.name in POOLING and isinstance(fact, Fact) and isinstance(expected, Value):
            spatial = range(2, len(fact.shape))
            if isinstance(fact, (Deferred, Joined)) and not _counts_padding(what.name, node, module):
                return fact.of_shape(expected.shape)
            if all(narrowed(fact.mean).shape[d] == 1 for d in spatial) and not _counts_padding(what.name, node, module):
                return small(narrowed(fact.mean), fact.std, expected.shape)
        if what.name in ("cat", "concat", "concatenate"):
            made = joined(args, kwargs)
            if made is not None:
                return made

        def run(part: Callable[[Fact], Tensor]) -> Any:
            def pick(leaf: Any) -> Any:
                return part(leaf) if isinstance(leaf, Fact) else leaf

            a, k = fx.node.map_aggregate((args, kwargs), pick)
            return RESHAPED.get(what.name, what.call)(*a, **k)  # facts that do not vary have other strides than the values

        means = run(lambda f: f.mean)
        if all(f.certain for f in torch.utils._pytree.tree_leaves((args, kwargs)) if isinstance(f, Fact)):
            return _facts(means, None)
        return _facts(means, run(lambda f: full_rank(f.std, f.mean).expand(f.shape)))

    # ---- sources and readers ----

    def norm(self, node: fx.Node, module: nn.Module | None, args: Any, kwargs: Any) -> Any:
        """Clause 2."""
        x = args[0]
        if isinstance(module, nn.modules.batchnorm._NormBase):
            given: dict[str, Any] = {
                "mean": module.running_mean,
                "var": module.running_var,
                "weight": module.weight,
                "bias": module.bias,
                "eps": module.eps,
            }
        else:
            order = ("mean", "var", "weight", "bias", "training", "momentum", "eps")
            named = {"running_mean": "mean", "running_var": "var"}
            given = {"weight": None, "bias": None, "eps": 1e-5, **dict(zip(order, args[1:], strict=False))}
            given.update({named.get(key, key): value for key, value in kwargs.items()})
            if given.get("training") is True:
                return None
        channels = x.shape[1]
        shape = (1, channels, *[1] * (len(x.shape) - 2))

        def vector(key: str, default: float) -> Tensor:
            value = given.get(key)
            if value is None:
                return torch.full((channels,), default, dtype=torch.float64, device="cpu")
            filled: Tensor = value.detach().cpu().to(torch.float64)
            return filled

        weight, bias = vector("weight", 1.0), vector("bias", 0.0)
        goes = self.channels_dead(node, channels) & self.expected
        instance = isinstance(module, nn.modules.instancenorm._InstanceNorm) or given.get("mean") is None
        if instance or x.calm or not x.known:
            sizes, shifts = np.abs(weight.numpy()), bias.numpy()
            if sizes.all() and not (goes & (np.abs(shifts) > CALM * sizes)).any():
                if not goes.any():
                    return unknown(x.shape)
                means, stds = torch.from_numpy(np.where(goes, shifts, np.nan)), torch.from_numpy(np.where(goes, sizes, 0.0))
                return Deferred(x.shape, Leaf(means, stds, node.name, True))
        gamma, beta, own = weight.reshape(shape), bias.reshape(shape), torch.from_numpy(goes).reshape(shape)
        dark = gamma == 0
        mean = torch.where(dark | own, beta, torch.nan)
        std = torch.where(own & ~dark, gamma.abs(), 0.0)
        if x.known and not instance:
            known = narrowed(x.mean)
            sure = ~known.isnan() & (full_rank(x.std, known) == 0) & ~dark
            scale = gamma / torch.sqrt(vector("var", 1.0).reshape(shape) + given["eps"])
            exact = (known - vector("mean", 0.0).reshape(shape)) * scale + beta
            mean, std = torch.where(sure, exact, mean), torch.where(sure, 0.0, std)
        return normal(mean, std, x.shape, node.name)

    def channels_dead(self, node: fx.Node, channels: int) -> Mask:
        """Which channels (dimension 1) of a node's value go."""
        dead = np.zeros(channels, np.bool_)
        for ids in self.graph.nodes[node.name].factors:
            if ids.shape[1] == channels and ids.size == channels:
                dead |= self.dead[self.graph.closed.component[ids.ravel()]] & (ids.ravel() != 0)
        return dead

    def contraction(self, node: fx.Node, what: Operation, module: nn.Module | None, args: Any) -> Any:
        """Clauses 2 and 3."""
        x = args[0]
        if not isinstance(x, Fact):
            return None
        found = reader(node, what, module, self.names, len(x.shape), self.env)
        if found is None:
            return None
        atoms = self.atoms_dead(found.name, found.dim)
        if len(atoms) and not found.depthwise:
            self.read.append((found, x, atoms, self.windows.get(node.args[0], 1) if isinstance(node.args[0], fx.Node) else 1))
        bias = self.captured.tensors.get(found.bias)
        return contracted(found, x, bias, self.graph.nodes[node.name].shape)

    def atoms_dead(self, name: str, dim: int) -> Ids:
        axis = self.axes.get((name, dim))
        if axis is None:
            return np.zeros(0, np.int64)
        return np.flatnonzero(self.dead[self.graph.closed.component[axis.start : axis.start + axis.size]])

    # ---- ends ----

    def components(self, node: fx.Node) -> Ids:
        """The removed components of a node's value."""
        values = torch.utils._pytree.tree_leaves(self.graph.nodes[node.name])
        parts = [np.zeros(0, np.int64)]
        for ids in (ids for value in values if isinstance(value, Value) for ids in value.factors):
            if id(ids) not in self.seen:
                found = np.unique(self.graph.closed.component[ids])
                self.seen[id(ids)] = found[self.dead[found]]
            parts.append(self.seen[id(ids)])
        return np.unique(np.concatenate(parts))

    def vanished(self, node: fx.Node) -> bool:
        """Removed channels of an operand are not there in the result any more."""
        before = np.unique(np.concatenate([self.components(n) for n in node.all_input_nodes]))
        return not np.isin(before, self.components(node)).all()

    def ended(self, node: fx.Node, what: Operation) -> Any:
        """Clause 4."""
        operands = [n for n in node.all_input_nodes if isinstance(self.env.get(n), (Fact, Tensor, tuple, list))]
        met = [self.components(n) for n in operands]
        here = np.unique(np.concatenate(met)) if met else np.zeros(0, np.int64)
        if len(here):
            called = what.name or getattr(what.call, "__name__", type(what.call).__name__)
            self.found.met.append((node.name, here))
            if not self.everywhere:
                self.found.losses.append(Loss(node.name, f"nothing is known of constants behind {called!r}", len(here)))
        if what.inplace or not getattr(what.call, "__module__", "torch").startswith(("torch", "_operator", "math", "builtins")):
            for operand in node.all_input_nodes:
                self.forget(operand)
        return self.blank(node)

    def remember(self, node: fx.Node, what: Operation, result: Any) -> None:
        """Clause 5."""
        first = node.args[0] if node.args and isinstance(node.args[0], fx.Node) else None
        group = {node}
        if first is not None and (what.inplace or what.name in ALIASES):
            group |= self.alias.setdefault(first, {first})
        for member in group:
            self.alias[member] = group
        if what.inplace and first is not None:
            fits = isinstance(result, Fact) and isinstance(self.env[first], Fact) and result.shape == self.env[first].shape
            for member in group - {node}:
                self.forget(member)
            if fits:
                self.env[first] = result

    def forget(self, node: fx.Node) -> None:
        if isinstance(self.env.get(node), (Fact, tuple, list)):
            self.env[node] = self.blank(node)


def _means(part: Any) -> Any:
    def mean(leaf: Any) -> Any:
        return leaf.mean if isinstance(leaf, Fact) else leaf

    return fx.node.map_aggregate(part, mean)


def _plain(result: Any) -> Any:
    """A result without tensors, or None."""
    return None if any(isinstance(x, Tensor) for x in torch.utils._pytree.tree_leaves(result)) else result


def _facts(means: Any, stds: Any) -> Any:
    """The facts of a result that was computed on means and on standard deviations."""
    if isinstance(means, Tensor):
        return settled(means, torch.zeros((1,) * means.dim(), dtype=torch.float64, device="cpu") if stds is None else stds)
    if isinstance(means, (tuple, list)):
        return type(means)(_facts(m, None if stds is None else stds[i]) for i, m in enumerate(means))
    return means


def _counts_padding(name: str, node: fx.Node, module: nn.Module | None) -> bool:
    """An average that counts zeros of a padding in."""
    if not name.startswith("avg"):
        return False
    padding: Any = getattr(module, "padding", node.kwargs.get("padding", node.args[3] if len(node.args) > 3 else 0))
    return any(padding) if isinstance(padding, (tuple, list)) else padding != 0
