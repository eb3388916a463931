"""Networks to export, small enough for every exporter: one function per architecture, with its example inputs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from benchmarks.streaming import Decoder
from fxprune import zoo
from tests.property.program import randomise


@dataclass(frozen=True)
class Net:
    """How to build a network in float32 and evaluation mode, and a batch for it."""

    build: Callable[[], nn.Module]
    batch: Callable[[int], Tensor]
    ratio: float = 0.4
    layout: str = "coupled"

    def model(self) -> nn.Module:
        return randomise(self.build(), seed=1).float().eval()


def images(side: int) -> Callable[[int], Tensor]:
    return lambda n: torch.randn(n, 3, side, side, generator=torch.Generator().manual_seed(n))


def tokens(n: int) -> Tensor:
    return torch.randint(0, 31, (n, 6), generator=torch.Generator().manual_seed(n))


def states(n: int) -> Tensor:
    return torch.randn(n, 7, 32, generator=torch.Generator().manual_seed(n))


class Shuffled(nn.Module):
    """Split, grouped convolution, concatenation and channel shuffle, as in ShuffleNet."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(inplace=True))
        self.branch = nn.Sequential(
            nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 1), nn.ReLU(inplace=True)
        )
        self.last = nn.Conv2d(16, 24, 1)
        self.fc = nn.Linear(24, 10)

    def forward(self, x: Tensor) -> Tensor:
        left, right = self.stem(x).chunk(2, 1)
        x = nn.functional.channel_shuffle(torch.cat([left, self.branch(right)], 1), 2)
        return self.fc(self.last(x).mean((2, 3)))


def encoder() -> nn.Module:
    """Multi-head attention, layer norms, shortcuts."""
    layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True, norm_first=True, activation="gelu")
    return nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)


def decoder() -> nn.Module:
    """Grouped-query attention with rotary positions, RMS norms, SwiGLU, shortcuts."""
    return Decoder(2, width=32, hidden=48, heads=4, kv_heads=2, vocabulary=31)


NETS = {
    "vgg (conv, norm, linear)": Net(zoo.vgg11_bn, images(32)),
    "resnet (shortcuts)": Net(zoo.resnet20, images(32)),
    "densenet (concatenation)": Net(lambda: zoo.DenseNet(3, 12, 16), images(32)),
    "shufflenet (split, shuffle)": Net(Shuffled, images(16)),
    "encoder (attention)": Net(encoder, states),
    "decoder (grouped-query attention)": Net(decoder, tokens),
    "selected (shortcuts and selects)": Net(lambda: zoo.preresnet(29), images(32), layout="selection"),
}
