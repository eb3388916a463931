"""Closing couplings, and what splits demand: components, balances, cells, uniform and rigid splits."""

from __future__ import annotations

import networkx
import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from fxprune.graph.closure import Closed, close
from fxprune.provenance.factor import Ids
from fxprune.provenance.ledger import Recorder
from tests.property.profile import share


def recorded(atoms: int, pairs: list[tuple[int, int]] | None = None) -> Recorder:
    """A ledger with one axis of so many atoms and some couplings."""
    recorder = Recorder()
    recorder.axis("weight", 0, atoms)
    for a, b in pairs or []:
        recorder.couple(np.array([a]), np.array([b]))
    return recorder


@share(2)
@given(st.integers(1, 12), st.lists(st.tuples(st.integers(0, 12), st.integers(0, 12)), max_size=12))
def test_components_are_those_of_the_graph_of_couplings(atoms: int, pairs: list[tuple[int, int]]) -> None:
    pairs = [(a % (atoms + 1), b % (atoms + 1)) for a, b in pairs]
    closed = close(recorded(atoms, pairs))
    graph = networkx.Graph(pairs)
    graph.add_nodes_from(range(atoms + 1))
    wanted = {frozenset(part) for part in networkx.connected_components(graph)}
    found = {frozenset(np.flatnonzero(closed.component == c).tolist()) for c in range(closed.count)}
    assert found == wanted
    assert closed.component.shape == (atoms + 1,)


def test_couplings_broadcast() -> None:
    recorder = recorded(6)
    recorder.couple(np.arange(1, 7).reshape(2, 3), np.array([[1], [4]]))
    component = close(recorder).component
    assert len(set(component[1:4].tolist())) == 1
    assert len(set(component[4:7].tolist())) == 1
    assert component[1] != component[4]


def test_a_coupling_with_itself_is_nothing() -> None:
    recorder = recorded(4)
    ids = np.arange(1, 5)
    recorder.couple(ids, ids)
    assert not recorder.couplings


def test_atoms_of_axes_are_distinct_and_blocks_multiply_them() -> None:
    recorder = Recorder()
    first, second = recorder.axis("a", 0, 3), recorder.axis("b", 1, 2, blocks=4)
    fresh = recorder.fresh(2)
    assert sorted([*first, *second, *fresh]) == list(range(1, 14))
    assert [(axis.label, axis.start, axis.size) for axis in recorder.axes] == [("a[0]", 1, 3), ("b[1]", 4, 8)]
    assert recorder.atoms == 14


def test_fresh_atoms_are_numbered_per_node() -> None:
    recorder = Recorder()
    for node, count in (("pad", 2), ("pad", 3), ("zeros", 1)):
        recorder.node = node
        recorder.fresh(count)
    assert {key: ids.tolist() for key, ids in recorder.created.items()} == {
        ("pad", 0): [1, 2],
        ("pad", 1): [3, 4, 5],
        ("zeros", 0): [6],
    }


def test_what_has_no_rule_is_pinned_and_listed() -> None:
    recorder = recorded(4)
    recorder.node = "fft"
    recorder.missing("aten::fft", [np.arange(1, 3)])
    assert recorder.no_rule == {"aten::fft": ["fft"]}
    assert [(pin.ids.tolist(), pin.node) for pin in recorder.pins] == [([1, 2], "fft")]
    assert "no transfer rule" in recorder.pins[0].reason


# -- balances ----------------------------------------------------------------------------------------------------------


def split(atoms: int, *blocks: int, pairs: list[tuple[int, int]] | None = None, rigid: bool = False) -> Closed:
    """One axis, laid out in so many blocks by each of several splits."""
    recorder = recorded(atoms, pairs)
    for count in blocks:
        rows = np.arange(1, atoms + 1).reshape(count, -1)
        if rigid:
            recorder.block(rows, np.zeros(count, np.int64))
        else:
            recorder.split(rows)
    return close(recorder)


def cells(closed: Closed) -> list[tuple[int, list[list[int]]]]:
    """Steps and cells, as atoms."""
    atoms = {int(c): np.flatnonzero(closed.component == c).tolist() for c in range(closed.count)}
    return [
        (group.steps, sorted(sorted(a for c in cell for a in atoms[int(c)]) for cell in group.cells)) for group in closed.cells
    ]


def test_a_split_is_a_balance() -> None:
    closed = split(12, 2)
    assert [b.blocks.shape for b in closed.balances] == [(2, 6)]
    assert cells(closed) == [(6, [[1, 2, 3, 4, 5, 6], [7, 8, 9, 10, 11, 12]])]
    assert not closed.uniform


def test_a_split_along_which_channels_do_not_vary_is_none() -> None:
    recorder = recorded(4)
    recorder.split(np.repeat(np.arange(1, 5), 3).reshape(4, 3))
    assert close(recorder).balances == ()


def test_a_split_whose_blocks_are_coupled_is_none() -> None:
    closed = split(8, 2, pairs=[(i, i + 4) for i in range(1, 5)])
    assert closed.balances == ()
    assert closed.cells == ()


def test_blocks_that_share_channels_become_uniform() -> None:
    recorder = recorded(7)
    recorder.split(np.stack([np.arange(1, 7), np.arange(2, 8)]))  # overlapping windows
    closed = close(recorder)
    assert closed.uniform == {0}
    assert len(set(closed.component[1:].tolist())) == 1


def test_short_runs_become_uniform() -> None:
    closed = split(12, 6)
    assert closed.uniform == {0}
    assert len(set(closed.component[1:].tolist())) == 2


def test_uniform_from_the_start_couples_positions() -> None:
    recorder = recorded(12)
    recorder.split(np.arange(1, 13).reshape(2, 6))
    closed = close(recorder, frozenset({0}))
    assert closed.balances == ()
    assert np.array_equal(closed.component[1:7], closed.component[7:13])


def test_two_balances_refine_each_other() -> None:
    """Blocks of 12 and of 8 over 24 channels: cells of 8, 4, 4 and 8, thinned in four steps of 2, 1, 1, 2."""
    recorder = recorded(24)
    order = np.arange(1, 25)
    recorder.split(order.reshape(2, 12))
    recorder.split(order[::-1].reshape(3, 8))
    closed = close(recorder)
    sizes = [(steps, sorted(map(len, own))) for steps, own in cells(closed)]
    assert sizes == [(4, [4, 4, 8, 8])]


def test_two_balances_over_channels_in_order_refine_each_other() -> None:
    closed = split(24, 2, 3)
    assert sorted(b.blocks.shape for b in closed.balances) == [(2, 12), (3, 8)]
    assert [(steps, sorted(map(len, own))) for steps, own in cells(closed)] == [(4, [4, 4, 8, 8])]


def test_the_same_balance_twice_is_one() -> None:
    recorder = recorded(12)
    blocks = np.arange(1, 13).reshape(2, 6)
    recorder.split(blocks)
    recorder.split(blocks[:, ::-1])
    assert len(close(recorder).balances) == 1


def test_cells_without_a_common_divisor_become_uniform() -> None:
    recorder = recorded(10)
    recorder.split(np.array([[1, 2, 3, 4, 5], [6, 7, 8, 9, 10]]))
    recorder.split(np.array([[1, 2, 3, 6, 7], [4, 5, 8, 9, 10]]))
    assert close(recorder).uniform


def test_rigid_blocks_with_one_channel_each_are_pinned() -> None:
    closed = split(8, 4, pairs=[(1, 2), (3, 4), (5, 6), (7, 8)], rigid=True)
    found = {int(c) for components, _ in closed.rigid for c in components}
    assert found == {int(closed.component[0])}
    assert set(closed.component.tolist()) == found
    assert split(8, 4, pairs=[(1, 2), (3, 4), (5, 6), (7, 8)]).rigid == ()


@st.composite
def layouts(draw: st.DrawFn) -> tuple[int, list[Ids]]:
    """Several splits of one run of channels in orders of their own."""
    blocks = draw(st.lists(st.sampled_from([2, 3, 4]), min_size=1, max_size=3))
    atoms = int(np.lcm.reduce(blocks)) * draw(st.integers(1, 2)) * 2
    orders = [draw(st.permutations(range(1, atoms + 1))) if draw(st.booleans()) else range(1, atoms + 1) for _ in blocks]
    return atoms, [np.array(order).reshape(count, -1) for order, count in zip(orders, blocks, strict=True)]


@share(2)
@given(layouts(), st.randoms(use_true_random=False))
def test_every_prefix_of_steps_leaves_equal_counts_in_every_block(layout: tuple[int, list[Ids]], random: object) -> None:
    atoms, splits = layout
    recorder = recorded(atoms)
    for ids in splits:
        recorder.split(ids)
    closed = close(recorder)
    alive = np.ones(closed.count, bool)
    weight = np.bincount(closed.component, minlength=closed.count)
    for group in closed.cells:
        ranked = [np.array(sorted(cell.tolist(), key=lambda _: random.random())) for cell in group.cells]  # type: ignore[attr-defined]
        for step in range(group.steps):
            for cell in ranked:
                each = len(cell) // group.steps
                alive[cell[step * each : (step + 1) * each]] = False
            for ids in splits:
                counts = alive[closed.component[ids]].sum(axis=1)
                assert (counts == counts[0]).all(), f"{counts} in blocks of {ids.shape}"
    assert weight.sum() == atoms + 1


@share(1)
@given(layouts())
def test_closing_again_with_what_became_uniform_changes_nothing(layout: tuple[int, list[Ids]]) -> None:
    atoms, splits = layout
    recorder = recorded(atoms)
    for ids in splits:
        recorder.split(ids)
    once = close(recorder)
    again = close(recorder, once.uniform)
    assert np.array_equal(once.component, again.component)
    assert once.uniform == again.uniform
    assert len(once.cells) == len(again.cells)
