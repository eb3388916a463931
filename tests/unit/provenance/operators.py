"""For every entry of the table of rules a network that runs through it."""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import nn

from tests.unit.provenance.around import Case

aten = torch.ops.aten


class Norm(nn.BatchNorm2d):
    """A subclass goes the whole way through the dispatcher (provenance/rules/shortcuts.py)."""


PERM = torch.tensor([3, 0, 1, 7, 6, 2, 4, 5])
FOUR = torch.tensor([3, 0, 1, 7])
pinned = partial(Case, free=False)


MOVEMENT = {
    "view": Case(lambda _, x: x.view(x.shape[0], 8, 36).view(x.shape[0], 2, 4, 6, 6).transpose(1, 2).reshape(x.shape[0], -1, 6, 6)),
    "_unsafe_view": Case(lambda _, x: x.transpose(1, 2).reshape(x.shape[0], 6, -1).unflatten(2, (8, 6)).transpose(1, 2)),
    "_reshape_alias": Case(lambda _, x: aten._reshape_alias(x, [2, 8, 36], [288, 36, 1]), free=False),  # its strides are literals
    "squeeze": Case(lambda _, x: x.mean((2, 3), keepdim=True).squeeze(3).squeeze(2)),
    "unsqueeze": Case(lambda _, x: x.unsqueeze(2)),
    "as_strided_": Case(lambda _, x: (x * 1).as_strided_((2, 8, 6, 6), (288, 36, 6, 1)), free=False),
    "squeeze_": Case(lambda _, x: x.mean(3, keepdim=True).squeeze_(3)),
    "unsqueeze_": Case(lambda _, x: (x * 1).unsqueeze_(2)),
    "permute": Case(lambda n, x: n.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2), modules={"norm": lambda: nn.LayerNorm(8)}),
    "transpose": Case(lambda n, x: n.norm(x.transpose(1, 3)).transpose(1, 3), modules={"norm": lambda: nn.LayerNorm(8)}),
    "t": Case(lambda _, x: x.t().relu().t(), "flat"),
    "expand": Case(lambda _, x: x.mean((2, 3), keepdim=True).expand(-1, -1, 6, 6) + x),
    "cat": Case(lambda _, x: torch.cat([x, torch.cat([x, x.flip(2)], 1)], 1)),
    "stack": Case(lambda _, x: torch.stack([x, x.sin()], 2)),
    "constant_pad_nd": Case(lambda n, x: F.pad(x, (1, 1, 0, 2, 2, 3)) * torch.cat([n.a, n.b, n.c], 1),
                            parameters={"a": (1, 2, 1, 1), "b": (1, 8, 1, 1), "c": (1, 3, 1, 1)}),
    "channel_shuffle": Case(lambda _, x: F.channel_shuffle(x, 2)),
    "pixel_shuffle": Case(lambda _, x: F.pixel_shuffle(x, 2)),
    "pixel_unshuffle": Case(lambda _, x: F.pixel_unshuffle(x, 2)),
    "flip": Case(lambda _, x: x.flip(1, 2)),
    "roll": Case(lambda _, x: torch.roll(x, (3, 1), (1, 2))),
    "repeat": Case(lambda _, x: x.repeat(1, 2, 1, 1)),
    "rot90": Case(lambda _, x: torch.rot90(x, 1, (2, 3))),
    "slice": Case(lambda _, x: x[:, 1:7:2] + x[:, 0:6:2]),
    "select": Case(lambda _, x: x[:, :, 2]),
    "split": Case(lambda _, x: torch.cat([x.split(3, 1)[2], x.split(3, 1)[0], x.split(3, 1)[1]], 1)),
    "split_with_sizes": Case(lambda _, x: torch.cat(x.split([5, 2, 1], 1)[::-1], 1)),
    "unsafe_split": Case(lambda _, x: torch.cat(aten.unsafe_split(x.sin(), 2, 2)[:2], 2)),
    "unsafe_split_with_sizes": Case(lambda _, x: aten.unsafe_split_with_sizes(x, [4, 2], 3)[1]),
    "unbind": Case(lambda _, x: torch.stack(x.unbind(2)[::-1], 2)),
    "unfold": Case(lambda _, x: x.unfold(2, 3, 1).mean(-1)),
    "diagonal": Case(lambda _, x: x.diagonal(0, 2, 3)),
}  # fmt: skip
CONTRACTION = {
    "mm": Case(lambda n, x: x.mm(n.w), "flat", parameters={"w": (8, 7)}),
    "addmm": Case(lambda n, x: torch.addmm(n.b, x, n.w), "flat", parameters={"w": (8, 7), "b": (7,)}),
    "bmm": Case(lambda _, x: torch.bmm(x.flatten(2).softmax(-1), x.flatten(2).transpose(1, 2)).mean(2) + x.mean((2, 3))),
    "baddbmm": Case(lambda n, x: torch.baddbmm(x, n.w.expand(x.shape[0], -1, -1), x), "line", parameters={"w": (8, 8)}),
    "mv": Case(lambda n, x: x * x.mv(n.w)[:, None], "flat", parameters={"w": (8,)}),
    "dot": Case(lambda n, x: x * n.w.dot(x.mean(0)), "flat", parameters={"w": (8,)}),
    "vdot": Case(lambda n, x: x * torch.vdot(n.w, x.mean(0)), "flat", parameters={"w": (8,)}),
    "convolution": Case(lambda n, x: n.back(n.grouped(n.deep(x))), modules={
        "deep": lambda: nn.Conv2d(8, 16, 3, groups=8), "grouped": lambda: nn.Conv2d(16, 8, 3, groups=2, padding=1),
        "back": lambda: nn.ConvTranspose2d(8, 12, 2, groups=2)}),
    "_convolution": Case(lambda n, x: aten._convolution(
        x, n.w, None, [1, 1], [0, 0], [1, 1], False, [0, 0], 1, False, False, False, False), parameters={"w": (7, 8, 3, 3)}),
}  # fmt: skip
NORM = {"w": (8,), "b": (8,), "m": (8,)}
NORMALIZATION = {
    "native_batch_norm": Case(lambda n, x: n.norm(x), modules={"norm": lambda: Norm(8)}),
    "_native_batch_norm_legit_no_training": Case(
        lambda n, x: aten._native_batch_norm_legit_no_training(x, n.w, n.b, n.m, n.w * n.w + 1, 0.1, 1e-5)[0], parameters=NORM),
    "_batch_norm_no_update": Case(
        lambda n, x: aten._batch_norm_no_update(x, n.w, n.b, n.m, n.w * n.w + 1, 0.1, 1e-5)[0], parameters=NORM),
    "_batch_norm_with_update": Case(
        lambda n, x: aten._batch_norm_with_update(x, n.w, n.b, n.m * 1, n.w * n.w + 1, 0.1, 1e-5)[0], parameters=NORM),
    "native_layer_norm": Case(lambda n, x: n.norm(x), "rows", modules={"norm": lambda: nn.LayerNorm(8)}),
    "native_group_norm": Case(lambda n, x: n.norm(x), modules={"norm": lambda: nn.GroupNorm(2, 8)}),
    "_weight_norm_interface": Case(
        lambda n, x: n.conv(x), modules={"conv": lambda: nn.utils.parametrizations.weight_norm(nn.Conv2d(8, 7, 3))}),
    "_native_batch_norm_legit": Case(
        lambda n, x: aten._native_batch_norm_legit(x, n.w, n.b, n.m * 1, n.w * n.w + 1, False, 0.1, 1e-5)[0], parameters=NORM),
}  # fmt: skip
REDUCTION = {
    **{name: Case(lambda _, x, name=name: getattr(x, name)(1, keepdim=True) * x) for name in ("sum", "mean", "nansum", "logsumexp")},
    **{name: Case(lambda _, x, name=name: x * getattr(x, name)(1, keepdim=True)) for name in ("amax", "amin", "var", "std")},
    **{name: Case(lambda _, x, name=name: x * torch.stack(getattr(torch, name)(x, (2, 3), keepdim=True)).sum(0))
       for name in ("var_mean", "std_mean")},
    "norm": Case(lambda _, x: x / aten.norm(x, 2, [1], True)),
    "linalg_vector_norm": Case(lambda _, x: F.normalize(x, dim=1)),
    "prod": Case(lambda _, x: x.prod(3)),
    "all": Case(lambda _, x: x * (x > 0).all(3, keepdim=True)),
    "any": Case(lambda _, x: x * (x > 1).any(2, keepdim=True)),
    "aminmax": Case(lambda _, x: x - x.aminmax(dim=3, keepdim=True).min),
    "count_nonzero": Case(lambda _, x: x * x.count_nonzero(dim=3).unsqueeze(3)),
    "max": Case(lambda _, x: x.max(3, keepdim=True).values + x.max(x.sin())),
    "min": Case(lambda _, x: x.view(x.shape[0], 4, 2, 6, 6).min(2).values),
    **{name: Case(lambda _, x, name=name: x + getattr(x, name)(3, keepdim=True)) for name in ("argmax", "argmin")},
    "sort": Case(lambda _, x: x.sort(3).values),
    "topk": Case(lambda _, x: x.topk(3, 2).values),
    **{name: Case(lambda _, x, name=name, args=args: getattr(x, name)(*args).values) for name, args in
       {"kthvalue": (2, 3), "median": (2,), "mode": (3,), "cummax": (2,), "cummin": (3,)}.items()},
    **{name: Case(lambda _, x, name=name: getattr(x, name)(2)) for name in ("cumsum", "cumprod", "logcumsumexp")},
    "cumsum_": Case(lambda _, x: (x * 1).cumsum_(3)),
}  # fmt: skip


def gates(count: int, *more: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    return {"ih": (count * 6, 8), "hh": (count * 6, 6), **{f"more{i}": shape for i, shape in enumerate(more)}}


def state(x: torch.Tensor, width: int = 6) -> torch.Tensor:
    return torch.zeros(1, x.shape[1], width, dtype=x.dtype)


RECURRENT = {
    "lstm": Case(lambda n, x: torch.lstm(
        x, (state(x, 4), state(x)), [n.ih, n.more0, n.more1], False, 1, 0.0, False, False, False)[0], "rows",
        parameters={"ih": (24, 8), "more0": (24, 4), "more1": (4, 6)}),
    "gru": Case(lambda n, x: torch.gru(
        x, state(x), [n.ih, n.hh, n.more0, n.more1], True, 1, 0.0, False, False, False)[0], "rows",
        parameters=gates(3, (18,), (18,))),
    **{name: Case(lambda n, x, name=name: getattr(torch, name)(
        x, state(x), [n.ih, n.hh], False, 1, 0.0, False, False, False)[0], "rows", parameters=gates(1))
       for name in ("rnn_tanh", "rnn_relu")},
}  # fmt: skip
RIGID = {
    "argmax along channels": pinned(lambda _, x: x + x.argmax(1, keepdim=True)),
    "sort along channels": pinned(lambda _, x: x.sort(1).values),
    "cumsum along channels": pinned(lambda _, x: x.cumsum(1)),
    "topk of channels": pinned(lambda _, x: x.topk(3, 1).values),
    "index by values": pinned(lambda _, x: x[:, x.mean((0, 2, 3)).argsort()]),
    "a constant per channel": pinned(lambda _, x: x * torch.arange(8, dtype=x.dtype).view(8, 1, 1)),
    "an operator without a rule": pinned(lambda _, x: torch.fft.irfft(torch.fft.rfft(x, dim=1), n=8, dim=1)),
    "a product with a constant": pinned(lambda _, x: torch.einsum("nchw,cd->ndhw", x, torch.eye(8, dtype=x.dtype))),
}
SPATIAL = {
    **{f"avg_pool{d}d": Case(lambda _, x, d=d: getattr(F, f"avg_pool{d}d")(x, 2), kind)
       for d, kind in ((2, "image"), (3, "volume"))},
    **{f"max_pool{d}d_with_indices": Case(lambda _, x, d=d: getattr(F, f"max_pool{d}d")(x, 2), kind)
       for d, kind in ((2, "image"), (3, "volume"))},
    **{f"fractional_max_pool{d}d": Case(lambda _, x, d=d: getattr(aten, f"fractional_max_pool{d}d")(
        x, [2] * d, [2] * d, torch.full((x.shape[0], x.shape[1], d), 0.3, dtype=x.dtype))[0], kind)
       for d, kind in ((2, "image"), (3, "volume"))},
    **{f"adaptive_max_pool{d}d": Case(lambda _, x, d=d: getattr(F, f"adaptive_max_pool{d}d")(x, 2), kind)
       for d, kind in ((2, "image"), (3, "volume"))},
    **{f"{how}_pad{d}d": Case(lambda _, x, d=d, mode=mode: F.pad(x, (1, 2) * d, mode=mode), kind)
       for how, mode in (("reflection", "reflect"), ("replication", "replicate"))
       for d, kind in ((1, "line"), (2, "image"), (3, "volume"))},
    **{name: Case(lambda _, x, mode=mode: F.interpolate(x, scale_factor=2, mode=mode), kind)
       for d, kind in ((1, "line"), (2, "image"), (3, "volume"))
       for name, mode in ((f"upsample_nearest{d}d", "nearest"), (f"_upsample_nearest_exact{d}d", "nearest-exact"))},
    **{name: Case(lambda _, x, mode=mode: F.interpolate(x, scale_factor=2, mode=mode), kind)
       for name, mode, kind in (("upsample_linear1d", "linear", "line"), ("upsample_bilinear2d", "bilinear", "image"),
                                ("upsample_bicubic2d", "bicubic", "image"), ("upsample_trilinear3d", "trilinear", "volume"))},
    **{f"_upsample_{mode}2d_aa": Case(lambda _, x, mode=mode: F.interpolate(x, scale_factor=0.5, mode=mode, antialias=True))
       for mode in ("bilinear", "bicubic")},
    "_adaptive_avg_pool2d": Case(lambda _, x: F.adaptive_avg_pool2d(x, 2)),
    "_adaptive_avg_pool3d": Case(lambda _, x: F.adaptive_avg_pool3d(x, 2), "volume"),
    **{f"grid_sampler_{d}d": Case(
        lambda _, x, d=d: F.grid_sample(x, torch.full((x.shape[0], *(3,) * d, d), 0.3, dtype=x.dtype), align_corners=False), kind)
       for d, kind in ((2, "image"), (3, "volume"))},
    "im2col": Case(lambda _, x: F.unfold(x, 2)),
    "col2im": Case(lambda _, x: F.fold(F.unfold(x, 2), 6, 2)),
}  # fmt: skip
INDEXING = {
    "index": Case(lambda n, x: x[:, n.order], buffers={"order": PERM}),
    "index_select": Case(lambda n, x: x.index_select(1, n.order), buffers={"order": FOUR}),
    "gather": Case(lambda _, x: x.gather(3, torch.zeros_like(x, dtype=torch.int64))),
    "_unsafe_index": Case(lambda n, x: aten._unsafe_index(x, [None, None, n.order]), buffers={"order": torch.tensor([1, 0, 5])}),
    "embedding": Case(lambda n, x: x + n.table(x.argmax(-1)).unsqueeze(1), "rows", free=False,
                      modules={"table": lambda: nn.Embedding(8, 8)}),
    "_embedding_bag_forward_only": Case(
        lambda n, x: x + n.table(x.argmax(-1)).unsqueeze(1), "rows", free=False,
        modules={"table": lambda: nn.EmbeddingBag(8, 8, mode="max")}),
    "_embedding_bag": Case(
        lambda n, x: x + aten._embedding_bag(n.table, n.words, n.bags)[0], "flat", parameters={"table": (9, 8)},
        buffers={"words": torch.tensor([8, 0, 3, 1]), "bags": torch.tensor([0, 1, 2])}),
    **{name: Case(lambda _, x, name=name: getattr(x * 1, name)(2, torch.zeros_like(x, dtype=torch.int64), x.sin()))
       for name in ("scatter", "scatter_", "scatter_add", "scatter_add_")},
    **{name: Case(lambda n, x, name=name: getattr(x * 1, name)(2, n.rows, x[:, :, :2].sin()), buffers={"rows": torch.tensor([4, 1])})
       for name in ("index_copy", "index_copy_", "index_add", "index_add_")},
    **{name: Case(lambda n, x, name=name: getattr(x * 1, name)(3, n.rows, 0.5), buffers={"rows": torch.tensor([4, 1])})
       for name in ("index_fill", "index_fill_")},
}  # fmt: skip
CREATION = {
    **{name: Case(lambda _, x, name=name: x + getattr(torch, name)(1, 8, 6, 6, dtype=x.dtype)) for name in ("zeros", "ones")},
    "full": Case(lambda _, x: x * torch.full((8, 1, 1), 0.5, dtype=x.dtype)),
    "empty": Case(lambda _, x: x + torch.empty(1, 8, 1, 1, dtype=x.dtype).fill_(0.5)),
    **{name: Case(lambda _, x, name=name: x + getattr(x, name)(1, 8, 1, 1)) for name in ("new_zeros", "new_ones")},
    "new_full": Case(lambda _, x: torch.cat([x, x.new_full((x.shape[0], 2, 6, 6), 0.5)], 1)),
    "new_empty": Case(lambda _, x: x + x.new_empty((8, 1, 1)).fill_(0.5)),
    **{name: Case(lambda _, x, name=name: x + 0.0 * getattr(torch, name)(8, 1, 1, dtype=x.dtype)) for name in ("rand", "randn")},
    "arange": Case(lambda _, x: x * torch.arange(6, dtype=x.dtype)),
    "linspace": Case(lambda _, x: x * torch.linspace(0, 1, 6, dtype=x.dtype)),
    "eye": Case(lambda _, x: x * torch.eye(6, dtype=x.dtype)),
    "scalar_tensor": Case(lambda _, x: x * torch.scalar_tensor(0.5, dtype=x.dtype)),
    "empty_strided": Case(lambda _, x: x + torch.empty_strided((6, 6), (1, 6), dtype=x.dtype).fill_(0.5)),
    "randint": Case(lambda _, x: x + 0.0 * torch.randint(3, (x.shape[2], x.shape[3]))),
    "randperm": Case(lambda _, x: x + 0.0 * torch.randperm(x.shape[3])),
    "_efficientzerotensor": Case(lambda _, x: x + torch._efficientzerotensor(6, 6, dtype=x.dtype), free=False),
}  # fmt: skip
POINTWISE = {
    "glu": Case(lambda _, x: F.glu(x, 1)),
    "hardswish": Case(lambda _, x: F.hardswish(x)),
    "hardswish_": Case(lambda _, x: F.hardswish(x * 1, inplace=True)),
    "_prelu_kernel": Case(lambda n, x: n.act(x), modules={"act": lambda: nn.PReLU(8)}),
    **{name: Case(lambda _, x, name=name: x + getattr(torch, name)(x)) for name in ("zeros_like", "ones_like")},
    "full_like": Case(lambda _, x: x * torch.full_like(x, 0.5)),
    "empty_like": Case(lambda _, x: x + torch.empty_like(x).fill_(1.0)),
    **{name: Case(lambda _, x, name=name: x + 0.0 * getattr(torch, name)(x)) for name in ("rand_like", "randn_like")},
    "randint_like": Case(lambda _, x: x + 0.0 * torch.randint_like(x, 3)),
    "masked_fill": Case(lambda _, x: x.masked_fill(x > 1, 0.5)),
    "masked_fill_": Case(lambda _, x: (x * 1).masked_fill_(x > 1, 0.5)),
    "copy_": Case(lambda _, x: torch.empty_like(x).copy_(x)),
    "where": Case(lambda n, x: torch.where(x > 1, x.sin(), x * n.w), parameters={"w": (8, 1, 1)}),
    "lerp": Case(lambda n, x: torch.lerp(x, x.sin(), n.w), parameters={"w": (8, 1, 1)}),
    "addcmul": Case(lambda n, x: torch.addcmul(x, x, n.w, value=0.5), parameters={"w": (8, 1, 1)}),
    "addcdiv": Case(lambda n, x: torch.addcdiv(x, n.w, x + 1), parameters={"w": (8, 1, 1)}),
    "clamp": Case(lambda _, x: x.clamp(0.1, 1.0)),
    "bernoulli": Case(lambda _, x: x + 0.0 * torch.bernoulli(x.sigmoid())),
    "hardtanh": Case(lambda _, x: F.relu6(x)),
    "hardtanh_": Case(lambda _, x: F.hardtanh(x * 1, inplace=True)),
    "elu": Case(lambda _, x: F.celu(F.selu(F.elu(x - 1)))),
    "logical_not": Case(lambda _, x: x * torch.logical_not(x > 1)),
    "fmod": Case(lambda _, x: x.fmod(0.7)),
    "remainder": Case(lambda _, x: x.remainder(0.7)),
    "clone": Case(lambda _, x: x.clone()),
    "detach": Case(lambda _, x: x.detach()),
    "alias": Case(lambda _, x: aten.alias(x)),
    "lift": Case(lambda _, x: aten.lift(x)),
    "lift_fresh": Case(lambda _, x: aten.lift_fresh(x)),
    "lift_fresh_copy": Case(lambda _, x: aten.lift_fresh_copy(x)),
    "_to_copy": Case(lambda _, x: x * (x > 1).to(x.dtype)),
    **{name: Case(lambda _, x, name=name: getattr(x, name)()) for name in ("tril", "triu")},
    **{name: Case(lambda _, x, name=name: getattr(x * 1, name)()) for name in ("tril_", "triu_")},
    "_softmax": Case(lambda _, x: x.softmax(1)),
    "_log_softmax": Case(lambda _, x: x.log_softmax(1)),
    "_safe_softmax": Case(lambda _, x: aten._safe_softmax(x, 1)),
    "rrelu_with_noise": Case(lambda _, x: F.rrelu(x - 1)),
    "nan_to_num": Case(lambda _, x: x.nan_to_num()),
    "fill_": Case(lambda _, x: x + torch.zeros_like(x).fill_(2.0)),
    "zero_": Case(lambda _, x: x + (x * 1).zero_()),
    **{name: Case(lambda _, x, name=name: x + 0.0 * getattr(x * 1, name)()) for name in
       ("uniform_", "normal_", "bernoulli_", "random_", "exponential_")},
    "native_dropout": Case(lambda _, x: aten.native_dropout(x, 0.0, False)[0]),
    **{name: Case(lambda _, x, name=name: getattr(aten, name)(x * 1, [torch.tensor([0])], x[:1] * 2.0)) for name in
       ("index_put", "_unsafe_index_put", "_index_put_impl")},
}  # fmt: skip

CASES: dict[str, Case] = {
    **MOVEMENT, **CONTRACTION, **RECURRENT, **NORMALIZATION, **REDUCTION, **SPATIAL, **INDEXING, **CREATION, **POINTWISE,
}  # fmt: skip

# Noise as wide as the channels: the two programs draw different numbers, and the verifier says so. The zeroed network is the oracle
# of test_rules.py instead.
NOISE = frozenset("rand_like randn_like randint_like bernoulli bernoulli_ uniform_ normal_ random_ exponential_".split())

COMPOSITE = "decomposes before a dispatch mode sees it"
ON_META = "decomposes on meta tensors"
ON_NUMBERS = "its boxes or shapes are numbers that only an eager run knows: tests/models/test_detection.py"
# Entries that no case reaches, and why. test_rules.py checks the composite ones against the dispatcher.
UNREACHABLE: dict[str, str] = {
    **dict.fromkeys(
        "reshape unflatten flatten broadcast_to concat concatenate native_channel_shuffle narrow chunk movedim tile batch_norm layer_norm "
        "unsafe_chunk _fused_rms_norm rms_norm argsort cosine_similarity max_pool1d max_pool2d max_pool3d max_pool1d_with_indices "
        "adaptive_max_pool1d grid_sampler take_along_dim tensor rrelu dropout contiguous to fake_quantize_per_tensor_affine".split(),
        COMPOSITE,
    ),
    **dict.fromkeys(
        "linear avg_pool1d adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d softmax log_softmax".split(), ON_META
    ),
    "lp_pool2d": "no ATen operator of that name",
    **dict.fromkeys("nonzero masked_select _unique2 unique_dim unique_consecutive".split(), ON_NUMBERS),
    **dict.fromkeys(("torchvision::nms", "torchvision::roi_align", "torchvision::roi_pool"), ON_NUMBERS),
    "detach_": "nothing to do without gradients, and not dispatched",
    "_resize_output_": "called by kernels with out= only",
    "cudnn_batch_norm": "CUDA only",
    "miopen_batch_norm": "ROCm only",
}
