"""Literal positions: what a slice, a number or a list selects of the survivors is what it selected of the original."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fxprune.rewrite.literals import sizes
from fxprune.rewrite.positions import translate
from tests.property.profile import share

MASKS = st.lists(st.booleans(), min_size=1, max_size=9).map(np.array)
ENDS = st.none() | st.integers(-11, 11)


def selected(part: Any, live: np.ndarray) -> tuple[list[int], list[int]]:
    """The original positions that survive, selected before and after slimming."""
    names = np.arange(len(live))
    original = [int(i) for i in np.atleast_1d(names[part]) if live[i]]
    slim = np.atleast_1d(names[live][translate(part, live)]).tolist()
    return original, slim


@share(4)
@given(MASKS, ENDS, ENDS, st.none() | st.integers(1, 4))
def test_slices(live: np.ndarray, start: int | None, stop: int | None, step: int | None) -> None:
    original, slim = selected(slice(start, stop, step), live)
    assert original == slim


@share(2)
@given(MASKS, st.data())
def test_lists_of_numbers(live: np.ndarray, data: st.DataObject) -> None:
    index = data.draw(st.lists(st.integers(-len(live), len(live) - 1), max_size=12))
    names = np.arange(len(live))
    expected = [int(names[i]) for i in index if live[i]]
    for given_as in (index, tuple(index), torch.tensor(index, dtype=torch.int64)):
        found = translate(given_as, live, lambda part: part if isinstance(part, torch.Tensor) else None)
        assert names[live][np.array(found, np.int64)].tolist() == expected


@share(2)
@given(MASKS, st.data())
def test_lists_of_bools(live: np.ndarray, data: st.DataObject) -> None:
    chosen = data.draw(st.lists(st.booleans(), min_size=len(live), max_size=len(live)))
    names = np.arange(len(live))
    expected = [int(i) for i in names[np.array(chosen)] if live[i]]
    assert names[live][np.array(translate(chosen, live), np.int64)].tolist() == expected


@share(1)
@given(MASKS, st.data())
def test_numbers_that_survive(live: np.ndarray, data: st.DataObject) -> None:
    if not live.any():
        return
    index = data.draw(st.sampled_from(np.flatnonzero(live).tolist())) - data.draw(st.sampled_from([0, len(live)]))
    original, slim = selected(index, live)
    assert original == slim


@share(1)
@given(MASKS, ENDS, ENDS)
def test_open_ends_stay_open(live: np.ndarray, start: int | None, stop: int | None) -> None:
    """A slice to the end stays one, whatever arrives there."""
    found = translate(slice(start, stop), live)
    assert isinstance(found, slice)
    assert (found.start is None) == (start is None)
    assert stop is not None or found.stop is None


def test_everything_alive_changes_nothing_that_is_selected() -> None:
    live = np.ones(6, bool)
    for part in (slice(None), slice(1, 4), slice(-2, None), slice(None, None, 2), 3, -1, [0, 5, 5]):
        original, slim = selected(part, live)
        assert original == slim


def test_what_the_graph_computes_is_left_alone() -> None:
    graph = torch.fx.Graph()
    node = graph.placeholder("start")
    assert translate(node, np.array([True, False])) is node


@pytest.mark.parametrize(
    ("symbols", "values", "predicted", "expected"),
    [
        ((2, 8, -1), (2, 8, -1), (2, 5, 36), (2, 5, -1)),
        (("n", 8), (2, 8), (2, 5), ("n", 5)),
        (("n", "c"), (2, 8), (2, 5), ("n", 5)),
        (("n", "c"), (2, 5), (2, 5), ("n", "c")),
        ((), (), (), ()),
    ],
)
def test_sizes_stay_symbolic_where_they_still_fit(symbols: Any, values: Any, predicted: Any, expected: Any) -> None:
    assert sizes(symbols, values, predicted) == expected
