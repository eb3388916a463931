"""Penalties as functions of tensors: value, subgradient, proximal step. They know no model and no optimizer.

1. ``L1``: sum |x|. Subgradient sign(x), 0 at 0. Proximal step (soft threshold): sign(x) max(|x| - a, 0).
2. ``L2``: half the sum of squares, as weight decay counts it. Gradient x. Proximal step: x / (1 + a). It makes no zeros.
3. ``Classes``: sum over classes c of sqrt(n_c) ||x_c||, the group lasso (Yuan and Lin 2006) with n_c entries in class c.
   Where the entries of a class are equal, and where a class has one entry, this is L1. Subgradient sqrt(n_c) x / ||x_c||, 0 at
   x_c = 0. Proximal step: x_c max(1 - a sqrt(n_c) / ||x_c||, 0): a class goes to zero as a whole.
4. Entries of class 0 are outside: they count for nothing and are left alone.
5. Proximal steps take one amount ``a`` per tensor. For clause 3 they are exact where the tensors of a class share it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

Tensors = Sequence[Tensor]


class Form(Protocol):
    """A penalty on a list of tensors."""

    def value(self, tensors: Tensors) -> Tensor:
        """A scalar with gradient, on the device of the first tensor."""

    def subgradient(self, tensors: Tensors) -> list[Tensor]:
        """One tensor per tensor, of its shape, dtype and device."""

    def shrunk(self, tensors: Tensors, amounts: Sequence[float]) -> list[Tensor]:
        """The proximal step: the minimum over y of ``amount * penalty(y) + ||y - x||^2 / 2``."""


def _sum(terms: Tensors) -> Tensor:
    return torch.stack([term.to(terms[0]) for term in terms]).sum()


@dataclass(frozen=True, slots=True)
class L1:
    """Clause 1."""

    def value(self, tensors: Tensors) -> Tensor:
        return _sum([x.abs().sum() for x in tensors])

    def subgradient(self, tensors: Tensors) -> list[Tensor]:
        return [x.sign() for x in tensors]

    def shrunk(self, tensors: Tensors, amounts: Sequence[float]) -> list[Tensor]:
        return [x.sign() * (x.abs() - a).clamp(min=0) for x, a in zip(tensors, amounts, strict=True)]


@dataclass(frozen=True, slots=True)
class L2:
    """Clause 2."""

    def value(self, tensors: Tensors) -> Tensor:
        return _sum([x.square().sum() / 2 for x in tensors])

    def subgradient(self, tensors: Tensors) -> list[Tensor]:
        return [x.clone() for x in tensors]

    def shrunk(self, tensors: Tensors, amounts: Sequence[float]) -> list[Tensor]:
        return [x / (1 + a) for x, a in zip(tensors, amounts, strict=True)]


@dataclass(frozen=True, slots=True, eq=False)
class Classes:
    """Clauses 3 and 4.

    Attributes:
        members: per tensor (one-dimensional) the class of every entry, int64 on the CPU; 0 is outside.
        count: number of classes, the one outside included.
    """

    members: tuple[Tensor, ...]
    count: int

    def norms(self, tensors: Tensors) -> Tensor:
        """``||x_c||`` per class, on the device of the first tensor; shape (count,); 0 for what is outside."""
        classes, entries = self._flat(tensors)
        squares = torch.zeros(self.count, dtype=entries.dtype, device=entries.device).index_add(0, classes, entries.square())
        present = squares > 0
        # The gradient of a square root at 0 is infinite; where nothing is left, it is 0 (clause 3).
        norms = torch.where(present, squares, 1.0).sqrt() * present
        mask = torch.ones_like(norms)
        mask[0] = 0
        return norms * mask

    def roots(self, like: Tensor) -> Tensor:
        """sqrt(n_c) per class, shape (count,)."""
        counts = torch.bincount(torch.cat(self.members), minlength=self.count)
        return counts.to(like).sqrt()

    def value(self, tensors: Tensors) -> Tensor:
        norms = self.norms(tensors)
        return (self.roots(norms) * norms).sum()

    def subgradient(self, tensors: Tensors) -> list[Tensor]:
        norms = self.norms(tensors)
        per_class = torch.where(norms > 0, self.roots(norms) / norms.where(norms > 0, 1.0), 0.0)
        return [x * f for x, f in zip(tensors, self._spread(per_class, tensors), strict=True)]

    def shrunk(self, tensors: Tensors, amounts: Sequence[float]) -> list[Tensor]:
        norms = self.norms(tensors)
        per_class = torch.where(norms > 0, self.roots(norms) / norms.where(norms > 0, 1.0), 0.0)
        factors = self._spread(per_class, tensors)
        return [x * (1 - a * f).clamp(min=0) for x, a, f in zip(tensors, amounts, factors, strict=True)]

    def _flat(self, tensors: Tensors) -> tuple[Tensor, Tensor]:
        first = tensors[0]
        return torch.cat(self.members).to(first.device), torch.cat([x.to(first) for x in tensors])

    def _spread(self, per_class: Tensor, tensors: Tensors) -> list[Tensor]:
        return [per_class[m.to(per_class.device)].to(x) for m, x in zip(self.members, tensors, strict=True)]
