"""One case, start to end, in this process."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.coverage.cases import LARGE, Case, call, floating
from benchmarks.coverage.randomise import randomise

RATIO = 0.5
QUICK = 2.0  # CPU seconds; a forward pass that takes less is timed a second time
TOLERANCE = {"float64": 1e-9, "float32": 1e-4}

Record = dict[str, Any]
Report = Callable[[Record], None]


def measure(case: Case, report: Report) -> Record:
    """Slim one model and use the result (clause 3 of the package).

    Args:
        case: the model.
        report: is told the record so far before each stage, so that a crash leaves something behind.
    """
    torch.set_num_threads(1)
    torch.manual_seed(0)
    warnings.simplefilter("ignore")
    record: Record = {"outcome": "failed"}
    try:
        _stages(case, record, report)
    except Exception as error:  # noqa: BLE001 - every error is an outcome
        record |= {"outcome": _kind(error, record["stage"])} | _described(error)
    return record


def _stages(case: Case, record: Record, report: Report) -> None:
    def stage(name: str) -> None:
        record["stage"] = name
        report(record)

    stage("import")
    import fxprune

    stage("build")
    model, inputs, dtype = _built(case, record)
    stage("original")
    shapes = _original(model, inputs, record)

    stage("analyze")
    began = time.process_time()
    graph = fxprune.analyze(model, inputs)
    record["analyze_cpu_seconds"] = round(time.process_time() - began, 3)
    free, channels = graph.prunable()
    record["prunable"] = round(free / channels, 4) if channels else 0.0
    record["channels"] = channels
    record["without_rule"] = sorted(graph.operators_without_rule)
    record["capture"] = _captured_how(graph)
    record["notes"] = list(graph.notes)

    stage("slim")
    began = time.process_time()
    slim = fxprune.slim(model, RATIO, inputs, verify=False)
    record["slim_cpu_seconds"] = round(time.process_time() - began, 3)

    stage("verify")
    try:
        evidence = fxprune.verify(model, slim, inputs)
    except fxprune.FxpruneError as error:
        # What a user gets: slim either mends the plan itself or refuses.
        record["first_plan"] = _described(error)["error"]
        slim = fxprune.slim(model, RATIO, inputs, verify=True)
        evidence = fxprune.verify(model, slim, inputs)
    record |= {"verified_error": evidence.max_relative_error, "verified_in": evidence.dtype, "worst_inside": evidence.worst_error}
    record |= {"outputs": evidence.outputs_compared, "outputs_empty": evidence.outputs_empty}
    plan = fxprune.plan_of(slim)
    record["achieved"] = round(plan.achieved, 4)
    record["notes"] = list(dict.fromkeys([*record["notes"], *plan.notes]))
    record["parameters_after"] = parameters(slim)

    stage("forward")
    outputs, record["macs_after"] = _counted(slim, inputs)
    found = [tuple(y.shape)[case.ragged :] for y in outputs]
    if found != [shape[case.ragged :] for shape in shapes]:
        raise AssertionError(f"outputs have shapes {found}, the original's {shapes}")
    if not all(y.isfinite().all() for y in outputs) and record["finite"]:
        raise AssertionError("outputs are not finite, the original's are")

    stage("train")
    _train(case, model, slim, dtype, record)
    allowed = TOLERANCE[evidence.dtype]
    if not evidence.max_relative_error <= allowed:
        raise AssertionError(f"verified error {evidence.max_relative_error:.2g} in {evidence.dtype}, allowed {allowed:.0g}")
    stage("done")
    record["outcome"] = "verified"


def _built(case: Case, record: Record) -> tuple[nn.Module, Any, torch.dtype]:
    """The randomised model and its inputs: batch 1, in float64 where it is not too large and can compute in it."""
    model = case.build().eval()
    record["parameters"] = parameters(model)
    dtype = torch.float32 if record["parameters"] > LARGE else torch.float64
    model = randomise(model.to(dtype))
    if dtype == torch.float64:
        try:
            with torch.no_grad():
                call(model, case.inputs(1, dtype))
        except RuntimeError as error:
            if "dtype" not in str(error) and "type" not in str(error):
                raise
            dtype = torch.float32
            model = model.float()
    record["dtype"] = str(dtype).removeprefix("torch.")
    return model, case.inputs(1, dtype), dtype


def _original(model: nn.Module, inputs: Any, record: Record) -> list[tuple[int, ...]]:
    began = time.process_time()
    outputs, record["macs"] = _counted(model, inputs)
    seconds = time.process_time() - began
    if seconds < QUICK:
        began = time.process_time()
        with torch.no_grad():
            call(model, inputs)
        seconds = time.process_time() - began
    record["forward_cpu_seconds"] = round(seconds, 3)
    record["finite"] = all(bool(y.isfinite().all()) for y in outputs)
    return [tuple(y.shape) for y in outputs]


def _counted(model: nn.Module, inputs: Any) -> tuple[list[Tensor], int]:
    """Floating outputs in eval mode, and multiply-adds."""
    model.eval()
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # its fused operator is not counted, nor is that of attention on the CPU
    counter = FlopCounterMode(display=False)
    counter.mod_tracker = _Nowhere()  # type: ignore[assignment]
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), counter:
        outputs = floating(call(model, inputs))
    torch.backends.mha.set_fastpath_enabled(fast)
    return outputs, counter.get_total_flops() // 2


class _Nowhere(nullcontext[None]):
    """In place of the counter's module tracker, whose hooks stumble over parameters handed to modules under ``no_grad``."""

    parents = frozenset({"Global"})


def _train(case: Case, model: nn.Module, slim: nn.Module, dtype: torch.dtype, record: Record) -> None:
    """One forward and backward pass in train mode with two samples: the batch size is another one than the one compiled for."""
    try:
        bad = _step(case, slim, case.inputs(2, dtype))
    except Exception as error:  # noqa: BLE001 - any error may be due to the batch size
        record["train"] = f"batch 2: {_described(error)['error']}"
        if _trains(case, model, case.inputs(2, dtype)):
            import fxprune

            record["batch"] = "fixed"
            fixed = fxprune.slim(model, RATIO, case.inputs(2, dtype), verify=False)
            bad = _step(case, fixed, case.inputs(2, dtype))
        else:
            record["train"] = "the original does not train on these inputs either"
            return
    if bad and _trains(case, model, case.inputs(2, dtype), finite=True):
        raise AssertionError(f"gradients of {bad} are not finite, the original's are")
    record.setdefault("train", "yes")
    record.setdefault("batch", "dynamic")


def _step(case: Case, model: nn.Module, inputs: Any) -> str:
    """Name of a parameter whose gradient is not finite, "" if all are."""
    torch.manual_seed(0)
    model.train()
    case.loss(model, inputs).backward()  # type: ignore[no-untyped-call]
    return next((n for n, p in model.named_parameters() if p.grad is not None and not p.grad.isfinite().all()), "")


def _trains(case: Case, model: nn.Module, inputs: Any, *, finite: bool = False) -> bool:
    try:
        bad = _step(case, model, inputs)
    except Exception:  # noqa: BLE001 - only whether is asked
        return False
    return not (finite and bad)


def parameters(model: nn.Module) -> int:
    """Number of parameters, shared ones once."""
    return sum(p.numel() for p in model.parameters())


def _captured_how(graph: Any) -> str:
    return str(getattr(getattr(getattr(graph, "program", None), "captured", None), "how", "unknown"))


def _kind(error: Exception, stage: str) -> str:
    own = any(base.__name__ == "FxpruneError" for base in type(error).__mro__)
    return "refused" if own and stage in {"analyze", "slim", "verify"} else "failed"


def _described(error: Exception) -> Record:
    """Type, first line, node and place of an error."""
    trace, place = error.__traceback__, ""
    while trace is not None:
        file = trace.tb_frame.f_code.co_filename
        if "/fxprune/" in file or not place:
            place = f"{'/'.join(file.split('/')[-3:])}:{trace.tb_lineno} {trace.tb_frame.f_code.co_name}"
        trace = trace.tb_next
    lines = str(error).strip().splitlines() or [""]
    return {
        "error": f"{type(error).__name__}: {lines[0][:400]}",
        "detail": "\n".join(lines[1:])[:2000],
        "node": str(getattr(error, "node", "")),
        "target": str(getattr(error, "target", "")),
        "place": place,
    }
