"""The laws of factors, against numpy and brute force."""

from __future__ import annotations

from itertools import product
from math import prod

import numpy as np
from hypothesis import assume, given
from hypothesis import strategies as st

from fxprune.provenance.factor import (
    ALIVE,
    Ids,
    align,
    along,
    compress,
    live_sizes,
    move_to,
    overlaps,
    reshape,
    segments,
    support,
)

SHAPES = st.lists(st.integers(1, 4), min_size=1, max_size=4).map(tuple)


@st.composite
def factors(draw: st.DrawFn, shape: tuple[int, ...] | None = None) -> tuple[tuple[int, ...], Ids]:
    """A shape and ids over some of its dimensions, with repetitions, and stored plainly, broadcast or as a strided view."""
    shape = draw(SHAPES) if shape is None else shape
    own = tuple(size if draw(st.booleans()) else 1 for size in shape)
    ids = np.array(draw(st.lists(st.integers(0, 5), min_size=prod(own), max_size=prod(own))), np.int64).reshape(own)
    how = draw(st.sampled_from(["plain", "expanded", "fortran", "strided"]))
    if how == "expanded":
        ids = np.broadcast_to(ids, shape)
    elif how == "fortran":
        ids = np.asfortranarray(ids)
    elif how == "strided":
        ids = np.repeat(ids, 2, axis=-1)[..., ::2]
    return shape, ids


def whole(ids: Ids, shape: tuple[int, ...]) -> Ids:
    return np.broadcast_to(ids, shape)


def canonical(ids: Ids) -> bool:
    return not any(size > 1 and (ids == ids.take([0], axis=dim)).all() for dim, size in enumerate(ids.shape))


@given(factors())
def test_compress_is_canonical_idempotent_and_keeps_the_meaning(case: tuple[tuple[int, ...], Ids]) -> None:
    shape, ids = case
    small = compress(ids)
    assert canonical(small)
    assert np.array_equal(compress(small), small)
    assert np.array_equal(whole(small, shape), whole(ids, shape))


@given(factors())
def test_compress_does_not_write_into_its_argument(case: tuple[tuple[int, ...], Ids]) -> None:
    _, ids = case
    before = ids.copy()
    compress(ids)
    assert np.array_equal(ids, before)


@given(factors())
def test_support_of_a_canonical_factor_is_where_ids_vary(case: tuple[tuple[int, ...], Ids]) -> None:
    shape, ids = case
    full = whole(ids, shape)
    varies = tuple(d for d in range(len(shape)) if not (full == full.take([0], axis=d)).all())
    assert support(compress(ids)) == varies


@given(factors(), st.data())
def test_reshape_is_numpys_of_the_broadcast_ids(case: tuple[tuple[int, ...], Ids], data: st.DataObject) -> None:
    shape, ids = case
    new = data.draw(shapes_of(prod(shape)), label="new")
    small = compress(ids)
    moved = reshape(small, shape, new)
    assert moved.ndim == len(new)
    assert canonical(moved)
    assert np.array_equal(whole(moved, new), whole(ids, shape).reshape(new))


@given(factors(), st.data())
def test_reshape_there_and_back_is_nothing(case: tuple[tuple[int, ...], Ids], data: st.DataObject) -> None:
    shape, ids = case
    new = data.draw(shapes_of(prod(shape)))
    small = compress(ids)
    assert np.array_equal(reshape(reshape(small, shape, new), new, shape), small)


@given(st.lists(st.integers(0, 2), min_size=1, max_size=3).map(tuple), st.integers(1, 3))
def test_reshape_of_nothing_has_no_ids(shape: tuple[int, ...], rank: int) -> None:
    assume(0 in shape)
    assert not reshape(np.ones((1,) * len(shape), np.int64), shape, (0,) * rank).any()


@st.composite
def shapes_of(draw: st.DrawFn, size: int) -> tuple[int, ...]:
    """A shape of so many elements, ones included."""
    dims: list[int] = []
    rest = size
    while rest > 1:
        divisor = draw(st.sampled_from([d for d in range(2, rest + 1) if rest % d == 0]))
        dims.append(divisor)
        rest //= divisor
    for _ in range(draw(st.integers(0, 2))):
        dims.insert(draw(st.integers(0, len(dims))), 1)
    return tuple(dims)


@given(SHAPES, st.data())
def test_segments_are_the_finest_common_split(old: tuple[int, ...], data: st.DataObject) -> None:
    new = data.draw(shapes_of(prod(old)))
    runs = segments(old, new)
    assert [d for ins, _ in runs for d in ins] == list(range(len(old)))
    assert [d for _, outs in runs for d in outs] == list(range(len(new)))
    for ins, outs in runs:
        assert prod(old[d] for d in ins) == prod(new[d] for d in outs)
        # no run can be cut: a proper prefix of both sides has equal products only where one of the sides is empty
        for i, j in product(range(1, len(ins)), range(1, len(outs))):
            assert prod(old[d] for d in ins[:i]) != prod(new[d] for d in outs[:j])


@given(factors(), st.integers(0, 2))
def test_align_adds_leading_dimensions(case: tuple[tuple[int, ...], Ids], more: int) -> None:
    shape, ids = case
    aligned = align(ids, len(shape) + more)
    assert aligned.ndim == len(shape) + more
    assert np.array_equal(whole(aligned, (3,) * more + shape), whole(ids, (3,) * more + shape))


@given(st.integers(1, 4), st.data())
def test_along_lays_ids_along_one_dimension(rank: int, data: st.DataObject) -> None:
    dim = data.draw(st.integers(0, rank - 1))
    ids = along(np.arange(1, 6), dim, rank)
    assert ids.shape == tuple(5 if d == dim else 1 for d in range(rank))
    assert support(ids) == (dim,)


@given(st.permutations(range(4)), st.integers(4, 6), st.data())
def test_move_to_is_a_transposition(order: list[int], rank: int, data: st.DataObject) -> None:
    ids = np.arange(2 * 3 * 4 * 5).reshape(2, 3, 4, 5)
    targets = data.draw(st.permutations(range(rank)))[:4]
    moved = move_to(ids, order, targets, rank)
    assert moved.ndim == rank
    for position in ((0, 0, 0, 0), (1, 2, 3, 4), (1, 0, 2, 3)):
        place = [0] * rank
        for source, target in zip(order, targets, strict=True):
            place[target] = position[source]
        assert moved[tuple(place)] == ids[position]


@given(SHAPES, st.data())
def test_overlaps_is_symmetric_and_says_that_a_dimension_is_shared(shape: tuple[int, ...], data: st.DataObject) -> None:
    a, b = (compress(data.draw(factors(shape))[1]) for _ in range(2))
    assert overlaps(a, b) == overlaps(b, a) == bool(set(support(a)) & set(support(b)))


@st.composite
def boxes(draw: st.DrawFn) -> tuple[tuple[int, ...], list[Ids]]:
    """Canonical factors with disjoint supports and distinct atoms, as parameters have them."""
    shape = draw(st.lists(st.integers(1, 4), min_size=1, max_size=3).map(tuple))
    dims = [d for d, size in enumerate(shape) if size > 1]
    own: list[Ids] = []
    start = 1
    while dims:
        take = draw(st.integers(1, len(dims)))
        sizes = [shape[d] if d in dims[:take] else 1 for d in range(len(shape))]
        dims = dims[take:]
        if draw(st.booleans()):
            own.append(np.arange(start, start + prod(sizes)).reshape(sizes))
            start += prod(sizes)
    return shape, own


def exists(shape: tuple[int, ...], own: list[Ids], alive: np.ndarray) -> np.ndarray:
    """Clause 3, element by element."""
    found = np.ones(shape, bool)
    for place in np.ndindex(*shape):
        for ids in own:
            at = tuple(i if ids.shape[d] > 1 else 0 for d, i in enumerate(place))
            found[place] &= alive[ids[at]]
    return found


@given(boxes(), st.data())
def test_live_sizes_are_those_of_the_elements_that_exist(case: tuple[tuple[int, ...], list[Ids]], data: st.DataObject) -> None:
    shape, own = case
    atoms = 1 + sum(ids.size for ids in own)
    alive = np.array([True, *data.draw(st.lists(st.booleans(), min_size=atoms - 1, max_size=atoms - 1))])
    sizes = live_sizes(shape, own, alive)
    there = exists(shape, own, alive)
    if sizes is not None:
        assert prod(sizes) == there.sum()
        if all(len(support(ids)) <= 1 for ids in own):
            assert (
                sizes
                == tuple(
                    there.any(axis=tuple(e for e in range(len(shape)) if e != d)).sum() if there.any() or len(shape) > 1 else 0
                    for d in range(len(shape))
                )
                or not there.any()
            )
        return
    # None is said only where what is left is no box along any one dimension
    lone = [ids for ids in own if len(support(ids)) > 1]
    assert lone
    for ids in lone:
        live = alive[ids]
        if all(_equal_runs(live, d) for d in support(ids)):
            continue
        return
    raise AssertionError("the elements that exist fill a box")


def _equal_runs(live: np.ndarray, dim: int) -> bool:
    counts = live.sum(axis=dim)
    return len(set(counts[counts > 0].tolist())) <= 1


@given(st.integers(1, 4), st.integers(1, 5), st.data())
def test_balanced_blocks_fill_a_box(blocks: int, size: int, data: st.DataObject) -> None:
    """Equally many survivors per block, different ones in each: the inner dimension shrinks to that number."""
    keep = data.draw(st.integers(1, size))
    rows = [data.draw(st.permutations(range(size)))[:keep] for _ in range(blocks)]
    ids = np.arange(1, 1 + blocks * size).reshape(1, blocks, size)
    alive = np.zeros(1 + blocks * size, bool)
    alive[ALIVE] = True
    for block, row in enumerate(rows):
        alive[ids[0, block, row]] = True
    found = live_sizes((3, blocks, size), [compress(ids)] if blocks * size > 1 else [], alive)
    if blocks * size > 1:
        assert found is not None
        assert prod(found) == 3 * blocks * keep


def test_unequal_blocks_fill_none() -> None:
    ids = np.arange(1, 9).reshape(2, 4)
    alive = np.array([True, True, True, True, False, True, False, True, False])
    assert live_sizes((2, 4), [ids], alive) is None


def test_factors_that_share_one_of_their_dimensions_count_together() -> None:
    rows, blocks = np.arange(1, 7).reshape(6, 1), np.repeat(np.arange(7, 13).reshape(2, 3), 3, axis=0)
    alive = np.ones(13, bool)
    alive[[2, 5, 7, 12]] = False  # one row of each block, and another column of each
    assert live_sizes((6, 3), [rows, blocks], alive) == live_sizes((6, 3), [blocks, rows], alive) == (4, 2)
    alive[[7, 8, 9]] = False  # the first block as a whole: its rows go by themselves
    assert live_sizes((6, 3), [rows, blocks], alive) == (2, 2)
    alive[[9, 12]] = True  # a block that keeps fewer
    assert live_sizes((6, 3), [rows, blocks], alive) is None


def test_two_factors_on_one_dimension_have_to_agree() -> None:
    ids, alive = np.arange(1, 5), np.ones(9, bool)
    alive[[2, 7]] = False
    assert live_sizes((4,), [ids, ids + 4], alive) == (3,)
    alive[6] = False
    assert live_sizes((4,), [ids, ids + 4], alive) is None
