"""A captured program that runs on batches and lets itself be watched.

1. Nodes run one after another, in evaluation mode and without gradients, up to the last that somebody watches; values are dropped after their last
   use, so that memory is that of the model's own forward pass.
2. ``before`` sees the arguments of a node just before it runs, ``after`` its result just after: a later operation in place changes neither.
3. A run can be taken up where an earlier one left: ``Snapshot`` holds copies of the values that are still needed before a node.
4. The program runs on a structural clone: parameters and buffers are the model's own, except those that ``own`` has made copies of.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, fx, nn

from fxprune.capture.arguments import arguments
from fxprune.capture.clone import module_at, named_tensors, walk
from fxprune.capture.inputs import Inputs
from fxprune.errors import InputError
from fxprune.precision import home
from fxprune.provenance.interpret import attribute, evaluation_clone

Watch = Mapping[fx.Node, Callable[[Any], None]]
NOTHING: Watch = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Clause 3: the values before the node at ``place``."""

    place: int
    values: tuple[tuple[fx.Node, Any], ...]

    @classmethod
    def of(cls, place: int, values: Mapping[fx.Node, Any]) -> Snapshot:
        """Copies, in which views of one tensor stay views of one tensor."""
        return cls(place, tuple(zip(values, copy.deepcopy(list(values.values())), strict=True)))

    def copied(self) -> dict[fx.Node, Any]:
        """The values, to be used and written to."""
        return dict(zip((node for node, _ in self.values), copy.deepcopy([value for _, value in self.values]), strict=True))


@dataclass(frozen=True)
class Program:
    """A graph and the modules it calls (clause 4)."""

    graph: fx.Graph
    root: nn.Module

    @classmethod
    def of(cls, graph: fx.Graph, root: nn.Module, own: Iterable[str] = (), dtype: torch.dtype | None = None) -> Program:
        """A program in evaluation mode around a module's tensors; those named in ``own`` are copies, all are in ``dtype`` where one is given."""
        copied = frozenset(own)

        def tensor(name: str, value: Tensor) -> Tensor:
            found = value.detach() if dtype is None else value.detach().to(home(value.device, dtype))
            if dtype is not None and found.is_floating_point():
                return found.to(dtype, copy=True)
            return found.clone() if name in copied else found

        return cls(graph, evaluation_clone(root, lambda name, value: _like(value, tensor(name, value))))

    @cached_property
    def tensors(self) -> dict[str, Tensor]:
        """Every distinct parameter and buffer by its first name."""
        return named_tensors(walk(self.root))

    @cached_property
    def order(self) -> dict[fx.Node, int]:
        """The place of every node."""
        return {node: place for place, node in enumerate(self.graph.nodes)}

    @cached_property
    def _last_use(self) -> dict[fx.Node, list[fx.Node]]:
        """Per node, the values that nobody needs after it."""
        found: dict[fx.Node, list[fx.Node]] = {}
        seen: set[fx.Node] = set()
        for node in reversed(self.graph.nodes):
            ends = [used for used in (*node.all_input_nodes, node) if used not in seen]
            seen.update(ends)
            found[node] = list(dict.fromkeys(ends))
        return found

    def run(
        self,
        call: Inputs,
        before: Watch = NOTHING,
        after: Watch = NOTHING,
        start: Snapshot | None = None,
        keep: Callable[[Snapshot], None] | None = None,
    ) -> Any:
        """Run on one batch (clauses 1 to 3); what the program returns, or None where it was stopped before.

        With ``start`` the batch is not looked at. ``keep`` is given a snapshot of what is there before the first node that is watched.

        Raises:
            InputError: the batch does not fit the program.
        """
        watched = [self.order[node] for node in (*before, *after)]
        stop = max(watched) if watched else len(self.order)
        first = min(watched, default=-1) if keep is not None else -1
        begin = 0 if start is None else start.place
        env: dict[fx.Node, Any] = {} if start is None else start.copied()
        feed = iter(call.args)
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            for place, node in enumerate(self.graph.nodes):
                if place < begin:
                    continue
                if place == first and keep is not None:
                    keep(Snapshot.of(place, env))
                try:
                    result = self._node(node, env, feed, call, before)
                except InputError:
                    raise
                except Exception as error:
                    line = (str(error).strip() or type(error).__name__).splitlines()[0]
                    raise InputError(
                        f"the model fails on a batch at node {node.name!r}: {line}. Batches must fit the model, on its device and in its dtype.",
                        node=node.name,
                        target=str(node.target),
                        got=line,
                    ) from error
                if node in after:
                    after[node](result)
                if place >= stop or node.op == "output":
                    return result if node.op == "output" else None
                env[node] = result
                for done in self._last_use[node]:
                    env.pop(done, None)
        return None

    def _node(self, node: fx.Node, env: Mapping[fx.Node, Any], feed: Any, call: Inputs, before: Watch) -> Any:
        if node.op == "placeholder":
            return _argument(node, feed, call.kwargs)
        args, kwargs = arguments(node, env.__getitem__)
        if node in before:
            before[node]({used: env[used] for used in node.all_input_nodes})
        if node.op == "output":
            return args[0]
        if node.op == "get_attr":
            return attribute(self.root, str(node.target))
        if node.op == "call_module":
            return module_at(self.root, str(node.target))(*args, **kwargs)
        if node.op == "call_method":
            return getattr(args[0], str(node.target))(*args[1:], **kwargs)
        function: Any = node.target
        return function(*args, **kwargs)


def _like(old: Tensor, new: Tensor) -> Tensor:
    return nn.Parameter(new, requires_grad=False) if isinstance(old, nn.Parameter) else new


def _argument(node: fx.Node, feed: Any, kwargs: Mapping[str, Any]) -> Any:
    name = str(node.target).lstrip("*")
    if name in kwargs:
        return kwargs[name]
    if str(node.target).startswith("**"):
        return {}
    for value in feed:
        return value
    if node.args:
        return node.args[0]
    raise InputError(f"the model takes an input {name!r}, and a batch does not give it.", node=node.name, expected=name)
