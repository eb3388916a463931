"""Backward elimination, against plain least squares on raw rows."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from fxprune.reconstruct.elimination import _blocks, by_elimination
from fxprune.reconstruct.select import Problem, by_lasso
from tests.unit.reconstruct.test_moments import moments, rows


def problem(seed: int, channels: int = 6, taps: int = 3, outputs: int = 4) -> tuple[Problem, np.ndarray, np.ndarray]:
    """A reader with correlated inputs, its rows, and outputs of unequal worth."""
    random = np.random.default_rng(seed)
    x, _ = rows(300, 1, channels * taps, outputs, seed)
    x = x @ random.normal(size=(channels * taps, channels * taps)) + 0.3
    weight = random.normal(size=(1, outputs, channels * taps))
    y = np.einsum("nbc,brc->nbr", x, weight) + 0.1 * random.normal(size=(300, 1, outputs))
    channel = np.repeat(np.arange(channels), taps)[None]
    alive, every = np.ones((1, channels * taps), bool), np.ones((1, outputs), bool)
    worth = random.uniform(0.2, 2, size=(1, outputs))
    return Problem(moments(x, y).normal(), weight, channel, alive, every, True, worth), x[:, 0], y[:, 0]


def loss(x: np.ndarray, y: np.ndarray, worth: np.ndarray, channel: np.ndarray, kept: tuple[int, ...] | list[int]) -> float:
    """What is left of the weighted squared error if all weights are fitted anew."""
    a = np.concatenate([x[:, np.isin(channel, kept)], np.ones((len(x), 1))], 1)
    solution, *_ = np.linalg.lstsq(a, y, rcond=None)
    return float((np.square(y - a @ solution).mean(0) * worth).sum())


@pytest.mark.parametrize("ragged", [False, True])
def test_what_a_channel_costs_is_what_least_squares_says(ragged: bool) -> None:
    given, x, y = problem(0)
    if ragged:  # channels of two to four columns, and two columns that belong to none of them
        given.channel[0, [1, 17]], given.channel[0, 9] = -1, 0
    (block,) = _blocks(given, 0.0)
    left = [-1, *range(6)]
    for gone in (2, 5, 0):
        before = loss(x, y, given.worth[0], given.channel[0], left)
        for channel in left[1:]:
            after = loss(x, y, given.worth[0], given.channel[0], [c for c in left if c != channel])
            assert block.rises(6)[channel] == pytest.approx(after - before, rel=1e-3)
        left.remove(gone)
        block.without(gone)
        assert block.rises(6)[gone] == 0


def test_the_choice_is_near_the_best_of_all_and_nearer_than_the_lasso() -> None:
    ours, theirs = [], []
    for seed in range(12):
        given, x, y = problem(seed, 8, 2)
        losses = {kept: loss(x, y, given.worth[0], given.channel[0], kept) for kept in combinations(range(8), 4)}
        best, worst = min(losses.values()), max(losses.values())
        chosen = by_elimination([given], 8, 4, (), 0.0), by_lasso([given], 8, 4, (), 0.0, 0, 0.0)[0]
        mine, lasso = ((losses[tuple(kept.tolist())] - best) / (worst - best) for kept in chosen)
        ours.append(mine)
        theirs.append(lasso)
    assert np.mean(ours) < 0.05
    assert np.mean(ours) < np.mean(theirs) < 0.5


def test_copies_and_combinations_go_first() -> None:
    given, x, y = problem(1)
    x = x.copy()
    x[:, 9:12] = 2 * x[:, 0:3] - x[:, 3:6]
    x[:, 15:18] = x[:, 6:9]
    same = Problem(
        moments(x[:, None], y[:, None]).normal(), given.weight, given.channel, given.alive, given.rows, True, given.worth
    )
    kept = by_elimination([same], 6, 4, (), 0.0).tolist()
    assert loss(x, y, given.worth[0], given.channel[0], kept) == pytest.approx(
        loss(x, y, given.worth[0], given.channel[0], list(range(6))), rel=1e-6
    )


def test_cells_keep_equally_many_and_readers_add_up() -> None:
    given, other = problem(2)[0], problem(3)[0]
    cells = (np.array([0, 1, 2]), np.array([3, 4, 5]))
    kept = by_elimination([given, other], 6, 4, cells, 0.0).tolist()
    assert [sum(c in cell for c in kept) for cell in cells] == [2, 2]
    alone = [_blocks(one, 0.0)[0].rises(6) for one in (given, other)]
    assert int(np.argmin(alone[0] + alone[1])) not in by_elimination([given, other], 6, 5, (), 0.0)


def test_layers_that_nobody_hears_choose_all_the_same() -> None:
    given = problem(4)[0]
    deaf = Problem(given.normal, given.weight, given.channel, given.alive, np.zeros((1, 4), bool), True, given.worth)
    assert len(by_elimination([deaf], 6, 2, (), 0.0)) == 2
