"""Translation validation of modules that were never turned into graphs: call by call, as they run.

1. The original and the slim module each run as ordinary Python, in one dtype and evaluation mode, on private copies. The original runs under the
   masked interpreter (masked.py), so its control flow, too, is that of the masked program.
2. What is compared are the calls that Python code makes: functions of tensors and methods, outermost only, by the path of the module
   they happen in, their name and their number. Both modules must make the same calls in the same order; the results are compared as ``compare``
   says. What an operator decomposes into may differ.
3. The modules take turns: one runs to its next call, then the other, then both results are compared while nothing has changed them.
4. The first call that differs, cannot run or shows that the plan is illegal is named, with the line of the model's source that made it.
5. Outputs are the tensors of whatever the modules return, however nested. Those without elements are counted apart: there the calls
   are the evidence.
6. Where the operands of a call agree and its result is not floating and differs, rounding was decided upon: a score within 1e-15 of a
   threshold, two scores that tie. The slim module goes on with the original's decision, and the evidence names the call.
7. Modules that make other calls the first time they run (they fill caches) may have run before or not: where the calls differ, both are
   run once, and then compared.
"""

from __future__ import annotations

import time
import traceback
import weakref
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils._pytree import tree_map

from fxprune.errors import PlanMismatchError, VerificationError
from fxprune.plan import Plan
from fxprune.verify.call import tensors
from fxprune.verify.compare import Comparison
from fxprune.verify.masked import Masked, OneDtype, mask_state
from fxprune.verify.program import copied_inputs, quiet
from fxprune.verify.replica import replica
from fxprune.verify.turns import Step, Stepped, Turns
from fxprune.verify.validate import Evidence, evidence_of, floating_dtype


class _OtherCallError(VerificationError):
    """The modules do not make the same calls."""


class Watched(TorchFunctionMode):
    """Tells ``on_call`` the name and results of every call that gives tensors (clause 2)."""

    def __init__(self, root: nn.Module, on_call: Step) -> None:
        super().__init__()
        self._on_call = on_call
        self._path: list[str] = []
        self._count: Counter[str] = Counter()
        for path, module in root.named_modules():
            if not isinstance(module, torch.jit.ScriptModule):
                for store in ("_forward_pre_hooks", "_forward_hooks", "_forward_hooks_always_called"):
                    vars(module)[store] = OrderedDict(vars(module)[store])  # a replica shares these with the user's module
                module.register_forward_pre_hook(self._entering(path))
                module.register_forward_hook(lambda *_: self._leave(), always_call=True)

    def _entering(self, path: str) -> Callable[..., None]:
        def hook(*_: Any) -> None:
            self._path.append(path)

        return hook

    def _leave(self) -> None:
        if self._path:
            self._path.pop()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, given = self._name(func), (args, kwargs or {})
        try:
            result = func(*given[0], **given[1])
        except VerificationError as error:
            raise located(error, name) from error.__cause__
        found = tensors(result)
        if not found:
            return result

        def again(operands: list[Tensor]) -> Any:
            # What writes to its operands cannot be made twice; its result is floating or was decided before.
            rest = iter(operands)
            others = tree_map(lambda leaf: next(rest) if isinstance(leaf, Tensor) else leaf, given)
            return None if any(x is y for x in found for y in tensors(given)) else func(*others[0], **others[1])

        with _disable_current_modes():
            instead = self._on_call(Stepped(name, tensors(given), found, again))
        return result if instead is None else instead

    def _name(self, func: Any) -> str:
        called = getattr(func, "__name__", type(func).__name__)
        called = getattr(func.__self__, "__name__", called) if called == "__get__" else called
        place = self._path[-1] if self._path else ""
        base = f"{place}.{called}" if place else str(called)
        count = self._count[base]
        self._count[base] += 1
        return f"{base}_{count}" if count else base


class MaskedRun(Masked):
    """The masked interpreter for a module whose values nobody lists: those that live are searched for aliases."""

    def __init__(self, dtype: torch.dtype, selection: bool, state: Iterable[Tensor]) -> None:
        self._living: dict[int, weakref.ref[Tensor]] = {}
        kept = list(state)
        super().__init__(
            dtype, selection, lambda: [*kept, *(t for ref in list(self._living.values()) if (t := ref()) is not None)]
        )

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        with torch._C.DisableTorchFunction():
            return super().__torch_dispatch__(func, types, args, kwargs)

    def note(self, func: Any, args: Any, result: Any) -> None:
        super().note(func, args, result)
        for tensor in self.flight:
            key = id(tensor)
            self._living[key] = weakref.ref(tensor, lambda _, key=key: self._living.pop(key, None))  # type: ignore[misc]
        self.flight.clear()


def verify_eager(
    original: nn.Module,
    slim: nn.Module,
    plan: Plan,
    args: tuple[Any, ...] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    dtype: torch.dtype | str = torch.float64,
    rtol: float = 1e-9,
) -> Evidence:
    """Hold a slim module against the masked original; neither is changed.

    Raises:
        VerificationError: at the first call that differs, cannot run, or shows that the plan is illegal.
        PlanMismatchError: the plan does not belong to the original.
    """
    began = time.perf_counter()
    dtype = floating_dtype(dtype)
    named = {
        name for name, _ in (*original.named_parameters(remove_duplicate=False), *original.named_buffers(remove_duplicate=False))
    }
    strange = sorted(set(plan.kept) - named)
    if strange:
        raise PlanMismatchError(f"the plan does not belong to this model: it has no {strange[0]!r}.", node=strange[0])
    with quiet():
        try:
            comparison = _attempt(original, slim, plan, (args, dict(kwargs or {})), dtype, rtol, warm=False)
        except _OtherCallError:
            comparison = _attempt(original, slim, plan, (args, dict(kwargs or {})), dtype, rtol, warm=True)
    return evidence_of(comparison, dtype, time.perf_counter() - began)


def _attempt(
    original: nn.Module, slim: nn.Module, plan: Plan, given: Any, dtype: torch.dtype, rtol: float, warm: bool
) -> Comparison:
    """One validation; ``warm``: of modules that have both run before (clause 7)."""
    comparison = Comparison(plan, rtol)
    copied, memo = replica(original, dtype)
    mask_state(original, plan, memo)
    masked = MaskedRun(dtype, plan.layout == "selection", [*copied.parameters(), *copied.buffers()])
    small, _ = replica(slim, dtype)
    other = OneDtype(dtype)
    if warm:
        for module, mode in ((copied, masked), (small, other)):
            with torch.no_grad(), mode:
                args, kwargs = copied_inputs(given, dtype)
                module(*args, **kwargs)
        other.random = masked.random
    second = copied_inputs(given, dtype)
    turns = Turns(lambda step: _run(small, other, second, step))
    try:
        _in_turns(copied, masked, copied_inputs(given, dtype), turns, other, comparison)
    finally:
        turns.abandon()
    return comparison


def _run(module: nn.Module, mode: OneDtype, given: Any, on_call: Step) -> list[Tensor]:
    with torch.no_grad(), mode, Watched(module, on_call):
        return tensors_in(module(*given[0], **given[1]))


def _in_turns(copied: nn.Module, masked: MaskedRun, given: Any, turns: Turns, other: OneDtype, comparison: Comparison) -> None:
    """Clause 3."""
    last = ["the beginning"]

    def compare(step: Stepped) -> None:
        name = last[0] = step.name
        found = turns.next()
        if found is None or found.name != name:
            said = f"makes the call {found.name!r}" if found else "returns"
            raise located(_OtherCallError(f"the slim module {said} where the original makes this one", got=said), name)
        if not comparison.noise and (masked.drawn or other.drawn):
            comparison.noise = name
        try:
            expected, got = (step.operands, step.values), (found.operands, found.values)
            turns.instead = comparison.decided(step, expected, got, found.again)
            comparison.inner(step, step.values, found.values if turns.instead is None else tensors(turns.instead))
        except VerificationError as error:
            raise located(error, name) from None

    try:
        outputs = _run(copied, masked, given, compare)
    except (VerificationError, PlanMismatchError):
        raise
    except Exception as error:
        what = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
        raise VerificationError(
            f"the masked original cannot run after call {last[0]!r}: {what}",
            node=last[0],
            expected="a module that runs",
            got=what,
        ) from error
    more = turns.next()
    if more is not None:
        raise _OtherCallError(f"the slim module goes on with the call {more.name!r} where the original returns", node=more.name)
    results = turns.result
    if len(results) != len(outputs):
        raise VerificationError(
            f"the original returns {len(outputs)} tensors, the slim module {len(results)}",
            node="output",
            expected=len(outputs),
            got=len(results),
        )
    try:
        comparison.output(Stepped("output", [], outputs, tuple), outputs, results)
    except VerificationError as error:
        raise located(error, "output") from None


def located(error: VerificationError, name: str) -> VerificationError:
    """The same error with the call, and the line of the model's source that makes it (clause 4)."""
    if error.node:
        return error
    frames = [f for f in traceback.extract_stack() if "/torch/" not in f.filename and "/fxprune/" not in f.filename]
    place = f' ({frames[-1].filename}:{frames[-1].lineno}, "{frames[-1].line}")' if frames and name != "output" else ""
    return type(error)(f"at call {name!r}{place}: {error}", node=name, expected=error.expected, got=error.got)


def tensors_in(value: Any) -> list[Tensor]:
    """The tensors of an output, each once: containers, and the attributes of objects of unknown classes (clause 5)."""
    found: list[Tensor] = []
    waiting, seen = [value], set()
    while waiting:
        item = waiting.pop(0)
        if id(item) in seen or isinstance(item, (str, bytes, int, float, type, nn.Module)):
            continue
        seen.add(id(item))
        if isinstance(item, Tensor):
            found.append(item)
        elif isinstance(item, Mapping):
            waiting = [*item.values(), *waiting]
        elif isinstance(item, (list, tuple, set, frozenset)):
            waiting = [*item, *waiting]
        else:
            waiting = [*getattr(item, "__dict__", {}).values(), *waiting]
    return found
