"""How long every node of a program takes, in a real run of the whole.

1. The program runs node by node; the clock runs while a node computes and stands while values are fetched and forgotten. Caches, allocations
   and memory traffic are those of the whole program, which a layer that is called by itself does not have.
2. Of every node the third of rounds in which it took least counts, and of these the mean: other processes only ever add time, now to this node and
   now to that. Values are dropped as soon as nobody needs them, as in a normal run.
3. Runs node by node take turns with plain calls, whose time is the total: nodes add up to less, since calls cost something too.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import torch
from torch import fx

from fxprune.capture.inputs import Inputs
from fxprune.timing import clock_of, once, synchronize

WARM_UP = 2


class _Timed(fx.Interpreter):
    def __init__(self, program: fx.GraphModule, inputs: Inputs, device: torch.device) -> None:
        super().__init__(program, garbage_collect_values=True)
        self.inputs, self.device = inputs, device
        self.clock = clock_of(device)
        self.seconds: dict[str, list[float]] = {}

    def placeholder(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        name = str(target).lstrip("*")
        return self.inputs.kwargs[name] if name in self.inputs.kwargs else super().placeholder(target, args, kwargs)

    def run_node(self, n: fx.Node) -> Any:
        if n.op not in ("call_module", "call_function", "call_method"):
            return super().run_node(n)
        args, kwargs = self.fetch_args_kwargs_from_env(n)
        called: Any = n.target
        if n.op == "call_module":
            called = self.fetch_attr(str(n.target))
        elif n.op == "call_method":
            called, args = getattr(args[0], str(n.target)), args[1:]
        synchronize(self.device)
        start = self.clock()
        result = called(*args, **kwargs)
        synchronize(self.device)
        self.seconds.setdefault(n.name, []).append(self.clock() - start)
        return result


@torch.no_grad()
def profile(program: fx.GraphModule, inputs: Inputs, device: torch.device, rounds: int) -> tuple[dict[str, float], float]:
    """Seconds per node, and of the whole (clauses 1 to 3)."""
    own = inputs.map(torch.clone)
    timed = _Timed(program, own, device)
    plain = partial(program, *own.args, **own.kwargs)
    totals: list[float] = []
    for done in range(WARM_UP + rounds):
        if done == WARM_UP:
            timed.seconds.clear()
            totals.clear()
        timed.run(*inputs.map(torch.clone).args)
        totals.append(once(plain, device))
    few = max(1, rounds // 3)
    seconds = {name: float(np.mean(sorted(own)[:few])) for name, own in timed.seconds.items()}
    return seconds, float(np.mean(sorted(totals)[:few]))
