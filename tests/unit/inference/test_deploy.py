"""Deployed networks: the same outputs in exact arithmetic, nothing folded that must not be, the given model untouched, never slower."""

from __future__ import annotations

import copy
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.export import Dim
from torchvision.ops import FrozenBatchNorm2d, stochastic_depth

import fxprune
from fxprune import latency
from fxprune.errors import BudgetError, InputError
from fxprune.inference import deploy, deployment_of, fold
from fxprune.inference.observe import difference, flushed
from tests.models.exporting import NETS
from tests.unit.api.nets import Chain, Residual, image, run, seeded

EXACT = 1e-9


def norms(model: nn.Module) -> list[str]:
    return [type(m).__name__ for m in model.modules() if "Norm" in type(m).__name__]


def deployed(model: nn.Module, x: Tensor, *, gone: int | None = None) -> nn.Module:
    """Folded without timing; equal in float64, the model unchanged."""
    before = {k: v.clone() for k, v in model.state_dict().items()}
    expected = run(copy.deepcopy(model).eval(), x)
    mode = model.training
    result = deploy(model, x, seconds=0)
    assert difference([run(result, x)], [expected]) <= EXACT
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert model.training == mode
    assert not result.training
    assert not any(p.requires_grad for p in result.parameters())
    if gone is not None:
        assert len(deployment_of(result).folded) == gone, deployment_of(result)
    return result


class Module(nn.Module):
    """Parts by name, and a function of them."""

    def __init__(self, function: Callable[[Any, Tensor], Tensor], **parts: nn.Module) -> None:
        super().__init__()
        self.function = function
        for name, part in parts.items():
            self.add_module(name, part)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


def net(function: Callable[[Any, Tensor], Tensor], **parts: nn.Module) -> nn.Module:
    return seeded(Module(function, **parts))


def test_a_slim_network_is_folded_and_keeps_a_free_batch_size() -> None:
    slim = fxprune.slim(seeded(Residual()), 0.4, image())
    result = deployed(slim, image(), gone=3)
    assert norms(result) == []
    for count in (1, 3):
        x = image(count, 3, 12, 10)
        assert difference([run(result, x)], [run(slim, x)]) <= EXACT
    with pytest.raises(fxprune.PlanMismatchError):
        fxprune.plan_of(result)


@pytest.mark.parametrize("name", NETS)
def test_networks_of_every_kind(name: str) -> None:
    """In float32, as they are used."""
    chosen = NETS[name]
    slim = fxprune.slim(chosen.model(), chosen.ratio, chosen.batch(2), verify=False)
    result = deploy(slim, chosen.batch(2), seconds=0)
    told = deployment_of(result)
    assert told.chosen == "folded"
    for count in (1, 5):
        assert difference([run(result, chosen.batch(count))], [run(slim, chosen.batch(count))]) <= 1e-5


@pytest.mark.parametrize(
    ("conv", "norm", "shape"),
    [
        (nn.Conv1d(3, 8, 3), nn.BatchNorm1d(8), (2, 3, 9)),
        (nn.Conv2d(4, 8, 3, groups=2, bias=False), nn.BatchNorm2d(8), (2, 4, 6, 6)),
        (nn.Conv3d(3, 6, 2), nn.BatchNorm3d(6, affine=False), (2, 3, 4, 4, 4)),
        (nn.ConvTranspose2d(3, 6, 3, stride=2), nn.BatchNorm2d(6), (2, 3, 5, 5)),
        (nn.ConvTranspose2d(6, 9, 3, groups=3, bias=False), nn.BatchNorm2d(9), (2, 6, 5, 5)),
        (nn.Conv2d(3, 6, 3, padding=1, padding_mode="reflect"), nn.BatchNorm2d(6), (2, 3, 5, 5)),
        (nn.Linear(5, 7, bias=False), nn.BatchNorm1d(7), (4, 5)),
        (nn.Conv2d(3, 6, 3), nn.SyncBatchNorm(6), (2, 3, 5, 5)),
        (nn.Conv2d(3, 6, 3), FrozenBatchNorm2d(6), (2, 3, 5, 5)),
    ],
    ids=lambda v: type(v).__name__ if isinstance(v, nn.Module) else None,
)
def test_every_pair_of_layer_and_norm(conv: nn.Module, norm: nn.Module, shape: tuple[int, ...]) -> None:
    result = deployed(seeded(nn.Sequential(conv, norm, nn.ReLU())), image(*shape))
    assert norms(result) == []
    assert [n.op for n in result.graph.nodes].count("call_module") == 2


class Bordered(nn.Module):
    """Convolutions whose inputs lose channels with constants left, zero padding between."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.bn1 = nn.Conv2d(3, 12, 3, padding=1), nn.BatchNorm2d(12)
        self.two, self.bn2 = nn.Conv2d(12, 8, 3, padding=1, stride=2, bias=False), nn.BatchNorm2d(8)
        self.three, self.bn3 = nn.ConvTranspose2d(8, 6, 3, padding=1, output_padding=1, stride=2), nn.BatchNorm2d(6)
        self.last = nn.Conv2d(6, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.one(x)))
        x = F.relu(self.bn2(self.two(x)))
        return self.last(F.relu(self.bn3(self.three(x))))


def test_norms_behind_border_maps_are_folded() -> None:
    slim = fxprune.slim(seeded(Bordered()), 0.5, image(), absorb="exact")
    maps = [node for node in slim.graph.nodes if "absorbed" in node.name and node.op == "call_function"]
    assert len(maps) == 2
    result = deployed(slim, image(), gone=3)
    assert not norms(result)
    run(result, image(3, 3, 12, 10))


def test_a_convolution_read_by_two_norms_stays() -> None:
    model = net(lambda m, x: m.a(y := m.conv(x)) + m.b(y), conv=nn.Conv2d(3, 4, 3), a=nn.BatchNorm2d(4), b=nn.BatchNorm2d(4))
    result = deployed(model, image(), gone=0)
    assert deployment_of(result).left.keys() == {"a", "b"}
    assert "2 nodes read 'conv'" in deployment_of(result).left["a"]


def test_a_shared_convolution_is_folded_per_call() -> None:
    model = net(
        lambda m, x: m.b(m.conv(m.a(m.conv(x)))) + m.conv(x), conv=nn.Conv2d(3, 3, 1), a=nn.BatchNorm2d(3), b=nn.BatchNorm2d(3)
    )
    result = deployed(model, image(), gone=2)
    assert sum(isinstance(m, nn.Conv2d) for m in result.modules()) == 3


def test_a_norm_shared_by_two_convolutions_is_folded_into_both() -> None:
    model = net(
        lambda m, x: m.bn(m.a(x)) + m.bn(m.b(x)), a=nn.Conv2d(3, 4, 1), b=nn.Conv2d(3, 4, 1, bias=False), bn=nn.BatchNorm2d(4)
    )
    assert norms(deployed(model, image(), gone=2)) == []


def test_one_module_called_twice_with_one_norm_is_folded_once() -> None:
    model = net(lambda m, x: m.bn(m.conv(x)) * m.conv(x), conv=nn.Conv2d(3, 4, 1), bn=nn.BatchNorm2d(4))
    deployed(model, image(), gone=1)


def test_pre_activation_norms_stay_with_a_reason() -> None:
    model = net(lambda m, x: m.b(F.relu(m.bn(m.pool(x)))), pool=nn.MaxPool2d(2), bn=nn.BatchNorm2d(3), b=nn.Conv2d(3, 4, 1))
    told = deployment_of(deployed(model, image(), gone=0))
    assert "no convolution or linear layer" in told.left["bn"]


class Functional(nn.Module):
    """Everything by functions of raw parameters; ``twice``: the weight is read by another convolution too."""

    def __init__(self, *, training: bool = False) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.zeros(6, 3, 3, 3)), nn.Parameter(torch.zeros(6))
        self.gamma, self.beta = nn.Parameter(torch.zeros(6)), nn.Parameter(torch.zeros(6))
        self.register_buffer("running_mean", torch.zeros(6))
        self.register_buffer("running_var", torch.ones(6))
        self.scale = nn.Parameter(torch.zeros(1, 6, 1, 1))
        self.always = training

    def forward(self, x: Tensor) -> Tensor:
        y = F.conv2d(x, self.weight, stride=1, padding=1)
        flag = True if self.always else self.training
        y = F.batch_norm(y, self.running_mean.clone(), self.running_var, self.gamma, self.beta, flag, 0.1, 1e-3)
        z = F.dropout(F.conv2d(x, self.weight, self.bias, padding=1), 0.5, self.training) * self.scale.exp() + 0.5
        return y + 2 * z - stochastic_depth(y, 0.5, "row", self.training)


def test_functional_norms_convolutions_and_constants() -> None:
    """The norm, and 2 * (z * scale + 0.5), one after the other."""
    result = deployed(seeded(Functional()), image(), gone=4)
    assert deployment_of(result).removed == ("dropout",)


def test_a_functional_norm_is_folded() -> None:
    class Plain(Functional):
        def forward(self, x: Tensor) -> Tensor:
            y = F.conv2d(x, self.weight, padding=1)
            y = F.relu(F.batch_norm(y, self.running_mean, self.running_var, self.gamma, self.beta, self.training))
            return y + F.conv2d(x, self.weight, self.bias, padding=1) * self.scale.exp()

    result = deployed(seeded(Plain()).train(), image(), gone=2)
    assert not any("norm" in str(n.target) for n in result.graph.nodes)


def test_a_norm_that_always_uses_the_batch_stays() -> None:
    deployed(seeded(Functional(training=True)), image(), gone=0)


def test_a_linear_layer_before_a_norm_over_another_dimension_stays() -> None:
    model = seeded(nn.Sequential(nn.Linear(5, 7), nn.BatchNorm1d(7)))
    deployed(model, image(4, 7, 5), gone=0)
    deployed(model, image(4, 5), gone=1)


def test_layers_with_code_of_their_own_stay() -> None:
    class Standardised(nn.Conv2d):
        def forward(self, x: Tensor) -> Tensor:
            w = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
            return F.conv2d(x, w, self.bias)

    def doubling(_module: nn.Module, _args: Any, output: Tensor) -> Tensor:
        return 2 * output

    hooked = nn.Conv2d(3, 4, 1)
    hooked.register_forward_hook(doubling)
    parametrized = nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 4, 1))
    for conv in (Standardised(3, 4, 1), hooked, parametrized):
        deployed(seeded(nn.Sequential(conv, nn.BatchNorm2d(4))), image())


def test_a_network_that_changes_a_buffer_is_not_frozen() -> None:
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 1)
            self.register_buffer("state", torch.zeros(1, 4, 1, 1))

        def forward(self, x: Tensor) -> Tensor:
            self.state.add_(1)
            return self.conv(x) * self.state.exp()

    model = seeded(Counting())
    model.state.zero_()
    result = deploy(model, image(), seconds=0)
    assert "changes its buffer 'state'" in deployment_of(result).reason
    assert not model.state.any()
    before = run(result, image())
    assert not torch.equal(before, run(result, image()))


def test_activations_in_place_change_nothing_that_is_seen() -> None:
    parts = {"a": nn.Conv2d(3, 3, 1), "b": nn.Conv2d(3, 3, 1), "act": nn.ReLU()}
    model = net(lambda m, x: m.act(m.a(x)) + F.silu(m.b(x)) + m.act(m.b(m.act(x))) * 2, **parts)
    x = image()
    kept = x.clone()
    result = deploy(model, x, seconds=0.01)
    told = {c.name: c for c in deployment_of(result).candidates}
    assert told["in place"].error <= EXACT
    assert told["in place"].dropped == ""
    assert torch.equal(x, kept)


def test_what_is_read_twice_is_not_overwritten() -> None:
    model = net(lambda m, x: F.relu(y := m.a(x)) + y, a=nn.Conv2d(3, 4, 1))
    told = {c.name: c for c in deployment_of(deploy(model, image(), seconds=0.01)).candidates}
    assert all(c.error <= EXACT for c in told.values())
    model = net(lambda _, x: F.relu(x) + x)
    x = image()
    kept = x.clone()
    deploy(model, x, seconds=0.01)(x)
    assert torch.equal(x, kept)


@pytest.mark.parametrize(
    "function", [lambda _, x: F.relu(x), lambda _, x: x + x.mean(), lambda _, x: F.relu(x.transpose(0, 1)) + 1]
)
def test_what_the_caller_gave_is_not_overwritten(function: Callable[[Any, Tensor], Tensor]) -> None:
    model, x = net(lambda m, x: m.a(function(m, x)), a=nn.Conv2d(3, 4, 1)), image(3, 3, 8, 8)
    kept = x.clone()
    expected = run(model, x)
    for form in ("as given", "folded", "in place", "channels last"):
        assert difference([run(deploy(model, x, form=form), x)], [expected]) <= EXACT
        assert torch.equal(x, kept), form


def test_inputs_are_only_read_by_those_who_measure() -> None:
    class Writing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 8, 3)
            self.last = nn.Conv2d(8, 4, 1)

        def forward(self, x: Tensor, by: Tensor | None = None) -> Tensor:
            x.mul_(0.5)
            return self.last(self.conv(x if by is None else x + by.mul_(2)).relu())

    x = image(dtype=torch.float32)
    inputs = {"x": x, "by": torch.ones(1)}
    before = x.clone()
    deploy(Writing(), inputs, seconds=1e-9)
    latency.seconds_of(Writing(), x, seconds=1e-9)
    latency.measure(Writing(), inputs, cache=None, rounds=1, show=False)
    assert torch.equal(x, before)
    assert inputs["by"] == 1


def test_a_form_can_be_asked_for() -> None:
    slim = fxprune.slim(seeded(Chain()), 0.4, image())
    assert deployment_of(deploy(slim, image(), form="as given")).chosen == "as given"
    assert deployment_of(deploy(slim, image(), form="in place")).chosen == "in place"
    last = deploy(slim, image(), form="channels last")
    assert last.conv2.weight.is_contiguous(memory_format=torch.channels_last)
    assert deployment_of(deploy(seeded(nn.Sequential(nn.Linear(3, 3))), image(2, 3), form="channels last")).chosen == "folded"
    with pytest.raises(BudgetError, match="form must be one of"):
        deploy(slim, image(), form="fast")


def test_the_untouched_copy_wins_where_nothing_is_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    home = sys.modules["fxprune.inference.deploy"]  # its name in the package is the function's
    slim = fxprune.slim(seeded(Chain()), 0.4, image())
    for fastest in range(4):
        monkeypatch.setattr(home, "interleaved", lambda calls, *_, f=fastest: [[1.0 + (i != f)] for i in range(len(calls))])
        result = deploy(slim, image())
        names = [c.name for c in deployment_of(result).candidates]
        assert deployment_of(result).chosen == names[fastest]
        assert norms(result) == (["BatchNorm2d"] * 2 if fastest == 0 else [])
    monkeypatch.setattr(home, "interleaved", lambda calls, *_: [[1.0]] * len(calls))
    assert deployment_of(deploy(slim, image())).chosen == "as given", "a tie"


def test_a_wrong_candidate_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fold, "scaled", lambda layer, _, shift: (layer.weight * 1.01, shift.to(layer.weight.dtype)))
    result = deploy(seeded(Chain()), image(), seconds=0)
    told = {c.name: c for c in deployment_of(result).candidates}
    assert deployment_of(result).chosen == "as given"
    assert "outputs differ by" in told["folded"].dropped


def test_views_of_channels_last_activations_still_work() -> None:
    model = net(lambda m, x: m.fc(m.a(x).view(x.shape[0], -1)), a=nn.Conv2d(3, 4, 1), fc=nn.Linear(4 * 64, 3))
    told = {c.name: c for c in deployment_of(deploy(model, image(), seconds=0.01)).candidates}
    assert told["channels last"].dropped == ""
    assert told["channels last"].error <= EXACT


def test_an_eager_slim_model_comes_back_in_its_class_with_a_reason() -> None:
    class Deciding(Chain):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) if float(x.sum()) != 0.125 else x

    slim = fxprune.slim(seeded(Deciding()).train(), 0.4, image())
    assert type(slim) is Deciding
    result = deploy(slim, image())
    assert type(result) is Deciding
    assert torch.equal(run(result, image()), run(slim.eval(), image()))
    assert "cannot be traced" in deployment_of(result).reason
    assert deployment_of(result).chosen == "as given"


def test_denormals_become_zero() -> None:
    x = torch.tensor([1e-40, -1e-39, 0.0, 1e-37, -2.0])
    assert flushed(x).tolist() == [0.0, 0.0, 0.0, x[3].item(), -2.0]
    model = Chain().eval()
    nn.init.constant_(model.bn1.weight, 1e-42)
    result = deploy(model, image(dtype=torch.float32), seconds=0)
    assert all(torch.equal(flushed(p), p) for p in result.parameters())


def test_denormals_among_buffers_become_zero_and_the_untouched_copy_keeps_its_own() -> None:
    class Held(Chain):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Buffer(torch.full((3, 1, 1), 1e-20))
            self.shift = nn.Buffer(torch.tensor([1e-41, 0.0, 1.0]).view(3, 1, 1))
            self.many = nn.Buffer(torch.tensor(3))

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = super().forward(
                F.batch_norm(x + self.shift + self.scale * self.scale, self.shift.flatten(), 1 + self.scale.flatten())
            )
            return y * self.many

    model, x = Held().eval(), image(dtype=torch.float32)
    result = deploy(model, x, seconds=0)
    floats = {name: b for name, b in result.named_buffers() if b.is_floating_point()}
    assert any(name.startswith("_constant") for name in floats)
    assert all(torch.equal(flushed(b), b) for b in floats.values())
    assert difference([run(result, x)], [run(model, x)]) <= 1e-5
    assert torch.equal(deploy(model, x, form="as given").shift, model.shift)
    assert float(model.shift[0]) > 0


def test_example_inputs_may_be_left_out() -> None:
    assert norms(deploy(seeded(Chain()), seconds=0)) == []


def test_bad_arguments() -> None:
    with pytest.raises(BudgetError, match="seconds"):
        deploy(Chain(), image(), seconds=-1)
    with pytest.raises(InputError, match=r"nn\.Module"):
        deploy(3, image())
    with pytest.raises(InputError, match="the model fails"):
        deploy(Chain(), image(2, 5, 8, 8, dtype=torch.float32))
    with pytest.raises(InputError, match="not made by"):
        deployment_of(Chain())


def test_it_is_copied_exported_and_compiled(tmp_path: Path) -> None:
    slim = fxprune.slim(seeded(Residual(), dtype=torch.float32), 0.4, image(dtype=torch.float32))
    x = image(dtype=torch.float32)
    result = deploy(slim, x, seconds=0.01)
    expected = run(slim, x)
    assert torch.equal(run(copy.deepcopy(result), x), run(result, x))
    assert deployment_of(copy.deepcopy(result)) == deployment_of(result)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.export.export(result, (x,), dynamic_shapes=({0: Dim("batch", min=1, max=64)},)).module()
        compiled = torch.compile(result, backend="aot_eager", dynamic=True)
        for count in (1, 3):
            y = image(count, 3, 8, 8, dtype=torch.float32)
            for runner in (program, compiled):
                assert difference([run(runner, y)], [run(slim, y)]) <= 1e-5
        traced = torch.jit.trace(result, x)
    assert difference([run(traced, x)], [expected]) <= 1e-5


@pytest.mark.slow
def test_onnx(tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    slim = fxprune.slim(seeded(Residual(), dtype=torch.float32), 0.4, image(dtype=torch.float32))
    x = image(dtype=torch.float32)
    result = deploy(slim, x)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        shapes = ({0: Dim("batch", min=1, max=64)},)
        torch.onnx.export(result, (x,), tmp_path / "m.onnx", dynamo=True, dynamic_shapes=shapes, verbose=False)
    session = runtime.InferenceSession(tmp_path / "m.onnx", providers=["CPUExecutionProvider"])
    for count in (1, 3):
        y = image(count, 3, 8, 8, dtype=torch.float32)
        (found,) = session.run(None, {session.get_inputs()[0].name: y.numpy()})
        assert difference([torch.from_numpy(found)], [run(slim, y)]) <= 1e-5
