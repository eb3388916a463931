"""How long two networks take, measured in turns.

1. Rounds are interleaved: in every round each network runs once, and who begins alternates, so that all meet the same machine. The first
   rounds warm up and are thrown away.
2. A ratio is the median over rounds of (first network's time / another's time): what the machine does to a round it does to both.
3. Wall time is what a user waits; CPU time is what the process spends, over all threads. On a busy machine the second is the steadier one.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from fxprune.capture.inputs import Inputs
from fxprune.errors import InputError

WARM_UP = 2


@dataclass(frozen=True, slots=True)
class Latency:
    """One network's times (seconds), and how much faster it is than the first (clause 2).

    Attributes:
        name: what the network was called.
        wall: median wall time of a call.
        cpu: median CPU time of a call.
        speedup: median ratio of wall times, the first network's over this one's.
        cpu_speedup: the same of CPU times.
        low: a tenth of the rounds had a smaller ratio of wall times.
        high: a tenth had a greater one.
        rounds: how many rounds counted.
    """

    name: str
    wall: float
    cpu: float
    speedup: float
    cpu_speedup: float
    low: float
    high: float
    rounds: int


def measure(
    models: Mapping[str, nn.Module],
    inputs: Inputs,
    *,
    rounds: int = 30,
    seconds: float = 10.0,
    on_round: Callable[[int], None] | None = None,
) -> tuple[Latency, ...]:
    """Times of all networks on the same inputs (clauses 1 to 3), in evaluation mode; their modes are restored.

    Args:
        models: by name; the first one is what the others are compared with.
        inputs: of one call.
        rounds: at most that many rounds.
        seconds: no new round begins after that time, once there were three.
        on_round: called with the number of every round that ended.

    Raises:
        InputError: a network fails on the inputs.
    """
    modes = {name: model.training for name, model in models.items()}
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in models}
    try:
        for model in models.values():
            model.eval()
        with torch.no_grad():
            for _ in range(WARM_UP):
                for name, model in models.items():
                    _timed(name, model, inputs)
            begin = time.perf_counter()
            for number in range(rounds):
                if number >= 3 and time.perf_counter() - begin > seconds:
                    break
                for name in list(models) if number % 2 == 0 else reversed(list(models)):
                    times[name].append(_timed(name, models[name], inputs))
                if on_round is not None:
                    on_round(number + 1)
    finally:
        for name, model in models.items():
            model.train(modes[name])
    first = times[next(iter(models))]
    return tuple(_summed(name, own, first) for name, own in times.items())


def _timed(name: str, model: nn.Module, inputs: Inputs) -> tuple[float, float]:
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    try:
        wall, cpu = time.perf_counter(), time.process_time()
        model(*inputs.args, **inputs.kwargs)
        if device.type != "cpu":
            torch.accelerator.synchronize(device)
        return time.perf_counter() - wall, time.process_time() - cpu
    except (RuntimeError, TypeError, ValueError) as error:
        line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(f"{name} fails on these inputs: {line}", node=name, got=line) from error


def _summed(name: str, own: list[tuple[float, float]], first: list[tuple[float, float]]) -> Latency:
    wall, cpu = (statistics.median(pair[i] for pair in own) for i in (0, 1))
    ratios = [sorted(a[i] / max(b[i], 1e-9) for a, b in zip(first, own, strict=True)) for i in (0, 1)]
    tenth = len(own) // 10
    return Latency(
        name,
        wall,
        cpu,
        statistics.median(ratios[0]),
        statistics.median(ratios[1]),
        ratios[0][tenth],
        ratios[0][-1 - tenth],
        len(own),
    )


def runnable(inputs: Inputs, batch: int | None = None) -> Inputs:
    """The same call with numbers of its own to compute with: seeded normal ones, and zeros where inputs are whole numbers.

    Args:
        inputs: of any numbers, with memory of their own or not.
        batch: the leading dimension of every tensor that has one, if it is to be another.
    """
    generator = torch.Generator().manual_seed(0)

    def made(tensor: torch.Tensor) -> torch.Tensor:
        shape = (batch, *tensor.shape[1:]) if batch is not None and tensor.dim() else tuple(tensor.shape)
        device: Any = "cpu" if tensor.is_meta else tensor.device
        if not tensor.is_floating_point():
            return torch.zeros(shape, dtype=tensor.dtype, device=device)
        return torch.randn(shape, generator=generator, device="cpu").to(device, tensor.dtype)

    return inputs.map(made)
