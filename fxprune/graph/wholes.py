"""What goes when a block goes: a whole attention head, a whole group of a convolution (closure.py, clause 6).

1. Blocks, their owners and their coupled channels are connected. A connected part is a *whole*.
2. A whole stays if one of its owners is ``ALIVE``, if it holds a part of a block of some balance and not all of it, or if a value that
   lost it were no box.
3. Wholes that hold blocks written down together (the heads of one attention) are tied: one of them stays. Tied wholes form a family.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import numpy as np

from fxprune.graph.components import components
from fxprune.provenance.factor import Ids, Mask

Written = tuple[Ids, Ids, str]


@dataclass(frozen=True, slots=True)
class Family:
    """Disjoint runs of coupled channels, each of which can go as a whole (clause 3).

    Attributes:
        wholes: the coupled channels of each whole.
        ties: runs of indices into ``wholes`` of which one must stay.
        node: where the blocks were first written down.
    """

    wholes: tuple[Ids, ...]
    ties: tuple[tuple[int, ...], ...]
    node: str


def wholes(
    blocks: Sequence[Written], balances: Sequence[Ids], boxes: Sequence[Ids], alive: int, count: int
) -> tuple[tuple[Family, ...], Ids]:
    """Families of wholes, and the owners of blocks with several channels (they never go by themselves).

    Args:
        blocks: rows of coupled channels, their owners, and the node that wrote them down.
        balances: rows of coupled channels that keep equally many each.
        boxes: coupled channels of values with blocks in several dimensions.
        alive: the coupled channel that holds ``ALIVE``.
        count: the number of coupled channels.
    """
    several = [(rows, owner, node) for rows, owner, node in blocks if not (rows == rows[:, :1]).all()]
    several = [w for w in several if not (w[0] == w[1][:, None]).all()]
    none: Ids = np.zeros(0, np.int64)
    if not several:
        return (), none
    free = [owner != alive for _, owner, _ in several]
    left = np.concatenate([np.repeat(owner[f], rows.shape[1]) for (rows, owner, _), f in zip(several, free, strict=True)])
    right = np.concatenate([rows[f].ravel() for (rows, _, _), f in zip(several, free, strict=True)])
    _, label = components(left, right, count)
    label = label.astype(np.int64)
    owners = np.unique(np.concatenate([owner[f] for (_, owner, _), f in zip(several, free, strict=True)]))
    stays = np.ones(count, np.bool_)
    stays[label[owners]] = False
    stays[label[alive]] = True
    for (rows, _, _), f in zip(several, free, strict=True):
        stays[label[rows[~f].ravel()]] = True
    for rows in balances:
        parts = label[rows]
        torn = (parts != parts[:, :1]).any(axis=1)
        stays[parts[torn].ravel()] = True
    for box in boxes:
        parts = label[box]
        for whole in np.unique(parts[~stays[parts]]).tolist():
            if not _leaves_a_box(parts != whole):
                stays[whole] = True
    return tuple(_families(several, label, stays, count)), owners


def _leaves_a_box(live: Mask) -> bool:
    spread = [int(live.any(axis=tuple(e for e in range(live.ndim) if e != d)).sum()) for d in range(live.ndim)]
    return prod(spread) == int(live.sum())


def _families(several: Sequence[Written], label: Ids, stays: Mask, count: int) -> list[Family]:
    """Clause 3."""
    tied = [np.unique(label[rows[:, 0]]) for rows, _, _ in several]
    left = np.concatenate([np.full(len(t), t[0]) for t in tied])
    _, family = components(left, np.concatenate(tied), count)
    chosen = np.flatnonzero(~stays[label])
    order = chosen[np.argsort(label[chosen], kind="stable")]
    runs = np.split(order, np.flatnonzero(np.diff(label[order])) + 1) if len(order) else []
    members: dict[int, list[Ids]] = {}
    place: dict[int, int] = {}
    for run in runs:
        part = int(label[run[0]])
        own = members.setdefault(int(family[part]), [])
        place[part] = len(own)
        own.append(run)
    node_of: dict[int, str] = {}
    ties: dict[int, dict[tuple[int, ...], None]] = {}
    for parts, (_, _, node) in zip(tied, several, strict=True):
        own_family = int(family[parts[0]])
        node_of.setdefault(own_family, node)
        if not stays[parts].any():
            ties.setdefault(own_family, {})[tuple(place[part] for part in parts.tolist())] = None
    return [Family(tuple(own), tuple(ties.get(key, ())), node_of[key]) for key, own in members.items()]
