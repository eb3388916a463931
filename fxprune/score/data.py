"""Scores that look at data: one streaming pass over a loader, in evaluation mode, on a private copy of the structure.

1. A score of this kind is made without a model, ``taylor(loader, loss)``, and handed to ``plan`` or ``slim`` like any other. They show it
   the channel graph first (``on``), and get a plain score back; the pass happens then, once per graph. Each layout has a graph of its own.
2. Nothing of the model changes: no gradients, modes or statistics; weights are shared, buffers copied. Memory is that of one batch and one
   number per channel (``obd``: per weight), however many samples there are.
3. ``loss(output, target)`` is a mean over the samples of a batch, and is taken as the mean over all samples.
4. d_n(c) is the rate of the loss of sample n against scaling coupled channel c (reads.py, clause 3).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fxprune.errors import InputError
from fxprune.graph.channels import ChannelGraph, ChannelGroup
from fxprune.precision import double
from fxprune.provenance.interpret import evaluation_clone
from fxprune.score.reads import Gates, Watched, reads_of
from fxprune.score.samples import Batch, batches
from fxprune.score.scores import Score, producers
from fxprune.score.weights import atom_rows

REMEMBERED = 4  # graphs; layout="auto" goes back and forth between two
Loss = Callable[[Any, Any], Tensor]


@runtime_checkable
class DataScore(Protocol):
    """What needs the channel graph, and data, before it can score (clause 1)."""

    def on(self, graph: ChannelGraph) -> Score:
        """The score of one graph's groups."""


def on(score: Any, graph: ChannelGraph) -> Any:
    """A score that has seen what it needs to see (clause 1); any other is returned as it is."""
    return score.on(graph) if isinstance(score, DataScore) and not isinstance(score, type) else score


class PerComponent:
    """Numbers per coupled channel of one graph; ``totals`` as in scores.py, clause 5."""

    def __init__(self, name: str, values: Tensor, totals: bool = False) -> None:
        self.__name__ = name
        self.values = values
        self.totals = totals

    def __call__(self, group: ChannelGroup) -> Tensor:
        """The group's numbers; shape (channels,)."""
        return self.values[torch.from_numpy(group.channels)]


class Streamed:
    """A data-driven score: ``measure`` makes one number per coupled channel in one pass (clauses 1 and 2)."""

    def __init__(self, name: str, measure: Callable[[ChannelGraph], Tensor], totals: bool = False) -> None:
        self.__name__ = name
        self.totals = totals
        self._measure = measure
        self._seen: list[tuple[object, Score]] = []

    def on(self, graph: ChannelGraph) -> Score:
        """The score of this graph's groups; measured once for graphs that differ in what is pinned only."""
        known = next((score for closed, score in self._seen if closed is graph.closed), None)
        if known is None:
            known = PerComponent(self.__name__, self._measure(graph), self.totals)
            self._seen = [*self._seen[1 - REMEMBERED :], (graph.closed, known)]
        return known


def taylor(loader: Iterable[Any], loss: Loss = F.cross_entropy, *, batches: int | None = None) -> Streamed:
    """First-order effect on the loss of removing a channel, from the weights that read it: mean over batches of |sum of w * dL/dw|.

    Molchanov et al. 2019, eq. 8 (with the absolute value for the square), arXiv:1906.10771, averaged over batches as they do: where training has
    converged, the gradient of the loss of all samples is zero, and says nothing. They take a filter's own weights; we take the weights that
    read the channel, since a plan removes it there in every branch. Where no parameter reads a channel, the weights that make it count.
    """
    return Streamed("taylor", lambda graph: _taylor(graph, loader, loss, batches), totals=True)


def taylor_gates(loader: Iterable[Any], loss: Loss = F.cross_entropy, *, batches: int | None = None) -> Streamed:
    """Mean over samples of |d_n(c)|: first-order Taylor expansion in the activations.

    Molchanov et al. 2017, eq. 7 and 8, arXiv:1611.06440. They divide by the number of positions; we do not, since removing a channel removes
    it at all of them.
    """
    return Streamed("taylor_gates", lambda graph: _gated(graph, loader, loss, batches, Tensor.abs), totals=True)


def fisher(loader: Iterable[Any], loss: Loss = F.cross_entropy, *, batches: int | None = None) -> Streamed:
    """Half the mean over samples of d_n(c)^2: the diagonal of the Fisher information of one gate per channel.

    Theis et al. 2018, eq. 7 and 12, arXiv:1801.05787: the second-order increase of the loss, with the Fisher information for the Hessian.
    """
    return Streamed("fisher", lambda graph: _gated(graph, loader, loss, batches, lambda rates: rates.square() / 2), totals=True)


def obd(loader: Iterable[Any], loss: Loss = F.cross_entropy, *, batches: int | None = None) -> Streamed:
    """Sum of h_w w^2 / 2 over all weights that go with a channel, with the diagonal of the empirical Fisher information for h.

    LeCun, Denker and Solla 1990 (Optimal Brain Damage), eq. 5, with h_w = mean over samples of (dL_n/dw)^2. One backward pass per sample.
    """
    return Streamed("obd", lambda graph: _obd(graph, loader, loss, batches), totals=True)


def activation(loader: Iterable[Any], *, batches: int | None = None) -> Streamed:
    """Mean |a| of what the readers of a channel see, over samples and positions; needs no targets.

    The "activation" criterion of Molchanov et al. 2017, section 2.2, arXiv:1611.06440.
    """
    return Streamed("activation", lambda graph: _statistic(graph, loader, batches, Tensor.abs))


def apoz(loader: Iterable[Any], *, batches: int | None = None) -> Streamed:
    """One minus the average percentage of zeros among what the readers of a channel see; needs no targets.

    Hu et al. 2016 (network trimming), eq. 1, arXiv:1607.03250. Without a ReLU before the readers every channel scores 1.
    """
    return Streamed("apoz", lambda graph: _statistic(graph, loader, batches, lambda values: (values != 0).to(values.dtype)))


def _device(graph: ChannelGraph) -> torch.device:
    return next((tensor.device for tensor in graph.tensors.values()), torch.device("cpu"))


def _gated(graph: ChannelGraph, loader: Iterable[Any], loss: Loss, most: int | None, of: Callable[[Tensor], Tensor]) -> Tensor:
    watched, count = Watched(reads_of(graph)), graph.closed.count
    total, samples = torch.zeros(count, dtype=torch.float64, device="cpu"), 0
    for batch in batches(loader, _device(graph), most):
        gates = Gates(batch.samples)
        with torch.enable_grad():
            value = _loss(loss, watched(batch, gates), batch)
        total += of(gates.rates(value, count)).sum(0)
        samples += batch.samples
    return total / samples


@torch.no_grad()
def _statistic(graph: ChannelGraph, loader: Iterable[Any], most: int | None, of: Callable[[Tensor], Tensor]) -> Tensor:
    watched, count = Watched(reads_of(graph)), graph.closed.count
    total, entries = torch.zeros(count, dtype=torch.float64, device="cpu"), torch.zeros(count, dtype=torch.float64, device="cpu")

    def look(tensor: Tensor, factors: tuple[Any, ...]) -> Tensor:
        for part in factors:
            other = [d for d in range(tensor.dim()) if part.shape[d] == 1]
            values = of(tensor)
            summed = (double(values).sum(other) if other else double(values)).cpu().ravel()
            where = torch.from_numpy(np.ascontiguousarray(part).ravel())
            total.index_add_(0, where, summed)
            entries.index_add_(0, where, torch.full_like(summed, tensor.numel() / len(summed)))
        return tensor

    for batch in batches(loader, _device(graph), most):
        watched(batch, look)
    return total / entries.clamp(min=1)


def _loss(loss: Loss, output: Any, batch: Batch) -> Tensor:
    value: Any = loss(output, batch.target)
    if not isinstance(value, Tensor) or value.numel() != 1:
        got = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise InputError(
            f"loss(output, target) must return one number, the mean over the batch; got {got}.", node="loss", got=got
        )
    number: Tensor = value.reshape(())
    return number


class _Weights:
    """The captured program with gradients for all floating parameters that a group has atoms in."""

    def __init__(self, graph: ChannelGraph) -> None:
        captured = graph.program.captured
        names = {id(tensor): name for name, tensor in captured.tensors.items()}
        wanted = {member.name for group in graph.groups for member in group.members}
        self.parameters: dict[str, Tensor] = {}

        def apart(_name: str, tensor: Tensor) -> Tensor:
            new = tensor.detach() if isinstance(tensor, nn.Parameter) else tensor.detach().clone()
            name = names.get(id(tensor), "")
            if isinstance(tensor, nn.Parameter) and name in wanted and tensor.is_floating_point():
                self.parameters[name] = new.requires_grad_()
            return new

        root = evaluation_clone(captured.root, apart)
        has_graph = len(captured.graph.nodes) > 0
        self.module = torch.fx.GraphModule(root, captured.graph) if has_graph else root
        for name, parameter in self.parameters.items():  # fx makes parameters of plain attributes
            assert parameter.requires_grad, name

    def gradients(self, batch: Batch, loss: Loss) -> dict[str, Tensor]:
        with torch.enable_grad():
            value = _loss(loss, self.module(*batch.inputs.args, **batch.inputs.kwargs), batch)
            found: Sequence[Tensor | None] = torch.autograd.grad(value, list(self.parameters.values()), allow_unused=True)
        return {name: gradient for name, gradient in zip(self.parameters, found, strict=True) if gradient is not None}


def _taylor(graph: ChannelGraph, loader: Iterable[Any], loss: Loss, most: int | None) -> Tensor:
    weights = _Weights(graph)
    total, samples = torch.zeros(graph.closed.count, dtype=torch.float64, device="cpu"), 0
    for batch in batches(loader, _device(graph), most):
        found = weights.gradients(batch, loss)
        effect = {name: weights.parameters[name].detach() * gradient for name, gradient in found.items()}
        total += _per_channel(graph, effect, readers_only=True).abs() * batch.samples
        samples += batch.samples
    return total / samples


def _obd(graph: ChannelGraph, loader: Iterable[Any], loss: Loss, most: int | None) -> Tensor:
    weights = _Weights(graph)
    squares: dict[str, Tensor] = {}
    samples = 0
    for batch in batches(loader, _device(graph), most):
        for index in range(batch.samples):
            for name, gradient in weights.gradients(batch.sample(index), loss).items():
                squares[name] = squares[name] + gradient.square() if name in squares else gradient.square()
        samples += batch.samples
    saliency = {name: weights.parameters[name].detach().square() * total / (2 * samples) for name, total in squares.items()}
    return _per_channel(graph, saliency, readers_only=False)


def _per_channel(graph: ChannelGraph, values: dict[str, Tensor], *, readers_only: bool) -> Tensor:
    """Sums of per-weight values over the atoms of every coupled channel; shape (components,)."""
    total = torch.zeros(graph.closed.count, dtype=torch.float64, device="cpu")
    for group in graph.groups:
        channels = torch.from_numpy(group.channels)
        reading = [m for m in group.members if m.reads and m.name in values]
        for member in (reading or producers(group)) if readers_only else group.members:
            if member.name in values:
                sums = atom_rows(values[member.name], member).sum(1)
                total.index_add_(0, channels[torch.from_numpy(member.channel)], sums[torch.from_numpy(member.atom)])
    return total
