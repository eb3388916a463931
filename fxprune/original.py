"""The first original of a slim module, without its weights: enough to ask again why its channels are coupled, and what it cost.

1. The program is the captured one over modules whose floating-point tensors are on meta; whole numbers, which programs may read, stay. Nothing
   of the analysis is kept: ``graph`` makes it anew, with what the user and the fail-safe had barred, and gives the same atoms.
2. An eager module has no program; a call that cannot be written down (capture/signature.py) cannot be made again. Then there is no original.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from fxprune.capture.clone import clone
from fxprune.capture.inputs import Inputs
from fxprune.capture.signature import inputs_of
from fxprune.capture.tracer import Captured
from fxprune.graph.channels import ChannelGraph, build
from fxprune.graph.closure import close
from fxprune.provenance.eager import EagerProgram
from fxprune.provenance.factor import Ids
from fxprune.provenance.interpret import interpret


@dataclass(frozen=True, slots=True)
class Original:
    """Clause 1.

    Attributes:
        captured: the program.
        signature: of the example inputs.
        integers: tensors of whole numbers, by name.
        parameters: names of the parameters; all others are buffers.
        gammas: names of the scale factors.
        barred: atoms that were barred, with node and reason.
        uniform: splits that were made uniform.
        notes: of the channel graph.
    """

    captured: Captured
    signature: Any
    integers: Mapping[str, Tensor]
    parameters: frozenset[str]
    gammas: frozenset[str]
    barred: tuple[tuple[Ids, str, str], ...]
    uniform: frozenset[int]
    notes: tuple[str, ...]

    def program(self) -> Captured:
        """The captured program with its whole numbers."""

        def tensor(name: str, bare: Tensor) -> Tensor:
            found = self.integers.get(name, bare)
            return nn.Parameter(found, found.is_floating_point()) if name in self.parameters else found

        return replace(self.captured, root=clone(self.captured.root, tensor))

    def inputs(self) -> Inputs:
        """Example inputs without memory of their own, on meta where the parameters are."""
        return inputs_of(self.signature, self.captured.root)

    def graph(self) -> ChannelGraph:
        """The channel graph of the original, analyzed anew."""
        program = interpret(self.program(), self.inputs())
        made = build(program, program.captured.tensors, self.gammas)
        closed = close(program.recorder, self.uniform) if self.uniform else made.closed
        return replace(made, closed=closed, barred=self.barred, notes=self.notes)


def original(graph: ChannelGraph, signature: Any) -> Original | None:
    """The original behind a channel graph, without its weights; None by clause 2."""
    if isinstance(graph.program, EagerProgram) or signature is None:
        return None
    captured = graph.program.captured
    integers = {name: t for name, t in captured.tensors.items() if not (t.is_floating_point() or t.is_complex())}
    bare = replace(captured, root=graph.program.hollow)
    parameters = frozenset(name for name, t in captured.tensors.items() if isinstance(t, nn.Parameter))
    return Original(bare, signature, integers, parameters, graph.gammas, graph.barred, graph.closed.uniform, graph.notes)
