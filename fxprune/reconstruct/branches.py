"""The first convolutions of residual branches: each reads a part of the stream that they share, and the stream stays whole.

1. A channel is of a *stream* if both operands of a sum have it.
2. The *first of a branch* is a reader (readers.py), a convolution without groups, that reads channels of streams and nothing else, and whose
   output does not go right into a sum: a projection in the place of the shortcut is the stream itself.
3. It drops channels of its own, behind a select (provenance/cuts.py), as the selection layout's batch norms do. Where a batch norm and
   what follows it serve this convolution alone (pre-activation), the select stands in front of the batch norm, which loses the channels too.
4. He et al. 2017, section 3.3, sample feature maps there and do not shrink the stream; neither is done here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from torch import fx, nn

from fxprune.graph.channels import ChannelGraph
from fxprune.provenance.factor import Ids, Value, support
from fxprune.reconstruct.numbers import Mask
from fxprune.reconstruct.program import Program
from fxprune.reconstruct.readers import Reader, norm_at, sums


@dataclass(frozen=True, slots=True)
class Firsts:
    """Where to cut: batch norms by their scales, convolutions by their weights (clause 3), and the paths of the convolutions."""

    gammas: frozenset[str]
    weights: frozenset[str]
    paths: tuple[str, ...]


def components_of(graph: ChannelGraph, node: fx.Node) -> Ids:
    """The coupled channels that a node's value has."""
    value = graph.nodes.get(node.name)
    factors = value.factors if isinstance(value, Value) else ()
    found = [np.unique(graph.closed.component[ids]) for ids in factors]
    return np.unique(np.concatenate([np.zeros(0, np.int64), *found]))


def stream_channels(graph: ChannelGraph) -> Mask:
    """Clause 1, per coupled channel."""
    found = np.zeros(graph.closed.count, np.bool_)
    for first, second in sums(graph.program.captured.graph):
        found[np.intersect1d(components_of(graph, first), components_of(graph, second))] = True
    found[graph.closed.component[0]] = False
    return found


def first_of_branches(
    graph: ChannelGraph, program: Program, known: Mapping[str, Reader | str], whole: Callable[[Ids], bool]
) -> Firsts:
    """Clauses 2 and 3; ``whole`` tells of coupled channels of a stream that it is cut as a whole, so that its readers select nothing."""
    streams = stream_channels(graph)
    gammas, weights = set[str](), set[str]()
    paths: list[str] = []
    for name, reader in known.items():
        if not isinstance(reader, Reader) or not _is_first(graph, reader, streams, whole):
            continue
        scales = {_scale_in_front(program, call.source, call.node) for call in reader.calls}
        found = scales.pop() if len(scales) == 1 and scales <= graph.gammas else ""
        (gammas if found else weights).add(found or name)
        paths.append(reader.path)
    return Firsts(frozenset(gammas), frozenset(weights), tuple(paths))


def _is_first(graph: ChannelGraph, reader: Reader, streams: Mask, whole: Callable[[Ids], bool]) -> bool:
    if (
        not isinstance(reader.module, nn.modules.conv._ConvNd)
        or reader.blocks > 1
        or any(call.tail is not None for call in reader.calls)
    ):
        return False
    for call in reader.calls:
        value = graph.nodes.get(call.source.name)
        if not isinstance(value, Value) or len(value.shape) != reader.module.weight.dim() or value.shape[1] < 2:
            return False
        if len(value.factors) != 1 or support(value.factors[0]) != (1,):
            return False
        channels = components_of(graph, call.source)
        if not streams[channels].all() or whole(channels):
            return False
    return True


def _scale_in_front(program: Program, source: fx.Node, user: fx.Node) -> str:
    """The name of the scale of the batch norm in front of a convolution that it alone is for; "" if there is none."""
    here, after = source, user
    while list(here.users) == [after]:
        norm = norm_at(program, here)
        if norm is not None:
            return next((name for name, tensor in program.tensors.items() if tensor is getattr(norm, "weight", None)), "")
        if len(here.all_input_nodes) != 1 or here.op not in ("call_module", "call_function", "call_method"):
            return ""
        here, after = here.all_input_nodes[0], here
    return ""
