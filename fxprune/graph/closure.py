"""Close the couplings once, and settle what the splits demand.

1. Coupled channels are the connected components of the couplings. Component 0 holds ``ALIVE``; whatever is coupled with it is pinned.
2. A split, read in components and stripped of dimensions along which they do not vary, is a *balance* if two dimensions or more are
   left: all but the last are blocks, and all blocks keep equally many.
3. A balance whose blocks share channels, or whose runs are too short to be thinned, is made *uniform*: position j of all blocks is
   coupled. Uniform splits need no balance. Couplings only grow, so this ends.
4. Balances over common channels refine each other: the cells of their common refinement lose channels in proportion to their sizes,
   so every block of every balance keeps as many as its siblings, and plans stay nested. A set of cells whose sizes have no common
   divisor cannot be thinned in step and is made uniform (3).
5. The owner of a block with one coupled channel is coupled with that channel. If the owner is ``ALIVE``, the channel is pinned.
   So is the owner of a block with several if a balance would thin it.
6. A *whole* is what goes when a block goes: the connected blocks, owners and channels. It must not share a block of any other
   balance with what stays, nor leave a box with a hole. Wholes that blocks tie together form a family; one of a family stays.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import gcd

import numpy as np

from fxprune.graph.components import components
from fxprune.graph.wholes import Family, wholes
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
    """Components per atom, balances, what is thinned in step, and what goes as a whole. ``owners`` never go by themselves."""

    component: Ids
    count: int
    balances: tuple[Balance, ...]
    cells: tuple[Cells, ...]
    uniform: frozenset[int]
    rigid: tuple[tuple[Ids, str, str], ...] = ()
    families: tuple[Family, ...] = ()
    owners: Ids = field(default_factory=lambda: np.zeros(0, np.int64))


def close(recorder: Recorder, uniform: frozenset[int] = frozenset()) -> Closed:
    """Clauses 1 to 4. ``uniform`` holds indices of splits that are made uniform from the start."""
    left, right = _raw(recorder)
    while True:
        ends = [_uniform_edges(recorder.splits[i].ids) for i in sorted(uniform)]
        rows = np.concatenate([left, *(a for a, _ in ends)])
        cols = np.concatenate([right, *(b for _, b in ends)])
        found, component = components(rows, cols, recorder.atoms)
        count, component = int(found), component.astype(np.int64)
        balances, clash = _balances(recorder, component, uniform)
        cells, stuck = _refine(balances, count)
        more = clash | stuck
        alone = _alone(recorder, component)
        if not more - uniform and not len(alone[0]):
            found_blocks = [(component[b.rows], component[b.owner], b.node) for b in recorder.blocks]
            families, owners = wholes(
                found_blocks, [b.blocks for _, b in balances], _boxes(recorder, component), component[0], count
            )
            rigid = (*_rigid(recorder, component), *_held(balances, owners))
            return Closed(component, count, tuple(b for _, b in balances), cells, uniform, rigid, families, owners)
        uniform |= more
        left, right = np.concatenate([left, alone[0]]), np.concatenate([right, alone[1]])


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
        if index in uniform:
            continue
        blocks, distinct = _distinct(_as_blocks(channels))
        short = blocks.shape[1] <= SHORTEST_RUN and blocks.shape[0] > blocks.shape[1] and not split.rigid
        if not distinct or short:
            clash.add(index)
        elif len(blocks) > 1:
            found.setdefault(
                bytes(str(blocks.shape), "ascii") + np.sort(blocks, axis=1).tobytes(), (index, Balance(blocks, split.node))
            )
    return list(found.values()), clash


def _distinct(blocks: Ids) -> tuple[Ids, bool]:
    """Blocks without those that hold the same channels as another (queries and keys), and whether what is left is disjoint."""
    if len(np.unique(blocks)) == blocks.size:
        return blocks, True
    _, first = np.unique(np.sort(blocks, axis=1), axis=0, return_index=True)
    blocks = blocks[np.sort(first)]
    return blocks, len(np.unique(blocks)) == blocks.size


def _alone(recorder: Recorder, component: Ids) -> tuple[Ids, Ids]:
    """Couplings of owners with the only coupled channel of their block (clause 5) that are not closed yet."""
    empty = np.zeros(0, np.int64)
    found = [(empty, empty)]
    for block in recorder.blocks:
        rows = component[block.rows]
        apart = (rows == rows[:, :1]).all(axis=1) & (component[block.owner] != rows[:, 0])
        if apart.any():
            found.append((block.rows[apart, 0], block.owner[apart]))
    return np.concatenate([a for a, _ in found]), np.concatenate([b for _, b in found])


def _held(balances: list[tuple[int, Balance]], owners: Ids) -> list[tuple[Ids, str, str]]:
    """Owners that a balance would thin by themselves (clause 6)."""
    found = []
    for _, balance in balances:
        own = balance.blocks[np.isin(balance.blocks, owners)]
        if len(own):
            found.append(
                (np.unique(own), balance.node, "it stands for a block of other channels, and is thinned in step with others")
            )
    return found


def _rigid(recorder: Recorder, component: Ids) -> tuple[tuple[Ids, str, str], ...]:
    """Channels that are all their block has, where an operator fixes the number of blocks (clause 5)."""
    found = []
    for block in recorder.blocks:
        fixed = block.rows[block.owner == 0]
        rows = component[fixed]
        whole = rows[:, 0][(rows == rows[:, :1]).all(axis=1)]
        if len(whole):
            found.append((np.unique(whole), block.node, "the only channel of a block whose number the operator fixes"))
    return tuple(found)


def _boxes(recorder: Recorder, component: Ids) -> list[Ids]:
    """Splits whose blocks are laid out in several dimensions."""
    found = [compress(component[s.ids]) for s in recorder.splits if s.ids.ndim > 2 and len(support(s.ids)) > 2]
    return [ids for ids in found if len(support(ids)) > 2]


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
