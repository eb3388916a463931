"""Batches as loaders give them, taken apart: inputs, targets, number of samples.

1. A batch is a tensor (inputs alone); a tuple or list whose first entry is the input and whose others are the target (one as it is, several as a
   tuple); or a dict of keyword arguments, which is the target too.
2. An input is a tensor, a tuple or list of arguments, or a dict of keyword arguments. Samples are along dimension 0 of its first tensor.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from fxprune.capture.inputs import Inputs, given
from fxprune.errors import InputError


@dataclass(frozen=True, slots=True)
class Batch:
    """Inputs of one call, the target (None if there is none) and the number of samples."""

    inputs: Inputs
    target: Any
    samples: int

    def sample(self, index: int) -> Batch:
        """One sample, as a batch of one."""

        def cut(tensor: Tensor) -> Tensor:
            return tensor[index : index + 1] if tensor.dim() and tensor.shape[0] == self.samples else tensor

        target = torch.utils._pytree.tree_map_only(Tensor, cut, self.target)
        return Batch(self.inputs.map(cut), target, 1)


def batches(loader: Iterable[Any], device: torch.device, most: int | None = None) -> Iterator[Batch]:
    """The batches of a loader on a device, at most ``most`` of them (clauses 1 and 2).

    Raises:
        InputError: a batch that holds no tensor, or a loader without batches.
    """
    empty = True
    for batch in islice(loader, most):
        empty = False
        moved = torch.utils._pytree.tree_map_only(Tensor, lambda t: t.to(device), batch)
        if isinstance(moved, (tuple, list)) and moved:
            inputs, rest = moved[0], moved[1:]
            target = None if not rest else rest[0] if len(rest) == 1 else tuple(rest)
        else:
            inputs, target = moved, moved if isinstance(moved, Mapping) else None
        call = given(inputs)
        tensors = [x for x in torch.utils._pytree.tree_leaves((call.args, dict(call.kwargs))) if isinstance(x, Tensor)]
        if not tensors or not tensors[0].dim():
            raise InputError(
                f"a batch of the loader holds no tensor of samples: {type(batch).__name__}.", got=type(batch).__name__
            )
        yield Batch(call, target, int(tensors[0].shape[0]))
    if empty:
        raise InputError(
            "the loader gave no batch. A loader must give batches every time it is iterated (a list or a DataLoader does; an iterator gives them "
            "once, and layout='auto' looks at two graphs).",
            got=type(loader).__name__,
        )
