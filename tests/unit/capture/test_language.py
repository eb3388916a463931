"""A language model in small: grouped-query attention, rotary positions, norms over what is left, tied embeddings.

The oracle is the original model with every entry of a parameter that a plan removes set to zero along all of its dimensions, and norms that
divide by the number of channels that are left. It uses the plan and nothing else of fxprune.
"""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fxprune
from tests.unit.api.nets import run, seeded

WORDS, WIDTH, HEADS, SHARED, HEAD, INNER = 11, 24, 4, 2, 8, 20


class Rms(nn.Module):
    """Root-mean-square norm; ``live`` is the oracle's."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width))
        self.live = 0

    def forward(self, x: Tensor) -> Tensor:
        square = x.pow(2)
        mean = square.sum(-1, keepdim=True) / self.live if self.live else square.mean(-1, keepdim=True)
        return self.weight * (x * torch.rsqrt(mean + 1e-6))


def repeated(x: Tensor, times: int) -> Tensor:
    n, heads, length, width = x.shape
    if times == 1:
        return x
    return x[:, :, None, :, :].expand(n, heads, times, length, width).reshape(n, heads * times, length, width)


def half_turned(x: Tensor) -> Tensor:
    return torch.cat((-x[..., x.shape[-1] // 2 :], x[..., : x.shape[-1] // 2]), dim=-1)


class Attention(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.q, self.k, self.v = (nn.Linear(WIDTH, heads * HEAD, bias=kind != "gqa") for heads in (HEADS, SHARED, SHARED))
        self.o = nn.Linear(HEADS * HEAD, WIDTH, bias=False)
        self.q_norm, self.k_norm = (Rms(HEAD), Rms(HEAD)) if kind == "normed" else (nn.Identity(), nn.Identity())

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        shape = (*x.shape[:-1], -1, HEAD)
        q = self.q_norm(self.q(x).view(shape)).transpose(1, 2)
        k = self.k_norm(self.k(x).view(shape)).transpose(1, 2)
        v = self.v(x).view(shape).transpose(1, 2)
        q, k = (y * cos + half_turned(y) * sin for y in (q, k))
        if self.kind == "gqa":
            out = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        else:
            k, v = repeated(k, HEADS // SHARED), repeated(v, HEADS // SHARED)
            if self.kind == "eager":
                scores = q @ k.transpose(2, 3) / math.sqrt(q.shape[-1])
                hidden = torch.full((q.shape[2], q.shape[2]), torch.finfo(q.dtype).min, dtype=q.dtype, device=q.device).triu(1)
                out = (scores + hidden).softmax(-1) @ v
            else:
                out = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.o(out.transpose(1, 2).reshape(*x.shape[:-1], -1).contiguous())


class Layer(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.first, self.attention, self.second = Rms(WIDTH), Attention(kind), Rms(WIDTH)
        self.gate, self.up, self.down = (
            nn.Linear(*sizes, bias=False) for sizes in ((WIDTH, INNER), (WIDTH, INNER), (INNER, WIDTH))
        )

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        x = x + self.attention(self.first(x), cos, sin)
        y = self.second(x)
        return x + self.down(F.silu(self.gate(y)) * self.up(y))


class Language(nn.Module):
    inverse: Tensor

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.embed = nn.Embedding(WORDS, WIDTH)
        self.layers = nn.ModuleList([Layer(kind) for _ in range(2)])
        self.norm, self.head = Rms(WIDTH), nn.Linear(WIDTH, WORDS, bias=False)
        self.head.weight = self.embed.weight
        self.register_buffer("inverse", torch.empty(HEAD // 2), persistent=False)

    def forward(self, words: Tensor, **kwargs: Any) -> Tensor:
        x = self.embed(words)
        positions = torch.arange(x.shape[1], device=x.device).unsqueeze(0)
        angles = positions[:, :, None].to(x.dtype) * self.inverse[None, None, :]
        turns = torch.cat((angles, angles), dim=-1)
        cos, sin = turns.cos().unsqueeze(1), turns.sin().unsqueeze(1)
        for layer in self.layers:
            x = layer(x, cos, sin)
        return self.head(self.norm(x))


def zeroed(model: nn.Module, plan: fxprune.Plan) -> nn.Module:
    """The oracle."""
    model = copy.deepcopy(model)
    named = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    for name, dims in plan.kept.items():
        for dim, kept in dims.items():
            dead = sorted(set(range(named[name].shape[dim])) - set(kept))
            with torch.no_grad():
                named[name].index_fill_(dim, torch.tensor(dead, dtype=torch.int64), 0)
    for name, module in model.named_modules():
        if isinstance(module, Rms):
            module.live = len(plan.kept[f"{name}.weight"][0])
    return model


@pytest.mark.parametrize("kind", ["repeat", "gqa", "eager", "normed"])
def test_every_width_goes_but_the_vocabulary(kind: str) -> None:
    model = seeded(Language(kind))
    words = torch.randint(0, WORDS, (2, 6), generator=torch.Generator().manual_seed(0))
    graph = fxprune.analyze(model, words)
    assert not graph.operators_without_rule
    pinned = {axis.name for axis in graph.axes if graph.pinned[graph.closed.component[axis.start : axis.start + axis.size]].any()}
    assert pinned == {"embed.weight"}  # its rows
    slim = fxprune.slim(model, 0.4, words)
    plan = fxprune.plan_of(slim)
    more = torch.randint(0, WORDS, (3, 9), generator=torch.Generator().manual_seed(1))
    for given in (words, more):
        expected = run(zeroed(model, plan), given)
        assert (run(slim, given) - expected).abs().max() <= 1e-9 * expected.abs().max()
    assert slim.get_submodule("head").weight is slim.get_submodule("embed").weight
    assert slim.get_submodule("embed").weight.shape[0] == WORDS
    assert slim.get_submodule("embed").weight.shape[1] < WIDTH
    _in_step(plan)


def _in_step(plan: fxprune.Plan) -> None:
    """Rotary pairs go together, in all heads of queries and keys alike; heads of values keep equally many."""
    for layer in range(2):
        own = f"layers.{layer}.attention."
        pairs = set()
        for name in ("q", "k"):
            kept = plan.kept[f"{own}{name}.weight"][0]
            for head in range(max(kept) // HEAD + 1):
                channels = {row % HEAD for row in kept if row // HEAD == head}
                assert all((j + HEAD // 2) % HEAD in channels for j in channels)
                pairs.add(frozenset(channels))
        assert len(pairs) == 1
        values = plan.kept[f"{own}v.weight"][0]
        assert len({sum(row // HEAD == head for row in values) for head in range(SHARED)}) == 1
        assert len(values) < SHARED * HEAD
    assert len(plan.kept["inverse"][0]) * 2 == len(next(iter(pairs)))


def test_the_oracle_hears_a_wrong_scale() -> None:
    model = seeded(Language("repeat"))
    words = torch.randint(0, WORDS, (2, 6), generator=torch.Generator().manual_seed(0))
    slim = fxprune.slim(model, 0.4, words)
    for node in slim.graph.nodes:
        if node.target is F.scaled_dot_product_attention:
            node.kwargs = {**node.kwargs, "scale": node.kwargs["scale"] * 1.001}
    slim.recompile()
    expected = run(zeroed(model, fxprune.plan_of(slim)), words)
    assert (run(slim, words) - expected).abs().max() > 1e-9 * expected.abs().max()
