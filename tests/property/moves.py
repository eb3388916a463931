"""Operators without weights, for random programs: activations, data movement, pooling. The channel dimension is 1."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.property.program import Op, Shape

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "silu": F.silu,
    "gelu": F.gelu,
    "hardswish": F.hardswish,
    "leaky_relu": F.leaky_relu,
    "softplus": F.softplus,
    "abs": lambda x: x.abs(),
    "affine": lambda x: 2 * x + 1,
    "clamp": lambda x: x.clamp(-1.0, 1.0),
    "square": lambda x: x * x,
    "where": lambda x: torch.where(x > 0, x, 0.1 * x),
    "clone": lambda x: x.clone(),
    "contiguous": lambda x: x.contiguous(),
    "dropout": lambda x: F.dropout(x, 0.5, False),
}

ACTIVATION_MODULES: dict[str, Callable[[], nn.Module]] = {
    "ReLU": nn.ReLU,
    "Hardtanh": nn.Hardtanh,
    "ELU": nn.ELU,
    "SiLU": nn.SiLU,
    "Hardsigmoid": nn.Hardsigmoid,
    "Identity": nn.Identity,
    "Dropout": nn.Dropout,
    "Mish": nn.Mish,
}

INPLACE: dict[str, Callable[[Tensor], Tensor]] = {
    "relu_": lambda x: x.relu_(),
    "F.relu(inplace)": lambda x: F.relu(x, inplace=True),
    "add_": lambda x: x.add_(1.0),
    "leaky_relu_": lambda x: F.leaky_relu_(x, 0.1),
    "hardswish(inplace)": lambda x: F.hardswish(x, inplace=True),
}


@dataclass(frozen=True)
class Act(Op):
    """An activation: a function, a module, or one that works in place."""

    kind: str = "relu"

    def module(self, *shapes: Shape) -> nn.Module | None:
        if self.kind == "ReLU(inplace)":
            return nn.ReLU(inplace=True)
        return ACTIVATION_MODULES[self.kind]() if self.kind in ACTIVATION_MODULES else None

    def run(self, module: nn.Module | None, *xs: Tensor) -> Any:
        return module(*xs) if module is not None else {**ACTIVATIONS, **INPLACE}[self.kind](*xs)


BINARY: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "add": lambda a, b: a + b,
    "mul": lambda a, b: a * b,
    "sub": lambda a, b: a - b,
    "maximum": torch.maximum,
    "gate": lambda a, b: a * torch.sigmoid(b),
    "lerp": lambda a, b: torch.lerp(a, b, 0.25),
}


@dataclass(frozen=True)
class Binary(Op):
    """Two values of one shape, elementwise."""

    kind: str = "add"

    def run(self, module: nn.Module | None, *xs: Tensor) -> Any:
        return BINARY[self.kind](*xs)


@dataclass(frozen=True)
class Cat(Op):
    """Concatenate along channels."""

    def run(self, module: nn.Module | None, *xs: Tensor) -> Any:
        return torch.cat(xs, 1)


@dataclass(frozen=True)
class Interleave(Op):
    """Stack two values behind the channels and flatten: their channels alternate."""

    def run(self, module: nn.Module | None, *xs: Tensor) -> Any:
        return torch.stack(xs, 2).flatten(1, 2)


@dataclass(frozen=True)
class Chunk(Op):
    """Equal parts of the channels; form "chunk", "tensor_split" or "unbind"."""

    parts: int = 2
    form: str = "chunk"

    def run(self, module: nn.Module | None, *xs: Tensor) -> Any:
        (x,) = xs
        if self.form == "unbind":
            parts = x.unflatten(1, (self.parts, -1)).unbind(1)
        else:
            parts = torch.tensor_split(x, self.parts, 1) if self.form == "tensor_split" else x.chunk(self.parts, 1)
        return tuple(parts[i] for i in range(self.parts))


@dataclass(frozen=True)
class Split(Op):
    """Parts of given sizes."""

    sizes: tuple[int, ...]

    def run(self, module: nn.Module | None, *xs: Tensor) -> Any:
        parts = torch.split(xs[0], list(self.sizes), 1)
        return tuple(parts[i] for i in range(len(self.sizes)))


@dataclass(frozen=True)
class Shuffle(Op):
    """ShuffleNet's channel shuffle; form "view", "reshape" or "module"."""

    groups: int = 2
    form: str = "view"

    def module(self, *shapes: Shape) -> nn.Module | None:
        return nn.ChannelShuffle(self.groups) if self.form == "module" else None

    def run(self, module: nn.Module | None, *xs: Tensor) -> Any:
        (x,) = xs
        if module is not None:
            return module(x)
        if self.form == "reshape":
            n, c, h, w = (x.shape[i] for i in range(4))
        else:
            n, c, h, w = x.size()
        grouped = x.contiguous().view(n, self.groups, c // self.groups, h, w).transpose(1, 2)
        return grouped.contiguous().view(n, c, h, w) if self.form == "view" else grouped.reshape(n, -1, h, w)


@dataclass(frozen=True)
class Glu(Op):
    """First half times the sigmoid of the second."""

    def run(self, module: nn.Module | None, *xs: Tensor) -> Any:
        return F.glu(xs[0], 1)


@dataclass(frozen=True)
class Maxout(Op):
    """Maximum over the pieces of the channels."""

    mixes: ClassVar[bool] = True
    pieces: int = 2

    def run(self, module: nn.Module | None, *xs: Tensor) -> Any:
        (x,) = xs
        return x.unflatten(1, (self.pieces, x.shape[1] // self.pieces)).amax(1)


@dataclass(frozen=True)
class ChannelMean(Op):
    """Reductions over channels: "mean" and "sum" leave one channel, the others all."""

    mixes: ClassVar[bool] = True
    kind: str = "mean"

    def run(self, module: nn.Module | None, *xs: Tensor) -> Any:
        (x,) = xs
        match self.kind:
            case "mean":
                return x.mean(1, keepdim=True)
            case "sum":
                return x.sum(dim=1, keepdim=True)
            case "norm":
                return x * (x.square().sum(1, keepdim=True) + 1e-3).rsqrt()
            case "norm3":
                return x / (torch.linalg.vector_norm(x, 3.0, 1, keepdim=True) + 0.1)
            case "normalize":
                return F.normalize(x, dim=1, eps=1e-3)
            case "logsumexp":
                return x - x.logsumexp(1, keepdim=True)
        return x.softmax(1)


@dataclass(frozen=True)
class Correlation(Op):
    """Every channel of one value times every channel of the other, averaged over space: (c1,), (c2,) -> (c1 * c2,)."""

    def run(self, module: nn.Module | None, *xs: Tensor) -> Any:
        a, b = (x.flatten(2) for x in xs)
        return torch.bmm(a, b.transpose(1, 2)).flatten(1)


POOLS: dict[str, Callable[[Tensor], Tensor]] = {
    "max2": lambda x: F.max_pool2d(x, 2),
    "avg2": lambda x: F.avg_pool2d(x, 2),
    "avg3": lambda x: F.avg_pool2d(x, 3, stride=1, padding=1),
    "adaptive2": lambda x: F.adaptive_avg_pool2d(x, 2),
    "adaptive_max2": lambda x: F.adaptive_max_pool2d(x, (2, 2)),
    "nearest2": lambda x: F.interpolate(x, scale_factor=2.0, mode="nearest"),
    "bilinear": lambda x: F.interpolate(x, size=(4, 4), mode="bilinear", align_corners=False),
    "like": lambda x: F.interpolate(F.max_pool2d(x, 2), size=x.shape[-2:], mode="nearest"),
    "softmax": lambda x: x.flatten(2).softmax(-1).view(x.shape),
    "spatial_flip": lambda x: x.flip(3),
    "transposed": lambda x: x.transpose(2, 3),
    "crop": lambda x: x[:, :, 1:, :-1],
    "reflect": lambda x: F.pad(x, (1, 1, 0, 0), mode="reflect"),
    "pad": lambda x: F.pad(x, (1, 0, 0, 1), value=0.5),
}
GROWING = ("nearest2", "reflect", "pad")


@dataclass(frozen=True)
class Pool(Op):
    """Something that moves or reduces pixels and leaves channels alone."""

    kind: str = "max2"

    def run(self, module: nn.Module | None, *xs: Tensor) -> Any:
        return POOLS[self.kind](*xs)


@dataclass(frozen=True)
class PixelShuffle(Op):
    """Channels to space (factor 2), or back (down=True)."""

    down: bool = False

    def run(self, module: nn.Module | None, *xs: Tensor) -> Any:
        return F.pixel_unshuffle(xs[0], 2) if self.down else F.pixel_shuffle(xs[0], 2)


@dataclass(frozen=True)
class Roll(Op):
    """Move channels around by a number of places; 0 reverses them."""

    places: int = 0

    def run(self, module: nn.Module | None, *xs: Tensor) -> Any:
        return torch.roll(xs[0], self.places, 1) if self.places else xs[0].flip(1)


@dataclass(frozen=True)
class Slice(Op):
    """``x[:, start:stop:step]``; stop 0 is the end."""

    start: int = 0
    stop: int = 0
    step: int = 1

    def run(self, module: nn.Module | None, *xs: Tensor) -> Any:
        return xs[0][:, self.start : self.stop or None : self.step]


@dataclass(frozen=True)
class Index(Op):
    """``x[:, [2, 0, 1]]``: channels picked by constants, with repetitions."""

    rows: tuple[int, ...]

    def run(self, module: nn.Module | None, *xs: Tensor) -> Any:
        return xs[0][:, list(self.rows)]


@dataclass(frozen=True)
class PadChannels(Op):
    """Constant channels before and behind, under a number of spatial dimensions."""

    before: int = 0
    behind: int = 1
    value: float = 0.0
    space: int = 2

    def run(self, module: nn.Module | None, *xs: Tensor) -> Any:
        return F.pad(xs[0], (*(0, 0) * self.space, self.before, self.behind), value=self.value)


@dataclass(frozen=True)
class Repeat(Op):
    """Each channel twice; form "repeat" (as blocks), "interleave" (side by side) or "expand" (blocks, by broadcasting)."""

    form: str = "repeat"
    space: int = 2

    def run(self, module: nn.Module | None, *xs: Tensor) -> Any:
        (x,) = xs
        if self.form == "interleave":
            return x.repeat_interleave(2, dim=1)
        if self.form == "expand":
            return x.unsqueeze(1).expand(-1, 2, -1, *[-1] * self.space).flatten(1, 2)
        return x.repeat(1, 2, *[1] * self.space)


@dataclass(frozen=True)
class SetSlice(Op):
    """``y = x.clone(); y[:, start:start + c] = z``."""

    traceable: ClassVar[bool] = False
    start: int = 0

    def run(self, module: nn.Module | None, *xs: Tensor) -> Any:
        x, z = xs
        y = x.clone()
        y[:, self.start : self.start + z.shape[1]] = z
        return y


@torch.library.custom_op("fxprune_tests::backwards", mutates_args=())
def backwards(x: Tensor) -> Tensor:
    """An operator that nobody outside this file knows: the channels in reverse, each minus the one before."""
    y = x.flip(1)
    return y - torch.roll(y, 1, 1)


@backwards.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


backwards.register_autograd(lambda _, grad: (grad - torch.roll(grad, -1, 1)).flip(1))

OPAQUE: dict[str, Callable[[Tensor], Tensor]] = {
    "custom": backwards,
    "sort": lambda x: torch.sort(x, 1).values,
    "topk": lambda x: torch.topk(x, 1, dim=1).values,
    "cummax": lambda x: torch.cummax(x, 1).values,
    "argsort": lambda x: torch.gather(x, 1, torch.argsort(x, 1)),
    "fft": lambda x: torch.fft.rfft(x, dim=1).real,
    "median": lambda x: torch.median(x, 1, keepdim=True).values,
}


@dataclass(frozen=True)
class Opaque(Op):
    """Something for which no rule about single channels can be right."""

    kind: str = "custom"

    def run(self, module: nn.Module | None, *xs: Tensor) -> Any:
        return OPAQUE[self.kind](xs[0])


@dataclass(frozen=True)
class Flatten(Op):
    """To a vector. Any space: "flatten", "view" or "average"; maps: "mean", "pool1" or "pool2" (adaptive pool, then flatten)."""

    form: str = "flatten"

    def run(self, module: nn.Module | None, *xs: Tensor) -> Any:
        (x,) = xs
        match self.form:
            case "flatten":
                return torch.flatten(x, 1)
            case "view":
                return x.reshape(x.size(0), -1)
            case "average":
                return x.flatten(2).mean(2)
            case "mean":
                return x.mean((2, 3))
            case "pool2":
                return F.adaptive_avg_pool2d(x, 2).flatten(1)
        return F.adaptive_avg_pool2d(x, (1, 1)).flatten(1)


@dataclass(frozen=True)
class ToSequence(Op):
    """(c, h, w) -> (c, h * w)."""

    def run(self, module: nn.Module | None, *xs: Tensor) -> Any:
        return xs[0].flatten(2)


@dataclass(frozen=True)
class ToMap(Op):
    """(c, l) -> (c, height, l / height)."""

    height: int = 1

    def run(self, module: nn.Module | None, *xs: Tensor) -> Any:
        return xs[0].unflatten(2, (self.height, xs[0].shape[2] // self.height))
