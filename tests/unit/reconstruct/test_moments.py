"""Moments and least squares against numpy on the raw rows."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fxprune.reconstruct.moments import Moments, size
from fxprune.reconstruct.refit import refit
from fxprune.reconstruct.select import Problem


def rows(count: int, blocks: int, columns: int, outputs: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Inputs that are far from zero and correlated, and outputs that no layer reaches exactly."""
    random = np.random.default_rng(seed)
    x = 5 + random.normal(size=(count, blocks, columns)) @ random.normal(size=(columns, columns))
    y = x @ random.normal(size=(columns, outputs)) + 100 + random.normal(size=(count, blocks, outputs))
    return x, y


def moments(x: np.ndarray, y: np.ndarray, batch: int = 7) -> Moments:
    found = Moments()
    for start in range(0, len(x), batch):
        found.add(torch.from_numpy(x[start : start + batch]), torch.from_numpy(y[start : start + batch]))
    return found


@pytest.mark.parametrize("intercept", [True, False])
@pytest.mark.parametrize("blocks", [1, 3])
def test_the_refit_is_the_least_squares_solution_on_the_raw_rows(blocks: int, intercept: bool) -> None:
    x, y = rows(400, blocks, 10, 4)
    random = np.random.default_rng(1)
    weight = random.normal(size=(blocks, 4, 10))
    alive = np.ones((blocks, 10), bool)
    for block in range(blocks):
        alive[block, random.choice(10, 4, replace=False)] = False
    new, shift = refit(moments(x, y).normal(), weight, alive, intercept=intercept)
    for block in range(blocks):
        picked = np.flatnonzero(alive[block])
        matrix = x[:, block][:, picked]
        matrix = np.concatenate([matrix, np.ones((len(x), 1))], 1) if intercept else matrix
        expected, *_ = np.linalg.lstsq(matrix, y[:, block], rcond=None)
        assert np.allclose(new[block][:, picked].T, expected[: len(picked)], rtol=0, atol=1e-9 * np.abs(expected).max())
        assert not new[block][:, ~alive[block]].any()
        assert np.allclose(shift[block], expected[-1] if intercept else 0, rtol=0, atol=1e-8)


def test_what_the_rows_do_not_tell_stays_as_it_was() -> None:
    x, y = rows(6, 1, 10, 3)  # fewer rows than columns
    weight = np.random.default_rng(2).normal(size=(1, 3, 10))
    new, shift = refit(moments(x, y).normal(), weight, np.ones((1, 10), bool), intercept=True)
    assert np.allclose(x[:, 0] @ new[0].T + shift[0], y[:, 0], atol=1e-5)
    seen = x[:, 0] - x[:, 0].mean(0)
    assert np.allclose((new[0] - weight[0]) @ (np.eye(10) - np.linalg.pinv(seen) @ seen), 0, atol=1e-6)


def test_inputs_that_never_vary_keep_their_weights() -> None:
    x, y = rows(200, 1, 8, 3)
    x[:, :, [2, 5]] = 0
    weight = np.random.default_rng(2).normal(size=(1, 3, 8))
    new, shift = refit(moments(x, y).normal(), weight, np.ones((1, 8), bool), intercept=True)
    assert np.array_equal(new[0][:, [2, 5]], weight[0][:, [2, 5]])
    expected, *_ = np.linalg.lstsq(np.concatenate([x[:, 0], np.ones((200, 1))], 1), y[:, 0], rcond=None)
    assert np.allclose(x[:, 0] @ new[0].T + shift[0], np.concatenate([x[:, 0], np.ones((200, 1))], 1) @ expected, atol=1e-8)


def test_ridge_pulls_towards_the_weights_as_they_were() -> None:
    x, y = rows(200, 1, 6, 2)
    weight = np.random.default_rng(2).normal(size=(1, 2, 6))
    apart = [
        np.abs(refit(moments(x, y).normal(), weight, np.ones((1, 6), bool), intercept=True, ridge=ridge)[0] - weight).max()
        for ridge in (0.0, 0.1, 10.0, 1e6)
    ]
    assert apart == sorted(apart, reverse=True)
    assert apart[-1] < 1e-4


def test_the_loss_is_that_of_the_raw_rows() -> None:
    x, y = rows(300, 2, 8, 3)
    random = np.random.default_rng(3)
    weight, shift = random.normal(size=(2, 3, 8)), random.normal(size=(2, 3))
    expected = np.square(y - np.einsum("nbc,brc->nbr", x, weight) - shift).sum((1, 2)).mean()
    assert moments(x, y).normal().loss(weight, shift) == pytest.approx(expected, rel=1e-10)


def test_batches_of_any_size_give_the_same_moments() -> None:
    x, y = rows(100, 2, 5, 3)
    one, other = moments(x, y, 100).normal(), moments(x, y, 3).normal()
    for name in ("mean_x", "mean_y", "yy", "xx", "xy"):
        assert np.allclose(getattr(one, name), getattr(other, name), rtol=1e-11)
    assert one.count == other.count == 100


def test_memory_does_not_grow_with_the_number_of_rows() -> None:
    few, many = moments(*rows(20, 2, 9, 4)), moments(*rows(20_000, 2, 9, 4), batch=500)
    assert few.bytes == many.bytes == size(2, 9, 4)


@pytest.mark.parametrize("intercept", [True, False])
def test_the_gram_matrix_of_channels_is_that_of_their_contributions(intercept: bool) -> None:
    x, y = rows(200, 2, 12, 3)
    random = np.random.default_rng(4)
    weight = random.normal(size=(2, 3, 12))
    channel = np.repeat(np.array([[0, 1, 2, -1], [3, 0, -1, 1]]), 3, axis=1)
    alive = np.ones((2, 12), bool)
    alive[1, 6:9] = False
    outputs = np.ones((2, 3), bool)
    outputs[0, 1] = False
    worth = random.uniform(0.1, 3, size=(2, 3))
    gram, cross = Problem(moments(x, y).normal(), weight, channel, alive, outputs, intercept, worth).gram(4)
    parts = [np.zeros((len(x), 2, 3)) for _ in range(4)]
    missing = y.copy()
    for block in range(2):
        for column in range(12):
            if alive[block, column]:
                given = x[:, block, column, None] * weight[block, :, column]
                if channel[block, column] >= 0:
                    parts[channel[block, column]][:, block] += given
                else:
                    missing[:, block] -= given
    z = np.stack([(part * np.sqrt(worth))[:, outputs] for part in parts])
    target = (missing * np.sqrt(worth))[:, outputs]
    if intercept:
        z, target = z - z.mean(1, keepdims=True), target - target.mean(0)
    assert np.allclose(gram, np.einsum("inr,jnr->ij", z, z) / len(x), atol=1e-9 * np.abs(gram).max())
    assert np.allclose(cross, np.einsum("inr,nr->i", z, target) / len(x), atol=1e-9 * np.abs(cross).max())
