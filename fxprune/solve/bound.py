"""How good a decision can be at most: a relaxation that every legal decision satisfies, and branching on it.

1. Numbers of steps may be any real numbers between their ends. What a slot loses lies above all tangents of its loss.
2. A product of two forms lies above its convex envelope over the forms' ends (McCormick 1976): ``a * b >= a0 * b + b0 * a - a0 * b0`` with both
   lower and both upper ends. Products of more are enveloped one after another. Measured tables lie above the convex hull of their grid points.
3. The least loss of this linear program (HiGHS) is a lower bound on that of every decision. Tangents are added where the solution touches.
4. Branching halves the ends of the slot whose products are furthest from their envelopes: the bound is the least over all open boxes. Boxes
   whose bound is no better than the known decision are closed; if none is left, the decision is optimal. The number of boxes is limited.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass, field
from itertools import product as combinations

import numpy as np
import numpy.typing as npt

from fxprune.solve.cost_table import CostEntry
from fxprune.solve.landscape import Tabled
from fxprune.solve.search import Choices

Numbers = npt.NDArray[np.float64]
TANGENTS = 12
TOUCHES = 3
CLOSE = 1e-4


@dataclass(slots=True)
class _Rows:
    """A linear program under construction: ``sum coefficient * variable <= bound`` per row."""

    count: int
    rows: list[int] = field(default_factory=list)
    columns: list[int] = field(default_factory=list)
    data: list[float] = field(default_factory=list)
    right: list[float] = field(default_factory=list)
    ends: list[tuple[float, float | None]] = field(default_factory=list)

    def variable(self, low: float, high: float | None) -> int:
        self.ends.append((low, high))
        return len(self.ends) - 1

    def row(self, parts: list[tuple[int, float]], bound: float) -> None:
        number = len(self.right)
        self.rows += [number] * len(parts)
        self.columns += [column for column, _ in parts]
        self.data += [value for _, value in parts]
        self.right.append(bound)


@dataclass(frozen=True, slots=True)
class _Solved:
    loss: float
    numbers: Numbers
    apart: Numbers


@dataclass(frozen=True, eq=False)
class Relaxation:
    """Clauses 1 to 3 for one landscape."""

    choices: Choices

    def solve(self, low: Numbers, high: Numbers) -> _Solved | None:
        """The least loss between these numbers of steps; None where nothing meets the limits."""
        land, slots = self.choices.land, self.choices.land.slots.slots
        count = len(slots)
        program = _Rows(count)
        for a, b in zip(low, high, strict=True):
            program.variable(float(a), float(b))
        unit = max(land.slots.kept, 1e-300)
        touched: list[set[int]] = []
        for s, slot in enumerate(slots):
            program.variable(0.0, None)
            touched.append(set())
            for k in np.unique(np.linspace(low[s], high[s], TANGENTS).astype(np.int64)).tolist():
                self._tangent(program, s, min(k, len(slot) - 1), unit, touched[s])
        forms = self._forms(program, low, high)
        self._limits(program, forms)
        matrix, room = self.choices.capped
        for row, most in zip(matrix, room, strict=True):
            program.row([(s, float(row[s])) for s in np.flatnonzero(row).tolist()], float(most))
        result = None
        for _ in range(TOUCHES):
            result = self._run(program, count)
            if result is None:
                return None
            new = False
            for s, slot in enumerate(slots):
                k = min(int(result[s] + 1e-9), len(slot) - 1)
                if k not in touched[s]:
                    gap = float(np.interp(result[s], np.arange(len(slot.loss)), slot.loss)) / unit - result[count + s]
                    if gap > 1e-6:
                        self._tangent(program, s, k, unit, touched[s])
                        new = True
            if not new:
                break
        assert result is not None
        numbers = result[:count]
        return _Solved(float(result[count : 2 * count].sum()) * unit, numbers, self._apart(forms))

    def _tangent(self, program: _Rows, s: int, k: int, unit: float, touched: set[int]) -> None:
        """``loss >= loss[k] + lost[k] * (n - k)``."""
        slot = self.choices.land.slots.slots[s]
        if k in touched:
            return
        touched.add(k)
        slope = float(slot.lost[k]) / unit
        program.row([(s, slope), (self.count + s, -1.0)], slope * k - float(slot.loss[k]) / unit)

    @property
    def count(self) -> int:
        return len(self.choices.land.slots.slots)

    def _forms(self, program: _Rows, low: Numbers, high: Numbers) -> dict[int, tuple[int, float, float]]:
        """A variable per form that multiplies, as a share of what it is at the start, with its ends."""
        land = self.choices.land
        wanted: set[int] = set()
        for i, limit in enumerate(land.limits):
            if isinstance(limit.measure, Tabled):
                wanted |= {int(f) for _, own in limit.measure.entries for f in own}
            else:
                wanted |= set(land.terms(i)[1].ravel().tolist())
        found = {}
        for form in sorted(wanted - {0}):
            falls = land.falls[form]
            full = float(land.start[form])
            least, greatest = full - float(falls @ high), full - float(falls @ low)
            if full <= 0:
                continue
            column = program.variable(least / full, greatest / full)
            parts = [(s, float(falls[s]) / full) for s in np.flatnonzero(falls).tolist()]
            program.row([(column, 1.0), *parts], 1.0)
            program.row([(column, -1.0), *((s, -f) for s, f in parts)], -1.0)
            found[form] = (column, least / full, greatest / full)
        return found

    def _limits(self, program: _Rows, forms: dict[int, tuple[int, float, float]]) -> None:
        land = self.choices.land
        pairs: dict[tuple[int, int], tuple[int, float, float]] = {}
        for i, limit in enumerate(land.limits):
            bound = limit.bound
            if isinstance(limit.measure, Tabled):
                parts = [
                    (_hull(program, entry, [forms[f] for f in own], bound, land.start[list(own)]), 1.0)
                    for entry, own in limit.measure.entries
                ]
                program.row(parts, 1.0 - limit.measure.constant / bound)
                continue
            coefficients, rows = land.terms(i)
            constant, parts = 0.0, []
            for coefficient, row in zip(coefficients.tolist(), rows.tolist(), strict=True):
                own = [f for f in row if f]
                size = coefficient * float(np.prod(land.start[own])) / bound
                if not own or size == 0:
                    constant += size
                    continue
                here = forms[own[0]]
                for form in own[1:]:
                    here = _envelope(program, here, forms[form], pairs)
                parts.append((here[0], size))
            program.row(parts, 1.0 - constant)

    def _run(self, program: _Rows, count: int) -> Numbers | None:
        width = len(program.ends)
        objective = np.zeros(width)
        objective[count : 2 * count] = 1.0
        from scipy.optimize import linprog  # importing fxprune stays quick
        from scipy.sparse import coo_matrix

        matrix = coo_matrix((program.data, (program.rows, program.columns)), shape=(len(program.right), width)).tocsr()
        result = linprog(objective, A_ub=matrix, b_ub=program.right, bounds=program.ends, method="highs")
        return None if result.x is None else np.asarray(result.x)

    def _apart(self, forms: dict[int, tuple[int, float, float]]) -> Numbers:
        """Per slot: how far its products are from what the program took them for, at most (for branching)."""
        land = self.choices.land
        apart = np.zeros(self.count)
        for i, limit in enumerate(land.limits):
            if isinstance(limit.measure, Tabled):
                for _, axes in limit.measure.entries:
                    for f in axes:
                        apart += np.abs(land.falls[f]) / max(land.start[f], 1.0)
                continue
            coefficients, rows = land.terms(i)
            for coefficient, row in zip(coefficients.tolist(), rows.tolist(), strict=True):
                own = [f for f in row if f and f in forms]
                if len(own) < 2:
                    continue
                ends = [(forms[f][2] - forms[f][1]) for f in own]
                size = coefficient * float(np.prod(land.start[own])) / limit.bound
                gap = size * ends[0] * ends[1] / 4
                for f, wide in zip(own, ends, strict=True):
                    if wide > 0:
                        apart += gap * land.falls[f] / max(float(land.falls[f].max()), 1e-300)
        return apart


def _envelope(
    program: _Rows,
    a: tuple[int, float, float],
    b: tuple[int, float, float],
    pairs: dict[tuple[int, int], tuple[int, float, float]],
) -> tuple[int, float, float]:
    """Clause 2: a variable that lies above the envelope of a product."""
    key = (min(a[0], b[0]), max(a[0], b[0]))
    if key not in pairs:
        column = program.variable(0.0, None)
        for x, y in ((a[1], b[1]), (a[2], b[2])):
            parts = {a[0]: 0.0, b[0]: 0.0}
            parts[a[0]] += y
            parts[b[0]] += x
            program.row([*parts.items(), (column, -1.0)], x * y)
        if a[0] == b[0]:
            middle = (a[1] + a[2]) / 2
            program.row([(a[0], 2 * middle), (column, -1.0)], middle * middle)
        pairs[key] = (column, a[1] * b[1], a[2] * b[2])
    return pairs[key]


def _hull(program: _Rows, entry: CostEntry, forms: list[tuple[int, float, float]], bound: float, full: Numbers) -> int:
    """Clause 2: a variable that lies above the convex hull of the costs at the grid points, at the widths' shares of the original."""
    grids = []
    for (_, least, greatest), widths, size in zip(forms, entry.widths, full.tolist(), strict=True):
        points = {least, greatest} | {w / size for w in widths if least < w / size < greatest}
        grids.append(sorted(points))
    column = program.variable(0.0, None)
    weights, costs, places = [], [], []
    for point in combinations(*grids):
        weights.append(program.variable(0.0, 1.0))
        costs.append(entry.at([share * size for share, size in zip(point, full.tolist(), strict=True)]) / bound)
        places.append(point)
    program.row([(w, c) for w, c in zip(weights, costs, strict=True)] + [(column, -1.0)], 0.0)
    for sign in (1.0, -1.0):
        program.row([(w, sign) for w in weights], sign)
        for d, (own, _, _) in enumerate(forms):
            program.row([*((w, sign * p[d]) for w, p in zip(weights, places, strict=True)), (own, -sign)], 0.0)
    return column


def lower_bound(choices: Choices, known: float, boxes: int) -> tuple[float, Numbers | None]:
    """A number that no decision's loss is below (clause 4), and the relaxation's own numbers of steps.

    Args:
        choices: the slots and limits.
        known: the loss of a decision that is legal; infinite without one.
        boxes: how many boxes may be solved.
    """
    relaxation = Relaxation(choices)
    low = np.zeros(len(choices.last))
    high = choices.at(choices.last).astype(np.float64)
    first = relaxation.solve(low, high)
    if first is None:
        return np.inf, None
    order = 0
    queue = [(first.loss, order, low, high, first)]
    least_closed = np.inf
    solved = 1
    close = CLOSE * max(choices.land.slots.kept, 1e-300)
    while queue and solved < boxes:
        loss, _, low, high, here = queue[0]
        if loss >= known - close:
            break
        heapq.heappop(queue)
        slot = int(np.where(high - low >= 1, here.apart, -1.0).argmax())
        if high[slot] - low[slot] < 1 or here.apart[slot] <= 0:
            least_closed = min(least_closed, loss)
            continue
        middle = float(np.floor((low[slot] + high[slot]) / 2))
        for part in (0, 1):
            new_low, new_high = low.copy(), high.copy()
            if part == 0:
                new_high[slot] = middle
            else:
                new_low[slot] = middle + 1
            found = relaxation.solve(new_low, new_high)
            solved += 1
            if found is not None:
                order += 1
                heapq.heappush(queue, (max(found.loss, loss), order, new_low, new_high, found))
    open_least = queue[0][0] if queue else np.inf
    return min(open_least, least_closed, known), first.numbers
