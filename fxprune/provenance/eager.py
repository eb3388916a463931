"""Run an eager module on its example inputs and record provenance as it runs.

1. The program is the sequence of calls that Python code makes: functions of tensors and methods, each with all that it does inside.
   A call is named by the path of the module it happens in and the function, numbered where that repeats.
2. The run is on numbers: branches, loops and shapes that depend on them are those of the example inputs.
3. Parameters and buffers enter when they are first used (interpret.py, clause 1). What the run does not reach has no atoms, stays as it is,
   and is named in ``unreached``.
4. Of results that say what later shapes and branches depend on, the numbers are kept: of those that are not floating, and of small ones.
   A slim module that is handed these numbers back takes the same path (rewrite/eager.py).
5. Model outputs are pinned, wherever they are in what the module returns.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils._pytree import tree_leaves

from fxprune.capture.clone import clone, named_tensors, to_meta, walk
from fxprune.capture.eager import EagerCaptured, tensors_in
from fxprune.capture.inputs import Inputs
from fxprune.errors import FxpruneError, InputError
from fxprune.provenance.factor import Ids, Value
from fxprune.provenance.interpret import Interpreted, convolution_weights, enter, evaluation_clone
from fxprune.provenance.ledger import Ledger, Recorder
from fxprune.provenance.rules import find
from fxprune.provenance.shadow import Enter, Shadowing
from fxprune.provenance.tracker import Tracker

SMALL, LARGE = 1 << 16, 1 << 24


@dataclass(frozen=True, slots=True)
class Call:
    """One call (clause 1).

    Attributes:
        name: unique in the run.
        operands: provenance of its tensor arguments.
        results: provenance of the tensors it returned; none for a call that reads a size or a number.
        numbers: what Python gave to its operators as numbers (shadow.py, clause 5).
        kept: the numbers of its results where they are kept (clause 4).
    """

    name: str
    operands: tuple[Value, ...]
    results: tuple[Value, ...]
    numbers: tuple[float, ...]
    kept: tuple[Tensor | None, ...] = field(repr=False)


@dataclass(frozen=True, slots=True)
class EagerProgram(Interpreted):
    """A recorded eager run: ``nodes`` are the results of every call by name, ``calls`` the sequence.

    ``told``: it read numbers out of tensors, or made shapes that depend on them.
    """

    calls: tuple[Call, ...] = ()
    outputs: tuple[Value, ...] = ()
    unreached: tuple[str, ...] = ()
    told: bool = False


OnCall = Callable[[str, Sequence[Tensor], Sequence[Tensor], Shadowing], None]


class Watching(TorchFunctionMode):
    """Sees every call that Python code makes, outermost only, and tells ``on_call`` (clause 1).

    Attributes:
        place: the path of the module that runs.
    """

    def __init__(self, shadowing: Shadowing, on_call: OnCall) -> None:
        super().__init__()
        self._shadowing, self._on_call = shadowing, on_call
        self._path: list[str] = []
        self._seen: Counter[str] = Counter()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = self.name(func)
        shadowing = self._shadowing
        shadowing.tracker.ledger.node = name
        shadowing.numbers.clear()
        shadowing.drawn = False
        operands = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        result = func(*args, **kwargs)
        if operands or isinstance(result, Tensor):
            with _disable_current_modes():
                self._on_call(name, operands, [x for x in tree_leaves(result) if isinstance(x, Tensor)], shadowing)
        return result

    def name(self, func: Any) -> str:
        """The name of the call that begins."""
        called = getattr(func, "__name__", type(func).__name__)
        if called == "__get__":
            called = getattr(func.__self__, "__name__", called)
        place = self._path[-1] if self._path else ""
        base = f"{place}.{called}" if place else str(called)
        count = self._seen[base]
        self._seen[base] += 1
        return f"{base}_{count}" if count else base

    def follow(self, root: nn.Module) -> None:
        """Learn, while the modules of a private clone run, in which of them a call happens."""
        for path, module in walk(root):
            if not isinstance(module, torch.jit.ScriptModule):
                module.register_forward_pre_hook(self._entering(path))
                module.register_forward_hook(lambda *_: self._leave(), always_call=True)

    def _entering(self, path: str) -> Callable[..., None]:
        def hook(*_: Any) -> None:
            self._path.append(path)

        return hook

    def _leave(self) -> None:
        if self._path:
            self._path.pop()


def run_eager(root: nn.Module, inputs: Inputs, ledger: Ledger, factors: Enter, on_call: OnCall) -> tuple[list[Tensor], Shadowing]:
    """Call a private clone; returns the tensors it gives and what knows their provenance."""
    shadowing = Shadowing(Tracker(ledger, find), find, factors)
    watching = Watching(shadowing, on_call)
    watching.follow(root)
    call = inputs.map(lambda x: x.detach().clone())
    for tensor in tensors_in((call.args, dict(call.kwargs))):
        shadowing.empty(tensor)
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]), shadowing, watching:
            torch.manual_seed(0)
            result = root(*call.args, **call.kwargs)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
    return tensors_in(result), shadowing


def private(_name: str, value: Tensor) -> Tensor:
    """The tensor map for a run that may write to buffers: parameters are shared, under another object, buffers copied."""
    return value.detach() if isinstance(value, nn.Parameter) else value.detach().clone()


def interpret_eager(captured: EagerCaptured, inputs: Inputs) -> EagerProgram:
    """Provenance of every call of an eager run (clauses 1 to 5).

    Raises:
        InputError: the module fails on these inputs.
    """
    recorder = Recorder()
    root = evaluation_clone(captured.root, private)
    names = {id(tensor): name for name, tensor in named_tensors(walk(root)).items()}
    convolutions = convolution_weights(captured.modules)
    roots: dict[str, tuple[Ids, ...]] = {}
    reached: set[str] = set()
    calls: list[Call] = []

    def factors(real: Tensor) -> tuple[Ids, ...] | None:
        name = names.get(id(real))
        if name is None:
            return None
        reached.add(name)
        if not (real.is_floating_point() or real.dtype == torch.bool):
            return None
        roots[name] = tuple(enter(recorder, name, real.shape, convolutions.get(name, 1), name in convolutions))
        return roots[name]

    def record(name: str, operands: Sequence[Tensor], results: Sequence[Tensor], shadowing: Shadowing) -> None:
        values = (tuple(map(shadowing.value, operands)), tuple(map(shadowing.value, results)))
        numbers = () if shadowing.drawn and not operands else tuple(shadowing.numbers)
        calls.append(Call(name, *values, numbers, tuple(map(_kept, results))))

    try:
        outputs, shadowing = run_eager(root, inputs, recorder, factors, record)
    except FxpruneError:
        raise
    except Exception as error:
        line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        place = calls[-1].name if calls else ""
        after = f" after call {place!r}" if place else ""
        raise InputError(f"the model fails on these example inputs{after}: {line}", node=place, got=line) from error
    recorder.node = "output"
    given = tuple(map(shadowing.value, outputs))
    for value in given:
        for ids in value.factors:
            recorder.pin(ids, "a model output keeps its shape")
    unreached = tuple(name for name in names.values() if name not in reached and not name.endswith("num_batches_tracked"))
    nodes: Mapping[str, Any] = {call.name: call.results for call in calls}
    if unreached:
        more = f" and {len(unreached) - 3} more" if len(unreached) > 3 else ""
        note = f"not reached by the example inputs, and left as they are: {', '.join(unreached[:3])}{more}"
        captured = replace(captured, notes=(*captured.notes, note))
    hollow = clone(captured.root, to_meta)
    return EagerProgram(
        captured, recorder, nodes, roots, hollow, inputs.on_meta(), tuple(calls), given, unreached, shadowing.told
    )


def _kept(real: Tensor) -> Tensor | None:
    """A copy of the numbers that later shapes may depend on (clause 4)."""
    if real.numel() > (SMALL if real.is_floating_point() or real.is_complex() else LARGE):
        return None
    return real.detach().clone()
