"""channel_prune: what it must get right, on networks for which the answer is known or can be worked out another way."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import fxprune
from fxprune import reconstruct
from tests.unit.reconstruct.nets import Chain, Dense, Grouped, Residual, Shared, Tokens, conv, outputs, pictures, ready

NETS: dict[str, Callable[[], nn.Module]] = {
    "chain": Chain,
    "residual": Residual,
    "shared": Shared,
    "grouped": Grouped,
    "dense": Dense,
}


def apart(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max() / a.abs().max())


@pytest.mark.parametrize("select", ["lasso", "elimination", "magnitude"])
@pytest.mark.parametrize("name", NETS)
def test_a_refit_brings_every_layer_nearer(name: str, select: str) -> None:
    model, images = ready(NETS[name]()), pictures()
    slim = reconstruct.channel_prune(model, images, ratio=0.4, select=select)
    report = reconstruct.report_of(slim)
    assert report.layers
    for layer in report.layers:
        assert layer.kept < layer.inputs
        assert layer.after <= layer.before + 1e-12
    for layer in {layer.name: layer for layer in report.layers}.values():  # a reader of two groups is refitted twice
        module = slim.get_submodule(layer.name)
        assert layer.kept == module.weight.shape[1] * getattr(module, "groups", 1)
    assert sum(p.numel() for p in slim.parameters()) < sum(p.numel() for p in model.parameters())


def test_tokens() -> None:
    model = ready(Tokens())
    batches = [torch.randn(8, 5, 6, dtype=torch.float64) for _ in range(6)]
    slim = reconstruct.channel_prune(model, batches, ratio=0.5)
    assert [(layer.name, layer.kept) for layer in reconstruct.report_of(slim).layers] == [("down", 8)]
    reasons = dict(reconstruct.report_of(slim).skipped)
    assert "residual stream" in reasons["embed"] or "hears" in reasons["embed"]


def with_copies(parts: int) -> Chain:
    """A chain whose first convolution makes every channel several times; what reads them gets shares of a weight."""
    small, model = ready(Chain(6)), ready(Chain(6 * parts))
    shares = torch.tensor([0.7, 0.2, 0.1][:parts], dtype=torch.float64)
    with torch.no_grad():
        model.load_state_dict(
            {
                name: value.repeat(parts, *[1] * (value.dim() - 1))
                if name.startswith(("conv1.", "bn1.")) and value.dim()
                else value
                for name, value in small.state_dict().items()
                if name != "conv2.weight"
            },
            strict=False,
        )
        model.conv2.weight.copy_(torch.cat([share * small.conv2.weight for share in shares], 1))
    return model


@pytest.mark.parametrize("parts", [2, 3])
def test_copies_are_found_and_the_refit_is_exact(parts: int) -> None:
    model, images = with_copies(parts), pictures()
    slim = reconstruct.channel_prune(model, images, ratios={"conv1": 1 - 1 / parts})
    plan = fxprune.plan_of(slim)
    assert sorted(row % 6 for row in plan.kept["conv1.weight"][0]) == list(range(6)), "a channel is gone with all its copies"
    assert apart(outputs(model, pictures(seed=9)), outputs(slim, pictures(seed=9))) <= 1e-6


def test_linear_combinations_are_found_and_the_refit_is_exact() -> None:
    """Ten channels span what sixteen do, without a nonlinearity between; the six others carry less."""
    torch.manual_seed(0)
    model = (
        nn.Sequential(conv(3, 16, 5), conv(16, 7), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(7, 4))
        .double()
        .eval()
    )
    with torch.no_grad():
        model[0].weight[10:] = torch.einsum("ij,jklm->iklm", torch.randn(6, 10).double() / 10, model[0].weight[:10])
        model[1].weight[:, 10:] *= 0.3
    images = pictures(128)
    slim = reconstruct.channel_prune(model, images, ratios={"0": 6 / 16})
    assert fxprune.plan_of(slim).kept["0.weight"][0] == tuple(range(10))
    assert apart(outputs(model, pictures(seed=9)), outputs(slim, pictures(seed=9))) <= 1e-6


@pytest.mark.parametrize("refine", [0, 2])
def test_one_output_with_any_combinations_keeps_a_basis(refine: int) -> None:
    """With one output every choice of as many independent channels is right, and the LASSO makes one."""
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(9, 12), nn.Linear(12, 1, bias=False)).double()
    with torch.no_grad():
        model[0].weight[5:] = torch.randn(7, 5).double() @ model[0].weight[:5]
        model[0].bias.zero_()
    batches = [torch.randn(50, 9, dtype=torch.float64) for _ in range(4)]
    slim = reconstruct.channel_prune(model, batches, ratio=7 / 12, refine=refine)
    assert slim.get_submodule("0").out_features == 5
    assert apart(outputs(model, batches), outputs(slim, batches)) <= 1e-6


def rows_by_hand(module: nn.Module, model: nn.Module, batches: list[Tensor]) -> tuple[np.ndarray, np.ndarray]:
    """Unfolded inputs ``(n, columns)`` and outputs ``(n, rows)`` of a 3x3 convolution, by a hook."""
    x, y = [], []

    def hook(own: Any, args: Any, output: Tensor) -> None:
        x.append(F.unfold(args[0], 3, padding=1, stride=own.stride).transpose(1, 2).flatten(0, 1))
        y.append(output.flatten(2).transpose(1, 2).flatten(0, 1))

    handle = module.register_forward_hook(hook)
    outputs(model, batches)
    handle.remove()
    return torch.cat(x).numpy(), torch.cat(y).numpy()


def test_weights_and_norm_are_those_of_least_squares_on_all_rows() -> None:
    """Against numpy on raw rows: what the layer read and put out in the original, for the channels that stayed."""
    model, images = ready(Chain()), pictures()
    slim = reconstruct.channel_prune(model, images, ratios={"conv1": 0.5}, positions=64)
    kept = list(fxprune.plan_of(slim).kept["conv1.weight"][0])
    x, y = rows_by_hand(model.conv2, model, images)
    columns = np.concatenate([np.arange(9) + 9 * c for c in kept])
    solution, *_ = np.linalg.lstsq(np.concatenate([x[:, columns], np.ones((len(x), 1))], 1), y, rcond=None)
    found = slim.get_submodule("conv2").weight.detach().flatten(1).numpy()
    assert np.allclose(found.T, solution[:-1], rtol=0, atol=1e-9)
    shift = (model.bn2.running_mean - slim.get_submodule("bn2").running_mean).numpy()
    assert np.allclose(shift, solution[-1], rtol=0, atol=1e-9)
    assert np.array_equal(slim.get_submodule("conv1").weight.detach(), model.conv1.weight.detach()[kept])


def test_the_end_of_a_branch_makes_up_for_the_shortcut() -> None:
    """Against numpy: the second block's last convolution is asked for what the stream lost in the first block."""
    model, images = ready(Residual()), pictures()
    slim = reconstruct.channel_prune(model, images, ratios={"a1": 0.5, "b1": 0.5}, positions=64)
    half = reconstruct.channel_prune(model, images, ratios={"a1": 0.5}, positions=64)
    streams: list[list[Tensor]] = [[], []]
    for net, seen in zip((model, half), streams, strict=True):
        handle = net.get_submodule("b1").register_forward_pre_hook(lambda _, args, seen=seen: seen.append(args[0].clone()))
        outputs(net, images)
        handle.remove()
    lost = torch.cat(streams[0]) - torch.cat(streams[1])
    kept = list(fxprune.plan_of(slim).kept["b1.weight"][0])
    x, _ = rows_by_hand(half.get_submodule("b2"), half, images)
    _, y = rows_by_hand(model.b2, model, images)
    norm = model.m2
    worth = (norm.weight / (norm.running_var + norm.eps).sqrt()).detach().numpy()
    wanted = y + lost.flatten(2).transpose(1, 2).flatten(0, 1).numpy() / worth
    columns = np.concatenate([np.arange(9) + 9 * c for c in kept])
    solution, *_ = np.linalg.lstsq(np.concatenate([x[:, columns], np.ones((len(x), 1))], 1), wanted, rcond=None)
    assert np.allclose(slim.get_submodule("b2").weight.detach().flatten(1).numpy().T, solution[:-1], rtol=0, atol=1e-8)


def test_two_readers_are_treated_jointly_and_both_are_refitted() -> None:
    model, images = ready(Shared()), pictures()
    slim = reconstruct.channel_prune(model, images, ratios={"first": 0.5})
    layers = {layer.name: layer for layer in reconstruct.report_of(slim).layers}
    assert layers.keys() == {"left", "right"}
    assert slim.get_submodule("depthwise").weight.shape[0] == 6
    assert all(layer.kept == 6 for layer in layers.values())


def test_groups_of_a_convolution_keep_equally_many() -> None:
    slim = reconstruct.channel_prune(ready(Grouped()), pictures(), ratio=0.5)
    assert slim.get_submodule("b").weight.shape == (9, 2, 3, 3)
    kept = fxprune.plan_of(slim).kept["a.weight"][0]
    assert [sum(c // 4 == block for c in kept) for block in range(3)] == [2, 2, 2]


def test_a_stream_is_skipped_unless_it_is_named() -> None:
    model, images = ready(Residual()), pictures()
    slim = reconstruct.channel_prune(model, images, ratio=0.5)
    assert slim.get_submodule("stem").out_channels == 8
    assert "stays whole" in dict(reconstruct.report_of(slim).skipped)["stem"]
    named = reconstruct.channel_prune(model, images, ratios={"a2": 0.5, "?1": 0.2}, layout="selection", branches=0.5)
    assert fxprune.plan_of(named).layout == "coupled", "who reads a stream that is cut as a whole selects nothing of it"
    assert named.get_submodule("stem").out_channels == named.get_submodule("b2").out_channels == 4


@pytest.mark.parametrize(
    "how", [{}, {"select": "random"}, {"select": "magnitude", "refit": False}, {"refine": 2}, {"select": "elimination"}]
)
def test_the_same_call_gives_the_same_network(how: dict[str, Any]) -> None:
    model, images = ready(Residual()), pictures()
    one, other = (reconstruct.channel_prune(model, images, ratio=0.5, **how).state_dict() for _ in range(2))
    assert all(torch.equal(value, other[name]) for name, value in one.items())


def test_the_seed_decides_positions_and_random_choices() -> None:
    model, images = ready(Residual()), pictures()
    kept = [
        fxprune.plan_of(reconstruct.channel_prune(model, images, ratio=0.5, select="random", seed=seed)).kept["a1.weight"][0]
        for seed in (0, 1)
    ]
    assert kept[0] != kept[1]


def test_the_model_and_the_images_stay_as_they_are() -> None:
    model, images = ready(Chain()).train(), pictures()
    model.conv1.requires_grad_(False)
    model.fc.eval()
    before, batches = copy.deepcopy(model.state_dict()), [batch.clone() for batch in images]
    slim = reconstruct.channel_prune(model, images, ratio=0.5)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(torch.equal(a, b) for a, b in zip(images, batches, strict=True))
    assert model.training
    assert slim.training
    assert not slim.get_submodule("fc").training
    assert not slim.get_submodule("conv1").weight.requires_grad
    assert slim.get_submodule("conv2").weight.requires_grad
    slim(images[0]).sum().backward()


def test_the_plan_is_kept_saved_and_loaded(tmp_path: Any) -> None:
    model, images = ready(Residual()), pictures()
    slim = reconstruct.channel_prune(model, images, ratio=0.5)
    plan = fxprune.plan_of(slim)
    assert plan.score == "lasso + refit"
    assert plan.asked == 0.5
    again = fxprune.apply(ready(Residual(), 5), plan, images[0])
    again.load_state_dict(slim.state_dict())
    assert torch.equal(outputs(again, images), outputs(slim, images))
    fxprune.save(slim, tmp_path / "slim.fxp")
    loaded = fxprune.load(ready(Residual(), 7), tmp_path / "slim.fxp")
    assert torch.equal(outputs(loaded, images), outputs(slim, images))
    assert fxprune.plan_of(loaded) == plan
    assert str(reconstruct.report_of(copy.deepcopy(slim))) == str(reconstruct.report_of(slim))
    smaller = fxprune.slim(slim, 0.3, images[0])
    assert smaller.get_submodule("a1").out_channels < slim.get_submodule("a1").out_channels


def test_a_second_round() -> None:
    model, images = ready(Residual()), pictures()
    first = reconstruct.channel_prune(model, images, ratio=0.4)
    second = reconstruct.channel_prune(first, images, ratio=0.5)
    assert second.get_submodule("a1").out_channels == 3
    assert set(fxprune.plan_of(second).kept["a1.weight"][0]) < set(fxprune.plan_of(first).kept["a1.weight"][0])


def test_the_widths_of_a_plan_with_channels_chosen_anew() -> None:
    model, images = ready(Residual()), pictures()
    graph = fxprune.analyze(model, images[0], keep=["stem"])
    plan = fxprune.plan(graph, 0.4, score="random")
    slim = reconstruct.channel_prune(model, images, plan=plan)
    own = fxprune.plan_of(slim)
    for name in ("a1.weight", "b1.weight"):
        assert len(own.kept[name][0]) == len(plan.kept[name][0])
    assert own.kept != plan.kept


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_other_dtypes_stay(dtype: torch.dtype) -> None:
    model = ready(Chain()).to(dtype)
    slim = reconstruct.channel_prune(model, [batch.to(dtype) for batch in pictures()], ratio=0.5)
    assert {p.dtype for p in slim.parameters()} == {dtype}
    assert slim(pictures()[0].to(dtype)).isfinite().all()


def test_batches_may_carry_labels_or_names() -> None:
    model, images = ready(Chain()), pictures()
    plain = reconstruct.channel_prune(model, images, ratio=0.5)
    for batches in ([(x, torch.zeros(len(x))) for x in images], [[x] for x in images], [{"x": x} for x in images]):
        other = reconstruct.channel_prune(model, batches, ratio=0.5)
        assert torch.equal(outputs(plain, images), outputs(other, images))


def test_progress_is_told_only_when_asked(capfd: pytest.CaptureFixture[str]) -> None:
    model, images = ready(Chain()), pictures()
    reconstruct.channel_prune(model, images, ratio=0.5)
    assert capfd.readouterr() == ("", "")
    reconstruct.channel_prune(model, images, ratio=0.5, progress=True)
    told = capfd.readouterr()
    assert told.out == ""
    assert "conv2" in told.err


def test_as_many_images_as_asked_are_used() -> None:
    model, images = ready(Chain()), pictures(64)
    slim = reconstruct.channel_prune(model, images, ratio=0.5, images=20, positions=3)
    assert reconstruct.report_of(slim).layers[0].rows == 32 * 3  # whole batches of 16


def test_a_score_of_ones_own_chooses() -> None:
    model = ready(Chain())
    slim = reconstruct.channel_prune(model, pictures(), ratio=0.5, select=lambda group: torch.arange(len(group)))
    assert fxprune.plan_of(slim).kept["conv1.weight"][0] == tuple(range(6, 12))


@pytest.mark.parametrize("name", NETS)
def test_a_cache_changes_nothing_but_the_time(name: str) -> None:
    model, images = ready(NETS[name]()), pictures()
    plain, cached = (reconstruct.channel_prune(model, images, ratio=0.4, cache=cache) for cache in (False, True))
    assert all(torch.equal(value, cached.state_dict()[key]) for key, value in plain.state_dict().items())
    slim = fxprune.slim(model, 0.3, images[0][:2], score="random")
    plain, cached = (reconstruct.repair(model, slim, images, cache=cache) for cache in (False, True))
    assert all(torch.equal(value, cached.state_dict()[key]) for key, value in plain.state_dict().items())


@pytest.mark.parametrize("select", ["lasso", "elimination", "random"])
def test_one_channel_of_every_layer(select: str) -> None:
    for make in (Chain, Residual):
        model, images = ready(make()), pictures()
        slim = reconstruct.channel_prune(model, images, ratio=0.99, select=select)
        assert {layer.kept for layer in reconstruct.report_of(slim).layers} - {4} == {1}  # 4: one channel, flattened
        assert outputs(slim, images).isfinite().all()


@pytest.mark.parametrize("select", ["lasso", "elimination"])
def test_channels_that_are_always_zero_go_first(select: str) -> None:
    model, images = ready(Chain()), pictures()
    with torch.no_grad():
        model.bn1.weight[:7] = 0
        model.bn1.bias[:7] = -1
    slim = reconstruct.channel_prune(model, images, ratios={"conv1": 7 / 12}, select=select)
    assert fxprune.plan_of(slim).kept["conv1.weight"][0] == tuple(range(7, 12))
    assert apart(outputs(model, images), outputs(slim, images)) <= 1e-9
    fewer = reconstruct.channel_prune(
        model, images, ratios={"conv1": 0.25}, select=select
    )  # some of the silent ones have to stay
    assert set(range(7, 12)) < set(fxprune.plan_of(fewer).kept["conv1.weight"][0])
    assert apart(outputs(model, images), outputs(fewer, images)) <= 1e-9


def test_an_error_counts_as_it_arrives_behind_the_norm() -> None:
    """What feeds only outputs that the norm all but silences goes, though in front of the norm it weighs most."""
    model, images = ready(Chain()), pictures()
    with torch.no_grad():
        model.bn2.weight[:5] = 1e-6
        model.conv2.weight[5:, :6] = 0
        model.conv2.weight[:5, :6] *= 100
    slim = reconstruct.channel_prune(model, images, ratios={"conv1": 0.5}, select="elimination")
    assert fxprune.plan_of(slim).kept["conv1.weight"][0] == tuple(range(6, 12))
    with torch.no_grad():  # a norm that silences everything says nothing about which channels matter
        model.bn2.weight.zero_()
    again = reconstruct.channel_prune(model, images, ratios={"conv1": 0.5}, select="elimination")
    assert again.get_submodule("conv1").out_channels == 6


def counted(model: nn.Module, x: Tensor) -> dict[str, float]:
    with FlopCounterMode(display=False) as flops, torch.no_grad():
        model.eval()(x)
    return {"macs": flops.get_total_flops() / 2, "params": sum(p.numel() for p in model.parameters())}


@pytest.mark.parametrize("bound", [{"macs": 0.5}, {"params": 0.4}])
def test_a_budget_is_met(bound: dict[str, float]) -> None:
    model, images = ready(Residual()), pictures()
    slim = reconstruct.channel_prune(model, images, budget=fxprune.Budget(**bound))
    before, after = counted(model, images[0]), counted(slim, images[0])
    for kind, share in bound.items():
        assert 0.9 * share * before[kind] < after[kind] <= share * before[kind]
    assert slim.get_submodule("stem").out_channels == 8
    assert fxprune.plan_of(slim).score == "lasso + refit"
