"""Weights as compressed sparse rows: for torch, and for scipy.

1. ``to_csr(model)`` is a copy whose linear layers and convolutions compute with a ``torch.sparse_csr`` weight: y = W x for a linear layer, and the
   same on the unfolded image (im2col) for a convolution. Outputs are those of the dense model up to the order of additions.
2. Convolutions with groups, transposed ones, those of another rank than 2 and those whose padding is not zeros or not numbers stay dense; so
   does a layer whose density is above ``density``. ``to_csr`` changes no state that is stored: it is for inference, and has no gradient.
3. Whether this is faster than dense depends on density and shape, and on a CPU it mostly is not: see docs/sparse.md for measurements.
4. ``to_scipy`` and ``from_scipy`` exchange a tensor's matrix (encode.py, clause 1) with ``scipy.sparse``; shape and values are kept exactly.
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fxprune.errors import BudgetError, WeightError
from fxprune.sparse.encode import bits_of, compress, matrix_shape
from fxprune.sparse.layers import layers
from fxprune.sparse.masks import densities, permanent

SCIPY = {torch.float32: np.float32, torch.float64: np.float64}


def csr_tensor(weight: Tensor) -> Tensor:
    """A weight's matrix as ``torch.sparse_csr``, with 32-bit indices where torch multiplies faster by them."""
    form = compress(bits_of(weight), tuple(weight.shape))
    rows, columns = matrix_shape(tuple(weight.shape))
    values = weight.detach().reshape(rows, columns)[
        torch.from_numpy(np.repeat(np.arange(rows), np.diff(form.pointers))), torch.from_numpy(form.indices)
    ]
    pointers, indices = torch.from_numpy(form.pointers).int(), torch.from_numpy(form.indices).int()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta state")
        return torch.sparse_csr_tensor(
            pointers, indices, values, size=(rows, columns), device=weight.device, check_invariants=True
        )


def _bias(dense: nn.Module) -> Tensor | None:
    bias: Tensor | None = dense._parameters.get("bias")
    return None if bias is None else bias.detach().clone()


class SparseLinear(nn.Module):
    """``nn.Linear`` with a CSR weight (clause 1). Attributes: ``in_features``, ``out_features``."""

    weight: Tensor
    bias: Tensor | None

    def __init__(self, dense: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = dense.in_features, dense.out_features
        self.register_buffer("weight", csr_tensor(dense.weight), persistent=False)
        self.register_buffer("bias", _bias(dense), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """``(..., in_features)`` to ``(..., out_features)``."""
        flat = x.reshape(-1, self.in_features)
        y = (self.weight @ flat.t()).t()
        y = y if self.bias is None else y + self.bias
        return y.reshape(*x.shape[:-1], self.out_features)

    def extra_repr(self) -> str:
        entries = self.weight.values().numel()
        return f"in_features={self.in_features}, out_features={self.out_features}, entries={entries}"


class SparseConv2d(nn.Module):
    """``nn.Conv2d`` of one group with a CSR weight on unfolded images (clause 1). Attributes as there."""

    weight: Tensor
    bias: Tensor | None

    def __init__(self, dense: nn.Conv2d) -> None:
        super().__init__()
        self.in_channels, self.out_channels = dense.in_channels, dense.out_channels
        self.kernel_size, self.stride, self.padding, self.dilation = (
            dense.kernel_size,
            dense.stride,
            dense.padding,
            dense.dilation,
        )
        self.register_buffer("weight", csr_tensor(dense.weight), persistent=False)
        self.register_buffer("bias", _bias(dense), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """``(n, c, h, w)`` to ``(n, out_channels, h', w')``."""
        padding: Any = self.padding
        columns = F.unfold(x, self.kernel_size, self.dilation, padding, self.stride)  # n, c * k * k, positions
        count, width, positions = columns.shape
        y = self.weight @ columns.transpose(0, 1).reshape(width, count * positions)
        y = y if self.bias is None else y + self.bias[:, None]
        size = [
            (x.shape[2 + d] + 2 * padding[d] - self.dilation[d] * (self.kernel_size[d] - 1) - 1) // self.stride[d] + 1
            for d in (0, 1)
        ]
        return y.reshape(self.out_channels, count, *size).transpose(0, 1)

    def extra_repr(self) -> str:
        return f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, entries={self.weight.values().numel()}"


def to_csr(model: nn.Module, *, density: float = 1.0) -> nn.Module:
    """Clauses 1 and 2: a copy in eval mode that multiplies by sparse weights where the layer's density is at most ``density``.

    Raises:
        BudgetError: a density outside [0, 1].
        WeightError: a weight that is neither float32 nor float64.
    """
    if not 0 <= density <= 1:
        raise BudgetError(f"density must be in [0, 1], got {density}.", expected="[0, 1]", got=density)
    bare = permanent(model).eval()
    share = densities(bare)
    for name, module in layers(bare).items():
        dtype = module.weight.dtype
        if dtype not in SCIPY:
            raise WeightError(
                f"torch multiplies by sparse weights in float32 and float64; {name!r} is {dtype}.", node=name, got=dtype
            )
        made = _sparse(module) if share[name] <= density else None
        if made is not None:
            bare = _replaced(bare, module, made.eval())
    return bare.requires_grad_(False)


def _sparse(module: nn.Module) -> nn.Module | None:
    if type(module) is nn.Linear:
        return SparseLinear(module)
    if (
        type(module) is nn.Conv2d
        and module.groups == 1
        and module.padding_mode == "zeros"
        and not isinstance(module.padding, str)
    ):
        return SparseConv2d(module)
    return None


def _replaced(model: nn.Module, old: nn.Module, new: nn.Module) -> nn.Module:
    """The model with ``new`` wherever ``old`` stood, under all its names."""
    if model is old:
        return new
    for parent in list(model.modules()):
        for name, child in list(parent._modules.items()):
            if child is old:
                parent._modules[name] = new
    return model


def to_scipy(tensor: Tensor, form: str = "csr") -> Any:
    """Clause 4: a ``scipy.sparse`` array in CSR or CSC.

    Raises:
        BudgetError: another form.
        WeightError: a dtype that scipy does not have.
    """
    from scipy import sparse  # importing fxprune stays quick

    if form not in ("csr", "csc"):
        raise BudgetError(f"form must be 'csr' or 'csc', got {form!r}.", expected=("csr", "csc"), got=form)
    if tensor.dtype not in SCIPY:
        raise WeightError(f"scipy has float32 and float64 matrices; this tensor is {tensor.dtype}.", got=tensor.dtype)
    found = compress(bits_of(tensor), tuple(tensor.shape), rows=form == "csr")
    kind = sparse.csr_array if form == "csr" else sparse.csc_array
    return kind((found.values.view(SCIPY[tensor.dtype]), found.indices, found.pointers), shape=matrix_shape(tuple(tensor.shape)))


def from_scipy(matrix: Any, shape: tuple[int, ...] | None = None) -> Tensor:
    """The dense tensor of a ``scipy.sparse`` matrix, in the tensor's own shape.

    Raises:
        WeightError: no scipy matrix of float32 or float64, or one that does not have the shape's size.
    """
    from scipy import sparse  # importing fxprune stays quick

    if not sparse.issparse(matrix) or matrix.dtype not in (np.float32, np.float64):
        raise WeightError(
            f"expected a scipy.sparse matrix of float32 or float64, got {type(matrix).__name__}.", got=type(matrix).__name__
        )
    dense = torch.from_numpy(np.ascontiguousarray(matrix.toarray()))
    wanted = tuple(matrix.shape) if shape is None else shape
    if matrix_shape(wanted) != tuple(matrix.shape):
        raise WeightError(
            f"a matrix of shape {tuple(matrix.shape)} is no tensor of shape {wanted}.",
            expected=matrix_shape(wanted),
            got=matrix.shape,
        )
    return dense.reshape(wanted)
