"""Where tracing fails: the last two captures, in their order.

1. ``torch.export`` comes first: its result is a graph. Then the eager module as it runs, which takes whatever runs. Where the run reads
   numbers out of tensors, or makes shapes that depend on them, no graph can be analysed without numbers, and export is not tried.
2. What an earlier capture said is kept, and told if the last one fails too. Inputs on which the model itself fails are an error of the inputs.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from fxprune.capture.eager import as_it_is
from fxprune.capture.export import export
from fxprune.capture.inputs import Inputs
from fxprune.capture.tracer import Captured
from fxprune.errors import CaptureError, InputError
from fxprune.provenance.eager import interpret_eager, private
from fxprune.provenance.interpret import Interpreted, evaluation_clone, interpret


def interpret_otherwise(model: nn.Module, inputs: Inputs, failed: CaptureError, check: Callable[[Captured], None]) -> Interpreted:
    """Provenance by the first of the last captures that works (clause 1).

    Args:
        model: what tracing refused.
        inputs: example inputs.
        failed: what tracing said.
        check: refuses weights that cannot be pruned.

    Raises:
        CaptureError: no capture works.
        InputError: the model itself fails on these inputs.
    """
    try:
        eager = as_it_is(model)
        check(eager)
        run = interpret_eager(eager, inputs)
    except InputError:
        raise
    except CaptureError as error:
        raise CaptureError(f"{failed} {error}", node=failed.node, got=failed.got) from error
    if run.told:
        return run
    try:
        return interpret(export(model, inputs), inputs)
    except CaptureError:
        return run


def accepts(model: nn.Module, inputs: Inputs) -> bool:
    """True if the model itself runs on these inputs."""
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            call = inputs.map(torch.clone)  # a shape that was read from a damaged file may be larger than any memory
            evaluation_clone(model, private)(*call.args, **call.kwargs)
    except Exception:  # noqa: BLE001 - only whether is asked
        return False
    return True
