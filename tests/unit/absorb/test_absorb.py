"""Absorption on small networks of each kind: what is exact, what is reported, what is refused."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

import fxprune
from fxprune.absorb.fact import pointwise, small
from tests.property.program import randomise

Absorption = fxprune.Absorption


class Kinds(nn.Module):
    """A batch norm whose channels reach a reader of each kind."""

    def __init__(self, kind: str, act: nn.Module | None = None) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.act = nn.ReLU() if act is None else act
        self.kind = kind
        biased = kind in ("bias", "padded", "strided", "dilated")
        if kind in ("up", "up3"):
            size = {"up": {"kernel_size": 2, "stride": 2}, "up3": {"kernel_size": 3, "padding": 1}}[kind]
            self.second: nn.Module = nn.ConvTranspose2d(8, 6, bias=False, **size)  # type: ignore[arg-type]
        else:
            size = {
                "padded": {"padding": 1},
                "bare padded": {"padding": 1},
                "strided": {"padding": 2, "stride": 2},
                "dilated": {"padding": 2, "dilation": 2},
                "reflected": {"padding": 1, "padding_mode": "reflect"},
                "same": {"padding": "same"},
                "grouped": {"groups": 2, "padding": 1},
            }.get(kind, {})
            self.second = nn.Conv2d(8, 6, 3, bias=biased, **size)  # type: ignore[arg-type]
        self.between = nn.BatchNorm2d(6) if kind == "norm" else nn.Identity()
        self.head = nn.Conv2d(6, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.norm(self.first(x)))
        if self.kind == "twice":
            return self.head(self.second(x) + self.second(2 * x))  # type: ignore[no-any-return]
        return self.head(self.between(self.second(x)))  # type: ignore[no-any-return]


def silent(kind: str, act: nn.Module | None = None, gone: int = 3) -> tuple[Kinds, Tensor]:
    """A network with ``gone`` scale factors of 0."""
    torch.manual_seed(0)
    model = randomise(Kinds(kind, act))
    with torch.no_grad():
        model.norm.weight[:gone] = 0
        model.norm.bias[:gone] = torch.tensor([0.8, -0.3, 1.7], dtype=torch.float64)[:gone]
    return model, torch.randn(2, 3, 9, 10, dtype=torch.float64)  # type: ignore[return-value]


def least_first(group: fxprune.ChannelGroup) -> Tensor:
    """The channels of ``norm`` by their scale factors, and all others after them."""
    if "norm.weight" in group.gammas:
        return group.tensors["norm.weight"].detach().abs()
    return torch.full((len(group),), 10.0, dtype=torch.float64)


def slimmed(model: nn.Module, x: Tensor, absorb: Any, gone: int = 3) -> Any:
    """Without so many channels of ``norm``."""
    graph = fxprune.analyze(model, x)
    plans = (fxprune.plan(graph, share / 100, score=least_first) for share in range(1, 60))
    plan = next(p for p in plans if len(p.removed("norm.weight", 0)) == gone)
    assert not plan.removed("head.weight", 1)
    return fxprune.apply(model, plan, x, absorb=absorb)


def apart(a: nn.Module, b: nn.Module, x: Tensor) -> float:
    with torch.no_grad():
        return float((a(x) - b(x)).abs().max())


KINDS = ["plain", "bias", "norm", "padded", "bare padded", "strided", "dilated", "reflected", "same", "twice", "up", "up3"]


@pytest.mark.parametrize("kind", KINDS)
def test_exact_everywhere(kind: str) -> None:
    model, x = silent(kind)
    slim = slimmed(model, x, "exact")
    assert slim.get_submodule("norm").num_features == 5
    found = fxprune.absorption_of(slim)
    assert found.exact, str(found)
    assert found.left == 0
    assert found.difference <= 1e-12
    assert apart(slim, model, x) <= 1e-12
    assert apart(slim, model, torch.randn(3, 3, 14, 6, dtype=torch.float64)) <= 1e-12  # another size of image
    assert apart(slimmed(model, x, False), model, x) > 1e-2


@pytest.mark.parametrize("kind", KINDS)
def test_the_interior_is_exact(kind: str) -> None:
    model, x = silent(kind)
    slim = slimmed(model, x, True)
    found = fxprune.absorption_of(slim)
    assert all(fold.form != "map" for fold in found.folds)
    with torch.no_grad():
        difference = (slim(x) - model(x)).abs()
    padded = kind in ("padded", "bare padded", "strided", "dilated", "same", "up3")
    if kind != "up":  # every pixel of it sees another part of the window
        inner = difference[:, :, 2:-2, 2:-2] if kind != "strided" else difference[:, :, 1:-1, 1:-2]
        assert float(inner.max()) <= 1e-12
    assert found.exact == (not padded and kind != "up")
    assert (found.left > 0) == (not found.exact)


@pytest.mark.parametrize(
    ("kind", "form", "place", "added"),
    [
        ("bias", "bias", "second.bias", ()),
        ("norm", "norm", "between.running_mean", ()),
        ("plain", "bias", "second.bias", ("second.bias",)),
        ("bare padded", "map", "second.absorbed", ("second.absorbed",)),
        ("twice", "sum", "second.absorbed", ("second.absorbed", "second.absorbed_1")),
    ],
)
def test_where_constants_go(kind: str, form: str, place: str, added: tuple[str, ...]) -> None:
    model, x = silent(kind)
    slim = slimmed(model, x, "exact")
    fold = fxprune.absorption_of(slim).folds[0]
    assert (fold.form, fold.place, fold.weight, fold.dim) == (form, place, "second.weight", 1)
    assert fold.atoms == (0, 1, 2)
    assert fold.values == pytest.approx((0.8, 0.0, 1.7))
    plan = fxprune.plan_of(slim)
    assert tuple(a.name for a in plan.added or ()) == added
    assert set(slim.state_dict()) - set(model.state_dict()) == set(added)


def test_the_readers_of_an_empty_layer_hear_its_constant() -> None:
    model, x = silent("padded")
    with torch.no_grad():
        model.norm.weight.zero_()
    plan = fxprune.plan(fxprune.analyze(model, x), 8 / 14, score=least_first, floor=0)
    slim = fxprune.apply(model, plan, x, absorb="exact")
    assert slim.get_submodule("norm").num_features == 1
    assert fxprune.absorption_of(slim).exact
    assert apart(slim, model, x) <= 1e-12


@pytest.mark.parametrize(
    "act", [nn.SiLU(), nn.GELU(), nn.PReLU(8), nn.Hardswish(), nn.LeakyReLU(0.1, inplace=True), nn.Softplus()]
)
def test_activations(act: nn.Module) -> None:
    model, x = silent("bare padded", act)
    if isinstance(act, nn.PReLU):
        nn.init.uniform_(act.weight, -1, 1)
    slim = slimmed(model, x, "exact")
    assert fxprune.absorption_of(slim).exact
    assert apart(slim, model, x) <= 1e-12


def test_expected_outputs_come_closer_than_nothing() -> None:
    torch.manual_seed(1)
    model = randomise(Kinds("norm"))
    x = torch.randn(64, 3, 9, 9, dtype=torch.float64)
    model.train()
    model.norm.momentum = model.between.momentum = 1.0  # type: ignore[assignment]
    with torch.no_grad():
        model(x)
    model.eval()
    plan = replace(fxprune.plan_of(fxprune.slim(model, 0.4, x[:2], absorb=False)), added=None)
    errors = {}
    for name, how in (("dropped", False), ("closed form", True), ("data", [x[:32], x[32:]])):
        slim = fxprune.apply(model, plan, x, absorb=how)  # type: ignore[arg-type]
        with torch.no_grad():
            errors[name] = float((slim(x) - model(x)).square().mean())
        if how is not False:
            found = fxprune.absorption_of(slim)
            assert (found.source, found.exact) == (name, False)
            assert found.left > 0
            assert found.difference > 0
    assert errors["data"] < 0.95 * errors["dropped"]
    assert errors["closed form"] < 0.95 * errors["dropped"]


class Pooled(nn.Module):
    """A norm of noise, a maximum, and a reader of single pixels."""

    def __init__(self, act: nn.Module, pool: nn.Module, again: nn.Module | None = None) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 8, 1, bias=False), nn.BatchNorm2d(8)
        self.act, self.pool, self.again = act, pool, nn.Identity() if again is None else again
        self.second, self.between, self.head = nn.Conv2d(8, 6, 1), nn.BatchNorm2d(6), nn.Conv2d(6, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(self.between(self.second(self.again(self.pool(self.act(self.norm(self.first(x))))))))
        return y


@pytest.mark.parametrize(
    ("pool", "again", "elements"),
    [
        (nn.MaxPool2d(2), None, 4),
        (nn.MaxPool2d((3, 1), 2), None, 3),
        (nn.MaxPool2d(2), nn.MaxPool2d(2), 16),
        (nn.AdaptiveMaxPool2d(4), None, 16),
        (nn.AvgPool2d(2), None, 1),
    ],
)
@pytest.mark.parametrize("first", [True, False])
def test_what_an_expected_value_misses_of_a_maximum_is_counted(
    pool: nn.Module, again: nn.Module | None, elements: int, first: bool
) -> None:
    """Pixels are independent and the norm's statistics are those of the data: what is missed can be seen."""
    torch.manual_seed(0)
    model = randomise(Pooled(nn.ReLU(), pool, again) if first else Pooled(pool, nn.ReLU(), again))
    images = torch.randn(64, 3, 16, 16, dtype=torch.float64)
    with torch.no_grad():
        made = model.first(images)  # type: ignore[operator]
        model.norm.running_mean.copy_(made.mean((0, 2, 3)))  # type: ignore[operator, union-attr]
        model.norm.running_var.copy_(made.var((0, 2, 3)))  # type: ignore[operator, union-attr]
        model.norm.weight[:2] = 0.01  # type: ignore[index]
        model.norm.bias[:2] = torch.tensor([0.5, -0.002])  # type: ignore[index]
    plan = fxprune.plan(fxprune.analyze(model, images[:2], keep=("second",)), 2 / 8)
    assert len(plan.removed("norm.weight", 0)) == 2

    def folded(**options: Any) -> tuple[Any, Tensor]:
        (fold,) = (
            f for f in fxprune.absorption_of(fxprune.apply(model, plan, images[:2], **options)).folds if f.node == "second"
        )
        return fold, torch.tensor(fold.values, dtype=torch.float64)

    (closed, means), (data, seen) = folded(), folded(absorb=[images])
    weight = model.second.weight.detach().flatten(1)[:, list(closed.atoms)]  # type: ignore[union-attr, operator, index]
    missed = float((weight @ (seen - means)).abs().max())
    std = torch.tensor([0.01, _relu_std(-0.002, 0.01)], dtype=torch.float64)
    spread = float((weight.square() @ std.square()).sqrt().max())
    excess = (elements - 1) / (2 * elements - 1) ** 0.5
    assert closed.left == pytest.approx(spread + float((weight @ (excess * std)).abs().max()), rel=1e-3)
    if elements > 1:
        assert (seen > means).all()
        assert closed.left > missed > spread / 4
    assert data.left < closed.left or elements == 1


def _relu_std(mean: float, std: float) -> float:
    x = mean + std * torch.randn(4_000_000, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return float(x.relu().std())


def test_data_of_every_form() -> None:
    model, x = silent("plain")
    values = [
        fxprune.absorption_of(slimmed(model, x, loader)).folds[0].values
        for loader in ([x], [(x, torch.zeros(2))], [{"x": x}], [x[:1], x[1:]])
    ]
    assert all(v == pytest.approx(values[0]) for v in values)
    for loader, complaint in (
        ([], "no batch"),
        ([torch.zeros(2, 5)], "batch 1"),
        ("somewhere", "must be True"),
        (3, "must be True"),
    ):
        with pytest.raises(fxprune.InputError, match=complaint):
            slimmed(model, x, loader)


def test_a_loader_is_read_once() -> None:
    model, x = silent("plain")

    def batches() -> Iterator[Tensor]:
        yield x

    assert fxprune.absorption_of(slimmed(model, x, batches())).source == "data"


class Gated(nn.Module):
    """Squeeze and excitation: a constant times a live gate is no constant."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8)
        self.gate = nn.Conv2d(8, 8, 1)
        self.head = nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.conv(x)).relu()
        return self.head(x * self.gate(x.mean((2, 3), keepdim=True)).sigmoid())  # type: ignore[no-any-return]


class Mixed(nn.Module):
    """A layer norm takes statistics over the channels that are left."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Linear(3, 8), nn.BatchNorm1d(8)
        self.mix, self.head = nn.LayerNorm(8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.mix(self.norm(self.conv(x))))  # type: ignore[no-any-return]


@pytest.mark.parametrize(("build", "size", "node"), [(Gated, (2, 3, 6, 6), "head"), (Mixed, (2, 3), "mix")])
def test_what_is_lost_is_said(build: type[nn.Module], size: tuple[int, ...], node: str) -> None:
    model = randomise(build())
    with torch.no_grad():
        model.norm.weight[:3] = 0  # type: ignore[operator, index]
        model.norm.bias[:3] = 1.0  # type: ignore[operator, index]
    slim = fxprune.slim(model, 3 / 8, torch.randn(size, dtype=torch.float64), absorb="exact")
    found = fxprune.absorption_of(slim)
    assert not found.exact
    assert node in {loss.node for loss in found.losses}
    assert f"at node {node!r}" in str(found)


def test_a_constant_of_zero_passes_a_gate() -> None:
    model = randomise(Gated())
    with torch.no_grad():
        model.norm.weight[:3] = 0  # type: ignore[index, operator]
        model.norm.bias[:3] = -1.0  # type: ignore[index, operator]
    x = torch.randn(2, 3, 6, 6, dtype=torch.float64)
    slim = fxprune.slim(model, 3 / 8, x, absorb=True)
    assert fxprune.absorption_of(slim).exact
    assert apart(slim, model, x) <= 1e-12


def test_two_branches_of_one_batch_norm_belong_together() -> None:
    """``x * sigmoid(x)``, written by hand, has the expected value of silu."""
    mean, std = (torch.tensor([[v]], dtype=torch.float64) for v in (0.4, 1.3))
    x = replace(small(mean, std, (1, 1)), source="norm", gaussian=True)
    gate = pointwise("sigmoid", torch.sigmoid, (x,), {})
    product = pointwise("mul", torch.mul, (x, gate), {})
    whole = pointwise("silu", F.silu, (x,), {})
    torch.testing.assert_close(product.mean, whole.mean, rtol=1e-12, atol=0)
    torch.testing.assert_close(product.std, whole.std, rtol=1e-9, atol=0)


@pytest.mark.parametrize("kind", ["bias", "norm", "plain", "bare padded", "twice"])
def test_the_verifier_sees_a_wrong_constant(kind: str) -> None:
    model, x = silent(kind)
    slim = slimmed(model, x, "exact")
    fxprune.verify(model, slim, x)
    place = fxprune.absorption_of(slim).folds[-1].place
    tensor = dict([*slim.named_parameters(), *slim.named_buffers()])[place]
    tensor.data.view(-1)[1] += 1e-6
    with pytest.raises(fxprune.VerificationError, match="constants of removed channels"):
        fxprune.verify(model, slim, x)


def test_the_verifier_sees_a_claim_that_is_not_true() -> None:
    """Wrong constants, taken consistently: only the original's outputs tell."""
    from fxprune.verify.folds import check_exact

    model, x = silent("plain")
    slim = slimmed(model, x, False)
    check_exact(1e-12, slim, 1e-9)
    with pytest.raises(fxprune.VerificationError, match="claims to be exact"):
        check_exact(1e-3, slim, 1e-9)


@pytest.mark.parametrize("kind", ["bias", "norm", "plain", "bare padded", "twice"])
def test_saved_loaded_and_built_anew(kind: str, tmp_path: Path) -> None:
    model, x = silent(kind)
    slim = slimmed(model, x, "exact")
    fxprune.save(slim, tmp_path / "slim.safetensors")
    loaded = fxprune.load(Kinds(kind).double().eval(), tmp_path / "slim.safetensors", x)
    assert apart(loaded, slim, x) == 0
    assert fxprune.absorption_of(loaded) == fxprune.absorption_of(slim)
    fxprune.verify(model, loaded, x)
    plan = fxprune.Plan.from_json(fxprune.plan_of(slim).to_json())
    assert plan == fxprune.plan_of(slim)
    for absorb in (True, False, "exact"):
        fresh = fxprune.apply(randomise(Kinds(kind), seed=5), plan, x, absorb=absorb)  # type: ignore[arg-type]
        fresh.load_state_dict(slim.state_dict(), strict=True)
        assert apart(fresh, slim, x) == 0
    fresh.load_state_dict(plan.apply_to_state_dict(model.state_dict()), strict=True)
    other = copy.deepcopy(slim)
    assert fxprune.absorption_of(other) == fxprune.absorption_of(slim)
    assert apart(other, slim, x) == 0


@pytest.mark.parametrize("kind", ["bias", "norm", "plain", "bare padded"])
def test_two_rounds_are_one(kind: str, tmp_path: Path) -> None:
    model, x = silent(kind, gone=3)
    first = slimmed(model, x, "exact")
    with torch.no_grad():
        first.get_submodule("norm").weight[1] = 0
        first.get_submodule("norm").bias[1] = 0.9
        model.norm.weight[4], model.norm.bias[4] = 0, 0.9
    second = slimmed(first, x, "exact", 1)
    assert second.get_submodule("norm").num_features == 4
    found = fxprune.absorption_of(second)
    assert found.exact
    assert {atom for fold in found.folds for atom in fold.atoms} == {0, 1, 2, 4}
    assert apart(second, model, x) <= 1e-12
    fxprune.save(second, tmp_path / "second.safetensors")
    loaded = fxprune.load(Kinds(kind).double().eval(), tmp_path / "second.safetensors", x)
    assert apart(loaded, second, x) == 0
    fxprune.verify(model, second, x)


def test_train_mode_and_gradients() -> None:
    model, x = silent("bare padded")
    slim = slimmed(model, x, "exact").train()
    slim(x).square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in slim.parameters())


def test_float32_is_proved_too() -> None:
    for kind in ("bias", "norm", "bare padded"):
        model, x = silent(kind)
        slim = slimmed(model.float(), x.float(), "exact")
        assert fxprune.absorption_of(slim).exact
        assert apart(slim, model, x.float()) <= 1e-5
        assert all(p.dtype == torch.float32 for p in slim.parameters())


@pytest.mark.parametrize("kind", ["bias", "bare padded"])
def test_exports(kind: str) -> None:
    model, x = silent(kind)
    slim = slimmed(model, x, "exact")
    program = torch.export.export(slim, (x,))
    torch.testing.assert_close(program.module()(x), slim(x))
    traced = torch.jit.trace(slim, x)  # type: ignore[no-untyped-call]
    torch.testing.assert_close(traced(x), slim(x))


def test_the_difference_of_several_rounds_is_that_of_the_last() -> None:
    torch.manual_seed(0)
    model = randomise(Kinds("padded"))
    x = torch.randn(2, 3, 9, 9, dtype=torch.float64)
    first = fxprune.slim(model, 0.3, x)
    second = fxprune.slim(first, 0.3, x)
    for given, slim in ((model, first), (first, second)):
        with torch.no_grad():
            expected = given(x)
            worst = float((slim(x) - expected).abs().max() / expected.abs().max())
        assert fxprune.absorption_of(slim).difference == pytest.approx(worst)
        assert worst > 1e-3
        assert "differ from the given model's" in str(fxprune.absorption_of(slim))
    assert math.isnan(fxprune.absorption_of(fxprune.slim(first, 0.3, x, verify=False)).difference)


def test_off_is_the_paper() -> None:
    model, x = silent("plain")
    slim = slimmed(model, x, False)
    assert fxprune.absorption_of(slim) == Absorption()
    assert "dropped" in str(fxprune.absorption_of(slim))
    assert math.isnan(fxprune.absorption_of(slim).difference)
    assert set(slim.state_dict()) == set(model.state_dict())


def test_denormals_are_flushed() -> None:
    model, x = silent("bias")
    model.float()
    with torch.no_grad():
        model.second.weight[0, 4] = 1e-40  # type: ignore[index, operator]
        model.second.weight[0, 5] = 1e-37  # type: ignore[index, operator]
    slim = slimmed(model, x.float(), True)
    row = slim.get_submodule("second").weight[0].detach()
    assert float(row[1].abs().max()) == 0
    assert float(row[2].min()) == pytest.approx(1e-37)


@pytest.mark.parametrize("traced", [True, False])
def test_no_slim_model_holds_denormals(traced: bool) -> None:
    """Weights and statistics, also of a model that no tracer takes."""

    class Deciding(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.inner(x)
            return y if traced or float(y.detach().sum()) > 0 else -y

    model = Deciding(nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 2, 1)))
    state = model.state_dict()
    for name in ("inner.0.weight", "inner.1.bias", "inner.1.running_mean", "inner.1.running_var"):
        state[name].reshape(-1)[::3] = 1e-40
    slim: nn.Module = fxprune.slim(model.eval(), 0.3, torch.randn(2, 3, 6, 6))
    assert isinstance(slim, fx.GraphModule) == traced
    tiny = torch.finfo(torch.float32).tiny
    assert all(bool(((t == 0) | (t.abs() >= tiny)).all()) for t in slim.state_dict().values() if t.is_floating_point())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("way", ["closed form", "data"])
def test_readers_hear_the_original_with_frozen_channels(kind: str, way: str) -> None:
    """The oracle: the original in which removed channels, whatever their gamma, are frozen to the constants that the report names."""
    torch.manual_seed(0)
    model = randomise(Kinds(kind))
    x = torch.randn(2, 3, 9, 10, dtype=torch.float64)
    slim = slimmed(model, x, "exact" if way == "closed form" else [x])
    fold = fxprune.absorption_of(slim).folds[0]
    assert not fxprune.absorption_of(slim).exact

    def freeze(_module: nn.Module, _inputs: Any, output: Tensor) -> Tensor:
        frozen = output.clone()
        frozen[:, list(fold.atoms)] = torch.tensor(fold.values, dtype=torch.float64).reshape(-1, 1, 1)
        return frozen

    if kind == "twice":
        return  # its two calls hear two constants
    hook = model.act.register_forward_hook(freeze)  # type: ignore[union-attr, operator]
    with torch.no_grad():
        expected = model(x)
    hook.remove()  # type: ignore[union-attr]
    apart_by = (slim(x).detach() - expected).abs()
    unpadded = kind in ("plain", "bias", "norm", "reflected")
    if way == "closed form" or unpadded:
        assert float(apart_by.max()) <= 1e-12
    elif kind not in ("up", "strided"):
        assert float(apart_by[:, :, 2:-2, 2:-2].max()) <= 1e-12
