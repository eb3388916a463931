"""The layers of a module that has no graph, and their multiply-adds.

1. A layer is a module that ran and holds parameters of its own, in the order of first use; a parameter counts at the first that holds it.
2. Multiply-adds are counted while the module runs on its example inputs, and belong to the innermost module in which they happen.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fxprune.capture.clone import walk
from fxprune.capture.inputs import Inputs
from fxprune.provenance.eager import private
from fxprune.provenance.interpret import evaluation_clone

Row = tuple[str, str, int, int, int, int]
Widths = Callable[[str, Mapping[str, Tensor]], tuple[int, int]]


def eager_layers(root: nn.Module, inputs: Inputs, widths: Widths) -> Iterator[Row]:
    """Name, kind, widths before and after, parameters and multiply-adds of every layer (clauses 1 and 2)."""
    from torch.utils.flop_counter import FlopCounterMode  # importing fxprune stays quick

    counter = FlopCounterMode(display=False)
    copied = evaluation_clone(root, private)
    macs: dict[str, int] = {}
    path: list[str] = []
    counted = [0]

    def settle() -> None:
        total = counter.get_total_flops() // 2
        place = path[-1] if path else ""
        macs[place] = macs.get(place, 0) + total - counted[0]
        counted[0] = total

    def entering(name: str) -> Callable[..., None]:
        def hook(*_: Any) -> None:
            settle()
            path.append(name)
            macs.setdefault(name, 0)

        return hook

    def leave(*_: Any) -> None:
        settle()
        path.pop()

    for name, module in walk(copied):
        if not isinstance(module, torch.jit.ScriptModule):
            module.register_forward_pre_hook(entering(name))
            module.register_forward_hook(leave)
    call = inputs.map(torch.clone)
    with torch.no_grad(), counter:
        copied(*call.args, **call.kwargs)
    settle()
    modules, seen = dict(walk(root)), set[int]()
    for name, count in macs.items():
        own = {
            f"{name}.{key}" if name else key: p
            for key, p in modules[name]._parameters.items()
            if p is not None and id(p) not in seen
        }
        seen.update(id(p) for p in own.values())
        if own or count:
            before, after = widths(name, own)
            yield name or "(root)", type(modules[name]).__name__, before, after, sum(p.numel() for p in own.values()), count
