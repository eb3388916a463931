"""Budgets: the decision that keeps most score under all limits, and how far it can be from the best.

1. Small problems are enumerated: every legal decision is looked at, and the answer is the optimum. Where cells are mixed (slots.py, clause 2), it
   is that of the plans in which every cell loses its lowest scores, and the bound is that of clause 4.
2. Otherwise decisions are searched from several starts (search.py): the largest equal share of every slot that the limits allow, the whole
   network, and the relaxation's solution (bound.py). The best one counts.
3. Wholes (heads, groups of convolutions) go where a whole loses less per cost saved than the next steps of slots would, as long as
   that gains.
4. The bound is the relaxation's; where wholes can go or slots are mixed, that of a problem in which the channels of their cells are chosen one
   by one, which every legal plan satisfies.
5. What comes out is evaluated exactly, by the polynomials; limits hold to the last unit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product as combinations

import numpy as np
import numpy.typing as npt

from fxprune.graph.channels import ChannelGraph
from fxprune.graph.cost import Cost
from fxprune.provenance.factor import Ids, Mask
from fxprune.solve.bound import lower_bound
from fxprune.solve.landscape import Landscape, Limit, Tabled, landscape
from fxprune.solve.rounding import rounded_to_nothing
from fxprune.solve.search import Choices, filled, linearised, repaired, swapped
from fxprune.solve.slots import make_slots

Numbers = npt.NDArray[np.float64]
ENUMERATED = 200_000
SUBSETS = 64
WHOLES = 24
HAIR = 1e-12  # relative, of sums of measured seconds
VARIABLES = 900  # boxes times variables that a bound may take


@dataclass(frozen=True, eq=False)
class Problem:
    """One graph, its scores, floors and limits; ``ranks`` as for ``make_slots``."""

    graph: ChannelGraph
    cost: Cost
    limits: tuple[Limit, ...]
    values: Numbers
    least: Ids
    round_to: int
    enumerated: int = ENUMERATED
    ranks: Numbers | None = None

    def choices(self, dead: Mask | None = None, *, loose: bool = False) -> Choices:
        """The slots that are left when these wholes are gone."""
        matrix = self.cost.forms.matrix()
        slots = make_slots(self.graph, self.values, self.least, self.round_to, matrix, dead, ranks=self.ranks, loose=loose)
        return Choices(landscape(slots, self.limits, matrix))

    def rounded_to_nothing(self, *, wholes: bool) -> tuple[str, ...]:
        """A note on groups that ``round_to`` leaves whole (rounding.py). ``wholes``: wholes may go without rounding."""

        def going(problem: Problem) -> Mask:
            slots = problem.choices().land.slots
            found = slots.removed([int(slot.allowed[-1]) for slot in slots.slots])
            for f, family in enumerate(self.graph.closed.families if wholes and problem.round_to == 1 else ()):
                for w in free_wholes(problem, f):
                    found[family.wholes[w]] = True
            return found

        return rounded_to_nothing(self.graph, self.round_to, going(self), lambda: going(replace(self, round_to=1)))

    def costs(self, removed: Mask) -> Numbers:
        """Every limit's cost, exactly."""
        values = self.cost.forms.matrix() @ (~removed).astype(np.int64)
        values[0] = 1
        return np.array(
            [
                limit.measure.of_forms(values.astype(np.float64))
                if isinstance(limit.measure, Tabled)
                else float(limit.measure.of_forms(values))
                for limit in self.limits
            ]
        )

    def met(self, removed: Mask) -> bool:
        """Limits hold: what is counted to the last unit, what is measured but for rounding errors."""
        hairs = np.array([HAIR if isinstance(limit.measure, Tabled) else 0.0 for limit in self.limits])
        return bool((self.costs(removed) <= np.array([limit.bound for limit in self.limits]) * (1 + hairs)).all())

    def holds(self, removed: Mask) -> bool:
        """Limits and floors."""
        return self.met(removed) and self.floors_hold(removed)

    def kept(self, removed: Mask) -> float:
        return float(self.values[~removed].sum())

    def floors_hold(self, removed: Mask) -> bool:
        """Every group keeps what it must."""
        return all(int((~removed[g.channels]).sum()) >= n for g, n in zip(self.graph.groups, self.least.tolist(), strict=True))

    @property
    def total(self) -> float:
        return float(self.values.sum())


@dataclass(frozen=True, eq=False)
class Decision:
    """What goes, the score kept, and the bound on it."""

    removed: Mask
    kept: float
    bound: float


def optimise(problem: Problem) -> Decision | None:
    """The best decision (clauses 1 to 5); None if none was found that meets all limits."""
    exact = _enumerated(problem)
    if exact is not None:
        return exact[0]
    whole = problem.choices()
    best = searched(problem, whole)
    best = _with_wholes(problem, best)
    if best is None:
        return None
    return Decision(best, problem.kept(best), bound_on(problem, problem.kept(best)))


def bound_on(problem: Problem, kept: float) -> float:
    """Clause 4."""
    problem = replace(problem, ranks=None)
    whole = problem.choices()
    families = bool(problem.graph.closed.families) and problem.round_to == 1
    choices = problem.choices(loose=True) if families or whole.land.slots.mixed else whole
    slots = choices.land.slots
    if not slots.slots:
        return kept
    points = sum(e.costs.size for limit in problem.limits if isinstance(limit.measure, Tabled) for e, _ in limit.measure.entries)
    boxes = int(np.clip(VARIABLES // max(len(slots.slots) + len(choices.land.falls) + points, 1), 1, 32))
    loss, _ = lower_bound(choices, slots.kept - kept, boxes)
    return max(min(slots.kept - loss, slots.kept), kept)


def searched(problem: Problem, choices: Choices) -> Mask | None:
    """Clause 2."""
    if not choices.land.slots.slots:
        removed = choices.land.slots.removed([])
        return removed if problem.holds(removed) else None
    found = [own for own in map(choices_from(choices), _starts(choices)) if own is not None]
    masks = [choices.land.slots.removed(choices.at(places)) for places in sorted(found, key=choices.loss)]
    for removed in masks:
        if problem.holds(removed):
            return removed
    return None


def choices_from(choices: Choices) -> Callable[[Numbers], Ids | None]:
    """A search from a start."""

    def search(start: Numbers) -> Ids | None:
        numbers = linearised(choices, start)
        places = repaired(choices, choices.rounded(numbers))
        if places is None:
            places = repaired(choices, choices.rounded(start))
        return None if places is None else swapped(choices, filled(choices, places))

    return search


def least_share(choices: Choices) -> Ids:
    """The smallest equal share of every slot with which the limits hold; everything that may go, if none is enough."""
    low, high = 0.0, 1.0
    for _ in range(20):
        middle = (low + high) / 2
        low, high = (low, middle) if choices.met(choices.share(middle)) else (middle, high)
    return choices.share(high)


def _starts(choices: Choices) -> Iterator[Numbers]:
    uniform = choices.at(least_share(choices)).astype(np.float64)
    yield uniform
    yield np.zeros(len(choices.last))
    _, relaxed = lower_bound(choices, np.inf, 1)
    if relaxed is not None:
        yield relaxed


# -- small problems ----------------------------------------------------------------------------------------------------


def _enumerated(problem: Problem) -> tuple[Decision | None] | None:
    """Clause 1; None if the problem is too large."""
    deads = list(_subsets(problem))
    if len(deads) > SUBSETS:
        return None
    best: tuple[float, Mask] | None = None
    looked = 0
    for dead in deads:
        choices = problem.choices(dead)
        slots = choices.land.slots
        size = 1
        for slot in slots.slots:
            size *= len(slot.allowed)
            if size + looked > problem.enumerated:
                return None
        looked += size
        found = _best_of_all(problem, choices)
        if found is not None and (best is None or found[0] > best[0]):
            best = found
    if best is None:
        return (None,)
    mixed = problem.choices().land.slots.mixed
    return (Decision(best[1], best[0], bound_on(problem, best[0]) if mixed else best[0]),)


def _best_of_all(problem: Problem, choices: Choices) -> tuple[float, Mask] | None:
    slots = choices.land.slots
    every = list(combinations(*(slot.allowed.tolist() for slot in slots.slots)))
    grid = np.array(every, np.int64).reshape(len(every), len(slots.slots))
    loss = np.zeros(len(grid))
    for s, slot in enumerate(slots.slots):
        loss += slot.loss[grid[:, s]]
    legal = np.ones(len(grid), np.bool_)
    if slots.caps:
        legal &= ~choices.over(grid).any(axis=1)
    used = grid.sum(axis=1)
    order = np.lexsort((used, loss))
    order = order[legal[order]]
    for first in range(0, len(order), 4096):
        part = order[first : first + 4096]
        met = _all_met(choices.land, grid[part])
        for row in part[met].tolist():
            removed = slots.removed(grid[row])
            if problem.holds(removed):
                return problem.kept(removed), removed
    return None


def _all_met(land: Landscape, grid: Ids) -> Mask:
    """Which of these decisions meet all limits."""
    met = np.ones(len(grid), np.bool_)
    values = land.of_forms(grid)
    for i, limit in enumerate(land.limits):
        if isinstance(limit.measure, Tabled):
            cost = np.array([limit.measure.of_forms(own) for own in values])
        else:
            coefficients, forms = land.terms(i)
            cost = values[:, forms].prod(axis=2) @ coefficients
        met &= cost <= limit.bound * (1 + 1e-9)
    return met


def _subsets(problem: Problem) -> Iterator[Mask | None]:
    """Which wholes may be gone: none first."""
    yield None
    families = problem.graph.closed.families if problem.round_to == 1 else ()
    each = [[(i, w) for w in free_wholes(problem, i)] for i in range(len(families))]
    count = sum(map(len, each))
    if not count:
        return
    if 2**count > SUBSETS:
        yield from (None for _ in range(SUBSETS))  # too many to enumerate
        return
    flat = [pair for own in each for pair in own]
    for bits in range(1, 2**count):
        chosen = [pair for k, pair in enumerate(flat) if bits >> k & 1]
        dead = dead_wholes(problem, chosen)
        if dead is not None:
            yield dead


# -- wholes ------------------------------------------------------------------------------------------------------------


def free_wholes(problem: Problem, family: int) -> list[int]:
    """The wholes of a family that may go, lowest mean score first."""
    grouped = np.zeros(problem.graph.closed.count, np.bool_)
    for group in problem.graph.groups:
        grouped[group.channels] = True
    own = problem.graph.closed.families[family].wholes
    free = [w for w, channels in enumerate(own) if not problem.graph.pinned[channels].any() and grouped[channels].any()]
    mean = {w: float(problem.values[own[w]][grouped[own[w]]].mean()) for w in free}
    return sorted(free, key=lambda w: (mean[w], w))


def dead_wholes(problem: Problem, chosen: Sequence[tuple[int, int]]) -> Mask | None:
    """The coupled channels of these wholes; None if they may not go together: one of each tie stays, and so do floors."""
    dead = np.zeros(problem.graph.closed.count, np.bool_)
    families = problem.graph.closed.families
    gone: Mapping[int, set[int]] = {f: {w for g, w in chosen if g == f} for f, _ in chosen}
    for f, own in gone.items():
        if any(set(tie) <= own for tie in families[f].ties):
            return None
        for w in own:
            dead[families[f].wholes[w]] = True
    return dead if problem.floors_hold(dead) else None


def _with_wholes(problem: Problem, best: Mask | None) -> Mask | None:
    """Clause 3."""
    families = problem.graph.closed.families if problem.round_to == 1 else ()
    queues = {f: free_wholes(problem, f) for f in range(len(families))}
    chosen: list[tuple[int, int]] = []
    for _ in range(WHOLES):
        ahead = [(f, queue[0]) for f, queue in queues.items() if queue]
        ahead = [pair for pair in ahead if dead_wholes(problem, [*chosen, pair]) is not None]
        if not ahead:
            break
        worth = _worth(problem, best, chosen, ahead)
        attempts = [worth, worth[:1]] if len(worth) > 1 else [worth] if worth else []
        for more in attempts:
            dead = dead_wholes(problem, [*chosen, *more])
            found = searched(problem, problem.choices(dead)) if dead is not None else None
            if found is not None and (best is None or problem.kept(found) > problem.kept(best)):
                best = found
                chosen += more
                for f, _ in more:
                    queues[f].pop(0)
                break
        else:
            if best is not None or not ahead:
                break
            chosen += ahead  # nothing meets the limits yet: go on
            for f, _ in ahead:
                queues[f].pop(0)
    return best


def _worth(
    problem: Problem, best: Mask | None, chosen: Sequence[tuple[int, int]], ahead: Sequence[tuple[int, int]]
) -> list[tuple[int, int]]:
    """Wholes that lose less per cost saved than the next steps of slots, the best first."""
    if best is None:
        return list(ahead)
    bounds = np.array([limit.bound for limit in problem.limits])
    here = problem.costs(best)
    tight = here >= 0.98 * bounds
    weight = np.where(tight, 1 / bounds, 0.0) if tight.any() else 1 / bounds

    def density(gone: Mask) -> float:
        saved = float(((here - problem.costs(best | gone)) * weight).sum())
        return (problem.kept(best) - problem.kept(best | gone)) / saved if saved > 0 else np.inf

    choices = problem.choices(dead_wholes(problem, chosen) if chosen else None)
    slots = choices.land.slots
    numbers = np.array([sum(bool(best[step].all()) for step in slot.steps) for slot in slots.slots], np.int64)
    saved = (np.maximum(choices.land.slopes(numbers), 0.0) * weight[:, None]).sum(axis=0)
    following = [
        s.lost[n] / max(v, 1e-300) for s, n, v in zip(slots.slots, numbers.tolist(), saved.tolist(), strict=True) if n < len(s)
    ]
    price = float(np.median(sorted(following)[: max(1, len(following) // 2)])) if following else np.inf
    families = problem.graph.closed.families
    found = []
    for f, w in ahead:
        gone = np.zeros(problem.graph.closed.count, np.bool_)
        gone[families[f].wholes[w]] = True
        own = density(gone)
        if own < price:
            found.append((own, f, w))
    return [(f, w) for _, f, w in sorted(found)]
