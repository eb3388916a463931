"""Small networks of every kind that matters for devices: what they hold, what they make while they run, and how they are captured."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def _block(inputs: int, outputs: int, **more: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, padding=1, bias=False, **more), nn.BatchNorm2d(outputs), nn.ReLU())


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.first, self.second = (
            _block(3, 8),
            _block(8, 12),
            nn.Sequential(nn.Conv2d(12, 8, 3, padding=1), nn.BatchNorm2d(8)),
        )
        self.last, self.drop, self.head = _block(8, 8), nn.Dropout(0.1), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = F.relu(x + self.second(self.first(x)))
        return self.head(self.drop(self.last(x).mean((2, 3))))


class Dense(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm1, self.grow1 = (
            nn.Conv2d(3, 8, 3, padding=1),
            nn.BatchNorm2d(8),
            nn.Conv2d(8, 6, 3, padding=1, bias=False),
        )
        self.norm2, self.grow2 = nn.BatchNorm2d(14), nn.Conv2d(14, 6, 3, padding=1, bias=False)
        self.norm3, self.head = nn.BatchNorm2d(20), nn.Linear(20 * 4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = torch.cat([x, self.grow1(F.relu(self.norm1(x)))], 1)
        x = torch.cat([x, self.grow2(F.relu(self.norm2(x)))], 1)
        return self.head(F.adaptive_avg_pool2d(F.relu(self.norm3(x)), 2).flatten(1))


class Grouped(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.grouped, self.wide = _block(3, 8), _block(8, 16, groups=4), _block(16, 16)
        self.depth, self.point, self.head = _block(8, 8, groups=8), _block(16, 8), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        left, right = self.wide(self.grouped(self.stem(x))).chunk(2, 1)
        x = torch.cat([self.depth(left), right], 1)
        n, c, h, w = x.shape
        x = x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)
        return self.head(self.point(x).mean((2, 3)))


class Attention(nn.Module):
    """Positions and a mask are made on the way, on the input's device; a table is a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.places, self.attend = (
            nn.Linear(6, 16),
            nn.Embedding(10, 16),
            nn.MultiheadAttention(16, 4, batch_first=True),
        )
        self.norm1, self.norm2, self.up, self.down = nn.LayerNorm(16), nn.LayerNorm(16), nn.Linear(16, 24), nn.Linear(24, 16)
        self.head = nn.Linear(16, 5)
        self.register_buffer("table", torch.linspace(0.5, 1.5, 16))

    def forward(self, x: Tensor) -> Tensor:
        length = x.shape[1]
        x = (self.embed(x) + self.places(torch.arange(length, device=x.device))) * self.table
        later = torch.ones(length, length, dtype=torch.bool, device=x.device).triu(1)
        y = self.norm1(x)
        x = x + self.attend(y, y, y, attn_mask=later, need_weights=False)[0]
        return self.head((x + self.down(F.gelu(self.up(self.norm2(x))))).mean(1))


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.lstm, self.gru = nn.Linear(6, 10), nn.LSTM(10, 8, batch_first=True), nn.GRU(8, 7, batch_first=True)
        self.head = nn.Linear(7, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.gru(self.lstm(F.relu(self.embed(x)))[0])[0][:, -1])


class Bare(nn.Module):
    """No norm; a table of places and a constant."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.three = (
            nn.Conv2d(3, 8, 3, padding=1),
            nn.Conv2d(8, 8, 3, padding=1, stride=2),
            nn.Conv2d(8, 6, 1),
        )
        self.head = nn.Linear(6 * 16, 5)
        self.register_buffer("places", torch.arange(15, -1, -1))

    def forward(self, x: Tensor) -> Tensor:
        x = F.leaky_relu(self.one(x), 0.1)
        x = F.silu(self.two(x)).flatten(2).index_select(2, self.places)
        x = self.three(x.unflatten(2, (4, 4)))
        return self.head(F.relu(x).flatten(1))


class Branching(nn.Module):
    """What it does depends on values: it is taken as the eager module that it is."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.head = _block(3, 8), _block(8, 8), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = self.two(self.one(x))
        if float(x.sum()) > 1e9:
            y = y * 2
        return self.head(y.mean((2, 3)))


class Detecting(nn.Module):
    """Takes a list of images and gives a dict for each, as detectors do; how many boxes there are depends on values."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.neck, self.boxes = nn.Sequential(_block(3, 8), _block(8, 12)), _block(12, 8), nn.Conv2d(8, 5, 1)

    def forward(self, images: list[Tensor]) -> list[dict[str, Tensor]]:
        found = []
        for image in images:
            out = self.boxes(self.neck(self.body(image[None])))[0].flatten(1)
            scores = out[4].sigmoid()
            chosen = torch.where(scores > 0.5)[0]
            found.append({"boxes": out[:4].T[chosen], "scores": scores[chosen]})
        return found


IMAGES = (Residual, Dense, Grouped, Bare, Branching)
SEQUENCES = (Attention, Recurrent)
NETWORKS = {kind.__name__: kind for kind in (*IMAGES, *SEQUENCES)}


def ready(kind: type[nn.Module], dtype: torch.dtype = torch.float32) -> nn.Module:
    """In evaluation mode, with norms as training leaves them."""
    torch.manual_seed(0)
    model = kind()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.2, 1.5)
            nn.init.normal_(module.bias, std=0.3)
            nn.init.normal_(module.running_mean, std=0.3)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return model.eval().to(dtype)


def example(kind: type[nn.Module], count: int = 2, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn((count, 6, 6) if kind in SEQUENCES else (count, 3, 8, 8), generator=torch.Generator().manual_seed(1)).to(
        dtype
    )


def labelled(kind: type[nn.Module], dtype: torch.dtype = torch.float32) -> list[tuple[Tensor, Tensor]]:
    """Two batches."""
    return [(example(kind, 4, dtype) + i, torch.tensor([0, 1, 2, 3])) for i in range(2)]
