"""Attention, recurrence, windows, tokens: steps of newer networks, for random programs. Shapes are without the batch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.property.program import Op, Shape

LAYERS: dict[str, type[nn.RNNBase]] = {"lstm": nn.LSTM, "gru": nn.GRU, "rnn": nn.RNN}
CELLS: dict[str, type[nn.RNNCellBase]] = {"lstm": nn.LSTMCell, "gru": nn.GRUCell, "rnn": nn.RNNCell}


@dataclass(frozen=True)
class Recurrent(Op):
    """A recurrent layer over a sequence (c, l); what is read is "output", "state" (the last one) or "states" (all, flat)."""

    hidden: int = 4
    kind: str = "lstm"
    layers: int = 1
    directions: int = 1
    projected: int = 0
    bias: bool = True
    read: str = "output"

    def module(self, *shapes: Shape) -> nn.Module:
        more: dict[str, Any] = {"proj_size": self.projected} if self.projected else {}
        more |= {"bias": self.bias, "batch_first": True, "bidirectional": self.directions == 2}
        return LAYERS[self.kind](shapes[0][0], self.hidden, self.layers, **more)

    def run(self, module: nn.Module | None, *xs: Tensor) -> Any:
        assert module is not None
        output, state = module(xs[0].transpose(1, 2))
        if self.read == "output":
            return output.transpose(1, 2)
        hidden = state[0] if self.kind == "lstm" else state
        return hidden[-1] if self.read == "state" else hidden.transpose(0, 1).flatten(1)


@dataclass(frozen=True)
class Cell(Op):
    """A recurrent cell that sees a vector twice; its second state is what it saw first, or nothing."""

    hidden: int = 4
    kind: str = "lstm"
    bias: bool = True

    def module(self, *shapes: Shape) -> nn.Module:
        return CELLS[self.kind](shapes[0][0], self.hidden, self.bias)

    def run(self, module: nn.Module | None, *xs: Tensor) -> Any:
        assert module is not None
        state = module(xs[0], module(xs[0]))
        return state[0] if self.kind == "lstm" else state


class Attend(nn.Module):
    """Attention over the positions of (n, c, l)."""

    def __init__(self, shape: Shape, op: Attention) -> None:
        super().__init__()
        width, length = shape
        self.heads, self.dim, self.kind, self.literal = op.heads, op.dim, op.kind, op.literal
        inner = op.heads * op.dim
        self.shared = op.heads if op.kind == "grouped" else 1  # one head of keys and values for all
        if op.kind == "packed":
            self.qkv = nn.Linear(width, 3 * inner)
        else:
            self.q, self.k = nn.Linear(width, inner), nn.Linear(width, inner // self.shared)
            self.v = nn.Linear(width, inner // self.shared, bias=False)
        self.proj = nn.Linear(inner, op.out)
        if op.kind == "talking":
            self.mix = nn.Linear(op.heads, op.heads)
        if op.kind == "cosine":
            self.gain = nn.Parameter(torch.ones(op.heads, 1, 1))
        if op.kind == "bias":
            self.table = nn.Parameter(torch.randn(op.heads, length, length))
        if op.kind == "relative":
            self.table = nn.Parameter(torch.randn(2 * length - 1, op.heads))
            places = torch.arange(length)
            self.register_buffer("index", (places[:, None] - places[None, :] + length - 1).flatten())

    def split(self, x: Tensor, heads: int) -> Tensor:
        n, length, width = x.shape
        if self.literal:
            return x.reshape(n, length, heads, self.dim).transpose(1, 2)
        return x.view(n, length, heads, width // heads).permute(0, 2, 1, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = x.transpose(1, 2)
        n, length, _ = x.shape
        if self.kind == "packed":
            q, k, v = self.qkv(x).reshape(n, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        else:
            q = self.split(self.q(x), self.heads)
            k, v = (self.split(layer(x), self.heads // self.shared) for layer in (self.k, self.v))
        if self.shared > 1:
            k, v = k.repeat_interleave(self.shared, 1), v.repeat_interleave(self.shared, 1)
        x = F.scaled_dot_product_attention(q, k, v) if self.kind == "fused" else self.weights(q, k) @ v
        return self.proj(x.transpose(1, 2).reshape(n, length, -1)).transpose(1, 2)

    def weights(self, q: Tensor, k: Tensor) -> Tensor:
        if self.kind == "cosine":
            return ((F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(-2, -1)) * self.gain.exp()).softmax(-1)
        scores = (q * self.dim**-0.5) @ k.transpose(-2, -1)
        if self.kind == "bias":
            scores = scores + self.table
        if self.kind == "relative":
            length = q.shape[2]
            scores = scores + self.table[self.index].view(length, length, self.heads).permute(2, 0, 1)
        if self.kind == "talking":
            return self.mix(scores.permute(0, 2, 3, 1)).softmax(2).permute(0, 3, 1, 2)
        return scores.softmax(-1)


ATTENTIONS = ("separate", "packed", "fused", "grouped", "talking", "cosine", "bias", "relative")


@dataclass(frozen=True)
class Attention(Op):
    """Attention of some kind over a sequence (c, l), with a projection to ``out``."""

    mixes: ClassVar[bool] = True
    out: int
    heads: int = 2
    dim: int = 2
    kind: str = "separate"
    literal: bool = False

    def module(self, *shapes: Shape) -> nn.Module:
        return Attend(shapes[0], self)


@dataclass(frozen=True)
class SelfAttention(Op):
    """``nn.MultiheadAttention`` of a sequence with itself."""

    mixes: ClassVar[bool] = True
    heads: int = 1

    def module(self, *shapes: Shape) -> nn.Module:
        return nn.MultiheadAttention(shapes[0][0], self.heads, batch_first=True)

    def run(self, module: nn.Module | None, *xs: Tensor) -> Any:
        assert module is not None
        x = xs[0].transpose(1, 2)
        return module(x, x, x, need_weights=False)[0].transpose(1, 2)


@dataclass(frozen=True)
class RmsNorm(Op):
    """RMS norm over channels."""

    mixes: ClassVar[bool] = True
    affine: bool = True

    def module(self, *shapes: Shape) -> nn.Module:
        return nn.RMSNorm(shapes[0][0], elementwise_affine=self.affine)

    def run(self, module: nn.Module | None, *xs: Tensor) -> Any:
        assert module is not None
        return module(xs[0].movedim(1, -1)).movedim(-1, 1)


@dataclass(frozen=True)
class Window(Op):
    """Windows of 2 x 2 as samples of their own, a convolution in each, and back; shifted by a roll over space or not."""

    out: int = 2
    kernel: int = 1
    shift: int = 0

    def module(self, *shapes: Shape) -> nn.Module:
        return nn.Conv2d(shapes[0][0], self.out, self.kernel, padding=self.kernel // 2)

    def run(self, module: nn.Module | None, *xs: Tensor) -> Any:
        assert module is not None
        (x,) = xs
        if self.shift:
            x = torch.roll(x, (-self.shift, -self.shift), (2, 3))
        n, c, h, w = x.shape
        x = x.view(n, c, h // 2, 2, w // 2, 2).permute(0, 2, 4, 1, 3, 5).reshape(-1, c, 2, 2)
        x = module(x)
        x = x.view(n, h // 2, w // 2, -1, 2, 2).permute(0, 3, 1, 4, 2, 5).reshape(n, -1, h, w)
        return torch.roll(x, (self.shift, self.shift), (2, 3)) if self.shift else x


class Prepend(nn.Module):
    """A learned token in front of a sequence (n, c, l)."""

    def __init__(self, width: int, how: str) -> None:
        super().__init__()
        self.token, self.how = nn.Parameter(torch.randn(1, width, 1)), how

    def forward(self, x: Tensor) -> Tensor:
        token = self.token.repeat(x.shape[0], 1, 1) if self.how == "repeat" else self.token.expand(x.shape[0], -1, -1)
        return torch.cat([token, x], 2)


@dataclass(frozen=True)
class ClassToken(Op):
    """A learned token in front: (c, l) -> (c, l + 1)."""

    how: str = "expand"

    def module(self, *shapes: Shape) -> nn.Module:
        return Prepend(shapes[0][0], self.how)


@dataclass(frozen=True)
class Position(Op):
    """One position of a sequence: (c, l) -> (c,)."""

    place: int = 0

    def run(self, module: nn.Module | None, *xs: Tensor) -> Any:
        return xs[0][:, :, self.place]


@dataclass(frozen=True)
class Regroup(Op):
    """Channels split in two dimensions and merged in the other order, with or without something between."""

    groups: int = 2
    between: str = ""

    def run(self, module: nn.Module | None, *xs: Tensor) -> Any:
        (x,) = xs
        y = x.unflatten(1, (self.groups, -1))
        if self.between == "square":
            y = y * y
        elif self.between == "gate":
            y = y * torch.sigmoid(y.flip(1))
        return y.transpose(1, 2).flatten(1, 2)


@dataclass(frozen=True)
class Merge(Op):
    """Channels and pixels exchanged.

    Form "patches" (Swin: four maps of half the size side by side), "einops" (the same by reshaping, pixels first) or "rows"
    ((c, h, w) -> (c * h, w)).
    """

    form: str = "patches"

    def run(self, module: nn.Module | None, *xs: Tensor) -> Any:
        (x,) = xs
        if self.form == "patches":
            return torch.cat([x[:, :, i::2, j::2] for j in range(2) for i in range(2)], 1)
        if self.form == "rows":
            return x.flatten(1, 2)
        n, c, h, w = x.shape
        return x.reshape(n, c, h // 2, 2, w // 2, 2).permute(0, 3, 5, 1, 2, 4).reshape(n, 4 * c, h // 2, w // 2)


class Rows(nn.Module):
    """Channels picked by a buffer."""

    def __init__(self, rows: tuple[int, ...], form: str, space: int) -> None:
        super().__init__()
        self.space = space
        self.register_buffer("rows", torch.tensor(rows))
        self.form = form

    def forward(self, x: Tensor) -> Tensor:
        if self.form == "index_select":
            return x.index_select(1, self.rows)
        index = self.rows.view(1, -1, *(1,) * self.space)
        if self.form == "take_along_dim":
            return x.take_along_dim(index, 1)
        return x.gather(1, index.expand_as(x.index_select(1, self.rows)))


@dataclass(frozen=True)
class Pick(Op):
    """Channels picked by a constant; form "index_select", "gather" or "take_along_dim"."""

    rows: tuple[int, ...]
    form: str = "index_select"

    def module(self, *shapes: Shape) -> nn.Module:
        return Rows(self.rows, self.form, len(shapes[0]) - 1)
