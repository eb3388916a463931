"""Where a program reads its channels, and running it with a gate at every read.

1. A node *reads* a channel if it contracts a parameter's input axis with a value in which the channel is: the input of the next convolution
   or linear layer. If all reads of a coupled channel see zeros, it is gone: this is the masked program wherever no operator mixes channels
   without a parameter (a layer norm does).
2. A channel that no parameter reads (queries and keys, whose product is a contraction of activations) is read where it is made: at the
   first node whose value holds it.
3. A *gate* is a factor 1 on what a read sees, one per sample and position of the provenance factor. The gradient of the loss with respect
   to the gates of a channel, summed over its reads, is the rate at which the loss changes as the channel is scaled: d = sum of a * dL/da.
   Samples lie along dimension 0; rows of a value that holds a multiple of them (windows) belong to the samples in order, and where that is not
   so each sample gets an equal part.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx
from torch.fx.node import map_arg

from fxprune.errors import BudgetError
from fxprune.graph.channels import ChannelGraph
from fxprune.provenance.eager import EagerProgram
from fxprune.provenance.factor import Ids, Value
from fxprune.provenance.interpret import evaluation_clone
from fxprune.score.samples import Batch

Visit = Callable[[Tensor, tuple[Ids, ...]], Tensor]


@dataclass(frozen=True)
class Reads:
    """All reads of a graph's free channels.

    Attributes:
        graph: the channel graph.
        by_reader: reader, and per value that it reads the component number of every entry of the factors in question.
        by_maker: the same for channels that no parameter reads (clause 2).
    """

    graph: ChannelGraph
    by_reader: Mapping[str, Mapping[str, tuple[Ids, ...]]]
    by_maker: Mapping[str, tuple[Ids, ...]]

    @cached_property
    def count(self) -> int:
        return self.graph.closed.count


def reads_of(graph: ChannelGraph) -> Reads:
    """Clauses 1 and 2.

    Raises:
        BudgetError: the model was captured as an eager module, which has no graph to put gates into.
    """
    if isinstance(graph.program, EagerProgram):
        raise BudgetError(
            "scores of activations need a captured graph, and this model runs as an eager module. Use a score of weights (taylor, obd).",
            got=graph.program.captured.how,
        )
    captured, component = graph.program.captured, graph.closed.component
    free = np.zeros(graph.closed.count, np.bool_)
    for group in graph.groups:
        free[group.channels] = True
    columns: dict[str, list[Ids]] = {}
    for axis, reading in zip(graph.axes, graph.reading, strict=True):
        if reading:
            columns.setdefault(axis.name, []).append(component[axis.start : axis.start + axis.size])
    names = {id(tensor): name for name, tensor in captured.tensors.items()}
    modules = dict(captured.root.named_modules())
    seen = np.zeros(graph.closed.count, np.bool_)
    by_reader: dict[str, dict[str, tuple[Ids, ...]]] = {}
    for node in captured.graph.nodes:
        read = [part for name in _parameters(node, modules, names) for part in columns.get(name, ())]
        if not read:
            continue
        wanted = np.zeros(graph.closed.count, np.bool_)
        wanted[np.concatenate(read)] = True
        wanted &= free
        for source in node.all_input_nodes:
            found = _factors(graph, source, wanted) if source.op != "get_attr" else ()
            if found:
                by_reader.setdefault(node.name, {})[source.name] = found
                for part in found:
                    seen[part] = True
    return Reads(graph, by_reader, _made(graph, free & ~seen))


def _parameters(node: fx.Node, modules: Mapping[str, Any], names: Mapping[int, str]) -> Iterator[str]:
    if node.op == "call_module":
        for parameter in modules[str(node.target)].parameters():
            yield names.get(id(parameter), "")
    elif node.op in ("call_function", "call_method"):
        pending = [n for n in node.all_input_nodes if _from_weights(n)]
        while pending:
            source = pending.pop()
            if source.op == "get_attr":
                yield str(source.target)
            pending.extend(source.all_input_nodes)


def _from_weights(node: fx.Node) -> bool:
    """The node reads a parameter, or computes something from parameters alone."""
    if node.op == "get_attr":
        return True
    return (
        node.op in ("call_function", "call_method")
        and bool(node.all_input_nodes)
        and all(map(_from_weights, node.all_input_nodes))
    )


def _factors(graph: ChannelGraph, node: fx.Node, wanted: np.ndarray[Any, Any]) -> tuple[Ids, ...]:
    value = graph.nodes[node.name]
    if not isinstance(value, Value):
        return ()
    parts = (graph.closed.component[ids] for ids in value.factors)
    return tuple(part for part in parts if wanted[part].any())


def _made(graph: ChannelGraph, wanted: np.ndarray[Any, Any]) -> dict[str, tuple[Ids, ...]]:
    """Clause 2."""
    found: dict[str, tuple[Ids, ...]] = {}
    for node in graph.program.captured.graph.nodes:
        if not wanted.any():
            break
        if node.op in ("call_module", "call_function", "call_method") and not _from_weights(node):
            parts = _factors(graph, node, wanted)
            if parts:
                found[node.name] = parts
                for part in parts:
                    wanted[part] = False
    return found


class Watched(fx.Interpreter):
    """The captured program in evaluation mode, with ``visit`` called on what every read sees. The model is not touched."""

    def __init__(self, reads: Reads) -> None:
        captured = reads.graph.program.captured
        super().__init__(fx.GraphModule(evaluation_clone(captured.root, _apart), captured.graph), garbage_collect_values=True)
        self.reads = reads
        self.visit: Visit = lambda tensor, _: tensor
        self.batch_kwargs: Mapping[str, Any] = {}

    def __call__(self, batch: Batch, visit: Visit) -> Any:
        self.visit, self.batch_kwargs = visit, batch.inputs.kwargs
        return self.run(*batch.inputs.args)

    def placeholder(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        name = str(target).lstrip("*")
        return self.batch_kwargs[name] if name in self.batch_kwargs else super().placeholder(target, args, kwargs)

    def run_node(self, n: fx.Node) -> Any:
        watched = self.reads.by_reader.get(n.name)
        if watched:
            gated = {
                name: self.visit(self.env[source], watched[name])
                for source in n.all_input_nodes
                if (name := source.name) in watched
            }

            def taken(node: fx.Node) -> Any:
                return gated[node.name] if node.name in gated else self.env[node]

            result = getattr(self, n.op)(n.target, map_arg(n.args, taken), map_arg(n.kwargs, taken))
        else:
            result = super().run_node(n)
        made = self.reads.by_maker.get(n.name)
        return self.visit(result, made) if made else result


def _apart(_name: str, tensor: Tensor) -> Tensor:
    """A parameter without gradient that shares the model's numbers; a buffer of its own, which the program may write to."""
    return tensor.detach() if isinstance(tensor, torch.nn.Parameter) else tensor.detach().clone()


class Gates:
    """The gates of one call (clause 3)."""

    def __init__(self, samples: int) -> None:
        self.samples = samples
        self.placed: list[tuple[Tensor, Ids]] = []

    def __call__(self, tensor: Tensor, factors: tuple[Ids, ...]) -> Tensor:
        for part in factors:
            shape = list(part.shape)
            if shape[0] == 1:
                shape[0] = tensor.shape[0]
            gate = torch.ones(shape, dtype=tensor.dtype, device=tensor.device, requires_grad=True)
            self.placed.append((gate, part))
            tensor = tensor * gate
        return tensor

    def rates(self, loss: Tensor, count: int) -> Tensor:
        """What clause 3 calls d, per sample and component, if ``loss`` is a mean over samples; shape (samples, components), float64 on the CPU."""
        gates = [gate for gate, _ in self.placed]
        total = torch.zeros(self.samples, count, dtype=torch.float64, device="cpu")
        if not gates or not loss.requires_grad:
            return total
        found = torch.autograd.grad(loss, gates, allow_unused=True)
        for gradient, (_, part) in zip(found, self.placed, strict=True):
            if gradient is not None:
                own = gradient.cpu().to(torch.float64) * self.samples
                each = _per_sample(own, part, self.samples)
                total.index_add_(1, torch.from_numpy(np.ascontiguousarray(part).ravel()), each)
        return total


def _per_sample(values: Tensor, part: Ids, samples: int) -> Tensor:
    """Shape (samples, entries of ``part``) from a gate's gradient."""
    if part.shape[0] == 1 and values.shape[0] % samples == 0:
        return values.reshape(samples, values.shape[0] // samples, -1).sum(1)
    whole = values.sum(0, keepdim=True) if part.shape[0] == 1 else values
    return whole.reshape(1, -1).expand(samples, -1) / samples
