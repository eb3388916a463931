"""Second moments of a layer's input and output, added up batch by batch.

1. A row is one output position of one image: the inputs ``x`` that the layer multiplies there, ``(blocks, columns)``, and the outputs
   ``y`` wanted of it, ``(blocks, rows)``. A convolution with groups is ``blocks`` layers side by side; others have one block. A column is
   an input channel at one place of the window.
2. Kept are ``n``, ``sum x``, ``sum y``, ``sum y^2``, ``sum x x'`` and ``sum x y'`` of every block, in float64, on the device of the rows:
   what they take does not depend on n, and batches may come in any sizes.
3. ``Normal`` holds means and centred moments divided by n. Around the first batch's means nothing is lost to cancellation that a later
   step would miss.
4. For weights ``W`` and an intercept ``b``, ``mean ||y - W x - b||^2 = yy - 2 <W, xy> + <W xx, W> + |mean_y - W mean_x - b|^2`` with
   centred moments.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fxprune.precision import double
from fxprune.reconstruct.numbers import Array

DOUBLE = 8  # bytes of a float64


def size(blocks: int, columns: int, rows: int) -> int:
    """Bytes that the moments of a layer take (clause 2)."""
    return DOUBLE * blocks * (columns * columns + columns * rows + 2 * columns + 3 * rows)


class Moments:
    """Clause 2, around a shift that the first batch decides."""

    def __init__(self) -> None:
        self.count = 0
        self._sums: tuple[Tensor, ...] = ()
        self._shift: tuple[Tensor, Tensor] = (torch.empty(0, device="cpu"), torch.empty(0, device="cpu"))

    def add(self, x: Tensor, y: Tensor) -> None:
        """Rows ``x (n, blocks, columns)`` and ``y (n, blocks, rows)``."""
        if not len(x):
            return
        x, y = (double(part).transpose(0, 1) for part in (x, y))
        if not self.count:
            self._shift = (x.mean(1, keepdim=True), y.mean(1, keepdim=True))
        x, y = x - self._shift[0], y - self._shift[1]
        new = (x.sum(1), y.sum(1), y.square().sum(1), x.transpose(1, 2) @ x, x.transpose(1, 2) @ y)
        self._sums = tuple(a.add_(b) for a, b in zip(self._sums, new, strict=True)) if self.count else new
        self.count += x.shape[1]

    @property
    def bytes(self) -> int:
        """Memory of the sums."""
        return sum(part.numel() * part.element_size() for part in (*self._sums, *self._shift))

    def normal(self) -> Normal:
        """Clause 3."""
        assert self.count, "no rows"
        x, y, yy, xx, xy = (part.cpu().numpy() / self.count for part in self._sums)
        low_x, low_y = (part.cpu().numpy()[:, 0] for part in self._shift)
        return Normal(
            self.count,
            low_x + x,
            low_y + y,
            np.maximum(yy - y * y, 0),
            xx - x[:, :, None] * x[:, None, :],
            xy - x[:, :, None] * y[:, None, :],
        )


@dataclass(frozen=True, slots=True, eq=False)
class Normal:
    """Clause 3.

    Attributes:
        count: rows.
        mean_x: ``(blocks, columns)``.
        mean_y: ``(blocks, rows)``.
        yy: variances of the outputs, ``(blocks, rows)``.
        xx: ``(blocks, columns, columns)``.
        xy: ``(blocks, columns, rows)``.
    """

    count: int
    mean_x: Array
    mean_y: Array
    yy: Array
    xx: Array
    xy: Array

    def about(self, centred: bool) -> tuple[Array, Array]:
        """``xx`` and ``xy``: centred, for a layer with an intercept; else as they are."""
        if centred:
            return self.xx, self.xy
        return (
            self.xx + self.mean_x[:, :, None] * self.mean_x[:, None, :],
            self.xy + self.mean_x[:, :, None] * self.mean_y[:, None, :],
        )

    def loss(self, weight: Array, intercept: Array) -> float:
        """Clause 4, added up: mean squared error of weights ``(blocks, rows, columns)`` and an intercept ``(blocks, rows)``."""
        apart = self.mean_y - (weight @ self.mean_x[:, :, None])[:, :, 0] - intercept
        inner = self.yy.sum() - 2 * np.einsum("brc,bcr->", weight, self.xy) + np.einsum("brc,brc->", weight @ self.xx, weight)
        return float(max(inner, 0.0) + np.square(apart).sum())

    @property
    def spread(self) -> float:
        """Variances of the outputs, added up."""
        return float(self.yy.sum())
