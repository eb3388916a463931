"""Moving averages of weights, carried over to a slim model.

The averaged weights are slimmed by the plan that slimmed the model, with what *they* leave behind absorbed where the model's was.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import nn
from torch.optim.swa_utils import AveragedModel

from fxprune.train.remap import Remap, _plan, relative


def remap_averaged(
    averaged: AveragedModel, model: nn.Module, slim: nn.Module, example_inputs: Any = None, *, absorb: bool = True
) -> AveragedModel:
    """The slim counterpart of an ``AveragedModel`` of ``model``; its count and its averaging function go on. All arguments stay as they are.

    Args:
        averaged: holds weights of the model's architecture (EMA or SWA).
        model: what was slimmed.
        slim: what ``fxprune.slim`` or ``apply`` made of it.
        example_inputs: as for ``fxprune.apply``.
        absorb: as ``slim`` was called.

    Raises:
        PlanMismatchError: the models do not belong together.
    """
    from fxprune.api import apply

    Remap(model, slim)  # they belong together
    kept, sizes = relative(model, slim)
    final = _plan(slim)
    assert final is not None
    step = replace(final, kept=kept, sizes=sizes, silent=_relative_silent(model, slim))
    small = apply(averaged.module, step, example_inputs, absorb=absorb, verify=False)
    small.train(averaged.module.training)
    result = AveragedModel(small, avg_fn=averaged.avg_fn, multi_avg_fn=averaged.multi_avg_fn, use_buffers=averaged.use_buffers)
    result.n_averaged.copy_(averaged.n_averaged)
    return result


def _relative_silent(model: nn.Module, slim: nn.Module) -> dict[str, dict[int, tuple[int, ...]]]:
    """The silent atoms of a slim model in the coordinates of the model that was slimmed."""
    final, before = _plan(slim), _plan(model)
    assert final is not None
    if before is None:
        return {name: dict(dims) for name, dims in final.silent.items()}
    found: dict[str, dict[int, tuple[int, ...]]] = {}
    for name, dims in final.silent.items():
        for dim, atoms in dims.items():
            place = {atom: i for i, atom in enumerate(before.kept[name][dim])}
            found.setdefault(name, {})[dim] = tuple(place[atom] for atom in atoms if atom in place)
    return found
