"""What a plan costs, from the provenance alone: parameters, multiply-adds and bytes of activations as polynomials of what is alive.

1. Parameters: the live elements of every parameter that the slim module will hold, each once.
2. MACs: the live elements of the index space of every contraction (contraction.py, clause 7), in one call on the example inputs. ``2 * macs`` is
   what ``torch.utils.flop_counter`` counts.
3. Activation bytes: of every result that a node of the program makes in one call on the example inputs, at that result's dtype. Views and
   in-place results are no new results (in the original: whether a reshape has to copy may depend on widths). It is what a forward pass
   writes, and no peak.
4. All three can be had for a part of the network: a *glob* matches modules by name, with all inside, or single parameters and nodes.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from fxprune.errors import BudgetError
from fxprune.graph.channels import ChannelGraph
from fxprune.graph.polynomial import Forms, Polynomial, Terms, added
from fxprune.provenance.factor import Value, along
from fxprune.provenance.interpret import Interpreted
from fxprune.provenance.ledger import Axis

KINDS = ("params", "macs", "activation_bytes")


@dataclass(frozen=True)
class Cost:
    """The costs of one graph. ``of(kind)`` is a polynomial over its coupled channels."""

    graph: ChannelGraph
    forms: Forms = field(init=False)

    def __post_init__(self) -> None:
        closed = self.graph.closed
        owners = np.zeros(closed.count, np.bool_)
        owners[closed.owners] = True
        object.__setattr__(self, "forms", Forms(closed.component, closed.count, owners))

    def of(self, kind: str, glob: str = "*") -> Polynomial:
        """Parameters, MACs or activation bytes of what a glob matches (clauses 1 to 4).

        Raises:
            BudgetError: an unknown kind, or a program whose activations cannot be counted.
        """
        parts = self.parts(kind)
        places = {
            "params": self._modules_of_parameters,
            "macs": self._modules_of_nodes,
            "activation_bytes": self._modules_of_nodes,
        }
        where = places[kind]()
        chosen = [(terms, 1) for name, terms in parts if matches(glob, name, where.get(name, ""))]
        return Polynomial(self.forms, added(chosen))

    def parts(self, kind: str) -> list[tuple[str, Terms]]:
        """What each parameter or node costs."""
        if kind == "params":
            return self._parameters
        if kind == "macs":
            return self._macs
        if kind == "activation_bytes":
            return self._activations
        raise BudgetError(f"cost must be one of {KINDS}, got {kind!r}.", expected=KINDS, got=kind)

    @cached_property
    def _parameters(self) -> list[tuple[str, Terms]]:
        """Clause 1."""
        axes: dict[str, list[Axis]] = {}
        program = self.graph.program
        whole = not len(program.captured.graph.nodes)  # an eager module stays whole
        for axis in self.graph.axes:
            axes.setdefault(axis.name, []).append(axis)
        return [
            (name, self.forms.count_of(parameter_space(tuple(tensor.shape), axes.get(name, []))))
            for name, tensor in self.graph.tensors.items()
            if isinstance(tensor, nn.Parameter) and (whole or name in program.roots)
        ]

    @cached_property
    def _macs(self) -> list[tuple[str, Terms]]:
        """Clause 2."""
        known: dict[Any, Terms] = {}
        found = []
        for product in self.graph.program.recorder.products:
            space = product.space
            key = (space.shape, *((ids.shape, ids.tobytes()) for ids in space.factors))
            if key not in known:
                known[key] = self.forms.count_of(space)
            found.append((product.node, known[key]))
        return found

    @cached_property
    def _activations(self) -> list[tuple[str, Terms]]:
        """Clause 3."""
        sizes = new_results(self.graph.program)
        found = []
        for name, own in sizes.items():
            leaves = torch.utils._pytree.tree_leaves(self.graph.nodes[name])
            values = [v for v in leaves if isinstance(v, Value)]
            found.append((name, added((self.forms.count_of(values[i]), size) for i, size in own)))
        return found

    def _modules_of_parameters(self) -> Mapping[str, str]:
        return {name: name.rpartition(".")[0] for name in self.graph.tensors}

    def _modules_of_nodes(self) -> Mapping[str, str]:
        return modules_of_nodes(self.graph.program)


def parameter_space(shape: tuple[int, ...], axes: list[Axis]) -> Value:
    """A parameter as a value, with the rows of a grouped convolution's weight in blocks (plan.py, clause 3)."""
    blocks = max((axis.blocks for axis in axes), default=1)
    spread = (blocks, shape[0] // blocks, *shape[1:]) if shape else ()
    rank, factors = len(spread), []
    for axis in axes:
        ids = np.arange(axis.start, axis.start + axis.size, dtype=np.int64)
        if axis.blocks > 1:
            sizes = [1] * rank
            sizes[0], sizes[axis.dim + 1] = blocks, axis.size // blocks
            factors.append(ids.reshape(sizes))
        elif axis.dim == 0 and blocks > 1:
            factors.append(ids.reshape(blocks, -1, *(1,) * (rank - 2)))
        else:
            factors.append(along(ids, axis.dim + 1, rank))
    return Value(spread, tuple(factors))


def matches(glob: str, name: str, module: str) -> bool:
    """Clause 4: the glob matches the name, the module, or one that the module is part of."""
    if glob == "*" or fnmatch.fnmatchcase(name, glob):
        return True
    while module:
        if fnmatch.fnmatchcase(module, glob):
            return True
        module = module.rpartition(".")[0]
    return False


def modules_of_nodes(program: Interpreted) -> dict[str, str]:
    """The module in which each node of the program works."""
    found = {} if len(program.captured.graph.nodes) else {name: name.rpartition(".")[0] for name in program.nodes}
    for node in program.captured.graph.nodes:
        stack = node.meta.get("nn_module_stack")
        inner = str(next(reversed(stack))) if stack else ""
        found[node.name] = str(node.target) if node.op == "call_module" else inner
    return found


class _Results(fx.Interpreter):
    """Runs a program on meta tensors and notes which results of nodes are new (clause 3)."""

    def __init__(self, program: Interpreted) -> None:
        super().__init__(fx.GraphModule(program.hollow, program.captured.graph))
        self.kwargs = program.inputs.kwargs
        self.sizes: dict[str, list[tuple[int, int]]] = {}
        self._seen: list[Tensor] = []
        self._storages: set[int] = set()

    def placeholder(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        name = str(target).lstrip("*")
        return self.kwargs[name] if name in self.kwargs else super().placeholder(target, args, kwargs)

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        tensors = [x for x in torch.utils._pytree.tree_leaves(result) if isinstance(x, Tensor)]
        for index, tensor in enumerate(tensors):
            storage = tensor.untyped_storage()._cdata
            if storage not in self._storages:
                self._storages.add(storage)
                self._seen.append(tensor)  # while it lives no other storage has its address
                if n.op.startswith("call"):
                    self.sizes.setdefault(n.name, []).append((index, tensor.element_size()))
        return result


def new_results(program: Interpreted) -> dict[str, list[tuple[int, int]]]:
    """Which tensors of a node's result are new, and the bytes of an element of each.

    Raises:
        BudgetError: the program has no graph, or does not run without numbers.
    """
    why = "it is run as an eager module, without a graph" if not len(program.captured.graph.nodes) else ""
    if not why:
        results = _Results(program)
        try:
            with torch.no_grad():
                results.run(*program.inputs.args)
        except (NotImplementedError, RuntimeError) as error:
            why = f"its program reads numbers ({str(error).splitlines()[0]})"
        else:
            return results.sizes
    raise BudgetError(
        f"activation_bytes cannot be counted for this model: {why}. Ask for params or macs.", got="activation_bytes"
    )
