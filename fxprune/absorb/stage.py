"""The stage: constants found, folded, and written into the slim module.

1. ``absorbed`` walks the original (propagate.py), gives every reader what is known of its removed inputs, and changes the slim module in place: its
   biases, running means and additions. The weights it emitted stay what they are.
2. Values of channels with gamma != 0 are expected values, or means over data (calibrate.py); constants that are certain are taken as they are.
3. What a fold leaves is estimated in units of the reader's output: at the border, the difference between the interior's correction and what
   the padded image gives; one standard deviation of the correction, removed channels taken as independent; and by how much an expected value
   in the place of a maximum's may be too low (windows.py), without data. What is not known, or not
   certain, does not count at output channels that stay and that nobody hears (``mute``; silent ones are).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from fxprune.absorb.arrivals import Arrival
from fxprune.absorb.calibrate import measured
from fxprune.absorb.places import Place, Places, install, rows_of, shape_of
from fxprune.absorb.propagate import Findings, propagate
from fxprune.absorb.readers import Reader, hears, image, interior, kernel, products
from fxprune.absorb.windows import excess
from fxprune.capture.eager import EagerCaptured
from fxprune.capture.inputs import Inputs
from fxprune.errors import InputError
from fxprune.folds import EXACT, INTERIOR, MODES, OFF, Absorption, Addition, Fold, Loss
from fxprune.graph.channels import ChannelGraph
from fxprune.plan import Plan
from fxprune.provenance.factor import Mask
from fxprune.provenance.interpret import attribute
from fxprune.solve.plans import removed_channels

CLOSED, DATA = "closed form", "data"


@dataclass(frozen=True, slots=True)
class Asked:
    """What ``absorb=`` means."""

    mode: str
    loader: Iterable[Any] | None = None


def asked(absorb: Any) -> Asked:
    """Read ``absorb=``: True, False, "exact", or an iterable of batches.

    Raises:
        InputError: anything else.
    """
    if absorb is True or absorb is False:
        return Asked(INTERIOR if absorb else OFF)
    if isinstance(absorb, str) and absorb == EXACT:
        return Asked(EXACT)
    if isinstance(absorb, Iterable) and not isinstance(absorb, (str, bytes, torch.Tensor)):
        return Asked(INTERIOR, absorb)
    raise InputError(
        f"absorb must be True, False, 'exact' or a loader (an iterable of batches), got {absorb!r}.",
        expected=(True, False, EXACT, "a loader"),
        got=absorb,
    )


def absorbed(
    graph: ChannelGraph, inputs: Inputs, plan: Plan, slim: nn.Module, what: Asked, mute: Mask | None = None
) -> tuple[Plan, Absorption]:
    """Clauses 1 to 3; the plan comes back with what was added. ``mute``: components that nobody hears, beside silent ones."""
    if not isinstance(slim, fx.GraphModule) or isinstance(graph.program.captured, EagerCaptured):
        loss = Loss("", "an eager module has no graph to walk; removed channels were dropped", 0)
        return plan, Absorption(what.mode, "", (), () if what.mode == OFF else (loss,))
    captured = graph.program.captured
    if what.mode == OFF:
        plan = replace(plan, added=plan.added or ())
        install(slim, captured, plan)
        return plan, Absorption(OFF)
    found = propagate(graph, removed_channels(graph, plan), plan.silent)
    data = measured(captured, inputs, found.arrivals, what.loader) if what.loader is not None else {}
    places = Places(captured, plan.added)
    folds: list[Fold] = []
    kernels: list[Tensor] = []
    additions: list[Addition] = []
    losses = list(found.losses)
    unheard = _silent(graph, plan, mute)
    for arrival in found.arrivals:
        rows = rows_of(plan, arrival.reader)
        heard = _heard(graph, arrival.reader, rows, unheard)
        made = _fold(arrival, data.get(arrival.reader.node.name), places, plan, what.mode, losses, rows, heard)
        if made is not None:
            folds.append(made[0])
            kernels.append(made[1])
            if made[2].added:
                own, form = arrival.reader, made[2].form
                additions.append(Addition(made[2].name, own.node.name, form, own.name, shape_of(form, own, plan)))
    plan = replace(plan, added=tuple(additions) if plan.added is None else plan.added)
    install(slim, captured, plan)
    readers = {arrival.reader.node.name: arrival.reader for arrival in found.arrivals}
    with torch.no_grad():
        for fold, kernels_of in zip(folds, kernels, strict=True):
            _write(slim, fold, kernels_of, interior(readers[fold.node], kernels_of))
    exact = not losses and all(fold.exact for fold in folds)
    return plan, Absorption(what.mode, DATA if data else CLOSED, tuple(folds), tuple(losses), exact)


def _silent(graph: ChannelGraph, plan: Plan, mute: Mask | None) -> Mask | None:
    """Components that stay and that nobody hears (clause 3); None: there are none."""
    if mute is None and not plan.silent:
        return None
    found = np.zeros(graph.closed.count, np.bool_) if mute is None else mute.copy()
    for axis in graph.axes:
        atoms = plan.silent.get(axis.name, {}).get(axis.dim, ())
        found[graph.closed.component[axis.start + np.array(atoms, np.int64)]] = True
    return found


def _heard(graph: ChannelGraph, reader: Reader, rows: Tensor, unheard: Mask | None) -> Tensor:
    """Which of a reader's rows somebody hears."""
    if unheard is None:
        return torch.ones(len(rows), dtype=torch.bool, device="cpu")
    axis = next((a for a in graph.axes if a.name == reader.name and a.dim == reader.out), None)
    if axis is None:
        return torch.ones(len(rows), dtype=torch.bool, device="cpu")
    return torch.from_numpy(~unheard[graph.closed.component[axis.start + rows.numpy()]])


def _fold(
    arrival: Arrival,
    data: tuple[Tensor, Tensor] | None,
    places: Places,
    plan: Plan,
    mode: str,
    losses: list[Loss],
    rows: Tensor,
    heard: Tensor,
) -> tuple[Fold, Tensor, Place] | None:
    """The fold of one reader with its kernel, or None where there is nothing to fold; what is lost is taken down.

    ``rows``: the original rows that the slim reader has; ``heard``: which of them count.
    """
    reader, mean, std = arrival.reader, arrival.mean, arrival.std
    if data is not None:
        sure = ~mean.isnan() & (std == 0) & (arrival.apart == 0)
        mean, std = torch.where(sure, mean, data[0]), torch.where(sure, std, data[1])
    lost = mean.isnan()
    missing = bool(lost.any())
    if missing and not hears(reader, arrival.atoms[lost.numpy()], rows[heard]):
        lost, missing = torch.zeros_like(lost), False  # nobody hears them
    if missing:
        losses.append(Loss(reader.node.name, "what these channels emit is not known without data", int(lost.sum())))
    values = mean.nan_to_num(0.0)
    apart = arrival.apart.nan_to_num(0.0)
    if not bool((values != 0).any()) and not bool((std > 0).any()) and not bool((apart > 0).any()):
        return None
    scatter = torch.maximum(std.nan_to_num(0.0), apart)
    kernels, variance = products(reader, arrival.atoms, values, scatter.square(), rows)
    unsure = float(variance.where(heard, 0.0).max().sqrt())
    if data is None and arrival.window > 1 and unsure > 0:
        low = interior(reader, kernel(reader, arrival.atoms, std.nan_to_num(0.0) * excess(arrival.window), rows))
        unsure += float(low.abs().where(heard, 0.0).max())
    some = bool((kernels != 0).any())
    if not some and unsure == 0:
        return None
    uneven = reader.uneven and some
    place = places.place(reader, border=uneven and mode == EXACT)
    if place is None:
        reason = "the plan adds no tensor that could take them"
        losses.append(Loss(reader.node.name, reason, int((values != 0).sum()), float(values.abs().max())))
        return None
    left = unsure
    if uneven and place.form != "map":
        laid = image(reader, kernels, [min(s, _span(arrival, i)) for i, s in enumerate(arrival.shape[reader.channel + 1 :])])
        middle = interior(reader, kernels).reshape(-1, *[1] * (laid.dim() - 1))
        left += float((laid - middle).abs().max())
    if place.form == "norm":
        kernels = kernels[_selected(plan, place.name, rows)]
    exact = left == 0 and not missing
    atoms = tuple(arrival.atoms.tolist())
    fold = Fold(
        *(reader.node.name, reader.name, reader.dim, atoms, tuple(values.tolist()), place.form, place.name),
        exact=exact,
        left=left,
    )
    return fold, kernels, place


def _selected(plan: Plan, norm: str, rows: Tensor) -> Tensor:
    """Which of these rows a running mean's batch norm keeps, in its order: under the selection layout it may drop some of them."""
    kept = plan.kept.get(norm, {}).get(0)
    if kept is None or tuple(rows.tolist()) == tuple(kept):
        return torch.arange(len(rows), device="cpu")
    place = {row: i for i, row in enumerate(rows.tolist())}
    return torch.tensor([place[row] for row in kept], device="cpu")


def _span(arrival: Arrival, i: int) -> int:
    """An image that shows every border there is, and some interior."""
    window = arrival.reader.window
    assert window is not None
    return 2 * (window[2][i] * (arrival.reader.weight.shape[2 + i] - 1) + window[0][i] + window[1][i]) + 1


def _write(slim: fx.GraphModule, fold: Fold, kernels: Tensor, correction: Tensor) -> None:
    tensor = attribute(slim, fold.place)
    if fold.form == "map":
        new = kernels.reshape(tensor.shape)
    else:
        sign = -1 if fold.form == "norm" else 1
        new = tensor.detach().cpu().to(torch.float64) + sign * correction.reshape(tensor.shape)
    tensor.copy_(new.to(tensor.dtype))


__all__ = ["MODES", "Asked", "Findings", "absorbed", "asked"]
