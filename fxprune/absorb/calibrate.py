"""Expected outputs of removed channels from data.

1. The original runs, in evaluation mode, on every batch of a loader; at every reader the mean and the standard deviation of each removed input
   channel over samples and positions are taken down, in one streaming pass with float64 sums.
2. A batch is what the model is called with: a tensor, a dict of keyword arguments, or a tuple or list of which the first so many entries are
   taken as the example inputs have arguments (a loader of images and labels serves).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from fxprune.absorb.arrivals import Arrival
from fxprune.capture.clone import same
from fxprune.capture.inputs import Inputs
from fxprune.capture.tracer import Captured
from fxprune.errors import InputError
from fxprune.precision import double
from fxprune.provenance.interpret import evaluation_clone


class _Sums:
    """Clause 1, for one reader."""

    def __init__(self, arrival: Arrival) -> None:
        self.arrival = arrival
        self.index = torch.from_numpy(arrival.atoms)
        self.count = 0
        self.total = torch.zeros(len(arrival.atoms), dtype=torch.float64, device="cpu")
        self.squares = torch.zeros_like(self.total)

    def see(self, x: Tensor) -> None:
        dim = self.arrival.reader.channel
        part = double(x.detach().index_select(dim, self.index.to(x.device)).movedim(dim, 0).flatten(1))
        self.count += part.shape[1]
        self.total += part.sum(1).cpu()
        self.squares += part.square().sum(1).cpu()

    def moments(self) -> tuple[Tensor, Tensor]:
        mean = self.total / self.count
        return mean, (self.squares / self.count - mean.square()).clamp(min=0).sqrt()


class _Watched(fx.Interpreter):
    def __init__(self, module: fx.GraphModule, sums: Mapping[str, _Sums]) -> None:
        super().__init__(module)
        self.sums = sums

    def run_node(self, n: fx.Node) -> Any:
        found = self.sums.get(n.name)
        if found is not None:
            found.see(self.env[n.args[0]])  # type: ignore[index]
        return super().run_node(n)


def measured(
    captured: Captured, inputs: Inputs, arrivals: Sequence[Arrival], loader: Iterable[Any]
) -> dict[str, tuple[Tensor, Tensor]]:
    """Clauses 1 and 2: mean and standard deviation of the removed inputs, by the reader's node.

    Raises:
        InputError: the loader is empty, or the model does not take its batches.
    """
    sums = {arrival.reader.node.name: _Sums(arrival) for arrival in arrivals}
    module = fx.GraphModule(evaluation_clone(captured.root, same), captured.graph, captured.name)
    watched = _Watched(module, sums)
    count = 0
    with torch.no_grad():
        for batch in loader:
            count += 1
            try:
                watched.run(*_arguments(batch, inputs, module))
            except Exception as error:
                line = (str(error).strip() or type(error).__name__).splitlines()[0]
                raise InputError(
                    f"the model does not take batch {count} of the loader given as absorb=: {line}. A batch is a tensor, a dict of keyword "
                    "arguments, or a tuple that begins with the model's arguments.",
                    got=line,
                ) from error
    if not count:
        raise InputError("the loader given as absorb= has no batch. An iterator that was used up cannot be read again.", got=0)
    return {name: found.moments() for name, found in sums.items() if found.count}


def _arguments(batch: Any, inputs: Inputs, module: nn.Module) -> list[Any]:
    """The values of the program's placeholders, in order."""
    names = [str(n.target) for n in module.graph.nodes if n.op == "placeholder"]  # type: ignore[union-attr]
    if isinstance(batch, Tensor):
        return [batch]
    if isinstance(batch, Mapping):
        last = max((i for i, name in enumerate(names) if name in batch), default=-1)
        return [batch.get(name) for name in names[: last + 1]]
    return list(batch[: max(1, len(inputs.args) + len(inputs.kwargs))])
