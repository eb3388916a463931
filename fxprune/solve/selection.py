"""Channel selection: one threshold over all scale factors, and what nobody reads any more (Liu et al. 2017, section 3).

1. *Ranked* are the coupled channels that pass a batch norm. With ``floor=0`` the rule is that of the paper's reference code, to the letter:
   sort |gamma| of all their batch norms, ``threshold = sorted[int(n * ratio)]``, and what is not greater goes. A coupled channel with
   several gammas goes when none of them is greater. A ratio of 0 removes nothing (the reference removes the smallest).
2. With a floor, with ``round_to``, and where blocks are thinned in step, as many of the n gammas go in the elimination order of ratio.py
   (clauses 1 to 3 there): groups keep their floors, and equal gammas are cut evenly instead of all at once.
3. *Liveness*: a channel is alive if it cannot go, if a cut reads it for a living channel, or if something hears it and it was not removed by
   its own gammas. What hears is a column of a weight some of whose rows are alive, or an operator that mixes channels. Everything
   else goes: the least set of living channels is kept (as an optimizing compiler removes dead code).
4. Where blocks must keep equally many channels, only clause 2 removes.
5. What a living cut reads stays, whatever its own gammas say. Blocks that are thinned in step are then left as they are.
6. An emptied group keeps one channel, silent (plan.py, clause 4), and what a cut reads for it. Nothing is heard for its sake.
7. The share that went is counted in gammas.
8. ``round_to`` is for what is ranked. Groups that only liveness thins may end at any width, which a note says.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch

from fxprune.errors import BudgetError, NothingToPruneError
from fxprune.graph.channels import ChannelGraph, ChannelGroup, Selection
from fxprune.provenance.factor import Ids, Mask
from fxprune.score.scores import Score, Scored, score
from fxprune.solve.ratio import Order, Solution, _order, check_ratio, nothing, order_rounded_to_nothing

Numbers = npt.NDArray[np.float64]


def ranked(graph: ChannelGraph) -> ChannelGraph:
    """The same graph with everything pinned that passes no batch norm: its groups are what clause 1 ranks."""
    others = [group.channels for group in graph.groups if not group.gammas]
    return graph.bar(np.concatenate(others), "", "passes no batch norm") if others else graph


def select_channels(graph: ChannelGraph, ratio: float, how: str | Score, floor: float, round_to: int) -> tuple[Scored, Solution]:
    """Clauses 1 to 7, for the graph of the selection layout (graph/selection.py). The scores are those of ``ranked(graph).groups``.

    ``how`` is a score, as for ``plan``. "auto" compares each gamma by itself; with any other score, a channel's counts as often as it has
    gammas.

    Raises:
        BudgetError: a ratio outside [0, 1), or one that floors and balances do not allow.
        NothingToPruneError: no channel with a batch norm can go.
    """
    among = ranked(graph)
    scored = score(among.groups, "gamma_max" if how == "auto" else how)
    solution = _solve(graph, among, scored, ratio, floor, round_to, own=how in ("auto", "gamma_max"))
    return (replace(scored, name="gamma") if how == "auto" else scored), solution


def worth(graph: ChannelGraph, how: str | Score) -> dict[str, Numbers]:
    """What every scale factor is worth to the ranking of clause 1, by the name of its batch norm's scale: |gamma| with "auto".

    Those of channels that cannot go are worth nothing; they stay in any plan.
    """
    among = ranked(graph)
    own = how in ("auto", "gamma_max")
    scored = score(among.groups, "gamma_max" if how == "auto" else how)
    found: dict[str, Numbers] = {}
    for group, numbers in zip(among.groups, scored.values, strict=True):
        for member in group.members:
            if member.name in group.gammas:
                gamma = group.tensors[member.name].detach().abs().cpu().to(torch.float64).numpy()
                values = found.setdefault(member.name, np.zeros(len(gamma)))
                values[member.atom] = gamma[member.atom] if own else numbers.numpy()[member.channel]
    return found


def _solve(
    graph: ChannelGraph, among: ChannelGraph, scored: Scored, ratio: float, floor: float, round_to: int, *, own: bool
) -> Solution:
    ratio = check_ratio(ratio)
    if not among.groups:
        raise NothingToPruneError(nothing(graph), got=ratio)
    gammas = _Gammas.of(among, scored, own=own)
    order = _order(among, scored, floor, round_to)
    index = int(gammas.total * ratio)
    cut = np.zeros(graph.closed.count, np.bool_)
    if ratio > 0 and floor == 0 and round_to == 1:
        threshold = np.sort(gammas.values)[index]
        ends = [*order.starts[1:], len(order.channels)]
        for start, end in zip(order.starts, ends, strict=True):
            unit = order.channels[start:end]
            if _mean(gammas.score, unit) <= threshold:
                cut[unit] = True
    elif ratio > 0:
        cut[_prefix(order, gammas, index + 1, ratio, floor, round_to)] = True
    if ratio == 0:
        return Solution(cut, ratio, 0.0)
    removed, silent = _Liveness(graph, gammas.score).settle(cut)
    gone = int(gammas.count[removed].sum())
    notes = (*order_rounded_to_nothing(among, scored, floor, round_to, order), *_odd(graph, removed, round_to))
    if silent:
        notes = (f"{len(silent)} emptied group(s) keep one channel each that nobody hears", *notes)
    return Solution(removed, ratio, gone / gammas.total, notes, silent)


def _odd(graph: ChannelGraph, removed: Mask, round_to: int) -> tuple[str, ...]:
    """Clause 8."""
    left = [(group, int((~removed[group.channels]).sum())) for group in graph.groups]
    odd = [f"{group.name} ({now} of {len(group)})" for group, now in left if now < len(group) and now % round_to]
    if not odd:
        return ()
    names = ", ".join(odd[:3]) + (", ..." if len(odd) > 3 else "")
    return (
        f"{len(odd)} of {len(left)} groups end at widths that are no multiples of {round_to}, for nobody reads more of them: {names}",
    )


def _prefix(order: Order, gammas: _Gammas, target: int, ratio: float, floor: float, round_to: int) -> Ids:
    """Clause 2: the first channels of the elimination order, with as many gammas as come closest to ``target``."""
    sizes = np.add.reduceat(gammas.count[order.channels], order.starts) if len(order) else np.zeros(0, np.int64)
    counts = np.concatenate([[0], sizes.cumsum()])
    if target > counts[-1] + max(1.0, sizes.max(initial=0) / 2):
        raise BudgetError(
            f"ratio {ratio:g} cannot be reached: floor={floor:g}"
            + (f", round_to={round_to}" if round_to > 1 else "")
            + f" and the balances of the network allow {counts[-1] / gammas.total:.3f} at most. Ask for less, or lower floor.",
            expected=float(counts[-1] / gammas.total),
            got=ratio,
        )
    return order.first(int(np.abs(counts - target).argmin()))


@dataclass(frozen=True, slots=True)
class _Gammas:
    """The gammas of ranked channels: all values; how many per component; the score of each component (the greatest of its gammas)."""

    values: Numbers
    count: Ids
    score: Numbers

    @property
    def total(self) -> int:
        return len(self.values)

    @staticmethod
    def of(among: ChannelGraph, scored: Scored, *, own: bool) -> _Gammas:
        count = np.zeros(among.closed.count, np.int64)
        score = np.full(among.closed.count, np.inf)
        values = []
        for group, numbers in zip(among.groups, scored.values, strict=True):
            score[group.channels] = numbers.numpy()
            for member in group.members:
                if member.name in group.gammas:
                    channels = group.channels[member.channel]
                    np.add.at(count, channels, 1)
                    gamma = group.tensors[member.name].detach().abs().cpu().to(torch.float64).numpy()
                    values.append(gamma[member.atom] if own else score[channels])
        return _Gammas(np.concatenate(values), count, score)


def _mean(score: Numbers, unit: Ids) -> float:
    found = score[unit]
    return float(found[0]) if len(unit) == 1 else float(found[np.isfinite(found)].mean())


class _Liveness:
    """Clauses 3 to 6 for one graph."""

    def __init__(self, graph: ChannelGraph, score: Numbers) -> None:
        assert isinstance(graph.selection, Selection)
        component = graph.closed.component
        self.graph, self.score = graph, score
        self.source = np.concatenate([np.zeros(0, np.int64), *(component[cut.source] for cut in graph.selection.cuts)])
        self.own = np.concatenate([np.zeros(0, np.int64), *(component[cut.own] for cut in graph.selection.cuts)])
        self.free = np.zeros(graph.closed.count, np.bool_)
        for group in graph.groups:
            self.free[group.channels] = True
        self.stiff = self._stiff()
        self.mixed = np.zeros(graph.closed.count, np.bool_)
        self.mixed[component[graph.selection.heard]] = True
        self.hearing = _hearing(graph, graph.selection)

    def _stiff(self) -> Mask:
        """Channels that only the elimination order removes (clause 4)."""
        closed, recorder = self.graph.closed, self.graph.program.recorder
        stiff = np.zeros(closed.count, np.bool_)
        for balance in closed.balances:
            stiff[balance.blocks] = True
        for cells in closed.cells:
            stiff[np.concatenate(cells.cells)] = True
        for ids in [*(b.rows for b in recorder.blocks), *(b.owner for b in recorder.blocks), *(f.ids for f in recorder.floors)]:
            stiff[closed.component[ids]] = True
        stiff[closed.owners] = True
        return stiff

    def settle(self, cut: Mask) -> tuple[Mask, tuple[int, ...]]:
        """What goes, and what stays silent (clauses 3 to 6), where the threshold removes ``cut``."""
        cut = cut.copy()
        silenced = np.zeros_like(cut)
        silent: list[int] = []
        while True:
            alive = self._alive(cut, silenced)
            torn = alive & cut & self.stiff
            if torn.any():
                cut &= ~self._together(torn)
                continue
            removed = self.free & ~alive
            emptied = [g for g in self.graph.groups if removed[g.channels].all()]
            if not emptied:
                return removed, tuple(silent)
            best = [self._best(group) for group in emptied]
            silenced[best] = True
            silent += best

    def _together(self, some: Mask) -> Mask:
        """These channels, and all that is thinned in step with them or goes with them as a whole."""
        closed = self.graph.closed
        sets = [np.concatenate(cells.cells) for cells in closed.cells]
        sets += [np.concatenate(family.wholes) for family in closed.families if family.wholes]
        found = some.copy()
        while True:
            more = [own for own in sets if found[own].any() and not found[own].all()]
            if not more:
                return found
            found[np.concatenate(more)] = True

    def _alive(self, cut: Mask, silent: Mask) -> Mask:
        """The least set of clause 3; what only a silent channel hears is not heard."""
        wanted = ~cut
        alive = ~self.free | silent | (wanted & (self.mixed | self.stiff))
        while True:
            before = int(alive.sum())
            for hearing in self.hearing:
                if isinstance(hearing, _Columns):
                    if hearing.rows is None or (alive[hearing.rows] & ~silent[hearing.rows]).any():
                        alive[hearing.columns[wanted[hearing.columns]]] = True
                else:
                    source, own = hearing
                    alive[source[alive[own]]] = True
            if int(alive.sum()) == before:
                return alive

    def _best(self, group: ChannelGroup) -> int:
        """The channel of an emptied group that is the last to go, whatever the ratio: the greatest score among its own or its readers'."""
        last = np.where(np.isfinite(self.score), self.score, -1.0)
        np.maximum.at(last, self.source, last[self.own])
        return int(group.channels[int(last[group.channels].argmax())])


@dataclass(frozen=True, slots=True)
class _Columns:
    """An input axis of a weight: components of its rows (None: it has none that could all go), and of its columns."""

    rows: Ids | None
    columns: Ids


def _hearing(graph: ChannelGraph, selection: Selection) -> list[_Columns | tuple[Ids, Ids]]:
    """Who hears whom: columns of weights, and (sources, own) of cuts; last in the program first, as liveness runs backwards."""
    component = graph.closed.component
    rows: dict[str, Ids] = {}
    for axis, reads in zip(graph.axes, graph.reading, strict=True):
        if not reads and graph.tensors[axis.name].dim() > 1:
            own = component[axis.start : axis.start + axis.size]
            rows[axis.name] = np.unique(np.concatenate([rows.get(axis.name, own), own]))
    placed: list[tuple[int, _Columns | tuple[Ids, Ids]]] = []
    node_of: dict[str, int] = {}
    for number, (axis, reads) in enumerate(zip(graph.axes, graph.reading, strict=True)):
        node_of.setdefault(axis.name, number)
        if reads:
            columns = np.unique(component[axis.start : axis.start + axis.size])
            placed.append((number, _Columns(rows.get(axis.name), columns)))
    placed += [(node_of.get(cut.gamma, 0), (component[cut.source], component[cut.own])) for cut in selection.cuts]
    return [hearing for _, hearing in sorted(placed, key=lambda item: -item[0])]
