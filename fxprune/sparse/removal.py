"""Unstructured pruning that ends in a physically smaller network: what is cut off goes to the compiler.

1. ``remove_neurons`` computes the cascade (neurons.py) on a copy, makes a plan of what nobody hears, and hands it to the
   stages that ``fxprune.slim`` is made of: emitted, with channels pinned where a node cannot be made smaller, and verified.
2. Groups keep a channel at least, balances keep equally many in every block, floors hold: a channel that is cut off but has to stay for one
   of these stays, as it was.
3. The result is compared with the model as it was, in float64, on the example and on random inputs: outputs agree to 1e-6 relative to the largest,
   or to 1e-9 for a float64 model; otherwise it is an error and nothing is returned.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from torch import fx, nn

from fxprune.capture.eager import followed
from fxprune.capture.inputs import Inputs
from fxprune.errors import VerificationError
from fxprune.graph.channels import ChannelGraph
from fxprune.pipeline import emit_settled, study, verified
from fxprune.plan import Plan
from fxprune.provenance.factor import Mask
from fxprune.record import attach, extended
from fxprune.solve.plans import removed_channels, to_plan
from fxprune.solve.ratio import Solution
from fxprune.sparse.masks import permanent
from fxprune.sparse.neurons import apart, cascade, double, outputs, randomised


@dataclass(frozen=True, slots=True)
class Removed:
    """A smaller module and how it came about.

    Attributes:
        module: the slim model; zeros that are left are in its weights (``mask_zeros`` holds them).
        plan: what went, in the coordinates of the model that was given.
        channels: coupled channels that went.
        unheard: channels found without readers; unfed: found without inputs; folded: of these, with a constant that went into biases.
        unfed: see above.
        folded: see above.
        left: channels that are cut off and stay, as (where, why, how many).
        error: largest relative difference of the outputs, float64.
    """

    module: fx.GraphModule
    plan: Plan
    channels: int
    unheard: int
    unfed: int
    folded: int
    left: tuple[tuple[str, str, int], ...]
    error: float

    def __str__(self) -> str:
        lines = [
            f"{self.channels} channels removed: {self.unheard} without readers, {self.unfed} without inputs ({self.folded} constants folded)"
        ]
        lines += [f"{count} stay at {where}: {why}" for where, why, count in self.left]
        return "\n".join(lines)


def remove_neurons(model: nn.Module, example_inputs: Any = None) -> Removed:
    """Clauses 1 to 3. ``model`` is only read; masks that it holds count as zeros.

    Raises:
        CaptureError: an eager module, which has no nodes to follow.
        FxpruneError: what ``fxprune.analyze`` and ``fxprune.apply`` raise.
        VerificationError: the result does not compute what the model computes.
    """
    bare = permanent(model)
    cutting = permanent(model).eval()
    subject = study(cutting, example_inputs)
    inputs, program = subject.inputs, subject.graph.program
    followed(program.captured)
    cut = cascade(cutting, subject.graph, inputs)
    gone = cut.removable[subject.graph.closed.component]  # per atom: the compiler may close the couplings anew
    notes: tuple[tuple[str, str, int], ...] = ()

    def decide(graph: ChannelGraph) -> Plan:
        nonlocal gone, notes, program
        if graph.program is not program:  # captured again, a function entered: other atoms, the same zeros
            program, gone = graph.program, cascade(cutting, graph, inputs).removable[graph.closed.component]
        whole = np.ones(graph.closed.count, np.bool_)
        whole[graph.closed.component[~gone]] = False
        removed, notes = settle(graph, whole)
        share = int(removed.sum()) / max(1, sum(len(group) for group in graph.groups))
        return to_plan(graph, Solution(removed, share, share), "zeros")

    subject, plan, slim = emit_settled(subject, decide, pin=True)
    attach(slim, extended(model, subject.graph, inputs, plan, subject.entered))
    verified(subject, slim, plan)
    error = _check(bare, slim, inputs)
    slim.train(model.training)
    left = tuple((where, why, count) for (where, why), count in cut.left.items())
    channels = int(removed_channels(subject.graph, plan).sum())
    return Removed(cast("fx.GraphModule", slim), plan, channels, cut.unheard, cut.unfed, cut.folded, (*left, *notes), error)


def settle(graph: ChannelGraph, wanted: Mask) -> tuple[Mask, tuple[tuple[str, str, int], ...]]:
    """Clause 2: the largest part of ``wanted`` found that the graph's constraints allow, and what had to stay."""
    removed = wanted & ~graph.pinned
    while True:
        before = removed.copy()
        for group in graph.groups:
            if removed[group.channels].all():
                removed[group.channels[0]] = False
        for floor in graph.program.recorder.floors:
            members = np.unique(graph.closed.component[floor.ids])
            gone = members[removed[members]]
            removed[gone[: max(0, floor.least - (len(members) - len(gone)))]] = False
        for balance in graph.closed.balances:
            least = removed[balance.blocks].sum(1).min()
            for block in balance.blocks:
                removed[block[removed[block]][least:]] = False
        for block in graph.program.recorder.blocks:  # a head or a convolution's group goes as a whole, with its owner
            rows, owner = graph.closed.component[block.rows], graph.closed.component[block.owner]
            dead = removed[rows].all(1)
            removed[owner[~dead]] = False
            removed[rows[dead & ~removed[owner], 0]] = False
        if (before == removed).all():
            break
    stay = wanted & ~removed
    if not stay.any():
        return removed, ()
    where = graph.axes_of(np.flatnonzero(stay).tolist())[0]
    return removed, ((where, "a group keeps one channel, and blocks keep equally many", int(stay.sum())),)


def _check(model: nn.Module, slim: nn.Module, inputs: Inputs) -> float:
    """Clause 3."""
    eps = max([torch.finfo(p.dtype).eps for p in model.parameters() if p.is_floating_point()], default=1e-16)
    allowed = max(1e-9, 8 * eps)
    whole, small, worst = double(model), double(slim), 0.0
    for call in (inputs, *randomised(inputs)):
        worst = max(worst, apart(outputs(whole, call), outputs(small, call)))
    if not worst <= allowed:
        raise VerificationError(
            f"without the neurons that were cut off, the outputs differ by {worst:.3g} (relative); nothing was removed. Please report this model.",
            node="output",
            expected=allowed,
            got=worst,
        )
    return worst
