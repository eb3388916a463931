"""Close the couplings once, and settle what the splits demand.

1. Coupled channels are the connected components of the couplings. Component 0 holds ``ALIVE``; whatever is coupled with it is pinned.
2. A split, read in components and stripped of dimensions along which they do not vary, is a *balance* if two dimensions or more are
   left: all but the last are blocks, and all blocks keep equally many.
3. A balance whose blocks share channels, or whose runs are too short to be thinned, is made *uniform*: position j of all blocks is
   coupled. Uniform splits need no balance. Couplings only grow, so this ends.
4. Balances over common channels refine each other: the cells of their common refinement lose channels in proportion to their sizes,
   so every block of every balance keeps as many as its siblings, and plans stay nested. A set of cells whose sizes have no common
   divisor cannot be thinned in step and is made uniform (3).
5. Where an operator fixes the number of blocks (a rigid split), a channel that is all its block has is pinned.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import gcd

import numpy as np
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from fxprune.provenance.factor import Ids, compress, support
from fxprune.provenance.ledger import Recorder

SHORTEST_RUN = 4


@dataclass(frozen=True, slots=True)
class Balance:
    """Blocks (rows of coupled channels) that must keep equally many each, and the node that says so."""

    blocks: Ids
    node: str


@dataclass(frozen=True, slots=True)
class Cells:
    """Runs of coupled channels that are thinned in step: a step takes ``len(cell) // steps`` from each cell (clause 4)."""

    cells: tuple[Ids, ...]
    steps: int


@dataclass(frozen=True, slots=True)
class Closed:
    """Components per atom, balances, and what is thinned in step."""

    component: Ids
    count: int
    balances: tuple[Balance, ...]
    cells: tuple[Cells, ...]
    uniform: frozenset[int]
    rigid: tuple[tuple[Ids, str], ...] = ()


def close(recorder: Recorder, uniform: frozenset[int] = frozenset()) -> Closed:
    """Clauses 1 to 4. ``uniform`` holds indices of splits that are made uniform from the start."""
    left, right = _raw(recorder)
    while True:
        ends = [_uniform_edges(recorder.splits[i].ids) for i in sorted(uniform)]
        rows = np.concatenate([left, *(a for a, _ in ends)])
        cols = np.concatenate([right, *(b for _, b in ends)])
        matrix = coo_matrix((np.ones(len(rows), np.int8), (rows, cols)), shape=(recorder.atoms, recorder.atoms))
        found, component = connected_components(matrix, directed=False)
        count, component = int(found), component.astype(np.int64)
        balances, clash = _balances(recorder, component, uniform)
        cells, stuck = _refine(balances, count)
        more = clash | stuck
        if not more - uniform:
            return Closed(component, count, tuple(b for _, b in balances), cells, uniform, _rigid(recorder, component))
        uniform |= more


def _raw(recorder: Recorder) -> tuple[Ids, Ids]:
    empty = np.zeros(0, np.int64)
    pairs = recorder.couplings
    return (
        np.concatenate([empty, *(p.left for p in pairs)]),
        np.concatenate([empty, *(p.right for p in pairs)]),
    )


def _uniform_edges(ids: Ids) -> tuple[Ids, Ids]:
    blocks = ids.reshape(-1, ids.shape[-1]) if support(ids)[-1] == ids.ndim - 1 else _as_blocks(ids)
    first = np.broadcast_to(blocks[:1], blocks.shape)
    return blocks.ravel(), first.ravel()


def _as_blocks(ids: Ids) -> Ids:
    dims = support(ids)
    flat = ids.reshape([ids.shape[d] for d in dims])
    return flat.reshape(-1, flat.shape[-1])


def _balances(recorder: Recorder, component: Ids, uniform: frozenset[int]) -> tuple[list[tuple[int, Balance]], set[int]]:
    found: dict[bytes, tuple[int, Balance]] = {}
    clash: set[int] = set()
    for index, split in enumerate(recorder.splits):
        channels = compress(component[split.ids])
        if len(support(channels)) < 2:
            continue
        blocks = _as_blocks(channels)
        distinct = len(np.unique(blocks)) == blocks.size
        if index in uniform:
            continue
        if not distinct or (blocks.shape[1] <= SHORTEST_RUN and blocks.shape[0] > blocks.shape[1]):
            clash.add(index)
            continue
        found.setdefault(
            bytes(str(blocks.shape), "ascii") + np.sort(blocks, axis=1).tobytes(), (index, Balance(blocks, split.node))
        )
    return list(found.values()), clash


def _rigid(recorder: Recorder, component: Ids) -> tuple[tuple[Ids, str], ...]:
    """Channels that are all their block has, where an operator fixes the number of blocks (clause 5)."""
    found = []
    for split in recorder.splits:
        if split.rigid:
            blocks = component[split.ids]
            whole = blocks[:, 0][(blocks == blocks[:, :1]).all(axis=1)]
            if (len(whole) and not (whole == whole[0]).all()) or (len(whole) and len(blocks) > 1 and blocks.size == len(blocks)):
                found.append((np.unique(whole), split.node))
    return tuple(found)


def _refine(balances: list[tuple[int, Balance]], count: int) -> tuple[tuple[Cells, ...], set[int]]:
    """Clause 4: the cells of the common refinement, linked where balances tie them together."""
    if not balances:
        return (), set()
    # A channel's cell is known by the set of its blocks: hash sets as sums of random numbers.
    random = np.random.default_rng(0)
    mark = np.zeros(count, np.int64)
    for _, balance in balances:
        mark[balance.blocks] += random.integers(1, 2**62, len(balance.blocks))[:, None]
    used = np.flatnonzero(mark)
    order = used[np.argsort(mark[used], kind="stable")]
    cells = np.split(order, np.flatnonzero(np.diff(mark[order])) + 1)
    cell_of = np.zeros(count, np.int64)
    for k, cell in enumerate(cells):
        cell_of[cell] = k
    parent = list(range(len(cells) + len(balances)))

    def root(i: int) -> int:
        while parent[i] != i:
            i = parent[i]
        return i

    for row, (_, balance) in enumerate(balances):
        for k in np.unique(cell_of[balance.blocks]).tolist():
            parent[root(k)] = root(len(cells) + row)
    linked: dict[int, list[Ids]] = {}
    for k, cell in enumerate(cells):
        linked.setdefault(root(k), []).append(cell)
    result, stuck = [], set()
    for top, members in linked.items():
        steps = gcd(*(len(cell) for cell in members))
        if steps < 2:
            stuck |= {index for row, (index, _) in enumerate(balances) if root(len(cells) + row) == top}
        else:
            result.append(Cells(tuple(members), steps))
    return tuple(result), stuck
