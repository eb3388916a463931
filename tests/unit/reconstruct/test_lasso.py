"""The LASSO against scikit-learn on the raw design matrix, and the search for a number of channels."""

from __future__ import annotations

import numpy as np
import pytest

from fxprune.reconstruct.lasso import choose, lasso, ranking

linear_model = pytest.importorskip("sklearn.linear_model", reason="scikit-learn is the oracle")


def design(rows: int, columns: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Correlated columns and a noisy target."""
    random = np.random.default_rng(seed)
    z = random.normal(size=(rows, columns)) @ (np.eye(columns) + 0.3 * random.normal(size=(columns, columns)))
    return z, z @ random.normal(size=columns) + random.normal(size=rows)


def normal(z: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return z.T @ z / len(z), z.T @ y / len(z)


@pytest.mark.parametrize(("rows", "columns"), [(200, 12), (60, 40), (500, 80)])
def test_the_path_is_that_of_scikit_learn_on_the_raw_matrix(rows: int, columns: int) -> None:
    z, y = design(rows, columns)
    gram, cross = normal(z, y)
    penalties = np.abs(cross).max() * np.geomspace(1.1, 1e-3, 25)
    penalties, path, _ = linear_model.lasso_path(z, y, alphas=penalties, tol=1e-14, max_iter=1_000_000)
    beta = np.zeros(columns)
    for penalty, expected in zip(penalties, path.T, strict=True):
        beta = lasso(gram, cross, penalty, beta)
        assert np.abs(beta - expected).max() <= 1e-7 * np.abs(path).max()
        assert np.allclose(lasso(gram, cross, penalty), beta, rtol=0, atol=1e-9 * np.abs(path).max()), "the start matters"


def test_the_solution_is_optimal_where_columns_depend_on_each_other() -> None:
    z, y = design(100, 10)
    z = np.concatenate([z, z[:, :4] @ np.ones((4, 3)), z[:, 2:3]], 1)
    gram, cross = normal(z, y)
    for penalty in (0.5, 0.05, 0.005):
        beta = lasso(gram, cross, penalty)
        slope = cross - gram @ beta
        assert np.abs(slope).max() <= penalty * (1 + 1e-6)
        assert np.allclose(slope[beta != 0], penalty * np.sign(beta[beta != 0]), atol=1e-7 * np.abs(cross).max())


@pytest.mark.parametrize("count", [1, 2, 7, 20, 39])
def test_as_many_are_left_as_asked(count: int) -> None:
    z, y = design(300, 40)
    choice = choose(*normal(z, y), count)
    assert count <= len(choice.kept) <= int(count * 1.1 + 1e-9)
    assert (np.diff(choice.kept) > 0).all()


def test_a_wide_range_is_used_only_where_no_penalty_leaves_just_as_many() -> None:
    gram, cross = np.eye(6), np.array([3.0, 2.0, 2.0, 2.0, 1.0, 0.5])  # three enter at once
    assert choose(gram, cross, 3, slack=0.5).kept.tolist() == [0, 1, 2, 3]
    assert choose(gram, cross, 3, slack=0.0).kept.tolist() == [0, 1, 2]
    assert choose(gram, cross, 1).kept.tolist() == [0]


def test_channels_that_are_always_zero_are_taken_last() -> None:
    z, y = design(100, 5)
    z[:, [1, 3]] = 0
    assert choose(*normal(z, y), 3).kept.tolist() == [0, 2, 4]
    assert len(choose(*normal(z, y), 4).kept) == 4
    assert len(choose(np.zeros((4, 4)), np.zeros(4), 2).kept) == 2


def test_of_two_copies_the_one_that_carries_more_stays() -> None:
    z, y = design(100, 5)
    z = np.concatenate([0.4 * z, 0.6 * z], 1)
    assert choose(*normal(z, z.sum(1)), 5).kept.tolist() == [5, 6, 7, 8, 9]
    del y


def test_a_ranking_follows_the_path() -> None:
    z, y = design(300, 12)
    gram, cross = normal(z, y)
    places = ranking(gram, cross)
    assert sorted(places.tolist()) == list(range(12))
    first = int(np.abs(cross).argmax())
    assert places[first] == 11
    assert np.array_equal(places, ranking(gram, cross))
