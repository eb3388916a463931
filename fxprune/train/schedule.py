"""Strength schedules: functions of the number of optimizer steps already done.

1. ``ramp(strength, steps)``: from 0 at step 0 up to ``strength`` at ``steps`` in a straight line, then constant. Early sparsity decides before
   the network has learned which channels matter; a ramp lets it learn first.
2. ``anneal(strength, steps)``: ``strength`` until ``hold`` of the steps, then down to 0 at ``steps`` along half a cosine: the last steps are trained
   without the penalty, and gammas that it made small but not zero may recover.
3. Any function of an int will do as well.
"""

from __future__ import annotations

import math

from fxprune.train.penalty import Schedule


def ramp(strength: float, steps: int) -> Schedule:
    """Clause 1."""
    if steps < 1:
        raise ValueError(f"steps must be positive, got {steps}.")
    return lambda done: strength * min(1.0, done / steps)


def anneal(strength: float, steps: int, hold: float = 0.5) -> Schedule:
    """Clause 2; ``hold`` in [0, 1)."""
    if steps < 1:
        raise ValueError(f"steps must be positive, got {steps}.")
    if not 0 <= hold < 1:
        raise ValueError(f"hold must be in [0, 1), got {hold}.")

    def at(done: int) -> float:
        way = min(1.0, max(0.0, (done / steps - hold) / (1 - hold)))
        return strength * (1 + math.cos(math.pi * way)) / 2

    return at
