"""Networks whose state is not only weights: ties, two names, buffers of all kinds, grouped convolutions, recurrence, attention."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.unit.api.nets import Chain


class Stateful(nn.Module):
    """Buffers (persistent, not persistent, whole numbers), a plain tensor attribute, assignments in place, a module with two names."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1)
        self.block = nn.Sequential(nn.BatchNorm2d(16), nn.ReLU(inplace=True))
        self.same = self.block[0]
        self.conv2 = nn.Conv2d(16, 16, 3, padding=1, groups=2)
        self.fc = nn.Linear(16, 4)
        self.register_buffer("scale", torch.rand(16, 1, 1) + 0.5)
        self.register_buffer("shift", torch.rand(16, 1, 1), persistent=False)
        self.register_buffer("steps", torch.tensor(3))
        self.last = torch.arange(4.0)

    def forward(self, x: Tensor) -> Tensor:
        x = self.same(self.block(self.conv1(x))) * self.scale
        y = x
        x += self.shift
        x[:, :, 0] = 0.5
        return self.fc(F.relu(self.conv2(y)).mean((2, 3)) + self.steps) * self.last


class Tied(nn.Module):
    """An embedding that is also the head, around a hidden layer."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 8)
        self.hidden = nn.Linear(8, 16)
        self.back = nn.Linear(16, 8)
        self.head = nn.Linear(8, 11, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        return self.head(x + self.back(F.gelu(self.hidden(x))))


class Recurrent(nn.Module):
    """A recurrent layer, which keeps a second list of its parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(6, 5, batch_first=True)
        self.inner = nn.Linear(5, 12)
        self.fc = nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(F.relu(self.inner(self.lstm(x)[0])))


class Attentive(nn.Module):
    """``nn.MultiheadAttention`` and a feed-forward block, with shortcuts."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(16, 4, batch_first=True)
        self.norm = nn.LayerNorm(16)
        self.up, self.down = nn.Linear(16, 32), nn.Linear(32, 16)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(x, x, x, need_weights=False)[0]
        return x + self.down(F.gelu(self.up(self.norm(x))))


class Halves(nn.Module):
    """Shuffled and grouped: cells, and orders of arrival."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 12, 1)
        self.b = nn.Conv2d(12, 12, 1, groups=2)
        self.c = nn.Conv2d(12, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(F.channel_shuffle(self.b(F.channel_shuffle(self.a(x), 3)), 2))


def image(dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(7), dtype=dtype)


def sequence() -> Tensor:
    return torch.randn(2, 5, 6, generator=torch.Generator().manual_seed(7), dtype=torch.float64)


def states() -> Tensor:
    return torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(7), dtype=torch.float64)


def tokens() -> Tensor:
    return torch.randint(0, 11, (2, 5), generator=torch.Generator().manual_seed(7))


NETS = {
    "chain": (Chain, image),
    "stateful": (Stateful, image),
    "tied": (Tied, tokens),
    "recurrent": (Recurrent, sequence),
    "attentive": (Attentive, states),
    "halves": (Halves, image),
}
