"""Is what was captured the model's own program?

1. Model and program run on the same inputs with the same random numbers, in evaluation mode; what they return is compared, in the dtype it has.
2. Two ways to compute one thing round differently, and half precision by more than ``SAME`` (attention as one call, and as its parts). What is
   further apart than that is computed again, both in float64, and that decides.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from fxprune.capture.inputs import Inputs
from fxprune.capture.objects import held
from fxprune.errors import InputError, UnfaithfulCaptureError
from fxprune.provenance.eager import private
from fxprune.provenance.interpret import evaluation_clone
from fxprune.verify.masked import OneDtype
from fxprune.verify.program import copied_inputs, quiet
from fxprune.verify.replica import replica

SAME = 1e-4
EXACT = torch.float64

Run = Callable[[nn.Module, Inputs], list[Tensor]]


def same_program(model: nn.Module, program: nn.Module, inputs: Inputs) -> None:
    """Hold a captured program against its model (clauses 1 and 2); neither is changed.

    Raises:
        InputError: one of them fails on these inputs.
        UnfaithfulCaptureError: they do not return the same.
    """
    difference = _apart(_as_it_is, model, program, inputs)
    if SAME < difference < float("inf") and any(p.is_floating_point() and p.dtype != EXACT for p in model.parameters()):
        difference = _apart(_exactly, model, program, inputs)
    if difference > SAME:
        raise UnfaithfulCaptureError(
            f"the captured program does not compute what the model computes (they differ by {difference:.3g}, relative): the model does "
            "something that tracing cannot see. Nothing was pruned.",
            node="output",
            expected=0.0,
            got=difference,
        )


def _elsewhere(model: nn.Module, inputs: Inputs) -> str:
    """A hint, where inputs and weights are on different devices."""
    here = {str(p.device) for p in model.parameters()}
    there = {str(x.device) for x in torch.utils._pytree.tree_leaves((inputs.args, dict(inputs.kwargs))) if isinstance(x, Tensor)}
    if not here or not there or here & there:
        return ""
    home = min(here)
    return f" (The model is on {home}, the example inputs are on {', '.join(sorted(there))}: give them as x.to({home!r}).)"


def _apart(run: Run, model: nn.Module, program: nn.Module, inputs: Inputs) -> float:
    """The largest difference of an output, relative to its largest value."""
    try:
        eager, traced = run(model, inputs), run(program, inputs)
    except Exception as error:
        line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(
            f"the model itself fails on these example inputs: {line}{_elsewhere(model, inputs)}", node="output", got=line
        ) from error
    if len(eager) != len(traced):
        raise UnfaithfulCaptureError(
            f"the captured program returns {len(traced)} tensors, the model {len(eager)}: tracing does not see all that it returns. "
            "Nothing was pruned.",
            node="output",
            expected=len(eager),
            got=len(traced),
        )
    worst = 0.0
    for a, b in zip(eager, traced, strict=True):
        if a.shape != b.shape:
            return float("inf")
        if a.is_floating_point() and a.numel():
            worst = max(worst, float((a - b).abs().max()) / max(float(a.abs().max()), 1e-12))
    return worst


def _as_it_is(module: nn.Module, inputs: Inputs) -> list[Tensor]:
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        call = inputs.map(torch.clone)
        return held(evaluation_clone(module, private)(*call.args, **call.kwargs))


def _exactly(module: nn.Module, inputs: Inputs) -> list[Tensor]:
    with quiet():
        torch.manual_seed(0)
        args, kwargs = copied_inputs((inputs.args, dict(inputs.kwargs)), EXACT)
        copied, _ = replica(module, EXACT)
        with OneDtype(EXACT):
            return held(copied(*args, **kwargs))
