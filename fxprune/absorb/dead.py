"""Channels that cannot influence the output.

1. A free coupled channel is *dead* if at every reader it meets, either no row that lives has a weight for it (it is *unheard*), or what arrives
   is one and the same number whatever the inputs are, which the reader can take exactly (it is *constant*). Nobody reads it otherwise: neither an
   operator that mixes channels, nor a weight that is computed, nor a node without a rule.
2. What is constant is a fact about the original program (propagate.py): gamma = 0, filters of zeros, and what follows from them.
3. Who is unheard depends on who lives: rows of dead channels do not count. So the dead grow, round by round, until nothing changes.
4. Groups keep a channel, blocks stay equal (``settle``): a dead channel that has to stay is *mute*. What it reads may go all the same: nobody hears
   it, or its gamma is 0, or it has weights for constants only, and gets these.
5. An eager module has no nodes to follow: nothing can be said about it.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from fxprune.absorb.arrivals import Arrival
from fxprune.absorb.propagate import Findings, propagate
from fxprune.capture.eager import followed
from fxprune.graph.channels import ChannelGraph
from fxprune.provenance.factor import Ids, Mask

Settle = Callable[[ChannelGraph, Mask], Mask]


def dead_channels(graph: ChannelGraph, settle: Settle) -> tuple[Mask, Mask]:
    """Clauses 1 to 4: per component, whether it is dead and may go, and whether it is mute.

    Raises:
        CaptureError: an eager module (clause 5).
    """
    followed(graph.program.captured)
    found = propagate(graph, np.zeros(graph.closed.count, np.bool_), {}, expected=False, everywhere=True)
    allowed = np.zeros(graph.closed.count, np.bool_)
    for group in graph.groups:
        allowed[group.channels] = True
    allowed &= ~_elsewhere(graph, found)
    dead = _grown(graph, found.arrivals, allowed)
    goes = dead & settle(graph, dead)
    return goes, dead & ~goes


def _elsewhere(graph: ChannelGraph, found: Findings) -> Mask:
    """Components that are read by something else than a reader that is known (clause 1)."""
    barred = np.zeros(graph.closed.count, np.bool_)
    for _, components in found.met:
        barred[components] = True
    covered = {(arrival.reader.name, arrival.reader.dim) for arrival in found.arrivals}
    for axis, reads in zip(graph.axes, graph.reading, strict=True):
        if reads and (axis.name, axis.dim) not in covered:
            barred[graph.closed.component[axis.start : axis.start + axis.size]] = True
    return barred


def _grown(graph: ChannelGraph, arrivals: list[Arrival], allowed: Mask) -> Mask:
    """Clause 3."""
    sites = [_Site(graph, arrival, allowed) for arrival in arrivals]
    dead = np.zeros_like(allowed)
    while True:
        heard = ~allowed
        for site in sites:
            site.mark(dead, heard)
        grown = allowed & ~heard
        if (grown == dead).all():
            return dead
        dead = grown


class _Site:
    """A reader: which of its input channels are constants, and who has weights for the others."""

    def __init__(self, graph: ChannelGraph, arrival: Arrival, allowed: Mask) -> None:
        reader = arrival.reader
        axes = {(a.name, a.dim): a for a in graph.axes}
        axis = axes[reader.name, reader.dim]
        self.columns: Ids = graph.closed.component[axis.start + arrival.atoms]
        value = arrival.mean.numpy()
        constant = ~np.isnan(value) & (arrival.std.numpy() == 0) & (arrival.apart.numpy() == 0)
        fits = reader.channel == 1 or not reader.uneven
        self.open: Mask = allowed[self.columns] & ~(constant & (fits | (value == 0)))
        self.blocks, self.dim = reader.blocks, reader.dim
        out = axes.get((reader.name, reader.out))
        self.rows: Ids | None = None if out is None else graph.closed.component[out.start : out.start + out.size]
        weight = reader.weight.detach()
        self.weighs: Mask = np.zeros((0, 0), np.bool_)
        if self.open.any():
            self.weighs = (weight != 0).flatten(2).any(2).cpu().numpy() if weight.dim() > 2 else (weight != 0).cpu().numpy()

    def mark(self, dead: Mask, heard: Mask) -> None:
        """Set ``heard`` for the components that a row which lives has a weight for."""
        if not self.open.any():
            return
        weighs = self.weighs if self.dim == 1 else self.weighs.T  # (rows, columns)
        rows = weighs.shape[0] * (1 if self.dim == 1 else self.blocks)
        lives = np.ones(rows, np.bool_) if self.rows is None else ~dead[self.rows]
        if self.blocks == 1:
            columns = weighs[lives].any(0)
        elif self.dim == 1:
            by_block = weighs.reshape(self.blocks, -1, weighs.shape[1]) & lives.reshape(self.blocks, -1, 1)
            columns = by_block.any(1).ravel()
        else:
            by_block = weighs.reshape(weighs.shape[0], self.blocks, -1) & lives.reshape(self.blocks, -1).T[:, :, None]
            columns = by_block.any(0).ravel()
        heard[self.columns[columns & self.open]] = True
