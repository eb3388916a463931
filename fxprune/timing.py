"""Times of calls that stand comparison: interleaved, on a device that has finished.

1. Every round takes the candidates in turn, in reversed order in every second round: what slows the machine down for a while slows all of
   them. Before the first round each is called twice. A turn of a candidate that takes less than ``QUICK`` is two calls, of which the second is
   timed: caches then hold what this candidate needs and not what the one before it did, as where one network serves.
2. The clock is the wall's; on a CPU with one torch thread it is the CPU time of that thread, which on an idle machine is the same and on
   a shared one does not count what others do meanwhile.
3. What counts is the lower quartile over the rounds: other processes only ever add time.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import numpy as np
import torch

Call = Callable[[], object]
FEWEST = 5
QUICK = 0.02  # seconds, in which caches fill


def synchronize(device: torch.device) -> None:
    """Wait until the device has done what it was told."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def once(call: Call, device: torch.device) -> float:
    """Seconds of one call."""
    clock = clock_of(device)
    synchronize(device)
    start = clock()
    call()
    synchronize(device)
    return clock() - start


def clock_of(device: torch.device) -> Callable[[], float]:
    """Clause 2."""
    return time.thread_time if device.type == "cpu" and torch.get_num_threads() == 1 else time.perf_counter


def interleaved(calls: Sequence[Call], device: torch.device, seconds: float, rounds: int = 10_000) -> list[list[float]]:
    """Seconds of every call in every round (clause 1), until ``seconds`` have gone by; at least ``FEWEST`` rounds, at most ``rounds``."""
    quick = []
    for call in calls:
        call()
        quick.append(once(call, device) < QUICK)
    found: list[list[float]] = [[] for _ in calls]
    start = time.perf_counter()
    order = list(range(len(calls)))
    for done in range(max(rounds, 1)):
        if done >= FEWEST and time.perf_counter() - start > seconds:
            break
        for index in order if done % 2 == 0 else reversed(order):
            if quick[index]:
                calls[index]()
            found[index].append(once(calls[index], device))
    return found


def typical(seconds: Sequence[float]) -> float:
    """Clause 3."""
    return float(np.quantile(seconds, 0.25))
