"""Translation validation: the slim program against the masked original, node by node.

1. Both programs run in lockstep on the same inputs, in one dtype, in eval mode. Values are freed after their last reader.
2. Two nodes correspond if they have the same name; their values are compared as ``compare`` says.
3. What absorption put into the slim program is put into the masked one, after it was worked out anew (folds.py); then outputs are also
   compared with the original's own.
4. The first node, in the original's order, that differs, cannot run or shows that the plan is illegal is named in the error.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import fx

from fxprune.errors import VerificationError
from fxprune.folds import OFF, Absorption
from fxprune.plan import Plan
from fxprune.verify.call import tensors
from fxprune.verify.compare import Comparison
from fxprune.verify.folds import check_exact, difference, fold_state
from fxprune.verify.masked import Masked, OneDtype, mask_state
from fxprune.verify.program import Program, copied_inputs, located, quiet
from fxprune.verify.replica import replica


@dataclass(frozen=True, slots=True)
class Evidence:
    """What a translation validation has seen.

    Attributes:
        max_relative_error: the greatest error of an output (``max |a - b| / max |a|``).
        nodes_compared: number of nodes whose values were compared.
        nodes_skipped: names of nodes of the original that have no counterpart, whose existence is decided later, or whose memory
            nothing has written to.
        nodes_reordered: names of nodes that agreed up to a permutation of channels (clause 2 of ``compare``).
        outputs_compared: number of output tensors.
        dtype: what both programs were computed in.
        seconds: wall time of the whole validation.
        shapes_checked: True if every compared node's shape was held against the plan.
        worst_node: the node with the greatest error, inner nodes included.
        worst_error: its error.
        outputs_empty: how many of the outputs have no elements (a detector that found nothing): they are no evidence, the nodes are.
        nodes_settled: names of calls that decided upon rounding, a tie or a value at a threshold (clause 7 of ``compare``).
        difference: largest relative difference of the outputs to those of the ORIGINAL, what removal and absorption leave together; NaN:
            not measured (``absorb=False``).
    """

    max_relative_error: float
    nodes_compared: int
    nodes_skipped: tuple[str, ...]
    nodes_reordered: tuple[str, ...]
    outputs_compared: int
    dtype: str
    seconds: float
    shapes_checked: bool
    worst_node: str
    worst_error: float
    outputs_empty: int = 0
    nodes_settled: tuple[str, ...] = ()
    difference: float = math.nan

    def __str__(self) -> str:
        """One line for people."""
        skipped = f", {len(self.nodes_skipped)} skipped" if self.nodes_skipped else ""
        plural = "s" * (self.outputs_compared != 1)
        empty = f" ({self.outputs_empty} of them empty)" if self.outputs_empty else ""
        return (
            f"verified: {self.outputs_compared} output{plural}{empty} and {self.nodes_compared} nodes "
            f"equal the masked original in {self.dtype} (outputs within {self.max_relative_error:.1e}, "
            f"worst node {self.worst_node!r} {self.worst_error:.1e}{skipped}; {self.seconds:.2f} s)"
        )


def run_masked(
    original: fx.GraphModule,
    plan: Plan,
    args: tuple[Any, ...] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    dtype: torch.dtype | str = torch.float64,
) -> Any:
    """Run the masked program and return its outputs; their masks are read with ``existence.mask_of``.

    Raises:
        VerificationError: the plan is illegal, or an operator that meets removed channels has no masked semantics.
        PlanMismatchError: the plan does not belong to the module.
    """
    with quiet():
        program = _masked_program(original, plan, args, kwargs or {}, floating_dtype(dtype))
        value: Any = None
        while not program.done:
            _, value = program.step()
    return value


def verify_slim(
    original: fx.GraphModule,
    slim: fx.GraphModule,
    plan: Plan,
    args: tuple[Any, ...] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    dtype: torch.dtype | str = torch.float64,
    rtol: float = 1e-9,
    absorption: Absorption | None = None,
) -> Evidence:
    """Hold the slim program against the masked original; neither module is changed.

    Args:
        original: the captured program.
        slim: the slim program.
        plan: what was removed.
        args: positional example inputs.
        kwargs: example inputs by name.
        dtype: what both programs are computed in.
        rtol: how much outputs may differ, relative.
        absorption: what was folded into the slim program (clause 3).

    Raises:
        VerificationError: at the first node that differs, cannot run, or shows that the plan is illegal.
        PlanMismatchError: the plan does not belong to the original.
    """
    began = time.perf_counter()
    dtype = floating_dtype(dtype)
    with quiet():
        folded = Absorption() if absorption is None else absorption
        masked = _masked_program(original, plan, args, kwargs or {}, dtype, slim, folded)
        small, _ = replica(slim, dtype)
        other = Program(slim.graph, small, copied_inputs(args, dtype), copied_inputs(kwargs or {}, dtype), "slim")
        other.mode = OneDtype(dtype)
        state = [*masked.module.parameters(), *tensors([masked.args, masked.kwargs])]
        result = _lockstep(masked, other, Comparison(plan, rtol, state))
        evidence, noise, apart = evidence_of(result, dtype, 0.0), result.noise, math.nan
        del masked, other, state, result  # the masked original's tensors, before the original's are copied
        if folded.mode != OFF and not noise:
            whole = Program(original.graph, replica(original, dtype)[0], *_calls(args, kwargs or {}, dtype), "original")
            whole.mode = OneDtype(dtype)
            again = Program(slim.graph, small, *_calls(args, kwargs or {}, dtype), "slim")
            again.mode = OneDtype(dtype)
            apart = difference(_output(again), _output(whole))
            if folded.exact:
                check_exact(apart, slim, rtol)
    return replace(evidence, seconds=time.perf_counter() - began, difference=apart)


def _calls(args: tuple[Any, ...], kwargs: Mapping[str, Any], dtype: torch.dtype) -> tuple[Any, Any]:
    return copied_inputs(args, dtype), copied_inputs(kwargs, dtype)


def _output(program: Program) -> Any:
    value: Any = None
    while not program.done:
        _, value = program.step()
    return value


def evidence_of(result: Comparison, dtype: torch.dtype, seconds: float) -> Evidence:
    """What a finished comparison has seen."""
    return Evidence(
        max_relative_error=result.outputs_error,
        nodes_compared=result.compared,
        nodes_skipped=tuple(result.skipped),
        nodes_reordered=tuple(result.reordered),
        outputs_compared=result.outputs,
        dtype=str(dtype).removeprefix("torch."),
        seconds=seconds,
        shapes_checked=True,
        worst_node=result.worst[1],
        worst_error=result.worst[0],
        outputs_empty=result.empty,
        nodes_settled=tuple(result.settled),
    )


def floating_dtype(dtype: torch.dtype | str) -> torch.dtype:
    found = getattr(torch, dtype.removeprefix("torch."), None) if isinstance(dtype, str) else dtype
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise VerificationError(
            f"dtype must be a floating dtype such as 'float64', got {dtype!r}.", expected="a floating dtype", got=dtype
        )
    return found


def _masked_program(
    original: fx.GraphModule,
    plan: Plan,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    dtype: torch.dtype,
    slim: fx.GraphModule | None = None,
    absorption: Absorption | None = None,
) -> Program:
    copied, memo = replica(original, dtype)
    mask_state(original, plan, memo)
    behind = {} if slim is None else fold_state(original, copied, memo, slim, plan, absorption or Absorption())
    program = Program(original.graph, copied, copied_inputs(args, dtype), copied_inputs(kwargs, dtype), "masked original")
    program.behind = behind
    state = [*copied.parameters(), *copied.buffers()]
    program.mode = Masked(dtype, plan.layout == "selection", lambda: [*program.tensors(), *state])
    return program


def _lockstep(masked: Program, slim: Program, comparison: Comparison) -> Comparison:
    """Run both programs and compare as soon as both values are there (clause 1)."""
    counterparts = {node.name: node for node in slim.nodes}
    wanted = {node.name for node in masked.nodes}
    held: dict[str, Any] = {}
    while not masked.done:
        node, expected = masked.step()
        counterpart = counterparts.get(node.name) if node.op != "output" else slim.nodes[-1]
        if counterpart is None:
            if tensors(expected):
                comparison.skipped.append(node.name)
            continue
        while counterpart.name not in held:
            ran, value = slim.step()
            if ran.name in wanted or ran is counterpart:
                held[ran.name] = value
        comparison.noise = masked.noise or slim.noise
        try:
            (comparison.output if node.op == "output" else comparison.inner)(node, expected, held.pop(counterpart.name))
        except VerificationError as error:
            raise located(error, counterpart) from None
    return comparison
