"""Emit a slim eager module: same class, smaller tensors, no rewriting; what would need a number in Python code patched is found by trying.

1. A structural clone gets slim tensors (slicing.py) and patched module attributes (attributes.py; those of modules without parameters
   when they are called in a rehearsal). Its Python code is the original's.
2. *Rehearsal*: the clone is run on the example inputs, with the ORIGINAL atoms as ids (arrival.py). Call by call it must do what the
   analysis saw (provenance/eager.py): the same function, results of the predicted shapes holding the predicted channels.
3. Numbers that Python gives to operators (a scale, literal data) must be those of the original: one that was computed from a width would
   silently change.
4. Results that keep their shape are overwritten with the numbers of the original's run where these were kept, so branches, loops and
   shapes that depend on numbers are those of the analysis.
5. At the first call that fails or differs, the channels that meet there are named in an ``UnmetError``, for the caller to pin and plan
   anew. Where a number differs, it was computed from a size: the channels of the size that was read last are named first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor, nn

from fxprune.capture.clone import clone, named_tensors, walk
from fxprune.capture.inputs import Inputs
from fxprune.capture.tracer import users_frames
from fxprune.errors import RewriteError
from fxprune.graph.channels import ChannelGraph
from fxprune.plan import Kept
from fxprune.provenance.eager import Call, EagerProgram, run_eager
from fxprune.provenance.factor import Ids, Mask, Value, live_sizes, support
from fxprune.provenance.interpret import evaluation_clone
from fxprune.provenance.ledger import Axis
from fxprune.provenance.shadow import Shadowing
from fxprune.rewrite import attributes
from fxprune.rewrite.arrival import Arrival, OrderConflictError, by_node
from fxprune.rewrite.emit import PASSES, Emitted, listed
from fxprune.rewrite.slicing import LARGEST_CHUNK, STATISTICS, flush, like, living, silence, slim_factors, take

Order = Mapping[Axis, Ids]
BARE = (nn.LayerNorm, nn.RMSNorm, nn.GroupNorm, nn.modules.batchnorm._NormBase, nn.Unflatten)


class UnmetError(RewriteError):
    """The module's Python code does not adapt to a plan. ``components`` are the coupled channels that meet where it shows."""

    def __init__(self, message: str, node: str, components: Ids) -> None:
        super().__init__(message, node=node)
        self.components = components


def emit_eager(
    graph: ChannelGraph,
    removed: Mask,
    inputs: Inputs,
    silent: Kept | None = None,
    kept: Kept | None = None,
    *,
    weights: bool = True,
) -> Emitted:
    """The slim module for a set of removed coupled channels; ``weights=False`` only rehearses, and returns the original.

    ``kept``: as for ``emit``.

    Raises:
        OrderConflictError: channels arrive in an order that no weights can mend.
        UnmetError: a call differs; clause 5.
        RewriteError: a call differs, and no channel that could stay is behind it.
    """
    alive = ~removed[graph.closed.component]
    rows = {a: (kept or {}).get(a.name, {}).get(a.dim) for a in graph.axes}
    order = {a: listed(np.flatnonzero(alive[a.start : a.start + a.size]), rows[a]) for a in graph.axes}
    by_name: dict[str, list[Axis]] = {}
    for axis in graph.axes:
        by_name.setdefault(axis.name, []).append(axis)
    reordered = False
    for _ in range(PASSES):
        recorder = graph.program.recorder
        arrival = Arrival(graph.closed.component, alive, recorder.created, order, by_node(recorder.blocks), recorder.unproduced)
        rehearsal = _Rehearsal(graph, alive, arrival, by_name)
        try:
            rehearsal.run(inputs)
        except OrderConflictError:
            if not arrival.reordered:
                raise
        if not arrival.reordered:
            break
        order, reordered = arrival.order, True
    else:
        raise RewriteError(f"the order of channels did not settle in {PASSES} passes.")
    if not weights:
        return Emitted(graph.program.captured.root, order, reordered)
    return Emitted(_sliced(graph, by_name, order, silent or {}, rehearsal.fitted), order, reordered)


def _sliced(
    graph: ChannelGraph, by_name: Mapping[str, list[Axis]], order: Order, silent: Kept, fitted: Mapping[str, nn.Module]
) -> nn.Module:
    """Clause 1, with the weights to keep."""
    captured = graph.program.captured
    names = {id(tensor): name for name, tensor in captured.tensors.items()}

    def copy(_: str, old: Tensor) -> Tensor:
        name = names.get(id(old), "")
        axes = by_name.get(name, ())
        new = take(old, axes, order, LARGEST_CHUNK)
        if isinstance(old, nn.Parameter) or name.endswith(STATISTICS):
            flush(new)
        if name in silent:
            silence(new, old.shape, axes, order, silent[name])
        return like(old, new)

    root = clone(captured.root, copy)
    _attributes(root, captured.modules, by_name, order)
    for name, module in walk(root):
        if name in fitted:
            module.__dict__.update(fitted[name].__dict__["_fxprune_fitted"])
    return root


def _attributes(
    root: nn.Module, originals: Sequence[tuple[str, nn.Module]], by_name: Mapping[str, list[Axis]], order: Order
) -> None:
    groups = living(originals, by_name, order)
    for (name, module), (_, original) in zip(walk(root), originals, strict=True):
        attributes.from_weights(module, original, groups.get(name, 0))


@dataclass(slots=True)
class _Rehearsal:
    """One run of the slim clone beside the record of the original's (clauses 2 to 5)."""

    graph: ChannelGraph
    alive: Mask
    arrival: Arrival
    by_name: Mapping[str, list[Axis]]
    position: int = 0
    problem: Exception | None = None
    fitted: dict[str, nn.Module] = field(default_factory=dict)
    shapes: dict[tuple[object, ...], tuple[int, ...]] = field(default_factory=dict)

    @property
    def program(self) -> EagerProgram:
        program = self.graph.program
        assert isinstance(program, EagerProgram)
        return program

    def run(self, inputs: Inputs) -> None:
        captured, order = self.program.captured, self.arrival.order
        names = {id(tensor): name for name, tensor in captured.tensors.items()}

        def shrink(_: str, old: Tensor) -> Tensor:
            return take(old, self.by_name.get(names.get(id(old), ""), ()), order, LARGEST_CHUNK)

        root = evaluation_clone(captured.root, shrink)
        _attributes(root, captured.modules, self.by_name, order)
        for path, module in walk(root):
            if isinstance(module, BARE) and module._parameters.get("weight") is None:
                module.register_forward_pre_hook(self._fitting(path))
        owners = {id(tensor): name for name, tensor in named_tensors(walk(root)).items()}

        def factors(real: Tensor) -> list[Ids] | None:
            name = owners.get(id(real), "")
            if name not in self.program.roots:
                return None
            axes = self.by_name.get(name, [])
            found = slim_factors(captured.tensors[name].shape, axes, order)
            for axis, ids in zip(axes, found, strict=True):
                self.arrival.enter(axis, ids)
            return found

        try:
            outputs, shadowing = run_eager(root, inputs, self.arrival, factors, self._call)
        except OrderConflictError:
            raise
        except Exception as error:
            raise self._unmet(self.problem or error) from error
        if self.problem is not None:  # the module's own code caught what was raised
            raise self._unmet(self.problem)
        given = [
            _DifferenceError(p)
            for o, t in zip(self.program.outputs, outputs, strict=False)
            if (p := self._differs(o, t, shadowing))
        ]
        if len(outputs) != len(self.program.outputs) or given:
            raise self._unmet(given[0] if given else _DifferenceError("the module returns another number of tensors"))

    def _fitting(self, path: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        """Attributes of a module without parameters, from what it is called with (clause 1)."""

        def hook(module: nn.Module, args: tuple[Any, ...]) -> None:
            calls = self.program.calls[self.position : self.position + 1]
            if not args or not isinstance(args[0], Tensor) or not calls or not calls[0].results:
                return
            if attributes.from_values(module, tuple(args[0].shape), self._predict(calls[0].results[0]), None):
                self.fitted[path] = module

        return hook

    def _call(self, name: str, _: Sequence[Tensor], results: Sequence[Tensor], shadowing: Shadowing) -> None:
        """Clauses 2 to 4 for one call."""
        calls = self.program.calls
        expected = calls[self.position] if self.position < len(calls) else None
        if expected is None or expected.name != name:
            self._refuse(
                _DifferenceError(f"it calls {name!r} where the original calls {expected.name if expected else 'nothing more'!r}")
            )
            return
        found = self._problem(expected, results, shadowing)
        if found is not None:
            self._refuse(found)
        for value, real, kept in zip(expected.results, results, expected.kept, strict=True):
            self._replay(value, real, kept)
        self.position += 1

    def _refuse(self, problem: Exception) -> None:
        self.problem = self.problem or problem
        raise problem

    def _problem(self, expected: Call, results: Sequence[Tensor], shadowing: Shadowing) -> _DifferenceError | None:
        if len(results) != len(expected.results):
            return _DifferenceError(f"it gives {len(results)} tensors, the original's {len(expected.results)}")
        for value, real in zip(expected.results, results, strict=True):
            found = self._differs(value, real, shadowing)
            if found is not None:
                return _DifferenceError(found)
        if sorted(expected.numbers) != sorted(shadowing.numbers) and not (shadowing.drawn and not expected.numbers):
            return _DifferenceError("a number that the original computes from a width would change", number=True)
        return None

    def _replay(self, value: Value, real: Tensor, kept: Tensor | None) -> None:
        """Clause 4."""
        if kept is None or kept.shape != real.shape or not all(self.alive[ids].all() for ids in value.factors):
            return
        try:
            real.copy_(kept)
        except RuntimeError:  # overlapping memory: a value that was broadcast holds what its source holds
            return

    def _differs(self, value: Value, real: Tensor, shadowing: Shadowing) -> str | None:
        """What is wrong with a slim result (clause 2), or None."""
        predicted = self._predict(value)
        if tuple(real.shape) != predicted:
            return f"the result has shape {tuple(real.shape)}, provenance predicts {predicted}"
        own = shadowing.value(real).factors
        if len(own) != len(value.factors):
            return None
        component = self.arrival.component
        for old, new in zip(value.factors, own, strict=True):
            want, have = component[old[self.alive[old]]], component[new].ravel()
            if len(support(old)) == 1 and not np.array_equal(want, have):
                if (new == 0).any() or self.arrival.is_fresh(old) != self.arrival.is_fresh(new):
                    continue
                if not np.array_equal(np.sort(want), np.sort(have)):
                    return "the result holds other channels than provenance predicts"
        return None

    def _predict(self, value: Value) -> tuple[int, ...]:
        if not value.factors:
            return value.shape
        key = (value.shape, *(id(ids) for ids in value.factors))
        found = self.shapes.get(key)
        if found is None:
            sizes = live_sizes(value.shape, value.factors, self.alive, self.graph.within_blocks)
            if sizes is None:
                components = np.unique(np.concatenate([self.arrival.component[ids].ravel() for ids in value.factors]))
                raise OrderConflictError(
                    f"what is left at {self.arrival.node!r} does not fill a box.", self.arrival.node, components
                )
            found = self.shapes[key] = sizes
        return found

    # -- who is to stay ------------------------------------------------------------------------------------------------

    def _unmet(self, error: Exception) -> RewriteError:
        """Clause 5."""
        calls = self.program.calls
        name = calls[self.position].name if self.position < len(calls) else "output"
        line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        if not isinstance(error, _DifferenceError):
            line = f"{type(error).__name__}: {line}"
        message = f"at {name!r}{_place(error)}: {line}"
        for call in self._suspects(isinstance(error, _DifferenceError) and error.number):
            components = self._removable(call)
            if len(components):
                return UnmetError(message, name, components)
        return RewriteError(f"the module's Python code does not adapt to the plan {message}.", node=name)

    def _suspects(self, number: bool) -> Iterator[Call]:
        """The calls whose channels may be to blame, the likeliest first."""
        calls = self.program.calls
        before = [calls[i] for i in range(min(self.position, len(calls)) - 1, -1, -1)]
        here = list(calls[self.position : self.position + 1])
        reads = [call for call in before if not call.results]
        yield from (*reads, *here) if number else (*here, *reads)
        yield from before

    def _removable(self, call: Call) -> Ids:
        """The coupled channels of a call that can go, if the plan removes some of them."""
        ids = [f.ravel() for value in (*call.operands, *call.results) for f in value.factors]
        atoms = np.concatenate([np.zeros(0, np.int64), *ids])
        found = np.unique(self.arrival.component[atoms[~self.alive[atoms]]])
        if not len(found[~self.graph.pinned[found]]):
            return np.zeros(0, np.int64)
        touched: Ids = np.unique(self.arrival.component[atoms])
        free: Ids = touched[~self.graph.pinned[touched]]
        return free


class _DifferenceError(Exception):
    """A call of the slim module that does not do what the analysis saw; ``number``: clause 3."""

    def __init__(self, message: str, number: bool = False) -> None:
        super().__init__(message)
        self.number = number


def _place(error: BaseException) -> str:
    """Where in the model's source an error passed."""
    frames = users_frames(error)
    return f' ({frames[-1].filename}:{frames[-1].lineno}, "{frames[-1].line}")' if frames else ""
