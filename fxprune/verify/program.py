"""Running a graph one node at a time, keeping values until their last reader has run."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.immutable_collections import immutable_dict, immutable_list

from fxprune.errors import VerificationError
from fxprune.verify.call import tensors
from fxprune.verify.masked import Masked, OneDtype
from fxprune.verify.replica import converted

AROUND = 3


class Program:
    """A graph, the module its targets live in, and the values of the nodes that have run.

    Attributes:
        values: the values that still have a reader, by node.
        position: the index of the next node to run.
        noise: the name of the first node that drew random numbers, empty if none has.
        behind: what is added to the values of nodes before anybody reads them (folds.py, clause 2), by name.
    """

    def __init__(self, graph: fx.Graph, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], title: str) -> None:
        self.nodes = list(graph.nodes)
        self.module = module
        self.args = list(args)
        self.kwargs = dict(kwargs)
        self.title = title
        self.values: dict[fx.Node, Any] = {}
        self.position = 0
        self.noise = ""
        self.behind: Mapping[str, Callable[[Tensor, Any], Tensor]] = {}
        self.mode: OneDtype = OneDtype(torch.float64)
        last: dict[fx.Node, fx.Node] = {}
        for node in self.nodes:
            for argument in node.all_input_nodes:
                last[argument] = node
        self.dying: dict[fx.Node, list[fx.Node]] = {}
        for argument, node in last.items():
            self.dying.setdefault(node, []).append(argument)

    @property
    def done(self) -> bool:
        """True if every node has run."""
        return self.position == len(self.nodes)

    def tensors(self) -> list[Tensor]:
        """The tensors among the values that are kept."""
        return tensors(list(self.values.values()))

    def step(self) -> tuple[fx.Node, Any]:
        """Run the next node and return its value.

        Raises:
            VerificationError: the node cannot run, or has no meaning in the masked program.
        """
        node = self.nodes[self.position]
        self.position += 1
        try:
            with self.mode:
                value = self._run(node)
        except VerificationError as error:
            raise located(error, node) from error.__cause__
        except Exception as error:
            what = str(error).partition("\n")[0]
            problem = VerificationError(
                f"the {self.title} program cannot run: {type(error).__name__}: {what}",
                expected="a node that runs",
                got=type(error).__name__,
            )
            raise located(problem, node) from error
        read = value
        if node.name in self.behind:
            with self.mode:
                read = self.behind[node.name](value, self.values[node.all_input_nodes[0]])
        if isinstance(self.mode, Masked):
            self.mode.flight.clear()
        if self.mode.drawn and not self.noise:
            self.noise = node.name
        for argument in self.dying.get(node, ()):
            self.values.pop(argument, None)
        if node.users:
            self.values[node] = read
        return node, value

    def _run(self, node: fx.Node) -> Any:
        if node.op == "placeholder":
            return self._placeholder(node)
        if node.op == "get_attr":
            return _attribute(self.module, str(node.target))
        args, kwargs = writable(fx.node.map_arg((node.args, node.kwargs), self.values.__getitem__))
        if node.op == "output":
            return args[0]
        if node.op == "call_module":
            return _attribute(self.module, str(node.target))(*args, **kwargs)
        if node.op == "call_method":
            return getattr(args[0], str(node.target))(*args[1:], **kwargs)
        assert callable(node.target)
        return node.target(*args, **kwargs)

    def _placeholder(self, node: fx.Node) -> Any:
        target = str(node.target)
        if target.startswith("**"):
            return self.kwargs
        if target.startswith("*"):
            rest, self.args = self.args, []
            return tuple(rest)
        if self.args:
            return self.args.pop(0)
        if target in self.kwargs:
            return self.kwargs.pop(target)
        if node.args:
            return node.args[0]
        raise VerificationError(f"no value was given for the input {target!r}", expected=target, got="nothing")


def writable(part: Any) -> Any:
    """Arguments with the literals' immutable lists and dicts (which fx makes of them) as lists and dicts a function may write to."""
    if isinstance(part, immutable_list):
        return [writable(item) for item in part]
    if isinstance(part, immutable_dict):
        return {key: writable(item) for key, item in part.items()}
    return tuple(writable(item) for item in part) if type(part) is tuple else part


def located(error: VerificationError, node: fx.Node) -> VerificationError:
    """The same error with its node, and the program around it."""
    if error.node:
        return error
    target = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))
    lines = surroundings(node)
    text = f"at node {node.name!r} ({node.op} {target}): {error}\n{lines}"
    return VerificationError(text, node=node.name, target=target, expected=error.expected, got=error.got)


def surroundings(node: fx.Node) -> str:
    """The node's line in its program, with the lines around it."""
    nodes = list(node.graph.nodes)
    at = nodes.index(node)
    near = nodes[max(0, at - AROUND) : at + AROUND + 1]
    return "\n".join(f"{'-->' if other is node else '   '} {other.format_node()}" for other in near)


def copied_inputs(tree: Any, dtype: torch.dtype) -> Any:
    """The inputs, copied, floating ones in the given dtype."""
    return torch.utils._pytree.tree_map(lambda leaf: converted(leaf, dtype) if isinstance(leaf, Tensor) else leaf, tree)


@contextmanager
def quiet() -> Iterator[None]:
    """No gradients, no fused fast paths that hide operators, and the random state left as it was."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


def _attribute(module: nn.Module, path: str) -> Any:
    value: Any = module
    for part in path.split("."):
        value = getattr(value, part)
    return value
