"""Whole attention heads and whole convolution groups can go, and only as a whole where that is cheapest.

The oracle is the original with the block's outgoing weights zeroed: a block that nobody hears is no block.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fxprune
from tests.reference.compare import relative_error

HEADS, WIDTH, TOKENS = 4, 32, 6
FAINT = 1e-6


class Packed(nn.Module):
    """Packed q/k/v, a bias table per head, a learned scale per head, and heads in a dimension of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(8, WIDTH)
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)
        self.proj = nn.Linear(WIDTH, WIDTH)
        self.table = nn.Parameter(torch.randn(16, HEADS))
        self.scale = nn.Parameter(torch.rand(HEADS, 1, 1) + 0.5)
        self.register_buffer("index", torch.randint(0, 16, (TOKENS, TOKENS)))
        self.head = nn.Linear(WIDTH, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        b, n, c = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, HEADS, c // HEADS).permute(2, 0, 3, 1, 4).unbind(0)
        scores = F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(-2, -1) * self.scale
        scores = scores + self.table[self.index.view(-1)].view(n, n, HEADS).permute(2, 0, 1)
        x = (scores.softmax(-1) @ v).transpose(1, 2).reshape(b, n, c)
        return self.head(self.proj(x))  # type: ignore[no-any-return]

    def hush(self, which: int, by: float) -> None:
        with torch.no_grad():
            self.qkv.weight.view(3, HEADS, -1, WIDTH)[:, which] *= by
            self.qkv.bias.view(3, HEADS, -1)[:, which] *= by
            self.proj.weight.view(WIDTH, HEADS, -1)[:, which] *= by
            self.table[:, which] *= by
            self.scale[which] *= by


class Scaled(Packed):
    """The scale of a head multiplies its queries: one number beside all channels of the head."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        b, n, c = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, HEADS, c // HEADS).permute(2, 0, 3, 1, 4).unbind(0)
        scores = (q * self.scale) @ (self.scale * k).transpose(-2, -1)
        x = (scores.softmax(-1) @ v).transpose(1, 2).reshape(b, n, c)
        return self.head(self.proj(x))  # type: ignore[no-any-return]

    def hush(self, which: int, by: float) -> None:
        kept = self.scale.detach().clone()
        super().hush(which, by)
        with torch.no_grad():
            self.scale.copy_(kept)  # as loud as the others': it goes because its head does


class Attention(nn.Module):
    """``nn.MultiheadAttention`` with a mask."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(8, WIDTH)
        self.attention = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)
        self.head = nn.Linear(WIDTH, 5)
        self.register_buffer("mask", torch.triu(torch.full((TOKENS, TOKENS), float("-inf")), 1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head(self.attention(x, x, x, attn_mask=self.mask, need_weights=False)[0])  # type: ignore[no-any-return]

    def hush(self, which: int, by: float) -> None:
        with torch.no_grad():
            self.attention.in_proj_weight.view(3, HEADS, -1, WIDTH)[:, which] *= by
            self.attention.out_proj.weight.view(WIDTH, HEADS, -1)[:, which] *= by


class Grouped(nn.Module):
    """Grouped queries: two heads of queries share one of keys and values, and go with it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(8, WIDTH)
        self.q, self.kv = nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(WIDTH, 2 * WIDTH)
        self.proj = nn.Linear(2 * WIDTH, WIDTH)
        self.head = nn.Linear(WIDTH, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        b, n, _ = x.shape
        q = self.q(x).view(b, n, 2 * HEADS, -1).transpose(1, 2)
        k, v = self.kv(x).view(b, n, 2, HEADS, -1).permute(2, 0, 3, 1, 4)
        k, v = (t[:, :, None].expand(b, HEADS, 2, n, t.shape[-1]).reshape(b, 2 * HEADS, n, -1) for t in (k, v))
        x = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return self.head(self.proj(x))  # type: ignore[no-any-return]

    def hush(self, which: int, by: float) -> None:
        with torch.no_grad():
            for layer, lead in ((self.q, (HEADS,)), (self.kv, (2, HEADS))):
                layer.weight.view(*lead, -1, WIDTH)[..., which, :, :] *= by
                layer.bias.view(*lead, -1)[..., which, :] *= by
            self.proj.weight.view(WIDTH, HEADS, -1)[:, which] *= by


class Groups(nn.Module):
    """Grouped convolutions with group norms, as modules or as functions."""

    def __init__(self, functional: bool) -> None:
        super().__init__()
        self.functional = functional
        self.first = nn.Conv2d(3, WIDTH, 1)
        self.grouped = nn.Conv2d(WIDTH, 48, 3, padding=1, groups=HEADS)
        self.norm = nn.GroupNorm(HEADS, 48)
        self.last = nn.Conv2d(48, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x).relu()
        if self.functional:
            x = F.conv2d(x, self.grouped.weight, self.grouped.bias, 1, 1, 1, HEADS)
            x = F.group_norm(x, HEADS, self.norm.weight, self.norm.bias)
        else:
            x = self.norm(self.grouped(x))
        return self.last(x.relu()).mean((2, 3))  # type: ignore[no-any-return]

    def hush(self, which: int, by: float) -> None:
        with torch.no_grad():
            self.first.weight.view(HEADS, -1, 3)[which] *= by
            self.first.bias.view(HEADS, -1)[which] *= by
            self.grouped.weight.view(HEADS, -1, 8, 3, 3)[which] *= by
            self.grouped.bias.view(HEADS, -1)[which] *= by
            self.norm.weight.view(HEADS, -1)[which] *= by
            self.norm.bias.view(HEADS, -1)[which] *= by
            self.last.weight.view(5, HEADS, -1)[:, :, :][:, which] *= by


CASES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], tuple[str, ...], dict[str, tuple[int, ...]]]] = {
    "packed": (Packed, (2, TOKENS, 8), ("stem", "proj"), {"qkv.weight": (72, 32), "proj.weight": (32, 24), "table": (16, 3)}),
    "scaled": (Scaled, (2, TOKENS, 8), ("stem", "proj"), {"qkv.weight": (72, 32), "proj.weight": (32, 24), "scale": (3, 1, 1)}),
    "module": (Attention, (2, TOKENS, 8), ("stem", "attention.out_proj"), {"attention.in_proj_weight": (72, 32)}),
    "shared": (Grouped, (2, TOKENS, 8), ("stem", "proj"), {"q.weight": (48, 32), "kv.weight": (48, 32)}),
    "groups": (lambda: Groups(False), (2, 3, 7, 7), (), {"grouped.weight": (36, 8, 3, 3), "first.weight": (24, 3, 1, 1)}),
    "functions": (lambda: Groups(True), (2, 3, 7, 7), (), {"grouped.weight": (36, 8, 3, 3), "first.weight": (24, 3, 1, 1)}),
}


@pytest.mark.parametrize("which", [0, 2])
@pytest.mark.parametrize("name", CASES)
def test_a_faint_block_goes_as_a_whole(name: str, which: int) -> None:
    make, shape, keep, widths = CASES[name]
    torch.manual_seed(3)
    model, x = make().double().eval(), torch.randn(shape, dtype=torch.float64)
    model.hush(which, FAINT)  # type: ignore[operator]
    slim = fxprune.slim(model, 0.25, x, keep=keep)
    assert {key: tuple(slim.state_dict()[key].shape) for key in widths} == widths
    zeroed = make().double().eval()
    zeroed.load_state_dict(model.state_dict())
    zeroed.hush(which, 0.0)  # type: ignore[operator]
    assert relative_error(slim(x), zeroed(x)) <= 1e-9


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("ratio", [0.3, 0.55, 0.7])
def test_blocks_and_steps_together(name: str, ratio: float) -> None:
    """Two faint blocks go, and what is left is thinned; a second round and another batch size work."""
    make, shape, _, _ = CASES[name]
    torch.manual_seed(4)
    model, x = make().double().eval(), torch.randn(shape, dtype=torch.float64)
    for which in (1, 3):
        model.hush(which, FAINT)  # type: ignore[operator]
    slim = fxprune.slim(model, ratio, x)
    again = fxprune.slim(slim, 0.3, x)
    assert sum(p.numel() for p in again.parameters()) < sum(p.numel() for p in slim.parameters())
    wider = torch.cat([x, x])
    assert relative_error(slim(wider)[:2], slim(x)) <= 1e-12
    fresh = make().double().eval()
    fresh.load_state_dict(model.state_dict())
    same = fxprune.apply(fresh, fxprune.Plan.from_json(fxprune.plan_of(slim).to_json()), x)
    assert relative_error(same(x), slim(x)) == 0.0


@pytest.mark.parametrize("name", CASES)
def test_a_larger_ratio_keeps_no_more(name: str) -> None:
    make, shape, _, _ = CASES[name]
    torch.manual_seed(5)
    model, x = make().double().eval(), torch.randn(shape, dtype=torch.float64)
    model.hush(0, 0.3)  # type: ignore[operator]
    graph = fxprune.analyze(model, x)
    assert any(c.kind == "block" and "as a whole" in c.reason for c in graph.constraints)
    before: dict[tuple[str, int], set[int]] | None = None
    for ratio in (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7):
        kept = {(n, d): set(rows) for n, dims in fxprune.plan(graph, ratio).kept.items() for d, rows in dims.items()}
        assert before is None or all(kept[key] <= before[key] for key in kept)
        before = kept


def test_explain_tells_of_blocks() -> None:
    told = fxprune.analyze(Packed().eval(), torch.randn(2, TOKENS, 8)).explain("qkv")
    assert "4 blocks can go as a whole, all but one" in told


def test_one_head_stays() -> None:
    torch.manual_seed(6)
    model, x = Attention().double().eval(), torch.randn(2, TOKENS, 8, dtype=torch.float64)
    for which in range(HEADS):
        model.hush(which, FAINT)
    slim = fxprune.slim(model, 0.7, x, keep=("stem", "attention.out_proj"), floor=0.0)
    assert slim.state_dict()["attention.in_proj_weight"].shape[0] >= 3


def test_a_mask_per_head_from_outside_keeps_the_heads() -> None:
    """A model input with a dimension of heads cannot lose one; the channels of a head can still go."""

    class Masked(Attention):
        def forward(self, x: Tensor, bias: Tensor) -> Tensor:  # type: ignore[override]
            x = self.stem(x)
            return self.head(self.attention(x, x, x, attn_mask=bias, need_weights=False)[0])  # type: ignore[no-any-return]

    torch.manual_seed(7)
    model, x = Masked().double().eval(), torch.randn(2, TOKENS, 8, dtype=torch.float64)
    bias = torch.randn(2 * HEADS, TOKENS, TOKENS, dtype=torch.float64)
    model.hush(1, FAINT)
    graph = fxprune.analyze(model, (x, bias))
    assert not any(c.kind == "block" for c in graph.constraints)
    slim = fxprune.slim(model, 0.5, (x, bias))
    assert slim.state_dict()["attention.in_proj_weight"].shape[0] < 3 * WIDTH
