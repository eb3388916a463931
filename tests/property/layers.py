"""Operators with weights of their own, for random programs. Shapes are (c, h, w), (c, l) or (c,), without the batch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import weight_norm

from tests.property.program import Op, Shape


def rank(shape: Shape) -> int:
    """Number of spatial dimensions."""
    return len(shape) - 1


def ones(spatial: int) -> tuple[int, ...]:
    """Trailing ones that broadcast a per-channel tensor over space."""
    return (1,) * spatial


@dataclass(frozen=True)
class Conv(Op):
    """Convolution over maps or sequences, padded to keep the size (before the stride)."""

    out: int
    kernel: int = 1
    stride: int = 1
    dilation: int = 1
    groups: int = 1
    bias: bool = False

    def module(self, *shapes: Shape) -> nn.Module:
        kind = (nn.Conv1d, nn.Conv2d)[rank(shapes[0]) - 1]
        padding = self.dilation * (self.kernel // 2)
        return kind(shapes[0][0], self.out, self.kernel, self.stride, padding, self.dilation, self.groups, self.bias)


@dataclass(frozen=True)
class TransposedConv(Op):
    """Transposed convolution: stride 2 doubles the size, stride 1 keeps it."""

    out: int
    stride: int = 2
    groups: int = 1
    bias: bool = False

    def module(self, *shapes: Shape) -> nn.Module:
        kind = (nn.ConvTranspose1d, nn.ConvTranspose2d)[rank(shapes[0]) - 1]
        kernel, padding = (2, 0) if self.stride == 2 else (3, 1)
        return kind(shapes[0][0], self.out, kernel, self.stride, padding, groups=self.groups, bias=self.bias)


class FunctionalConv(nn.Module):
    """A convolution on raw parameters."""

    def __init__(self, shape: Shape, out: int, kernel: int, groups: int, bias: bool) -> None:
        super().__init__()
        self.kernel = nn.Parameter(torch.randn(out, shape[0] // groups, *[kernel] * rank(shape)))
        self.offset = nn.Parameter(torch.randn(out)) if bias else None
        self.groups, self.call = groups, (F.conv1d, F.conv2d)[rank(shape) - 1]
        self.padding = kernel // 2

    def forward(self, x: Tensor) -> Tensor:
        return self.call(x, self.kernel, self.offset, padding=self.padding, groups=self.groups)


@dataclass(frozen=True)
class RawConv(Op):
    """``F.conv2d`` on an ``nn.Parameter``."""

    out: int
    kernel: int = 1
    groups: int = 1
    bias: bool = False

    def module(self, *shapes: Shape) -> nn.Module:
        return FunctionalConv(shapes[0], self.out, self.kernel, self.groups, self.bias)


@dataclass(frozen=True)
class WeightNormConv(Op):
    """A convolution under the weight_norm parametrization: each row of its weight hears all its inputs' norms."""

    mixes: ClassVar[bool] = True
    out: int
    kernel: int = 1

    def module(self, *shapes: Shape) -> nn.Module:
        return weight_norm(Conv(self.out, self.kernel).module(*shapes))


@dataclass(frozen=True)
class Linear(Op):
    """A linear layer on vectors."""

    out: int
    bias: bool = True

    def module(self, *shapes: Shape) -> nn.Module:
        return nn.Linear(shapes[0][0], self.out, self.bias)


class MatrixProduct(nn.Module):
    """``x @ p`` or ``F.linear(x, p)`` on a raw parameter."""

    def __init__(self, size: int, out: int, form: str) -> None:
        super().__init__()
        self.matrix = nn.Parameter(torch.randn(out, size) if form == "linear" else torch.randn(size, out))
        self.form = form

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.matrix) if self.form == "linear" else x @ self.matrix


@dataclass(frozen=True)
class RawLinear(Op):
    """A matrix product with an ``nn.Parameter``; form "linear" or "matmul"."""

    out: int
    form: str = "linear"

    def module(self, *shapes: Shape) -> nn.Module:
        return MatrixProduct(shapes[0][0], self.out, self.form)


@dataclass(frozen=True)
class TokenLinear(Op):
    """A linear layer over the tokens of a sequence; form "module", "linear" or "matmul".

    Tokens are channels from here on, so whatever averages over space mixes channels.
    """

    mixes: ClassVar[bool] = True
    out: int
    form: str = "module"

    def module(self, *shapes: Shape) -> nn.Module:
        tokens = shapes[0][1]
        return nn.Linear(tokens, self.out) if self.form == "module" else MatrixProduct(tokens, self.out, self.form)


@dataclass(frozen=True)
class BatchNorm(Op):
    """Batch norm over channels."""

    affine: bool = True

    def module(self, *shapes: Shape) -> nn.Module:
        kind = (nn.BatchNorm1d, nn.BatchNorm1d, nn.BatchNorm2d)[rank(shapes[0])]
        return kind(shapes[0][0], affine=self.affine)


@dataclass(frozen=True)
class InstanceNorm(Op):
    """Instance norm over channels; statistics per channel and sample, or tracked."""

    affine: bool = False
    track: bool = False

    def module(self, *shapes: Shape) -> nn.Module:
        kind = (nn.InstanceNorm1d, nn.InstanceNorm2d)[rank(shapes[0]) - 1]
        return kind(shapes[0][0], affine=self.affine, track_running_stats=self.track)


@dataclass(frozen=True)
class GroupNorm(Op):
    """Group norm: channels of a group hear each other."""

    mixes: ClassVar[bool] = True
    groups: int = 1

    def module(self, *shapes: Shape) -> nn.Module:
        return nn.GroupNorm(self.groups, shapes[0][0])


@dataclass(frozen=True)
class ChannelLayerNorm(Op):
    """Layer norm over channels, last in memory while it runs."""

    mixes: ClassVar[bool] = True

    def module(self, *shapes: Shape) -> nn.Module:
        return nn.LayerNorm(shapes[0][0])

    def run(self, module: nn.Module | None, *xs: Tensor) -> Any:
        assert module is not None
        return module(xs[0].movedim(1, -1)).movedim(-1, 1)


class Gate(nn.Module):
    """Squeeze and excite with convolutions or linear layers."""

    def __init__(self, channels: int, middle: int, form: str) -> None:
        super().__init__()
        self.form = form
        if form == "conv":
            self.down, self.up = nn.Conv2d(channels, middle, 1), nn.Conv2d(middle, channels, 1)
        else:
            self.down, self.up = nn.Linear(channels, middle), nn.Linear(middle, channels)

    def forward(self, x: Tensor) -> Tensor:
        if self.form == "conv":
            return x * torch.sigmoid(self.up(F.relu(self.down(F.adaptive_avg_pool2d(x, 1)))))
        gate = F.hardsigmoid(self.up(F.relu(self.down(x.mean((2, 3))))))
        return x * gate[:, :, None, None]


@dataclass(frozen=True)
class SqueezeExcite(Op):
    """Channel gate; form "conv" or "linear"."""

    middle: int = 2
    form: str = "conv"

    def module(self, *shapes: Shape) -> nn.Module:
        return Gate(shapes[0][0], self.middle, self.form)


@dataclass(frozen=True)
class SpatialGate(Op):
    """Multiply by the sigmoid of a one-channel convolution."""

    kernel: int = 1

    def module(self, *shapes: Shape) -> nn.Module:
        return Conv(1, self.kernel, bias=True).module(*shapes)

    def run(self, module: nn.Module | None, *xs: Tensor) -> Any:
        assert module is not None
        return xs[0] * torch.sigmoid(module(xs[0]))


@dataclass(frozen=True)
class SpatialAttention(Op):
    """The spatial gate of CBAM: mean and maximum over channels, then a convolution."""

    mixes: ClassVar[bool] = True

    def module(self, *shapes: Shape) -> nn.Module:
        return Conv(1, 3).module((2, *shapes[0][1:]))

    def run(self, module: nn.Module | None, *xs: Tensor) -> Any:
        assert module is not None
        (x,) = xs
        return x * torch.sigmoid(module(torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], 1)))


class Mixer(nn.Module):
    """A two-layer MLP with a residual, over tokens or over channels of (n, c, l)."""

    def __init__(self, size: int, hidden: int, over: str) -> None:
        super().__init__()
        self.up, self.down, self.over = nn.Linear(size, hidden), nn.Linear(hidden, size), over

    def forward(self, x: Tensor) -> Tensor:
        if self.over == "tokens":
            return x + self.down(F.gelu(self.up(x)))
        return x + self.down(F.gelu(self.up(x.permute(0, 2, 1)))).permute(0, 2, 1)


@dataclass(frozen=True)
class MixingMlp(Op):
    """The mixing MLPs of MLP-Mixer on sequences (c, l); over "tokens" or "channels"."""

    hidden: int = 4
    over: str = "tokens"

    def module(self, *shapes: Shape) -> nn.Module:
        return Mixer(shapes[0][1 if self.over == "tokens" else 0], self.hidden, self.over)


class Table(nn.Module):
    """A parameter or buffer combined with the input elementwise."""

    def __init__(self, size: tuple[int, ...], kind: str) -> None:
        super().__init__()
        self.kind = kind
        if kind == "mask":
            self.register_buffer("table", (torch.arange(torch.Size(size).numel()) % 3 + 1).reshape(size).double())
        else:
            self.table = nn.Parameter(torch.randn(size))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.table if self.kind == "position" else x * self.table


@dataclass(frozen=True)
class Scale(Op):
    """Multiply by a per-channel parameter ("scale") or buffer ("mask"), or add a full-size one ("position")."""

    kind: str = "scale"

    def module(self, *shapes: Shape) -> nn.Module:
        (shape,) = shapes
        return Table((1, *shape) if self.kind == "position" else (shape[0], *ones(rank(shape))), self.kind)

    def run(self, module: nn.Module | None, *xs: Tensor) -> Any:
        assert module is not None
        return module(xs[0])


@dataclass(frozen=True)
class PRelu(Op):
    """PReLU with one slope, or one per channel."""

    shared: bool = False

    def module(self, *shapes: Shape) -> nn.Module:
        return nn.PReLU(1 if self.shared else shapes[0][0])
