"""Costs as exact functions of what is alive. Pure, and ignorant of torch.

1. A *form* counts elements along some dimensions: a sum of coupled channels with whole multiplicities, each counted while it is alive.
   Form 0 is the number one.
2. A *term* is a whole coefficient times a product of forms, and a *polynomial* a sum of terms: the number of elements of a parameter, of a
   value, of an index space (ledger.py, clause 8), or of many of these.
3. An element exists iff its id in every factor is alive. Factors that share no dimension multiply. Where factors share dimensions (the
   outputs and the inputs of the groups of a convolution share the groups), every position along the shared ones is a product of
   its own; positions with the same products are one term. A factor that another one implies is left out: the same channel for each of
   its positions, or the owners of the other's blocks.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from math import prod
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from fxprune.provenance.factor import Ids, Mask, Value, support

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

Terms = dict[tuple[int, ...], int]


@dataclass(slots=True)
class Forms:
    """All forms of a graph, each once (clause 1); ``component`` maps atoms to coupled channels, ``owners`` are those of blocks."""

    component: Ids
    count: int
    owners: Mask
    channels: list[Ids] = field(default_factory=lambda: [np.zeros(0, np.int64)])
    times: list[Ids] = field(default_factory=lambda: [np.zeros(0, np.int64)])
    _known: dict[bytes, int] = field(default_factory=dict)
    _matrix: list[csr_matrix] = field(default_factory=list)

    def of(self, components: Ids) -> int:
        """The number of the form that counts these."""
        channels, times = np.unique(components, return_counts=True)
        key = channels.tobytes() + b"|" + times.tobytes()
        found = self._known.get(key)
        if found is None:
            found = self._known[key] = len(self.channels)
            self.channels.append(channels)
            self.times.append(times.astype(np.int64))
        return found

    def matrix(self) -> csr_matrix:
        """Shape (forms, components). The row of form 0 is empty."""
        if self._matrix and self._matrix[-1].shape[0] == len(self.channels):
            return self._matrix[-1]
        lengths = [len(own) for own in self.channels]
        starts = np.concatenate([[0], np.cumsum(lengths)])
        data, columns = np.concatenate(self.times), np.concatenate(self.channels)
        from scipy.sparse import csr_matrix  # importing fxprune stays quick

        self._matrix[:] = [csr_matrix((data, columns, starts), shape=(len(lengths), self.count))]
        return self._matrix[-1]

    def count_of(self, space: Value) -> Terms:
        """The number of live elements of a value (clauses 2 and 3)."""
        factors = [self.component[ids] for ids in space.factors if ids.size > 1]
        factors = _needed(factors, self.owners)
        result: Terms = {(): prod(size for d, size in enumerate(space.shape) if all(f.shape[d] == 1 for f in factors))}
        for cluster in _clusters(factors):
            result = multiplied(result, self._cluster(cluster))
        return {key: times for key, times in result.items() if times}

    def _cluster(self, factors: Sequence[Ids]) -> Terms:
        if len(factors) == 1:
            return {(self.of(factors[0].ravel()),): 1}
        rank = factors[0].ndim
        shared = [d for d in range(rank) if sum(f.shape[d] > 1 for f in factors) > 1]
        sizes = [max(f.shape[d] for f in factors) for d in shared]
        columns = []
        for ids in factors:
            rest = [d for d in range(rank) if d not in shared]
            rows = ids.transpose([*shared, *rest])
            own = [ids.shape[d] for d in shared]
            rows = rows.reshape(prod(own), -1)
            distinct, which = np.unique(rows, axis=0, return_inverse=True)
            forms = np.array([self.of(row) for row in distinct], np.int64)[which.ravel()].reshape(own)
            columns.append(np.broadcast_to(forms, sizes).ravel())
        found, times = np.unique(np.sort(np.stack(columns, axis=1), axis=1), axis=0, return_counts=True)
        return {tuple(row): int(n) for row, n in zip(found.tolist(), times.tolist(), strict=True)}


def _needed(factors: list[Ids], owners: Mask) -> list[Ids]:
    """Factors that no other one implies (clause 3)."""
    kept: list[Ids] = []
    for i, ids in enumerate(factors):
        others = [other for other in factors if other is not ids and _covers(other, ids)]
        implied = any(_implies(other, ids, owners, first=any(other is f for f in factors[:i])) for other in others)
        if not implied:
            kept.append(ids)
    return kept


def _covers(other: Ids, ids: Ids) -> bool:
    return set(support(ids)) <= set(support(other))


def _implies(other: Ids, ids: Ids, owners: Mask, *, first: bool) -> bool:
    """``other`` varies along all dimensions of ``ids`` (and stands before it, if along the same)."""
    if support(other) == support(ids):
        return first and bool((other == ids).all())
    return bool(owners[ids].all()) or bool((other == ids).all())


def _clusters(factors: Sequence[Ids]) -> list[list[Ids]]:
    """Factors that hang together through common dimensions."""
    found: list[list[Ids]] = []
    for ids in factors:
        near = [c for c in found if any(set(support(o)) & set(support(ids)) for o in c)]
        found = [c for c in found if not any(c is n for n in near)]
        found.append([*(o for c in near for o in c), ids])
    return found


def multiplied(a: Terms, b: Terms) -> Terms:
    """The product of two sums of terms."""
    result: Terms = {}
    for left, m in a.items():
        for right, n in b.items():
            key = tuple(sorted(left + right))
            result[key] = result.get(key, 0) + m * n
    return result


def added(parts: Iterable[tuple[Terms, int]]) -> Terms:
    """The sum of sums of terms, each times a whole number."""
    result: Terms = {}
    for terms, times in parts:
        for key, n in terms.items():
            result[key] = result.get(key, 0) + n * times
    return result


@dataclass(frozen=True, eq=False)
class Polynomial:
    """A sum of terms over forms of one graph (clause 2)."""

    forms: Forms
    terms: Terms

    @cached_property
    def table(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Coefficients, and the forms of every term, filled up with form 0."""
        width = max((len(key) for key in self.terms), default=0)
        rows = [(*key, *(0,) * (width - len(key))) for key in self.terms]
        forms = np.array(rows, np.int64).reshape(len(rows), width)
        return np.array(list(self.terms.values()), np.int64), forms

    def at(self, alive: Mask) -> int:
        """The number at which these coupled channels are alive: exact."""
        values = self.forms.matrix() @ alive.astype(np.int64)
        values[0] = 1
        return self.of_forms(values)

    def of_forms(self, values: npt.NDArray[np.int64]) -> int:
        """The number, from those of all forms."""
        coefficients, forms = self.table
        return int((coefficients * values[forms].prod(axis=1)).sum())
