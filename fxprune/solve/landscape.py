"""Limits as functions of the choices: what each costs at any numbers of steps, and how that changes with one step more.

1. A form falls by the same amount with every step of a slot; ``of_forms`` gives the forms at given numbers. Forms that are equal for all
   choices are one.
2. A *limit* is a bound on a polynomial of forms or on a measured table (cost_table.py).
3. ``slopes``: what one more step of every slot saves, at the place: exact for what is linear in each slot, the local slope of what is not.
4. The steps of a mixed slot (slots.py, clause 2) take different amounts: ``falls`` and ``slopes`` have their mean, and forms and costs are exact
   at whole numbers, for a *bend* lists what is gone after each step.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import numpy.typing as npt

from fxprune.graph.polynomial import Polynomial
from fxprune.provenance.factor import Ids
from fxprune.solve.cost_table import CostEntry
from fxprune.solve.slots import Slots

Numbers = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Tabled:
    """A measured cost: a constant and entries over forms (the live widths of axes), times ``factor`` at whole widths (cost_table.py, clause 4)."""

    constant: float
    entries: tuple[tuple[CostEntry, tuple[int, ...]], ...]
    factor: Callable[[CostEntry, Sequence[float]], float] | None = None
    _known: dict[tuple[object, ...], float] = field(default_factory=dict)

    def of_forms(self, values: Numbers) -> float:
        total = self.constant
        for index, (entry, own) in enumerate(self.entries):
            widths = values[list(own)].tolist()
            key = (index, *widths)
            cost = self._known.get(key)
            if cost is None:
                cost = entry.at(widths)
                if self.factor is not None and all(width.is_integer() for width in widths):
                    cost *= self.factor(entry, widths)
                self._known[key] = cost
            total += cost
        return total

    def slope(self, index: int, place: int, values: Numbers) -> float:
        """How fast one entry's cost grows with the width of one of its axes."""
        entry, own = self.entries[index]
        widths = values[list(own)].tolist()
        key = ("slope", index, place, *widths)
        slope = self._known.get(key)
        if slope is None:
            slope = self._known[key] = _slope(entry, widths, place)
        return slope


Measure = Polynomial | Tabled


@dataclass(frozen=True, eq=False)
class Bend:
    """What the steps of a mixed slot take of some forms (clause 4): ``gone[k]`` is gone after k steps; shape (steps + 1, forms)."""

    slot: int
    forms: Ids
    gone: Ids


@dataclass(frozen=True, eq=False)
class Limit:
    """An upper bound on a cost, and how people call it (clause 2)."""

    kind: str
    glob: str
    measure: Measure
    bound: float
    original: float

    @property
    def name(self) -> str:
        return self.kind if self.glob == "*" else f"{self.kind} of {self.glob!r}"


@dataclass(frozen=True, eq=False)
class Landscape:
    """Limits over slots (clauses 1 to 4). ``start`` are the forms before any choice, ``falls`` (forms, slots) what a step takes of each."""

    slots: Slots
    limits: tuple[Limit, ...]
    start: Numbers
    falls: Numbers
    bends: tuple[Bend, ...] = ()

    @cached_property
    def _merged(self) -> list[tuple[Numbers, Ids]]:
        """Per limit with a polynomial: coefficients and forms of its terms, equal terms added up; of others nothing."""
        found: list[tuple[Numbers, Ids]] = []
        for limit in self.limits:
            if isinstance(limit.measure, Tabled):
                found.append((np.zeros(0), np.zeros((0, 1), np.int64)))
                continue
            coefficients, forms = limit.measure.table
            rows = np.sort(self.same[forms], axis=1) if forms.size else forms.reshape(len(coefficients), 0)
            distinct, which = np.unique(rows, axis=0, return_inverse=True)
            totals: Numbers = np.bincount(which.ravel(), coefficients.astype(np.float64), len(distinct)).astype(np.float64)
            found.append((totals, distinct))
        return found

    @cached_property
    def same(self) -> Ids:
        """For every form the first one that is equal for all choices."""
        bent = np.zeros(
            (len(self.start), len(self.bends))
        )  # equal where the same is gone after every step: sums of random numbers
        for column, bend in enumerate(self.bends):
            bent[bend.forms, column] = np.random.default_rng(column).random(len(bend.gone)) @ bend.gone
        rows = np.concatenate([self.start[:, None], self.falls, bent], axis=1)
        _, first, which = np.unique(rows, axis=0, return_index=True, return_inverse=True)
        result: Ids = first[which.ravel()]
        return result

    def terms(self, limit: int) -> tuple[Numbers, Ids]:
        """Coefficients and forms of a polynomial limit."""
        return self._merged[limit]

    @cached_property
    def _even(self) -> Numbers:
        """``falls`` without mixed slots."""
        even = self.falls.copy()
        even[:, [bend.slot for bend in self.bends]] = 0
        return even

    def of_forms(self, numbers: Sequence[int] | npt.NDArray[np.generic]) -> Numbers:
        """Clauses 1 and 4; between whole numbers on a line. ``numbers`` has shape (slots,) or (decisions, slots), the result (..., forms)."""
        given = np.asarray(numbers, np.float64)
        result: Numbers = self.start - given @ self._even.T
        for bend in self.bends:
            own = given[..., bend.slot]
            below = np.minimum(own.astype(np.int64), len(bend.gone) - 2)
            share = (own - below)[..., None]
            result[..., bend.forms] -= (1 - share) * bend.gone[below] + share * bend.gone[below + 1]
        return result

    def costs(self, numbers: Sequence[int] | npt.NDArray[np.generic]) -> Numbers:
        """Every limit's cost there."""
        values = self.of_forms(numbers)
        return np.array([self._cost(i, values) for i in range(len(self.limits))])

    def _cost(self, index: int, values: Numbers) -> float:
        measure = self.limits[index].measure
        if isinstance(measure, Tabled):
            return measure.of_forms(values)
        coefficients, forms = self._merged[index]
        return float((coefficients * values[forms].prod(axis=1)).sum())

    @cached_property
    def bounds(self) -> Numbers:
        return np.array([limit.bound for limit in self.limits])

    def met(self, costs: Numbers) -> bool:
        """All limits hold."""
        return bool((costs <= self.bounds).all())

    def slopes(self, numbers: npt.NDArray[np.generic]) -> Numbers:
        """Clause 3; shape (limits, slots)."""
        values = self.of_forms(numbers)
        result = np.zeros((len(self.limits), len(self.slots.slots)))
        for i, limit in enumerate(self.limits):
            slope = np.zeros(len(values))
            if isinstance(limit.measure, Tabled):
                for index, (_, own) in enumerate(limit.measure.entries):
                    for place, form in enumerate(own):
                        slope[form] += limit.measure.slope(index, place, values)
            else:
                coefficients, forms = self._merged[i]
                for place in range(forms.shape[1]):
                    others = values[np.delete(forms, place, axis=1)].prod(axis=1)
                    np.add.at(slope, forms[:, place], coefficients * others)
            result[i] = slope @ self.falls
        return result


def _slope(entry: CostEntry, widths: list[float], place: int) -> float:
    """The mean slope of a table along one axis over the cells to both sides."""
    grid = entry.widths[place]
    below = [g for g in grid if g < widths[place] - 1e-9]
    above = [g for g in grid if g > widths[place] + 1e-9]
    low, high = (below[-1] if below else widths[place]), (above[0] if above else widths[place])
    if high <= low:
        return 0.0
    at = [[*widths[:place], w, *widths[place + 1 :]] for w in (low, high)]
    return (entry.at(at[1]) - entry.at(at[0])) / (high - low)


def landscape(slots: Slots, limits: Sequence[Limit], matrix: object) -> Landscape:
    """The limits over these slots, from the matrix of forms (polynomial.py)."""
    start = (matrix @ slots.alive.astype(np.int64)).astype(np.float64)  # type: ignore[operator]
    start[0] = 1.0
    falls = np.zeros((len(start), len(slots.slots)))
    bends = []
    for number, slot in enumerate(slots.slots):
        if slot.mixed:
            steps = np.zeros((len(slots.alive), len(slot) + 1), np.int64)
            for k, step in enumerate(slot.steps, 1):
                steps[step, k:] = 1
            table = matrix @ steps  # type: ignore[operator]
            forms = np.flatnonzero(table[:, -1])
            bends.append(Bend(number, forms, table[forms].T))
            falls[:, number] = table[:, -1] / len(slot)
            continue
        gone = np.zeros(len(slots.alive), np.int64)
        flat, times = np.unique(np.concatenate(slot.steps), return_counts=True)
        gone[flat] = times
        falls[:, number] = (matrix @ gone) / len(slot)  # type: ignore[operator]
    return Landscape(slots, tuple(limits), start, falls, tuple(bends))
