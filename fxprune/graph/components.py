"""Connected components. scipy is imported when the first graph is closed: importing fxprune stays quick."""

from __future__ import annotations

import numpy as np

from fxprune.provenance.factor import Ids


def components(left: Ids, right: Ids, count: int) -> tuple[int, Ids]:
    """How many components the edges ``left[i] - right[i]`` leave among ``count`` nodes, and the component of every node. Linear."""
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    matrix = coo_matrix((np.ones(len(left), np.int8), (left, right)), shape=(count, count))
    found, label = connected_components(matrix, directed=False)
    return found, label
