"""Sparse forms of one tensor, as arrays.

1. A tensor of shape ``(n, ...)`` is a matrix of n rows and the product of the rest as columns; its ``a`` *entries* are the elements that are
   not zero. An element is zero if all its bits are: -0.0 and NaN are entries, so every form gives back exactly the bits it was made of.
2. ``Compressed`` by rows (CSR) holds values and column indices in the order of the rows, and n + 1 pointers to where each row begins:
   2a + n + 1 numbers (Han et al. 2016, section 2, arXiv:1510.00149). By columns (CSC): the same of the transposed matrix, 2a + m + 1.
3. ``Relative`` holds for each value the number of zeros since the value before, in the flattened tensor, in ``bits`` bits: 8 for
   convolutions, 5 for linear layers in the paper. Where 2^bits zeros or more lie between, a *filler* is put in: a value of zero that takes
   the place of the 2^bits-th of them (the paper's figure 2). Zeros after the last value are not written.
4. Values are kept as unsigned integers of the element's size: nothing is rounded, and bfloat16 needs no numpy type.
5. Decoding checks everything that it indexes with; what does not fit is a ``SparseFileError``.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fxprune.errors import WeightError
from fxprune.sparse.errors import SparseFileError

Numbers = npt.NDArray[Any]

BITS: dict[int, Any] = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}
DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (
        *(torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2, torch.complex64),
        *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool),
    )
}


@dataclass(frozen=True, slots=True, eq=False)
class Compressed:
    """Clause 2. ``rows``: True for CSR, False for CSC. ``shape`` is the tensor's."""

    shape: tuple[int, ...]
    rows: bool
    values: Numbers
    indices: Numbers
    pointers: Numbers

    @property
    def numbers(self) -> int:
        """How many numbers this form takes: 2a + n + 1."""
        return len(self.values) + len(self.indices) + len(self.pointers)


@dataclass(frozen=True, slots=True, eq=False)
class Relative:
    """Clause 3. ``gaps``: one code below 2^bits per value, fillers included."""

    shape: tuple[int, ...]
    bits: int
    values: Numbers
    gaps: npt.NDArray[np.uint8]

    @property
    def fillers(self) -> int:
        """Values that stand for a zero."""
        return int((self.values == 0).sum())


def matrix_shape(shape: tuple[int, ...]) -> tuple[int, int]:
    """Rows and columns (clause 1); a tensor without dimensions is one row."""
    return (shape[0], prod(shape[1:])) if shape else (1, 1)


def bits_of(tensor: Tensor) -> Numbers:
    """The elements of a tensor as unsigned integers, flat (clause 4).

    Raises:
        WeightError: a dtype or layout that is not stored.
    """
    name = str(tensor.dtype).removeprefix("torch.")
    if name not in DTYPES or tensor.layout != torch.strided or tensor.device.type == "meta" or tensor.is_quantized:
        raise WeightError(
            f"a tensor of {name} in layout {tensor.layout} on {tensor.device.type} is not stored; dense tensors of "
            f"{', '.join(DTYPES)} with values are.",
            expected=tuple(DTYPES),
            got=name,
        )
    # A fresh copy where the tensor carries a lazy conjugation or negation; its bits would be those before it.
    plain = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous().flatten()
    raw: Numbers = plain.view(torch.uint8).numpy() if plain.numel() else np.zeros(0, np.uint8)
    return raw.view(BITS[tensor.element_size()])


def tensor_of(bits: Numbers, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
    """The tensor that these bits are; a new one."""
    if dtype == torch.bool and len(bits) and int(bits.max()) > 1:
        raise SparseFileError("a bool must be 0 or 1.", expected="0 or 1", got=int(bits.max()))
    raw = torch.from_numpy(np.ascontiguousarray(bits).view(np.uint8).copy())
    return raw.view(dtype).reshape(shape) if len(bits) else torch.zeros(shape, dtype=dtype, device="cpu")


def compress(bits: Numbers, shape: tuple[int, ...], *, rows: bool = True) -> Compressed:
    """Clause 2, from flat bits."""
    matrix = bits.reshape(matrix_shape(shape))
    matrix = matrix if rows else matrix.T
    lines, indices = np.nonzero(matrix)
    pointers = np.zeros(len(matrix) + 1, np.int64)
    np.cumsum(np.bincount(lines, minlength=len(matrix)), out=pointers[1:])
    return Compressed(shape, rows, matrix[lines, indices], indices, pointers)


def expand(form: Compressed) -> Numbers:
    """Flat bits of a compressed form (clauses 2 and 5)."""
    height, width = matrix_shape(form.shape)
    lines, across = (height, width) if form.rows else (width, height)
    pointers, indices = form.pointers.astype(np.int64), form.indices.astype(np.int64)
    steps = np.diff(pointers)
    if len(pointers) != lines + 1 or pointers[0] != 0 or pointers[-1] != len(indices) or (steps < 0).any():
        raise SparseFileError(
            "pointers must rise from 0 to the number of values, one per line and one more.", got=pointers[:8].tolist()
        )
    if len(indices) != len(form.values) or (len(indices) and (indices.min() < 0 or indices.max() >= across)):
        raise SparseFileError(f"indices must be below {across}, one per value.", expected=across)
    where = np.repeat(np.arange(lines), steps)
    place = where * across + indices
    if (np.diff(place) <= 0).any():
        raise SparseFileError("indices must rise within a line.")
    flat = np.zeros(height * width, form.values.dtype)
    flat[place] = form.values
    return flat if form.rows else np.ascontiguousarray(flat.reshape(width, height).T).reshape(-1)


def relate(bits: Numbers, shape: tuple[int, ...], width: int) -> Relative:
    """Clause 3, from flat bits; ``width`` bits per index, 1 to 8."""
    places = np.flatnonzero(bits)
    between = np.diff(places, prepend=-1) - 1
    span = 1 << width
    fillers = between // span
    ends = np.cumsum(fillers + 1) - 1
    total = int(ends[-1]) + 1 if len(ends) else 0
    gaps = np.full(total, span - 1, np.uint8)
    values = np.zeros(total, bits.dtype)
    gaps[ends], values[ends] = between % span, bits[places]
    return Relative(shape, width, values, gaps)


def unrelate(form: Relative) -> Numbers:
    """Flat bits of relative indices (clauses 3 and 5)."""
    size = prod(form.shape)
    places = np.cumsum(form.gaps.astype(np.int64) + 1) - 1
    if len(places) != len(form.values) or (len(places) and int(places[-1]) >= size):
        raise SparseFileError(f"the last value lies beyond the {size} elements of the tensor.", expected=size)
    flat = np.zeros(size, form.values.dtype)
    flat[places] = form.values
    return flat


def pack(codes: npt.NDArray[np.uint8], width: int) -> bytes:
    """Codes below 2^width, ``width`` bits each, first code in the highest bits; the last byte is filled with zeros."""
    table = np.unpackbits(codes[:, None], axis=1)[:, 8 - width :]
    return np.packbits(table).tobytes()


def unpack(data: bytes, count: int, width: int) -> npt.NDArray[np.uint8]:
    """The first ``count`` codes of what ``pack`` wrote."""
    table = np.unpackbits(np.frombuffer(data, np.uint8), count=count * width).reshape(count, width)
    weights = 1 << np.arange(width - 1, -1, -1)
    return (table @ weights).astype(np.uint8)
