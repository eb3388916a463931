"""Finding a good decision: sequential linearisation, then whole steps.

1. A decision is, per slot, a *place* in its allowed numbers. Costs are monotone products, so a decision that meets its limits is found by
   going down, and improved by going up.
2. ``linearised``: around a decision costs are linear; the best one within a trust region is a linear program over convex losses (HiGHS). The
   region shrinks; where a limit cannot be met in it the violation is as small as possible.
3. ``repaired`` takes the steps that lose least per violation saved, until all limits hold. ``filled`` gives back, as long as something fits,
   the step with the most score per cost. ``swapped`` exchanges steps of two slots, one for several either way, while that gains.
4. Nothing is random, and ties go to the first: the same problem has the same solution.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from fxprune.provenance.factor import Ids, Mask
from fxprune.solve.landscape import Landscape

Numbers = npt.NDArray[np.float64]
SEGMENTS = 12
ROUNDS = 14
RADIUS, SHRINK = 0.5, 0.7
SWAPS = 400


@dataclass(frozen=True, eq=False)
class Choices:
    """The slots as arrays: allowed numbers and losses, padded to the longest (clause 1)."""

    land: Landscape

    @cached_property
    def last(self) -> Ids:
        """The last place of every slot."""
        return np.array([len(s.allowed) - 1 for s in self.land.slots.slots], np.int64)

    @cached_property
    def numbers(self) -> Ids:
        width = int(self.last.max(initial=0)) + 1
        found: Ids = np.stack([np.pad(s.allowed, (0, width - len(s.allowed)), mode="edge") for s in self.land.slots.slots])
        return found

    @cached_property
    def losses(self) -> Numbers:
        width = int(self.last.max(initial=0)) + 1
        return np.stack(
            [np.pad(s.loss[s.allowed], (0, width - len(s.allowed)), constant_values=np.inf) for s in self.land.slots.slots]
        )

    @cached_property
    def rows(self) -> Ids:
        return np.arange(len(self.last))

    @cached_property
    def capped(self) -> tuple[Numbers, Numbers]:
        """Floors that slots share: a matrix over numbers, and what it may give at most. Of a mixed slot it takes no more than its steps do."""
        caps = self.land.slots.caps
        matrix = np.zeros((len(caps), len(self.last)))
        for row, column, gone in self._gone:
            matrix[row, column] = (gone[1:] / np.arange(1, len(gone))).min()
        return matrix, np.array([room for _, room in caps], np.float64)

    @cached_property
    def _gone(self) -> list[tuple[int, int, Ids]]:
        """Per shared floor and slot that holds channels of its group: how many are gone after each step."""
        slots = self.land.slots
        return [
            (row, column, slot.groups[group])
            for row, (group, _) in enumerate(slots.caps)
            for column, slot in enumerate(slots.slots)
            if group in slot.groups
        ]

    @cached_property
    def _holders(self) -> Mask:
        """Which slots hold channels of a group with a shared floor; shape (caps, slots)."""
        found = np.zeros(self.capped[0].shape, np.bool_)
        for row, column, _ in self._gone:
            found[row, column] = True
        return found

    def over(self, numbers: Ids) -> Mask:
        """Which shared floors are broken, exactly; ``numbers`` (slots,) or (decisions, slots)."""
        matrix, room = self.capped
        used = numbers @ matrix.T
        for row, column, gone in self._gone:
            if self.land.slots.slots[column].mixed:
                used[..., row] += gone[numbers[..., column]] - matrix[row, column] * numbers[..., column]
        broken: Mask = used > room + 1e-6
        return broken

    def at(self, places: Ids) -> Ids:
        """Numbers of steps."""
        found: Ids = self.numbers[self.rows, places]
        return found

    def loss(self, places: Ids) -> float:
        return float(self.losses[self.rows, places].sum())

    def legal(self, places: Ids) -> bool:
        return not self.land.slots.caps or not self.over(self.at(places)).any()

    def met(self, places: Ids) -> bool:
        return self.land.met(self.land.costs(self.at(places)))

    def share(self, share: float) -> Ids:
        """The decision that takes a share of every slot, as far as shared floors allow."""
        places = np.minimum(np.ceil(share * self.last), self.last).astype(np.int64)
        return self.back(places)

    def back(self, places: Ids, dear: Ids | None = None) -> Ids:
        """Give back what shared floors forbid, from the slot that has taken the largest share, or whose last step is the dearest.

        ``dear``: per slot and place, how dear that step is.
        """
        places = places.copy()
        while self.land.slots.caps:
            over = self.over(self.at(places))
            if not over.any():
                break
            inside = self._holders[over].any(axis=0) & (places > 0)
            most = places / np.maximum(self.last, 1) if dear is None else dear[self.rows, places]
            places[int(np.where(inside, most, -1.0).argmax())] -= 1
        return places

    def rounded(self, numbers: Numbers) -> Ids:
        """The least places with at least so many steps."""
        found = [int(np.searchsorted(s.allowed, n - 1e-6)) for s, n in zip(self.land.slots.slots, numbers, strict=True)]
        return self.back(np.minimum(np.array(found, np.int64), self.last))


def linearised(choices: Choices, start: Numbers) -> Numbers:
    """Clause 2: numbers of steps (not whole) around which no better ones are seen."""
    land = choices.land
    most = choices.at(choices.last).astype(np.float64)
    here, radius = start.astype(np.float64), RADIUS
    best, best_merit = here, np.inf
    for _ in range(ROUNDS):
        found = _program(choices, here, np.maximum(radius * most, 1.0), most)
        if found is None:
            break
        here = found
        merit = _loss_at(choices, here) + 10 * land.slots.kept * float(
            np.maximum(land.costs(here) / land.bounds - 1.0, 0.0).max(initial=0.0)
        )
        if merit < best_merit:
            best, best_merit = here, merit
        radius *= SHRINK
    return best


def _loss_at(choices: Choices, numbers: Numbers) -> float:
    slots = choices.land.slots.slots
    return float(sum(np.interp(n, np.arange(len(s.loss)), s.loss) for s, n in zip(slots, numbers, strict=True)))


def _program(choices: Choices, here: Numbers, radius: Numbers, most: Numbers) -> Numbers | None:
    land = choices.land
    slots = land.slots.slots
    low, high = np.maximum(here - radius, 0.0), np.minimum(here + radius, most)
    owner, lengths, slopes = [], [], []
    for s, slot in enumerate(slots):
        edges = np.unique(np.linspace(low[s], high[s], SEGMENTS + 1))
        loss = np.interp(edges, np.arange(len(slot.loss)), slot.loss)
        wide = np.diff(edges)
        owner += [s] * len(wide)
        lengths += wide.tolist()
        slopes += (np.diff(loss) / np.maximum(wide, 1e-12)).tolist()
    own = np.array(owner, np.int64)
    scale = 1.0 / land.bounds
    saved = land.slopes(here) * scale[:, None]
    limit_room = (land.bounds - land.costs(here)) * scale + saved @ (low - here)
    matrix, room = choices.capped
    count = len(land.limits)
    rows = np.concatenate([-saved[:, own], matrix[:, own]])
    elastic = np.concatenate([-np.eye(count), np.zeros((len(room), count))])
    unit = max(land.slots.kept, 1e-12)
    objective = np.concatenate([np.array(slopes) / unit, np.full(count, 100.0)])
    from scipy.optimize import linprog  # importing fxprune stays quick
    from scipy.sparse import csr_matrix

    result = linprog(
        objective,
        A_ub=csr_matrix(np.concatenate([rows, elastic], axis=1)),
        b_ub=np.concatenate([limit_room, room - matrix @ low]),
        bounds=[*((0.0, w) for w in lengths), *((0.0, None),) * count],
        method="highs",
    )
    if result.x is None:
        return None
    return np.minimum(low + np.bincount(own, result.x[: len(own)], len(slots)), high)


def repaired(choices: Choices, places: Ids) -> Ids | None:
    """Clause 3: the nearest decision that meets all limits; None if there is none below."""
    land = choices.land
    places = places.copy()
    numbers = choices.at(places)
    costs = land.costs(numbers)
    while not land.met(costs):
        saved = land.slopes(numbers)
        over = costs > land.bounds
        ahead = np.minimum(places + 1, choices.last)
        steps = choices.numbers[choices.rows, ahead] - numbers
        worth = np.maximum(saved[over] / land.bounds[over, None], 0.0).sum(axis=0) * steps
        price = choices.losses[choices.rows, ahead] - choices.losses[choices.rows, places]
        density = np.where((ahead > places) & (worth > 0), price / np.maximum(worth, 1e-300), np.inf)
        for slot in np.argsort(density, kind="stable").tolist():
            if not np.isfinite(density[slot]):
                return None
            places[slot] += 1
            if choices.legal(places):
                break
            places[slot] -= 1
        else:
            return None
        numbers = choices.at(places)
        costs = land.costs(numbers)
    return places


def filled(choices: Choices, places: Ids) -> Ids:
    """Clause 3: everything back that fits."""
    land = choices.land
    places = places.copy()
    blocked = places == 0
    while not blocked.all():
        numbers = choices.at(places)
        slack = np.maximum(land.bounds - land.costs(numbers), 0.0)
        before = np.maximum(places - 1, 0)
        steps = numbers - choices.numbers[choices.rows, before]
        price = np.maximum(land.slopes(numbers) * steps, 0.0) / np.maximum(slack, 1e-300)[:, None]
        gain = choices.losses[choices.rows, places] - choices.losses[choices.rows, before]
        dear = price.max(axis=0)
        density = np.where(blocked | (dear > 1.001), -np.inf, (gain + 1e-15) / np.maximum(dear, 1e-12))
        slot = int(density.argmax())
        if not np.isfinite(density[slot]):
            break
        places[slot] -= 1
        if not choices.met(places):
            places[slot] += 1
            blocked[slot] = True
        elif places[slot] == 0:
            blocked[slot] = True
    return places


def swapped(choices: Choices, places: Ids) -> Ids:
    """Clause 3: exchanges that gain, the best first."""
    for _ in range(SWAPS):
        better = _exchange(choices, places)
        if better is None:
            return places
        places = filled(choices, better)
    return places


def _exchange(choices: Choices, places: Ids) -> Ids | None:
    """One slot gives back ``up`` steps and another takes ``down`` more: one for several, either way."""
    land = choices.land
    numbers = choices.at(places)
    slack = np.maximum(land.bounds - land.costs(numbers), 0.0)
    here = choices.losses[choices.rows, places]
    before, after = np.maximum(places - 1, 0), np.minimum(places + 1, choices.last)
    slopes = np.maximum(land.slopes(numbers), 0.0)
    gives = slopes * (numbers - choices.numbers[choices.rows, before])  # what one step back costs
    takes = slopes * (choices.numbers[choices.rows, after] - numbers)  # what one step more saves
    count = len(places)
    with np.errstate(divide="ignore", invalid="ignore"):
        down = np.ceil(((gives[:, :, None] - slack[:, None, None]) / takes[:, None, :]).max(axis=0) - 1e-9)
        up = np.floor(((slack[:, None, None] + takes[:, None, :]) / gives[:, :, None]).min(axis=0) + 1e-9)
    down = np.nan_to_num(np.maximum(down, 1.0), nan=1e9, posinf=1e9)
    up = np.nan_to_num(np.maximum(up, 1.0), nan=1.0, posinf=1.0)
    target = places[None, :] + down
    possible = (target <= choices.last[None, :]) & (places[:, None] > 0)
    columns = np.minimum(target, choices.last[None, :]).astype(np.int64)
    price = choices.losses[choices.rows[None, :], columns] - here[None, :]
    gain_one = np.where(possible, (here - choices.losses[choices.rows, before])[:, None] - price, -np.inf)
    several = np.minimum(up, places[:, None]).astype(np.int64)
    back = np.maximum(places[:, None] - several, 0)
    gain = here[:, None] - choices.losses[choices.rows[:, None], back]
    single = np.where(after > places, choices.losses[choices.rows, after] - here, np.inf)
    fits = (several > 1) & (gives[:, :, None] <= slack[:, None, None] + takes[:, None, :] + 1e-9).all(axis=0)
    gain_several = np.where(fits, gain - single[None, :], -np.inf)
    np.fill_diagonal(gain_one, -np.inf)
    np.fill_diagonal(gain_several, -np.inf)
    least = 1e-12 * max(land.slots.kept, 1e-300)
    gains = np.concatenate([gain_one.ravel(), gain_several.ravel()])
    top = np.argsort(-gains, kind="stable")[:24] if len(gains) > 24 else np.argsort(-gains, kind="stable")
    for index in top.tolist():
        if gains[index] <= least:
            return None
        a, b = divmod(index % (count * count), count)
        new = places.copy()
        if index < count * count:
            new[a] -= 1
            new[b] += int(down[a, b])
        else:
            new[a] -= int(several[a, b])
            new[b] += 1
        if choices.legal(new) and choices.met(new):
            return new
    return None
