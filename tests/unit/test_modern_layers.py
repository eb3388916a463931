"""What models are made of besides convolutions on images: each a tiny network at ratio 0.5, held against the zeroed network."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

import fxprune
from tests.property.program import randomise
from tests.reference.compare import relative_error
from tests.reference.zeroed import zeroing


def made(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def words(*shape: int, size: int = 20) -> Tensor:
    return torch.randint(0, size, shape, generator=torch.Generator().manual_seed(1))


def plain(output: Any) -> Any:
    """Dataclasses as dicts."""
    if is_dataclass(output) and not isinstance(output, type):
        return {field.name: plain(getattr(output, field.name)) for field in fields(output)}
    return output


def check(model: nn.Module, inputs: Any, *, ratio: float = 0.5, achieved: float = 0.4) -> Any:
    """Slim and compare; the slim model.

    ``inputs`` is a tensor, a tuple, or a dict of keyword arguments.
    """
    model = model.double()
    randomise(model, 3)
    model.eval()
    slim = fxprune.slim(model, ratio, inputs, absorb=False)
    plan = fxprune.plan_of(slim)
    assert plan.achieved >= achieved, (plan.achieved, plan.notes)
    args = inputs if isinstance(inputs, tuple) else (inputs,) if isinstance(inputs, Tensor) else ()
    kwargs = inputs if isinstance(inputs, Mapping) else {}
    with torch.no_grad():
        with zeroing(model, plan):
            expected = model(*args, **kwargs)
        found = slim(*args, **kwargs)
    assert type(found) is type(expected)
    assert relative_error(plain(found), plain(expected)) < 1e-9
    assert set(slim.state_dict()) <= set(model.state_dict())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        again = fxprune.apply(model, plan, inputs, verify=False)
    again.load_state_dict(slim.state_dict())
    return slim


def kept(slim: Any, name: str, dim: int = 0) -> int:
    return len(fxprune.plan_of(slim).kept[name][dim])


class Call(nn.Module):
    """Modules by name, and a forward that is given as a function of them."""

    def __init__(self, forward: Callable[..., Any], **modules: nn.Module) -> None:
        super().__init__()
        for name, module in modules.items():
            self.add_module(name, module)
        self.call = forward


# -- embeddings ----------------------------------------------------------------------------------------------------------------


class Words(nn.Module):
    def __init__(self, embedding: nn.Module, width: int = 12) -> None:
        super().__init__()
        self.embedding, self.a, self.b = embedding, nn.Linear(width, 10), nn.Linear(10, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(F.relu(self.a(self.embedding(x))))


@pytest.mark.parametrize("options", [{}, {"padding_idx": 4}, {"scale_grad_by_freq": True}], ids=str)
def test_embedding(options: dict[str, Any]) -> None:
    slim = check(Words(nn.Embedding(20, 12, **options)), words(3, 7))
    assert slim.embedding.embedding_dim == slim.embedding.weight.shape[1] < 12
    assert slim.embedding.num_embeddings == 20
    assert slim.embedding.padding_idx == options.get("padding_idx")


@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
def test_embedding_bag(mode: str) -> None:
    slim = check(Words(nn.EmbeddingBag(20, 12, mode=mode)), words(3, 7))
    assert slim.embedding.embedding_dim < 12


def test_embedding_bag_with_padding() -> None:
    slim = check(Words(nn.EmbeddingBag(20, 12, mode="sum", padding_idx=3)), words(3, 7))
    assert slim.embedding.embedding_dim < 12
    assert slim.embedding.padding_idx == 3


def test_embedding_bag_with_offsets() -> None:
    class Bags(Words):
        def forward(self, x: Tensor, offsets: Tensor) -> Tensor:  # type: ignore[override]
            return self.b(F.relu(self.a(self.embedding(x, offsets))))

    assert check(Bags(nn.EmbeddingBag(20, 12)), (words(15), torch.tensor([0, 4, 9]))).embedding.embedding_dim < 12


class Positions(nn.Module):
    """Word and position embeddings, summed; positions from a buffer or made on the way; the output tied to the words."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.words, self.places = nn.Embedding(20, 12, padding_idx=0), nn.Embedding(9, 12)
        self.register_buffer("ids", torch.arange(9).expand(1, -1), persistent=False)
        self.a, self.b = nn.Linear(12, 24), nn.Linear(24, 12)

    def forward(self, x: Tensor) -> Tensor:
        length = x.shape[1]
        ids = self.ids[:, :length] if self.how == "buffer" else torch.arange(length, device=x.device).unsqueeze(0)
        x = self.words(x) + self.places(ids)
        x = x + self.b(F.gelu(self.a(x)))
        return F.linear(x, self.words.weight)


@pytest.mark.parametrize("how", ["buffer", "arange"])
def test_tied_embeddings(how: str) -> None:
    slim = check(Positions(how), words(3, 7))
    assert slim.words.embedding_dim == slim.places.embedding_dim < 12


def test_a_tied_output_layer() -> None:
    class Tied(Words):
        def __init__(self) -> None:
            super().__init__(nn.Embedding(20, 12))
            self.b = nn.Linear(10, 12)
            self.out = nn.Linear(12, 20, bias=False)
            self.out.weight = self.embedding.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.out(super().forward(x))

    slim = check(Tied(), words(3, 7))
    assert slim.out.weight is slim.embedding.weight
    assert slim.out.in_features == slim.embedding.embedding_dim < 12


# -- one and three dimensions ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dims", [1, 3])
def test_other_dimensions(dims: int) -> None:
    conv, norm = (nn.Conv1d, nn.BatchNorm1d) if dims == 1 else (nn.Conv3d, nn.BatchNorm3d)
    back = nn.ConvTranspose1d if dims == 1 else nn.ConvTranspose3d
    pool = nn.AdaptiveAvgPool1d if dims == 1 else nn.AdaptiveAvgPool3d
    net = nn.Sequential(
        conv(2, 8, 3, padding=1), norm(8), nn.ReLU(inplace=True), conv(8, 8, 3, groups=8, padding="same"), norm(8), nn.SiLU(),
        conv(8, 12, 1, groups=2), nn.InstanceNorm1d(12, affine=True) if dims == 1 else nn.InstanceNorm3d(12, affine=True),
        back(12, 8, 2, stride=2), nn.PReLU(8), pool(2), nn.Flatten(), nn.Linear(8 * 2**dims, 3),
    )  # fmt: skip
    slim = check(net, made(2, 2, *(6,) * dims))
    assert slim.get_submodule("0").out_channels < 8


def test_a_sequence_of_dilated_convolutions() -> None:
    class Gated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Conv1d(3, 8, 1)
            self.filters = nn.ModuleList(nn.Conv1d(8, 8, 2, dilation=2**i) for i in range(3))
            self.gates = nn.ModuleList(nn.Conv1d(8, 8, 2, dilation=2**i) for i in range(3))
            self.last = nn.Conv1d(8, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            x = self.first(x)
            for filtered, gate in zip(self.filters, self.gates, strict=True):
                y = torch.tanh(filtered(x)) * torch.sigmoid(gate(x))
                x = x[..., -y.shape[-1] :] + y
            return self.last(x)

    check(Gated(), made(2, 3, 12))


# -- inputs and outputs ------------------------------------------------------------------------------------------------------------


@dataclass
class Result:
    """What a model returns."""

    logits: Tensor
    features: list[Tensor]


class Pair(NamedTuple):
    """What another returns."""

    first: Tensor
    second: Tensor


OUTPUTS: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "dict": lambda a, b: {"logits": a, "more": {"features": b}},
    "list": lambda a, b: [a, [b, a]],
    "tuple": lambda a, b: (a, (b,)),
    "named tuple": Pair,
    "dataclass": lambda a, b: Result(a, [b]),
    "none among them": lambda a, b: (a, None, {"b": b, "n": 3}),
}


class Two(nn.Module):
    def __init__(self, returned: Callable[[Tensor, Tensor], Any]) -> None:
        super().__init__()
        self.left, self.right = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(1, 8, 3, padding=1)
        self.both, self.a, self.b = nn.Conv2d(8, 12, 1), nn.Conv2d(12, 4, 1), nn.Conv2d(12, 5, 1)
        self.returned = returned

    def forward(self, image: Tensor, mask: Tensor | None = None, *, scale: float = 1.0) -> Any:
        x = self.left(image)
        if mask is not None:
            x = x + self.right(mask)
        x = F.relu(self.both(F.relu(x * scale)))
        return self.returned(self.a(x), self.b(x))


@pytest.mark.parametrize("kind", list(OUTPUTS))
def test_outputs(kind: str) -> None:
    check(Two(OUTPUTS[kind]), made(2, 3, 6, 6))


@pytest.mark.parametrize(
    "inputs",
    [
        (made(2, 3, 6, 6), made(2, 1, 6, 6)),
        {"image": made(2, 3, 6, 6), "mask": made(2, 1, 6, 6)},
        {"mask": made(2, 1, 6, 6), "image": made(2, 3, 6, 6), "scale": 0.5},
        {"image": made(2, 3, 6, 6)},
    ],
    ids=["tuple", "dict", "dict out of order", "without the optional one"],
)
def test_inputs(inputs: Any) -> None:
    check(Two(OUTPUTS["tuple"]), inputs)


def test_a_dict_as_the_input() -> None:
    class Batch(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.image, self.table, self.head = nn.Conv2d(3, 8, 3), nn.Linear(4, 6), nn.Linear(14, 3)

        def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
            x = self.image(batch["image"]).mean((2, 3))
            return {"out": self.head(F.relu(torch.cat([x, self.table(batch["table"])], 1)))}

    check(Batch(), ({"image": made(2, 3, 6, 6), "table": made(2, 4)},))


def test_a_list_as_the_input() -> None:
    class Pyramid(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lateral = nn.ModuleList(nn.Conv2d(c, 8, 1) for c in (3, 4, 5))
            self.out = nn.ModuleList(nn.Conv2d(8, 2, 3, padding=1) for _ in range(3))

        def forward(self, xs: list[Tensor]) -> list[Tensor]:
            found = [layer(x) for layer, x in zip(self.lateral, xs, strict=True)]
            for i in range(2, 0, -1):
                found[i - 1] = found[i - 1] + F.interpolate(found[i], size=found[i - 1].shape[-2:], mode="nearest")
            return [out(x) for out, x in zip(self.out, found, strict=True)]

    check(Pyramid(), ([made(2, 3, 8, 8), made(2, 4, 4, 4), made(2, 5, 2, 2)],))


# -- buffers and shapes --------------------------------------------------------------------------------------------------------------


class Buffers(nn.Module):
    """Buffers as wide as channels: a scale, a mask, a count, a positional table."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 4, 1)
        self.register_buffer("scale", torch.rand(8))
        self.register_buffer("mask", (torch.arange(8) % 3 > 0).view(1, 8, 1, 1))
        self.register_buffer("table", torch.randn(1, 8, 6, 6), persistent=False)
        self.register_buffer("seen", torch.tensor(0))

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x) * self.scale[None, :, None, None] + self.table
        x = torch.where(self.mask, x, torch.zeros_like(x))
        x = self.b(x).masked_fill(~self.mask, 0.0)
        return self.c(x * self.mask.to(x.dtype))


def test_buffers_as_wide_as_channels() -> None:
    slim = check(Buffers(), made(2, 3, 6, 6))
    assert slim.mask.shape[1] == slim.scale.shape[0] == slim.table.shape[1] == slim.a.out_channels < 8


class Causal(nn.Module):
    """A triangular mask that is cut to the input's length; heads by shape arithmetic."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.v, self.out = nn.Linear(6, 8), nn.Linear(6, 8), nn.Linear(8, 5)
        self.register_buffer("mask", torch.tril(torch.ones(16, 16)).view(1, 1, 16, 16))

    def forward(self, x: Tensor) -> Tensor:
        n, t, _ = x.shape
        v = self.v(x)
        v = v.view(n, t, 2, v.shape[-1] // 2).transpose(1, 2)
        weights = self.q(x).view(n, t, 2, 4).transpose(1, 2).mean(-1, keepdim=True).expand(-1, -1, t, t)
        weights = weights.masked_fill(self.mask[:, :, :t, :t] == 0, float("-inf")).softmax(-1)
        return self.out((weights @ v).transpose(1, 2).reshape(n, t, -1))


def test_a_causal_mask() -> None:
    check(Causal(), made(2, 5, 6), achieved=0.3)


class Shapes(nn.Module):
    """Control flow and arithmetic on shapes."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.short, self.c = (
            nn.Conv2d(3, 8, 3, 2, 1),
            nn.Conv2d(8, 12, 3, 2, 1),
            nn.Conv2d(8, 12, 1),
            nn.Linear(12, 3),
        )

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[1] != 3:
            raise ValueError("three channels")
        torch._assert(x.dim() == 4, "an image")
        x = F.relu(self.a(x))
        y = self.b(x)
        h, w = y.shape[-2:]
        pad_h, pad_w = x.size(2) - h, x.size(3) - w
        if pad_h > 0 or pad_w > 0:
            y = F.pad(y, (0, pad_w, 0, pad_h))
        assert y.shape[2:] == x.shape[2:]
        x = y + self.short(x)
        n, c = x.shape[:2]
        return self.c(x.view(n, c, -1).sum(-1) / x[0, 0].numel())


def test_control_flow_on_shapes() -> None:
    check(Shapes(), made(2, 3, 9, 7))


# -- subclasses ------------------------------------------------------------------------------------------------------------------


class StandardConv(nn.Conv2d):
    """Weight standardisation: the statistics run over inputs and window, over live inputs when slim."""

    def forward(self, x: Tensor) -> Tensor:
        weight = F.batch_norm(self.weight.reshape(1, self.out_channels, -1), None, None, training=True, momentum=0.0, eps=1e-6)
        weight = weight.reshape_as(self.weight)
        return F.conv2d(x, weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


class MeanConv(nn.Conv2d):
    """The same by hand."""

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight - self.weight.mean(dim=(1, 2, 3), keepdim=True)
        weight = weight / (weight.std(dim=(1, 2, 3), keepdim=True) + 1e-5)
        return self._conv_forward(x, weight, self.bias)


class NormAct(nn.BatchNorm2d):
    """Batch norm and activation in one, by the functional form."""

    def __init__(self, width: int) -> None:
        super().__init__(width)
        self.act, self.drop = nn.ReLU(inplace=True), nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        torch._assert(x.ndim == 4, f"expected 4D input (got {x.ndim}D)")
        x = F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.1, self.eps)
        return self.act(self.drop(x))


class ScaledLinear(nn.Linear):
    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.gain = nn.Parameter(torch.ones(self.out_features, 1))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight * self.gain, self.bias)


class Norm2d(nn.LayerNorm):
    """Layer norm over channels first."""

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x.permute(0, 2, 3, 1), self.normalized_shape, self.weight, self.bias, self.eps).permute(0, 3, 1, 2)


class SameConv(nn.Conv2d):
    """Padding as TensorFlow pads, from the input's size."""

    def forward(self, x: Tensor) -> Tensor:
        pads = []
        for size, kernel, stride in zip(x.shape[-2:], self.kernel_size, self.stride, strict=True):
            pads.append(max((-(-size // stride) - 1) * stride + kernel - size, 0))
        x = F.pad(x, (pads[1] // 2, pads[1] - pads[1] // 2, pads[0] // 2, pads[0] - pads[0] // 2))
        return F.conv2d(x, self.weight, self.bias, self.stride, 0, self.dilation, self.groups)


@pytest.mark.parametrize("conv", [StandardConv, MeanConv, SameConv])
def test_subclasses_of_convolutions(conv: type[nn.Conv2d]) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.norm, self.b, self.c = conv(3, 8, 3), NormAct(8), conv(8, 8, 3, 1), nn.Conv2d(8, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.c(F.relu_(self.b(self.norm(self.a(x)))))

    # Statistics over a weight's inputs see live inputs only: the zeroed network is no oracle there, the verifier is.
    model = Net().double()
    randomise(model, 3)
    slim = fxprune.slim(model.eval(), 0.5, made(2, 3, 9, 9))
    assert slim.a.weight.shape[0] == slim.norm.weight.shape[0] < 8
    assert slim.b.weight.shape[1] == slim.a.weight.shape[0]
    assert slim.b.weight.shape[0] < 8


def test_subclasses_of_linear_and_norms() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.norm, self.b, self.c = nn.Conv2d(3, 8, 3), Norm2d(8), ScaledLinear(8, 12), ScaledLinear(12, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.c(F.relu(self.b(self.norm(self.a(x)).mean((2, 3)))))

    model = Net().double()
    randomise(model, 3)
    slim = fxprune.slim(model.eval(), 0.5, made(2, 3, 9, 9))
    assert slim.b.gain.shape[0] == slim.b.weight.shape[0] < 12
    assert slim.norm.weight.shape[0] == slim.a.out_channels < 8


# -- odds and ends ---------------------------------------------------------------------------------------------------------------


class DropPath(nn.Module):
    """Stochastic depth as most libraries write it."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        if self.p == 0.0 or not self.training:
            return x
        keep = 1 - self.p
        return x * x.new_empty((x.shape[0],) + (1,) * (x.ndim - 1)).bernoulli_(keep).div_(keep)


class Residual(nn.Module):
    """Stochastic depth, layer scale, Identity under two names, activations in place."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.skip = self.also = nn.Identity()
        self.norm, self.conv, self.act = nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(inplace=True)
        self.gamma, self.path = nn.Parameter(torch.ones(8)), DropPath(0.3)
        self.head = nn.Conv2d(8, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.stem(x))
        y = F.dropout(self.act(self.conv(self.norm(self.skip(x)))), 0.2, self.training)
        x = self.also(x) + self.path(y * self.gamma.view(-1, 1, 1))
        x += y
        return self.head(F.hardswish(x, inplace=True))


def test_residual_with_everything() -> None:
    slim = check(Residual(), made(2, 3, 6, 6))
    assert slim.gamma.shape[0] == slim.stem.out_channels < 8


@fx.wrap
def wrapped(x: Tensor, width: int, blocks: int) -> Tensor:
    """Hides a reshape with literal sizes."""
    n, _, h, w = x.shape
    if h > 100:
        return x
    return x.reshape(n, blocks, width // blocks, h, w).transpose(1, 2).reshape(n, width, h, w)


def test_wrapped_functions_with_literals() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Conv2d(3, 12, 1), nn.Conv2d(12, 12, 3, padding=1), nn.Conv2d(12, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.c(F.relu(self.b(wrapped(F.relu(self.a(x)), 12, 3))))

    slim = check(Net(), made(2, 3, 6, 6))
    assert slim.a.out_channels < 12


def test_shared_modules_and_weights() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c, self.d = (nn.Linear(8, 8) for _ in range(4))
            self.first, self.last = nn.Linear(5, 8), nn.Linear(8, 3)
            self.b.weight = self.a.weight
            self.again = self.c

        def forward(self, x: Tensor) -> Tensor:
            x = F.relu(self.b(F.relu(self.a(self.first(x)))))
            x = F.relu(self.again(F.relu(self.c(x))))
            return self.last(F.linear(x, self.d.weight.t()))

    slim = check(Net(), made(4, 5))
    assert slim.a.weight is slim.b.weight
    assert slim.d.weight.shape[1] < 8


def test_a_mixture_of_experts() -> None:
    class Experts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.gate, self.last = nn.Linear(5, 8), nn.Linear(8, 3), nn.Linear(8, 2)
            self.experts = nn.ModuleList(nn.Sequential(nn.Linear(8, 12), nn.GELU(), nn.Linear(12, 8)) for _ in range(3))

        def forward(self, x: Tensor) -> Tensor:
            x = self.first(x)
            weights = self.gate(x).softmax(-1)
            y = torch.stack([expert(x) for expert in self.experts], -2)
            return self.last(x + (weights.unsqueeze(-1) * y).sum(-2))

    check(Experts(), made(4, 5))


def test_squeeze_and_excitation_by_linear_layers() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.c = nn.Conv2d(3, 12, 3), nn.Conv2d(12, 4, 1)
            self.fc = nn.Sequential(
                nn.Linear(12, 6, bias=False), nn.ReLU(inplace=True), nn.Linear(6, 12, bias=False), nn.Sigmoid()
            )

        def forward(self, x: Tensor) -> Tensor:
            x = self.a(x)
            b, c, _, _ = x.size()
            y = self.fc(F.adaptive_avg_pool2d(x, 1).view(b, c)).view(b, c, 1, 1)
            return self.c(x * y.expand_as(x))

    slim = check(Net(), made(2, 3, 6, 6))
    assert slim.a.out_channels == slim.get_submodule("fc.2").out_features < 12


def test_position_tables_are_resized() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.patch, self.mlp, self.head = nn.Conv2d(3, 8, 2, 2), nn.Linear(8, 8), nn.Linear(8, 3)
            self.token, self.table = nn.Parameter(torch.randn(1, 1, 8)), nn.Parameter(torch.randn(1, 10, 8))

        def forward(self, x: Tensor) -> Tensor:
            x = self.patch(x)
            h, w = x.shape[-2:]
            x = x.flatten(2).transpose(1, 2)
            grid = self.table[:, 1:].reshape(1, 3, 3, -1).permute(0, 3, 1, 2)
            grid = F.interpolate(grid, size=(h, w), mode="bicubic", antialias=True).permute(0, 2, 3, 1).flatten(1, 2)
            table = torch.cat([self.table[:, :1], grid], 1)
            x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + table
            return self.head((x + F.gelu(self.mlp(x)))[:, 0])

    slim = check(Net(), made(2, 3, 8, 8))
    assert slim.table.shape[2] == slim.token.shape[2] == slim.patch.out_channels < 8
