"""Every rule against an oracle: the operator on the elements that exist, with NaN in the dead ones of the masked run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from fxprune.errors import VerificationError
from fxprune.verify.existence import ALIVE, DEAD, WILD, full, mark, mask_of
from fxprune.verify.masked import Masked
from fxprune.verify.program import quiet

LIVE = (0, 2, 3, 5)
SIZE = 6


def made(*shape: int, seed: int = 0) -> Tensor:
    with _disable_current_modes():  # a constant, not noise of the program
        return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def dead(value: Tensor, *dims: int, rows: Sequence[int] = LIVE) -> Tensor:
    """The value with NaN in the removed rows of some dimensions, marked so."""
    value = value.clone()
    states = torch.full((1,) * value.ndim, ALIVE, dtype=torch.int8)
    for dim in dims:
        line = torch.full((value.shape[dim],), DEAD, dtype=torch.int8)
        line[list(rows)] = ALIVE
        shape = [1] * value.ndim
        shape[dim] = -1
        states = torch.minimum(states, line.view(shape))
    value[(states == DEAD).expand(value.shape)] = float("nan")
    return mark(value, states)


def cut(value: Tensor, *dims: int, rows: Sequence[int] = LIVE) -> Tensor:
    for dim in dims:
        value = value.index_select(dim, torch.tensor(rows, dtype=torch.long))
    return value


def masked(function: Callable[..., Any], *args: Any, selection: bool = False) -> Any:
    with quiet(), Masked(torch.float64, selection, lambda: [a for a in args if isinstance(a, Tensor)]):
        return function(*args)


def agrees(result: Tensor, expected: Tensor) -> None:
    states = full(mask_of(result), result)
    live = result.masked_select(states != DEAD)
    assert live.numel() == expected.numel()
    torch.testing.assert_close(live, expected.flatten(), rtol=1e-11, atol=1e-12)


X = made(2, SIZE, 8, 8)
T = made(2, 5, SIZE)
POINTWISE = {
    "relu": F.relu,
    "gelu": F.gelu,
    "silu": F.silu,
    "hardswish": F.hardswish,
    "hardsigmoid": F.hardsigmoid,
    "elu": F.elu,
    "dropout": lambda x: F.dropout(x, 0.5, False),
    "clamp": lambda x: x.clamp(-1, 1),
    "pow": lambda x: x**2,
    "rsub": lambda x: 1 - x,
    "square in place": lambda x: x.clone().mul_(x),
    "masked_fill": lambda x: x.masked_fill(torch.ones(8, 8, dtype=torch.bool).triu(), 0.0),
    "where": lambda x: torch.where(x > 0, x, x * 0.1),
    "lerp": lambda x: torch.lerp(x, x * 2, 0.3),
    "tril": torch.tril,
    "zeros_like": lambda x: torch.zeros_like(x) + x,
    "softplus": F.softplus,
    "mish": F.mish,
    "leaky": F.leaky_relu,
    "mask by row": lambda x: x * torch.linspace(0, 1, 8),
    "float": lambda x: x.float() * 2,
    "addcmul": lambda x: torch.addcmul(x, x, x),
}
MOVEMENT = {
    "transpose": lambda x: x.transpose(1, 3),
    "flatten": lambda x: x.flatten(2),
    "permute": lambda x: x.permute(2, 3, 1, 0),
    "roll": lambda x: x.roll((1, 2), (2, 3)),
    "flip": lambda x: x.flip(-1),
    "repeat": lambda x: x.repeat(1, 1, 2, 1),
    "slice": lambda x: x[:, :, ::2, 1:],
    "stack": lambda x: torch.stack([x, x + 1], 1),
    "cat": lambda x: torch.cat([x, x * 2], 1),
    "pixel_unshuffle": lambda x: F.pixel_unshuffle(x, 2),
    "chunk": lambda x: torch.cat(x.chunk(2, -1), 2),
    "unbind": lambda x: x.unbind(2)[1],
    "repeat_interleave": lambda x: x.repeat_interleave(2, -1),
    "index_select": lambda x: x.index_select(2, torch.tensor([3, 1])),
    "index": lambda x: x[:, :, torch.tensor([0, 4])],
    "unsqueeze": lambda x: x.unsqueeze(1).squeeze(1),
    "contiguous": lambda x: x.transpose(1, 2).contiguous(),
    "as_strided": lambda x: x.as_strided((2, x.shape[1], 8), (x.stride(0), 64, 8), 3),
    "pool of channels last": lambda x: F.adaptive_avg_pool2d(x.contiguous(memory_format=torch.channels_last), 1),
    "expand": lambda x: x[:, :, :1].expand(-1, -1, 3, -1) + x[:, :, :3],
    "unfold": lambda x: x.unfold(2, 4, 4),
    "squeeze in place": lambda x: x[:, :, :1].clone().squeeze_(2),
    "unsqueeze in place": lambda x: x.clone().unsqueeze_(1),
    "transpose in place": lambda x: x.clone().transpose_(1, 3) * 2,
    "swapaxes in place": lambda x: x.clone().swapaxes_(0, 1),
    "t in place": lambda x: x[0, :, 0].clone().t_(),
    "as_strided in place": lambda x: x.clone().as_strided_((2, x.shape[1], 64), (x.shape[1] * 64, 64, 1)),
    "detach in place": lambda x: x.clone().detach_(),
    "lift": lambda x: torch.ops.aten.lift(x) + torch.ops.aten.lift_fresh_copy(x),
    "unwritten memory": lambda x: torch.empty_like(x).copy_(x),
}
REDUCTION = {
    "mean": lambda x: x.mean(1),
    "mean keep": lambda x: x.mean((1, 2), keepdim=True),
    "sum": lambda x: x.sum(1),
    "all": lambda x: x.sum(),
    "var": lambda x: x.var(1),
    "std": lambda x: x.std((1, 3), correction=0),
    "amax": lambda x: x.amax(1),
    "amin": lambda x: x.amin(1),
    "norm": lambda x: x.norm(dim=1),
    "normalize": lambda x: F.normalize(x, dim=1),
    "logsumexp": lambda x: x.logsumexp(1),
    "softmax": lambda x: x.softmax(1),
    "log_softmax": lambda x: x.log_softmax(1),
    "cumsum": lambda x: x.cumsum(1),
    "inner mean": lambda x: x.mean((2, 3)),
    "max": lambda x: x.max(3)[0],
    "var_mean": lambda x: torch.var_mean(x, 1)[0],
    "prod": lambda x: x.prod(1),
    "global max": lambda x: x.max(),
    "any": lambda x: (x > 1).any(1),
    "norm 1": lambda x: x.norm(1, dim=1),
    "max over channels": lambda x: x.max(1)[0],
    "min over channels": lambda x: x * torch.min(x, 1, keepdim=True)[0],
    "aminmax": lambda x: torch.stack(list(x.aminmax(dim=1)), 1),
    "aminmax of all": lambda x: x.aminmax().max - x.aminmax().min,
    "mode": lambda x: x.mode(2)[0],
    "kthvalue": lambda x: x.kthvalue(2, 3)[0],
    "cumsum in place": lambda x: _scanned(x, "cumsum_"),
    "cumprod in place": lambda x: _scanned(x, "cumprod_"),
}
FOUR = torch.tensor([4, 1, 0, 7])
TWICE = torch.tensor([4, 1, 4])
INDEXING = {
    "gather": lambda x: x.gather(3, x.argmax(3, keepdim=True)),
    "gather of a part": lambda x: x.gather(2, x[:1, :, :3].argsort(2)),
    "gather by what is out of range where it is dead": lambda x: x.gather(3, x.abs().clamp(max=7).long()),
    "scatter to what is out of range where it is dead": lambda x: x.scatter(3, x.abs().clamp(max=7).long(), 0.5),
    "scatter": lambda x: x.scatter(3, x.argsort(3), x * 2),
    "scatter a number": lambda x: x.scatter(2, x.argmax(2, keepdim=True), 0.5),
    "scatter into zeros": lambda x: torch.zeros_like(x).scatter_(2, x.argsort(2), x),
    "scatter_add": lambda x: x.clone().scatter_add_(3, x.argsort(3), x) + x.scatter_add(2, x.argsort(2), x),
    "scatter_reduce": lambda x: x.scatter_reduce(3, x.argsort(3), x, "amax"),
    "index_add": lambda x: x.index_add(2, TWICE, x[:, :, :3]) + x.clone().index_add_(3, TWICE, x[..., :3]),
    "index_copy": lambda x: x.index_copy(2, FOUR, x[:, :, :4] * 2) + x.clone().index_copy_(3, FOUR, x[..., :4]),
    "index_fill": lambda x: x.index_fill(2, FOUR, 0.5) + x.clone().index_fill_(3, FOUR, 2.0),
}
SPATIAL = {
    "max": lambda x: F.max_pool2d(x, 3, 2, 1),
    "avg": lambda x: F.avg_pool2d(x, 2),
    "adaptive": lambda x: F.adaptive_avg_pool2d(x, 3),
    "adaptive 1": lambda x: F.adaptive_avg_pool2d(x, 1),
    "adaptive max": lambda x: F.adaptive_max_pool2d(x, 2),
    "nearest": lambda x: F.interpolate(x, scale_factor=2),
    "bilinear": lambda x: F.interpolate(x, size=(5, 7), mode="bilinear"),
    "reflect": lambda x: F.pad(x, (1, 2, 1, 1), mode="reflect"),
    "pad": lambda x: F.pad(x, (1, 2, 0, 1)),
    "crop": lambda x: F.pad(x, (-1, 2)),
    "grid": lambda x: F.grid_sample(x, torch.zeros(2, 3, 3, 2), align_corners=False),
    "im2col": lambda x: F.unfold(x, 3, padding=1),
    "col2im": lambda x: F.fold(F.unfold(x, 2, stride=2), (8, 8), 2, stride=2),
    "pool of pad": lambda x: F.max_pool2d(F.pad(x, (0, 1, 0, 1)), 3),
    "pool 1d": lambda x: F.max_pool1d(x.flatten(2), 2),
    "instance norm": F.instance_norm,
}
TABLE = [
    (f"{family}: {n}", f)
    for family, t in (
        *(("pointwise", POINTWISE), ("movement", MOVEMENT), ("reduction", REDUCTION), ("spatial", SPATIAL)),
        ("indexing", INDEXING),
    )
    for n, f in t.items()
]


def _scanned(x: Tensor, name: str) -> Tensor:
    """What an in-place scan leaves in its operand, and in a view of it that was there before."""
    y = x.clone()
    view = y[:, :, 1:]
    getattr(y, name)(1)
    return y[:, :, 1:] + view


@pytest.mark.parametrize("function", [f for _, f in TABLE], ids=[n for n, _ in TABLE])
def test_operators_of_one_tensor(function: Callable[[Tensor], Tensor]) -> None:
    result = masked(function, dead(X, 1))
    with quiet(), Masked(torch.float64, False, list):
        expected = function(cut(X, 1))
    agrees(result, expected)


@pytest.mark.parametrize("function", [f for _, f in TABLE], ids=[n for n, _ in TABLE])
def test_nothing_left(function: Callable[[Tensor], Tensor]) -> None:
    """All channels dead: results are empty or made of nothing, and nothing crashes."""
    result = masked(function, dead(X, 1, rows=()))
    assert int((full(mask_of(result), result) == ALIVE).sum()) == 0


@pytest.mark.parametrize(
    ("rank", "groups", "transposed"), [(1, 1, False), (2, 1, True), (2, 1, False), (3, 1, False), (1, 1, True)]
)
def test_convolutions(rank: int, groups: int, transposed: bool) -> None:
    name = f"conv{'_transpose' * transposed}{rank}d"
    value, bias = made(2, SIZE, *[5] * rank), made(SIZE, seed=2)
    weight = made(SIZE, SIZE, *[3] * rank, seed=1)
    result = masked(getattr(F, name), dead(value, 1), dead(weight, 0, 1), dead(bias, 0))
    agrees(result, getattr(F, name)(cut(value, 1), cut(weight, 0, 1), cut(bias, 0)))


def test_depthwise_and_grouped_transposed() -> None:
    value, weight = made(2, SIZE, 5, 5), made(SIZE, 1, 3, 3, seed=1)
    for function in (F.conv2d, F.conv_transpose2d):
        result = masked(partial(function, groups=SIZE), dead(value, 1), dead(weight, 0))
        agrees(result, function(cut(value, 1), cut(weight, 0), groups=len(LIVE)))


def test_matrix_products() -> None:
    weight, bias = made(SIZE, SIZE, seed=1), made(SIZE, seed=2)
    agrees(masked(F.linear, dead(T, 2), dead(weight, 0, 1), dead(bias, 0)), F.linear(cut(T, 2), cut(weight, 0, 1), cut(bias, 0)))
    agrees(masked(torch.matmul, dead(T, 2), dead(T.mT, 1)), cut(T, 2) @ cut(T, 2).mT)
    agrees(masked(torch.matmul, dead(T.mT, 1), T), cut(T.mT, 1) @ T)
    agrees(masked(torch.mv, dead(weight, 1), dead(bias, 0)), cut(weight, 1) @ cut(bias, 0))
    agrees(masked(torch.dot, dead(bias, 0), dead(bias, 0)), cut(bias, 0) @ cut(bias, 0))
    agrees(masked(lambda a, b: torch.einsum("btc,bsc->bts", a, b), dead(T, 2), dead(T, 2)), cut(T, 2) @ cut(T, 2).mT)
    agrees(
        masked(torch.baddbmm, dead(made(2, SIZE, 5), 1), dead(made(2, SIZE, 3), 1), made(2, 3, 5)),
        torch.baddbmm(cut(made(2, SIZE, 5), 1), cut(made(2, SIZE, 3), 1), made(2, 3, 5)),
    )


def test_a_contraction_over_nothing_is_its_bias() -> None:
    weight, bias = made(3, SIZE, seed=1), made(3, seed=2)
    result = masked(F.linear, dead(T, 2, rows=()), dead(weight, 1, rows=()), bias)
    assert mask_of(result) is None
    torch.testing.assert_close(result, bias.expand(2, 5, 3))


def test_normalizations() -> None:
    scale, shift = made(SIZE, seed=1), made(SIZE, seed=2)
    mean, variance = made(SIZE, seed=3), made(SIZE, seed=4).abs()

    def batch(x: Tensor, *p: Tensor) -> Tensor:
        return F.batch_norm(x, p[2], p[3], p[0], p[1])

    four = (scale, shift, mean, variance)
    agrees(masked(batch, dead(X, 1), *(dead(p, 0) for p in four)), batch(cut(X, 1), *(cut(p, 0) for p in four)))
    agrees(
        masked(lambda x, w, b: F.layer_norm(x, (SIZE,), w, b), dead(T, 2), dead(scale, 0), dead(shift, 0)),
        F.layer_norm(cut(T, 2), (len(LIVE),), cut(scale, 0), cut(shift, 0)),
    )
    agrees(
        masked(lambda x, w: F.rms_norm(x, (SIZE,), w, 1e-5), dead(T, 2), dead(scale, 0)),
        F.rms_norm(cut(T, 2), (4,), cut(scale, 0), 1e-5),
    )
    even = (0, 2, 3, 4)
    agrees(
        masked(
            lambda x, w, b: F.group_norm(x, 2, w, b), dead(X, 1, rows=even), dead(scale, 0, rows=even), dead(shift, 0, rows=even)
        ),
        F.group_norm(cut(X, 1, rows=even), 2, cut(scale, 0, rows=even), cut(shift, 0, rows=even)),
    )
    v, g = made(SIZE, SIZE, 3, seed=1), made(SIZE, 1, 1, seed=2)
    agrees(masked(torch._weight_norm, dead(v, 0, 1), dead(g, 0)), torch._weight_norm(cut(v, 0, 1), cut(g, 0)))


def test_standardised_weights() -> None:
    weight, gain = made(SIZE, SIZE, 3, seed=1), made(SIZE, seed=2)

    def standard(w: Tensor, g: Tensor) -> Tensor:
        return F.batch_norm(w.reshape(1, len(w), -1), None, None, g, training=True, momentum=0.0).reshape(w.shape)

    agrees(masked(standard, dead(weight, 0, 1), dead(gain, 0)), standard(cut(weight, 0, 1), cut(gain, 0)))


def test_a_convolution_leaves_places_that_do_not_meet_alone() -> None:
    value, weight = made(2, 1, SIZE, 5, 5), made(3, 1, 1, 3, 3, seed=1)
    agrees(masked(F.conv3d, dead(value, 2), weight), F.conv3d(cut(value, 2), weight))
    with pytest.raises(VerificationError):
        masked(F.conv3d, dead(value, 2), made(3, 1, 3, 3, 3))


def test_others() -> None:
    weight = made(SIZE, seed=1)
    agrees(masked(F.prelu, dead(X, 1), dead(weight, 0)), F.prelu(cut(X, 1), cut(weight, 0)))
    both = torch.cat([X, X * 2], 1)
    rows = (*LIVE, *(SIZE + r for r in LIVE))
    agrees(masked(lambda x: F.glu(x, 1), dead(both, 1, rows=rows)), F.glu(cut(both, 1, rows=rows), 1))
    table, tokens = made(10, SIZE), torch.tensor([[1, 4], [0, 9]])
    agrees(masked(F.embedding, tokens, dead(table, 1)), F.embedding(tokens, cut(table, 1)))
    shuffled = (0, 1, 2, 3, 8, 9, 10, 11)
    wide = made(1, 12, 4, 4)
    agrees(masked(lambda x: F.pixel_shuffle(x, 2), dead(wide, 1, rows=shuffled)), F.pixel_shuffle(cut(wide, 1, rows=shuffled), 2))


@pytest.mark.parametrize("causal", [False, True])
def test_attention_keeps_the_original_scale(causal: bool) -> None:
    q, k, v = (made(2, 3, 5, SIZE, seed=s) for s in range(3))
    result = masked(lambda *t: F.scaled_dot_product_attention(*t, is_causal=causal), dead(q, 3), dead(k, 3), dead(v, 3))
    expected = F.scaled_dot_product_attention(cut(q, 3), cut(k, 3), cut(v, 3), is_causal=causal, scale=SIZE**-0.5)
    agrees(result, expected)
    whole = masked(F.scaled_dot_product_attention, *(dead(t, 1, rows=(0, 2)) for t in (q, k, v)))
    agrees(whole, F.scaled_dot_product_attention(*(cut(t, 1, rows=(0, 2)) for t in (q, k, v))))


def test_writes_through_views_reach_the_base() -> None:
    def program(x: Tensor) -> Tensor:
        base = torch.zeros(2, 2 * SIZE, 8, 8)
        view = base[:, :SIZE]
        view.copy_(x)
        base[:, SIZE:] = x * 2
        return base

    result = masked(program, dead(X, 1))
    agrees(result, torch.cat([cut(X, 1), cut(X, 1) * 2], 1))


def test_index_put_follows_what_it_writes() -> None:
    def program(x: Tensor) -> Tensor:
        base = torch.zeros(2, SIZE, 8)
        base[:, :, torch.tensor([1, 3])] = x[:, :, 0, :2]
        return base + x[..., 0]

    expected = cut(X, 1)[..., 0].clone()
    expected[:, :, torch.tensor([1, 3])] += cut(X, 1)[:, :, 0, :2]
    agrees(masked(program, dead(X, 1)), expected)


ILLEGAL = {
    "a full constant": lambda x: x + made(2, SIZE, 8, 8),
    "a constant per channel": lambda x: x * made(SIZE, 1, 1),
    "another channel": lambda x: x + x.roll(1, 1),
    "a kept reader": lambda x: F.conv2d(x, made(3, SIZE, 1, 1)),
    "a kept depthwise": lambda x: F.conv2d(x, made(SIZE, 1, 1, 1), groups=SIZE),
    "a kept norm": lambda x: F.batch_norm(x, None, None, made(SIZE), made(SIZE), True),
    "a kept column": lambda x: F.linear(x.transpose(1, 3), made(3, SIZE)),
    "argmax over channels": lambda x: x.argmax(1),
    "sort over channels": lambda x: x.sort(1)[0],
    "pooling over channels": lambda x: F.avg_pool2d(x.transpose(1, 3), 2),
    "an operator without a rule": lambda x: torch.fft.fft(x, dim=1),
    "a removed index": lambda x: torch.zeros(9)[x.long().clamp(0, 8)],
    "positions that are read": lambda x: x.max(1)[1] + 1,
    "positions that are gathered by": lambda x: x.gather(1, x.max(1, keepdim=True)[1]),
    "positions in place": lambda x: x.min(1)[1].add_(1),
    "mode over channels": lambda x: x.mode(1)[0],
    "kthvalue over channels": lambda x: x.kthvalue(1, 1)[0],
    "a scatter over channels": lambda x: x.scatter(1, x.argmax(2, keepdim=True).clamp(0, 5), 0.0),
    "index_add over channels": lambda x: x.index_add(1, torch.tensor([1]), x[:, :1]),
    "an index_add along removed indices": lambda x: made(2, 9).index_add(
        1, x[0, :, 0, 0].nan_to_num().long().clamp(0, 8), made(2, SIZE)
    ),
    "a scatter of kept channels": lambda x: x.scatter(2, torch.zeros(2, SIZE, 8, 8, dtype=torch.long), made(2, SIZE, 8, 8)),
    "an index_copy of kept channels": lambda x: x.index_copy(2, torch.tensor([1]), made(2, SIZE, 1, 8)),
    "a gather of kept channels": lambda x: made(2, SIZE, 8, 8).gather(3, x.argmax(3, keepdim=True)),
    "a scatter to some channels": lambda x: x.scatter(2, torch.zeros(2, 3, 1, 8, dtype=torch.long), 0.0),
}


@pytest.mark.parametrize("function", ILLEGAL.values(), ids=ILLEGAL.keys())
def test_illegal_plans_are_refused(function: Callable[[Tensor], Tensor]) -> None:
    with pytest.raises(VerificationError):
        masked(function, dead(X, 1))


def test_selection_lets_readers_drop_what_arrives_but_not_more() -> None:
    value, weight = made(2, SIZE, 3, 3), made(4, SIZE, 1, 1)
    agrees(masked(F.conv2d, value, dead(weight, 1), selection=True), F.conv2d(cut(value, 1), cut(weight, 1)))
    four = [made(SIZE, seed=s).abs() for s in range(4)]
    result = masked(F.batch_norm, value, *(dead(p, 0) for p in four), selection=True)
    agrees(result, F.batch_norm(cut(value, 1), *(cut(p, 0) for p in four)))
    with pytest.raises(VerificationError):
        masked(F.conv2d, dead(value, 1), weight, selection=True)
    with pytest.raises(VerificationError):
        masked(F.batch_norm, dead(value, 1), *four, selection=True)


def test_padding_exists_as_its_partner_does() -> None:
    narrow, wide = made(2, 2, 4, 4), dead(made(2, SIZE, 4, 4), 1, rows=(0, 2, 3))
    padded = masked(lambda x: F.pad(x, (0, 0, 0, 0, 2, 2)), narrow)
    assert full(mask_of(padded), padded)[0, :, 0, 0].tolist() == [WILD, WILD, ALIVE, ALIVE, WILD, WILD]
    total = masked(lambda x, y: F.pad(x, (0, 0, 0, 0, 2, 2)) + y, narrow, wide)
    assert full(mask_of(total), total)[0, :, 0, 0].tolist() == [ALIVE, DEAD, ALIVE, ALIVE, DEAD, DEAD]


def test_recurrent_layers() -> None:
    lstm = torch.nn.LSTM(3, 4).double()
    small = torch.nn.LSTM(3, 2).double()
    gates = [4 * g + r for g in range(4) for r in (1, 3)]
    with torch.no_grad():
        for name, parameter in lstm.named_parameters():
            values = parameter[gates][:, [1, 3]] if name == "weight_hh_l0" else parameter[gates]
            getattr(small, name).copy_(values)
    marked = {
        n: mark(
            p.data, dead(p.data, *((0, 1) if n == "weight_hh_l0" else (0,)), rows=gates).isnan().logical_not().to(torch.int8) * 2
        )
        for n, p in lstm.named_parameters()
        if n != "weight_hh_l0"
    }
    hidden = lstm.weight_hh_l0.data
    states = torch.full((16, 4), DEAD, dtype=torch.int8)
    states[torch.tensor(gates)[:, None], torch.tensor([1, 3])] = ALIVE
    marked["weight_hh_l0"] = mark(hidden, states)
    x = made(5, 2, 3)
    result = masked(lambda v: torch.func.functional_call(lstm, marked, (v,))[0], x)
    agrees(result, small(x)[0])


def test_in_place_products_write_their_operand() -> None:
    def program(bias: Tensor, left: Tensor, right: Tensor) -> Tensor:
        bias = bias.clone()
        bias.addmm_(left, right, beta=0.5)
        return bias

    args = made(5, SIZE, seed=1), made(5, SIZE, seed=2), made(SIZE, SIZE, seed=3)
    result = masked(program, dead(args[0], 1), dead(args[1], 1), dead(args[2], 0, 1))
    agrees(result, program(cut(args[0], 1), cut(args[1], 1), cut(args[2], 0, 1)))


def test_an_in_place_view_leaves_its_base_alone() -> None:
    def program(x: Tensor) -> tuple[Tensor, Tensor]:
        base = x * 2
        view = base[:, :, 0]
        view.unsqueeze_(0).transpose_(1, 2).mul_(3)
        return base, view

    base, view = masked(program, dead(X, 1))
    with quiet():
        expected = program(cut(X, 1))
    agrees(base, expected[0])
    agrees(view, expected[1])


def test_constant_indices_made_by_the_program() -> None:
    def program(x: Tensor) -> Tensor:
        return x[:, :, torch.zeros(2, dtype=torch.long)] + x.gather(
            2, torch.ones(1, 1, 1, 1, dtype=torch.long).expand_as(x[:, :, :2])
        )

    agrees(masked(program, dead(X, 1)), program(cut(X, 1)))
