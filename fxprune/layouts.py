"""Which layout: the graph of each, and the faster of both.

1. Both plans are made from one ratio and one score, and emitted. The modules are run in turns on the example inputs, in evaluation mode and
   without gradients; a layout's time is the least of its calls, for what disturbs a measurement makes it longer.
2. "selection" is taken if it is faster by more than ``MARGIN``; otherwise "coupled", whose program has no selects. So are layouts that
   compute the same, whatever the clock says.
3. A layout that cannot be had (no batch norms; a ratio that its constraints do not allow) loses to the other one, with the reason.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fxprune.capture.inputs import Inputs
from fxprune.errors import BudgetError, FxpruneWarning, RewriteError
from fxprune.graph.channels import ChannelGraph
from fxprune.graph.selection import selected
from fxprune.pipeline import emit_any, settle
from fxprune.plan import Plan
from fxprune.solve.plans import removed_channels

LAYOUTS = ("coupled", "selection", "auto")
MARGIN = 0.02
LEAST_CALLS, MOST_CALLS, SECONDS = 7, 200, 1.0

Clock = Callable[[], float]


@dataclass(frozen=True, slots=True)
class Choice:
    """The layout that was taken, and the note that says why."""

    layout: str
    note: str


def in_layout(graph: ChannelGraph, layout: str) -> ChannelGraph:
    """The graph of a layout: for "selection", batch norms are cut from what they read (graph/selection.py).

    Raises:
        BudgetError: no batch norm to select after, or no program to put selects in.
    """
    if layout != "selection" or graph.selection is not None:
        return graph
    new = selected(graph)
    return new if new.inputs is None else settle(new, new.inputs)


def choose(graph: ChannelGraph, make: Callable[[str], Plan], clock: Clock = time.perf_counter) -> Choice:
    """Clauses 1 to 3. ``graph`` is that of the coupled layout, ``make`` gives the plan of a layout.

    Raises:
        BudgetError: neither layout can be had.
    """
    plans: dict[str, Plan] = {}
    modules: dict[str, nn.Module] = {}
    refused: dict[str, BudgetError | RewriteError] = {}
    for layout in ("coupled", "selection"):
        _had(layout, graph, make, plans, modules, refused)
    if len(modules) < 2:
        taken = next(iter([*modules, *plans]), "")
        if not taken:
            raise refused["coupled"]
        other = next(
            layout for layout in refused if layout != taken
        )  # where none can be emitted as it is, channels will be pinned
        why = str(refused[other]).splitlines()[0]
        return Choice(taken, f"layout='auto' took {taken!r}; {other!r} cannot be had: {why}")
    assert graph.inputs is not None
    coupled, selection = interleaved(modules["coupled"], modules["selection"], graph.inputs, clock)
    taken = "selection" if selection < coupled * (1 - MARGIN) else "coupled"
    said = f"{coupled * 1e3:.3g} ms a call with 'coupled', {selection * 1e3:.3g} ms with 'selection'"
    return Choice(taken, f"layout='auto' took {taken!r}: {said} (the least of interleaved calls on the example inputs)")


def _had(
    layout: str,
    graph: ChannelGraph,
    make: Callable[[str], Plan],
    plans: dict[str, Plan],
    modules: dict[str, nn.Module],
    refused: dict[str, BudgetError | RewriteError],
) -> None:
    """The plan and the module of a layout, or why it cannot be had."""
    assert graph.inputs is not None
    try:
        own = in_layout(graph, layout)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FxpruneWarning)  # said when the plan is made for good
            plans[layout] = make(layout)
        modules[layout] = emit_any(own, removed_channels(own, plans[layout]), graph.inputs, plans[layout]).module
    except (BudgetError, RewriteError) as error:
        refused[layout] = error


def interleaved(first: nn.Module, second: nn.Module, inputs: Inputs, clock: Clock) -> tuple[float, float]:
    """Seconds of one call of each of two modules (clause 1). Their modes and random numbers stay as they were."""
    device = next(
        (x.device for x in torch.utils._pytree.tree_leaves((inputs.args, dict(inputs.kwargs))) if isinstance(x, Tensor)), None
    )
    modes = [(m, m.training) for module in (first, second) for m in module.modules()]
    least = [float("inf"), float("inf")]
    try:
        first.eval()
        second.eval()
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            began = clock()
            for call in range(MOST_CALLS):
                for place, module in enumerate((first, second)):
                    seconds = _call(module, inputs, device, clock)
                    least[place] = min(least[place], seconds) if call else least[place]  # the first call warms up
                if call >= LEAST_CALLS and clock() - began > SECONDS:
                    break
    finally:
        for module, mode in modes:
            module.training = mode
    return least[0], least[1]


def _call(module: nn.Module, inputs: Inputs, device: torch.device | None, clock: Clock) -> float:
    given: Any = inputs.map(torch.clone)
    _finished(device)
    start = clock()
    module(*given.args, **given.kwargs)
    _finished(device)
    return clock() - start


def _finished(device: torch.device | None) -> None:
    """Wait until an accelerator has done what it was told."""
    if device is not None and device.type not in ("cpu", "meta"):
        torch.accelerator.synchronize(device)
