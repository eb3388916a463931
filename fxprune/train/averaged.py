"""Moving averages of weights, carried over to a slim model.

The averaged weights are slimmed by the plan that slimmed the model, with what *they* leave behind absorbed where the model's was.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn
from torch.optim.swa_utils import AveragedModel

from fxprune.folds import EXACT, OFF
from fxprune.plan import Plan
from fxprune.record import record_of
from fxprune.train.remap import Remap, bare, step


def remap_averaged(
    averaged: AveragedModel,
    model: nn.Module,
    slim: nn.Module,
    example_inputs: Any = None,
    *,
    absorb: bool | str | Iterable[Any] | None = None,
) -> AveragedModel:
    """The slim counterpart of an ``AveragedModel`` of ``model``; its count and its averaging function go on. All arguments stay as they are.

    Args:
        averaged: holds weights of the model's architecture (EMA or SWA).
        model: what was slimmed.
        slim: what ``fxprune.slim`` or ``apply`` made of it. All three may be wrapped; what comes back averages the bare slim model.
        example_inputs: as for ``fxprune.apply``.
        absorb: as for ``fxprune.slim``; left out, what ``slim`` was made with, but for a loader: expected values then come from closed forms.

    Raises:
        PlanMismatchError: the models do not belong together.
    """
    from fxprune.api import apply

    Remap(model, slim)  # they belong together
    own = step(model, slim)
    small = apply(bare(averaged.module), own, example_inputs, absorb=_mode(bare(slim), own, absorb), verify=False)
    result = AveragedModel(small, avg_fn=averaged.avg_fn, multi_avg_fn=averaged.multi_avg_fn, use_buffers=averaged.use_buffers)
    result.n_averaged.copy_(averaged.n_averaged)
    return result


def _mode(slim: nn.Module, own: Plan, asked: Any) -> Any:
    """How to absorb so that what the plan adds is filled: border maps take corrections from ``"exact"`` only."""
    record = record_of(slim)
    if asked is None:
        asked = record is not None and record.absorption.mode != OFF
    return EXACT if asked is True and any(addition.form == "map" for addition in own.added or ()) else asked
