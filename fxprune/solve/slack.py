"""Why a plan leaves a part of its budget unused.

1. A budget is *used* if some limit is, to a share of ``CLOSE``. Otherwise a plan says which limit comes nearest, and what binds.
2. A *step back* returns what went last: of a slot, as much as brings its number to the one allowed before (slots.py), or a whole (wholes.py).
3. Where a step back would meet all limits, the scope binds: it does not take slots one by one. (In scope global the search has left it.)
4. Where none would, but one with widths of any number, ``round_to`` binds. Otherwise the steps are as small as the network lets them be: blocks
   lose channels together, or a channel costs more than is left.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from fxprune.provenance.factor import Ids, Mask
from fxprune.solve.optimise import Problem

CLOSE = 0.99
UNUSED = "not all of the budget is used"

Numbers = npt.NDArray[np.float64]


def unused(problem: Problem, removed: Mask, scope: str) -> tuple[str, ...]:
    """A note where no limit is used to ``CLOSE`` (clauses 1 to 4)."""
    used = _used(problem, removed)
    if used.max() >= CLOSE or not removed.any():
        return ()
    step, after = _cheapest(problem, removed)
    limit = problem.limits[int(used.argmax())].name
    said = f"{UNUSED}: {used.max():.1%} of {limit} is used" + (", of others less" if len(used) > 1 else "")
    if not len(step):
        return (said,)
    next_back = f"the next step back, {_told(problem, step)},"
    if after <= 1:
        return (f"{said}: {'the search' if scope == 'global' else 'the scope'} binds; {next_back} would fit",)
    dear = f"{next_back} would cost more than is left"
    if problem.round_to > 1 and _cheapest(replace(problem, round_to=1), removed)[1] <= 1:
        return (f"{said}: round_to={problem.round_to} binds; {dear}",)
    return (f"{said}: {dear}",)


def _used(problem: Problem, removed: Mask) -> Numbers:
    shares: Numbers = problem.costs(removed) / np.array([limit.bound for limit in problem.limits])
    return shares


def _cheapest(problem: Problem, removed: Mask) -> tuple[Ids, float]:
    """The step back after which the limits are used least, and that share."""
    best: tuple[Ids, float] = np.zeros(0, np.int64), np.inf
    for step in _back(problem, removed):
        less = removed.copy()
        less[step] = False
        share = float(_used(problem, less).max())
        if share < best[1]:
            best = step, share
    return best


def _back(problem: Problem, removed: Mask) -> Iterator[Ids]:
    """Clause 2."""
    wholes = [whole for family in problem.graph.closed.families for whole in family.wholes if removed[whole].all()]
    yield from wholes
    dead = np.zeros_like(removed)
    dead[np.concatenate([np.zeros(0, np.int64), *wholes])] = True
    for slot in problem.choices(dead).land.slots.slots:
        number = next((k for k, step in enumerate(slot.steps) if not removed[step].all()), len(slot))
        before = slot.allowed[slot.allowed < number]
        if len(before):
            yield np.concatenate(slot.steps[int(before[-1]) : number])


def _told(problem: Problem, step: Ids) -> str:
    held = [(group.name, int(np.isin(group.channels, step).sum())) for group in problem.graph.groups]
    return " and ".join(f"{count} of {name}" for name, count in held if count)
