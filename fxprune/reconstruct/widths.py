"""How many channels stay in every target: from one ratio, ratios by name, or the widths of a plan.

1. ``ratio`` is the share of every target's channels that goes; streams (targets.py, clause 2) and what is no target keep theirs, with the reason.
2. ``ratios`` names layers, by globs, and the share of each one's output channels that goes. A name without wildcards has to be a target's.
3. A plan gives the number that stays in each group; which ones is chosen anew. What it takes from groups that are no targets stays.
4. ``branches`` is the share of its inputs that the first convolution of a branch (branches.py) does not read, or such shares by globs; the
   others read all. Where nothing is said it is ``ratio``.
5. A budget is met by the widths that ``fxprune.plan`` would give to the targets that are neither streams nor branches.
6. At least one channel stays, and what the program demands.
"""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from typing import Any

import numpy as np

from fxprune.errors import BudgetError, KeepError
from fxprune.graph.channels import ChannelGraph
from fxprune.plan import Plan
from fxprune.reconstruct.numbers import Ids, Mask
from fxprune.reconstruct.targets import STREAM, Skipped, Target, producing
from fxprune.score.scores import score
from fxprune.solve.budget import Budget
from fxprune.solve.budgeted import solve_budget
from fxprune.solve.plans import removed_channels
from fxprune.solve.ratio import check_ratio

Chosen = list[tuple[Target, int]]
Reasons = list[tuple[str, str]]


def staying(target: Target, ratio: float) -> int:
    """Clause 6."""
    count = len(target.group)
    return min(count, max(1, target.least, count - math.floor(ratio * count + 0.5)))


def by_ratio(found: Sequence[Target], skipped: Sequence[Skipped], ratio: float) -> tuple[Chosen, Reasons]:
    """Clause 1.

    Raises:
        BudgetError: a ratio outside [0, 1).
    """
    ratio = check_ratio(ratio)
    chosen = [(target, staying(target, ratio)) for target in found if not target.stream and not target.branch]
    reasons = [(target.name, STREAM) for target in found if target.stream]
    return chosen, [*reasons, *((one.names[0], one.reason) for one in skipped)]


def by_name(found: Sequence[Target], skipped: Sequence[Skipped], ratios: Mapping[str, float]) -> tuple[Chosen, Reasons]:
    """Clause 2.

    Raises:
        BudgetError: a share outside [0, 1); two different ones for one group; a layer whose channels cannot be chosen among.
        KeepError: a name that matches no layer.
    """
    given: Any = ratios
    if not isinstance(given, Mapping) or not given:
        raise BudgetError(f"ratios must name layers, {{'layer1.0.conv1': 0.5}}, got {ratios!r}.", got=ratios)
    shares: dict[int, tuple[str, float]] = {}
    reasons: Reasons = []
    for pattern, share in ratios.items():
        share = check_ratio(share)
        hits = [i for i, target in enumerate(found) if _matches(pattern, target.producers)]
        misses = [one for one in skipped if _matches(pattern, one.names)]
        if not hits and not misses:
            known = [name for target in found for name in target.producers]
            near = get_close_matches(str(pattern), known, 3) or known[:3]
            raise KeepError(
                f"ratios names {pattern!r}, and no layer whose channels can go is called that. There are {', '.join(map(repr, near)) or 'none'}.",
                got=pattern,
            )
        if misses and not hits:
            raise BudgetError(
                f"ratios names {pattern!r}, whose channels reconstruction cannot choose among: {misses[0].reason}.",
                node=misses[0].names[0],
                got=pattern,
            )
        reasons += [(one.names[0], one.reason) for one in misses]
        for i in hits:
            earlier = shares.setdefault(i, (pattern, share))
            if earlier[1] != share:
                raise BudgetError(
                    f"ratios asks {earlier[1]:g} of {earlier[0]!r} and {share:g} of {pattern!r}, but they are one group of coupled channels "
                    f"({', '.join(found[i].producers[:4])}).",
                    node=found[i].name,
                    expected=earlier[1],
                    got=share,
                )
    return [(found[i], staying(found[i], shares[i][1])) for i in sorted(shares)], reasons


def by_budget(graph: ChannelGraph, found: Sequence[Target], skipped: Sequence[Skipped], budget: Budget) -> tuple[Chosen, Reasons]:
    """Clause 5.

    Raises:
        BudgetError: it cannot be met.
    """
    mine = [target for target in found if not target.stream and not target.branch]
    free = np.zeros(graph.closed.count, np.bool_)
    for target in mine:
        free[target.group.channels] = True
    others = [group.channels[~free[group.channels]] for group in graph.groups]
    among = graph.bar(np.concatenate([np.zeros(0, np.int64), *others]), "", "reconstruction leaves it as it is")
    chosen, reasons = by_plan(mine, skipped, solve_budget(among, score(among.groups), budget).removed)
    return chosen, [*((target.name, STREAM) for target in found if target.stream), *reasons]


def whole(graph: ChannelGraph, ratios: Mapping[str, float] | None, plan: Plan | None) -> Callable[[Ids], bool]:
    """Tells of coupled channels whether they go for all readers: their layers are named (clause 2), or a plan removes some (clause 3)."""
    named = np.zeros(graph.closed.count, np.bool_)
    for group in graph.groups:
        producers = producing(graph, group)
        if ratios and any(_matches(pattern, producers) for pattern in ratios):
            named[group.channels] = True
    if plan is not None:
        named |= removed_channels(graph, plan)
    return lambda channels: bool(named[channels].any())


def by_branch(found: Sequence[Target], branches: float | Mapping[str, float]) -> Chosen:
    """Clause 4.

    Raises:
        BudgetError: a share outside [0, 1).
        KeepError: a name that matches no first convolution of a branch.
    """
    firsts = {target.readings[0].reader.path: target for target in found if target.branch}
    if not isinstance(branches, Mapping):
        share = check_ratio(branches)
        return [(target, staying(target, share)) for target in firsts.values()]
    chosen: dict[str, tuple[Target, int]] = {}
    for pattern, asked in branches.items():
        share = check_ratio(asked)
        hits = [path for path in firsts if fnmatch.fnmatchcase(path, str(pattern).removesuffix(".weight"))]
        if not hits:
            near = get_close_matches(str(pattern), firsts, 3) or list(firsts)[:3]
            raise KeepError(
                f"branches names {pattern!r}, and no convolution that reads a residual stream is called that. There are "
                f"{', '.join(map(repr, near)) or 'none'}.",
                got=pattern,
            )
        chosen |= {path: (firsts[path], staying(firsts[path], share)) for path in hits}
    return list(chosen.values())


def _matches(pattern: str, names: Sequence[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, form) for name in names for form in (pattern, str(pattern).removesuffix(".weight")))


def by_plan(found: Sequence[Target], skipped: Sequence[Skipped], removed: Mask) -> tuple[Chosen, Reasons]:
    """Clause 3; ``removed`` is per coupled channel."""
    chosen = [(t, max(1, t.least, int((~removed[t.group.channels]).sum()))) for t in found if removed[t.group.channels].any()]
    return chosen, [(one.names[0], one.reason) for one in skipped]
