"""Optimizer state, averages and state dicts in a slim model's coordinates."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import fxprune
from fxprune import train
from fxprune.errors import FxpruneError, PlanMismatchError
from tests.unit.api.nets import Chain, Residual, image, seeded


class Grouped(nn.Module):
    """Grouped and depthwise convolutions, a flatten, and a tied matrix."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 12, 3, padding=1), nn.BatchNorm2d(12)
        self.grouped = nn.Conv2d(12, 16, 3, padding=1, groups=4)
        self.depthwise = nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.one, self.two = nn.Linear(16, 16, bias=False), nn.Linear(16, 16, bias=False)
        self.two.weight = self.one.weight
        self.fc = nn.Linear(16 * 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.stem(x)))
        x = F.relu(self.depthwise(self.grouped(x)))
        x = self.two(F.relu(self.one(x.mean((2, 3)))))
        return self.fc(x[:, :, None].expand(-1, -1, 4).flatten(1))


class TwoGroups(nn.Module):
    """A convolution of two groups between plain ones."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 12, 3, groups=2), nn.Conv2d(12, 3, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(F.relu(self.b(F.relu(self.a(x))))).flatten(1)


def loss(model: nn.Module, images: Tensor) -> Tensor:
    return F.cross_entropy(model(images), torch.arange(len(images)) % 3)


def step(model: nn.Module, optimizer: torch.optim.Optimizer, seed: int) -> None:
    optimizer.zero_grad()
    loss(model, image(6, 3, 8, 8, seed=seed).to(next(model.parameters()).dtype)).backward()
    optimizer.step()


OPTIMIZERS: dict[str, Any] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9, nesterov=True, weight_decay=1e-3),
    "sgd without momentum": lambda p: torch.optim.SGD(p, lr=0.01),
    "adam": lambda p: torch.optim.Adam(p, lr=0.01),
    "amsgrad": lambda p: torch.optim.AdamW(p, lr=0.01, amsgrad=True),
    "nadam": lambda p: torch.optim.NAdam(p, lr=0.01),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.01, momentum=0.5, centered=True),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.01),
    "asgd": lambda p: torch.optim.ASGD(p, lr=0.01),
}


@pytest.mark.parametrize("network", [Chain, Residual, Grouped, TwoGroups])
def test_state_is_cut_as_the_rewriter_cuts_the_parameters(network: type[nn.Module]) -> None:
    model = seeded(network())
    optimizer = torch.optim.Adam(model.parameters(), amsgrad=True)
    step(model, optimizer, 0)
    for parameter in model.parameters():
        for key in ("exp_avg", "exp_avg_sq", "max_exp_avg_sq"):
            optimizer.state[parameter][key].copy_(parameter.detach())
    slim = fxprune.slim(model, 0.5, image(), score="random", absorb=False)
    new = train.remap_optimizer(optimizer, model, slim)
    assert type(new) is torch.optim.Adam
    names = dict(slim.named_parameters())
    assert {id(p) for p in new.param_groups[0]["params"]} == {id(p) for p in names.values()}
    for name, parameter in names.items():
        state = new.state[parameter]
        assert state["step"].item() == 1
        for key in ("exp_avg", "exp_avg_sq", "max_exp_avg_sq"):
            assert torch.equal(state[key], parameter.detach()), name
            assert state[key].data_ptr() != parameter.data_ptr()
    assert any(p.shape != model.get_parameter(name).shape for name, p in names.items())


@pytest.mark.parametrize(("kind", "dtype"), [*((kind, torch.float64) for kind in OPTIMIZERS), ("sgd", torch.float32)])
def test_training_goes_on_as_if_nothing_had_been_removed(kind: str, dtype: torch.dtype) -> None:
    """What is removed here is dead: gamma = beta = 0, so the unpruned network computes the same and moves the same."""
    model = seeded(Chain(), dtype=dtype)
    optimizer = OPTIMIZERS[kind](model.parameters())
    for seed in range(3):
        step(model, optimizer, seed)
    with torch.no_grad():
        for norm, dead in ((model.bn1, [0, 3, 5]), (model.bn2, [1, 2, 7])):
            norm.weight[dead] = 0
            norm.bias[dead] = 0
    slim = fxprune.slim(model, 6 / 18, image(dtype=dtype))
    new = train.remap_optimizer(optimizer, model, slim)
    before = copy.deepcopy(optimizer.state_dict())
    model.train()
    slim.train()
    step(slim, new, 9)
    after = optimizer.state_dict()
    for key, state in before["state"].items():
        for entry, value in state.items():
            assert value is None or torch.equal(value, after["state"][key][entry]), "the old optimizer was touched"
    step(model, optimizer, 9)
    expected = train.remap_state(dict(model.named_parameters()), model, slim)
    close = {"rtol": 1e-9, "atol": 1e-12} if dtype is torch.float64 else {"rtol": 1e-4, "atol": 1e-5}
    for name, parameter in slim.named_parameters():
        torch.testing.assert_close(parameter.detach(), expected[name].detach(), **close)


WRAPPED: dict[str, Callable[[nn.Module], nn.Module]] = {
    "compiled": torch.compile,
    "parallel": nn.DataParallel,
    "both": lambda model: nn.DataParallel(torch.compile(model)),
}


@pytest.mark.parametrize("wrap", list(WRAPPED))
def test_what_wraps_a_model_is_looked_through(wrap: str) -> None:
    model = seeded(Residual())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    step(model, optimizer, 0)
    slim = fxprune.slim(model, 0.4, image())
    expected = train.remap_optimizer(optimizer, model, slim)
    wrapped, small = WRAPPED[wrap](model), WRAPPED[wrap](slim)
    for first, second in ((wrapped, slim), (model, small), (wrapped, small)):
        new = train.remap_optimizer(optimizer, first, second)
        assert [len(g["params"]) for g in new.param_groups] == [len(list(slim.parameters()))]
        for parameter in slim.parameters():
            assert torch.equal(new.state[parameter]["momentum_buffer"], expected.state[parameter]["momentum_buffer"])
        cut = train.remap_state(wrapped.state_dict(), first, second)
        slim.load_state_dict(cut)
        assert train.remap_state(model.state_dict(), first, second).keys() == cut.keys()
    averaged = AveragedModel(model)
    averaged.update_parameters(model)
    average = train.remap_averaged(averaged, wrapped, small, image())
    torch.testing.assert_close(average(image()), fxprune.apply(model, fxprune.plan_of(slim), image())(image()))


def test_a_wrapped_slim_model_is_cut_in_a_second_round_from_where_it_was() -> None:
    first = fxprune.slim(seeded(Residual()), 0.3, image(), score="random", absorb=False)
    second = fxprune.slim(first, 0.4, image(), score="random", absorb=False)
    state = train.remap_state(first.state_dict(), nn.DataParallel(first), second)
    torch.testing.assert_close(state, dict(second.state_dict()))


def test_no_name_in_common_is_refused() -> None:
    model = seeded(Chain())
    slim = fxprune.slim(model, 0.4, image())
    holder = nn.ModuleDict({"net": model})
    with pytest.raises(
        PlanMismatchError, match=r"share no name\. ModuleDict has 'net\.conv1\.weight', \.\.\.; the slim one has 'conv1\.weight'"
    ):
        train.remap_optimizer(torch.optim.SGD(holder.parameters(), lr=0.1), holder, slim)
    with pytest.raises(PlanMismatchError, match=r"this state shares no name with the model: it has 'net\.conv1\.weight'"):
        train.remap_state(holder.state_dict(), model, slim)
    assert train.remap_state({}, model, slim) == {}


def test_groups_keep_their_options_and_members() -> None:
    model = seeded(Residual())
    norms = [p for n, p in model.named_parameters() if "bn" in n]
    others = [p for n, p in model.named_parameters() if "bn" not in n]
    optimizer = torch.optim.SGD([{"params": norms, "weight_decay": 0.0}, {"params": others, "lr": 0.5}], lr=0.1, momentum=0.9)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1)
    step(model, optimizer, 0)
    scheduler.step()
    slim = fxprune.slim(model, 0.4, image())
    new = train.remap_optimizer(optimizer, model, slim)
    assert [g["lr"] for g in new.param_groups] == pytest.approx([0.01, 0.05])
    assert [g["initial_lr"] for g in new.param_groups] == pytest.approx([0.1, 0.5])
    assert new.param_groups[0]["weight_decay"] == 0
    names = {id(p): n for n, p in slim.named_parameters()}
    assert all("bn" in names[id(p)] for p in new.param_groups[0]["params"])
    assert not any("bn" in names[id(p)] for p in new.param_groups[1]["params"])
    again = torch.optim.lr_scheduler.StepLR(new, 1, last_epoch=scheduler.last_epoch)
    again.load_state_dict(scheduler.state_dict())
    assert len(new.state) == len(names)


def test_a_parameter_that_slimming_added_joins_its_modules_group() -> None:
    model = seeded(Residual())
    optimizer = torch.optim.SGD([{"params": [model.conv2.weight]}, {"params": model.head.parameters(), "lr": 0.5}], lr=0.1)
    slim = fxprune.slim(model, 0.3, image())
    slim.get_submodule("conv2").bias = nn.Parameter(torch.zeros(slim.get_submodule("conv2").weight.shape[0]))
    new = train.remap_optimizer(optimizer, model, slim)
    assert [len(g["params"]) for g in new.param_groups] == [2, 2]
    assert new.param_groups[0]["params"][1] is slim.get_submodule("conv2").bias


@pytest.mark.parametrize("network", [Residual, TwoGroups])
def test_a_second_round_maps_from_the_first_slim_model(network: type[nn.Module]) -> None:
    model = seeded(network())
    first = fxprune.slim(model, 0.3, image(), score="random", absorb=False)
    optimizer = torch.optim.SGD(first.parameters(), lr=0.0, momentum=0.9)
    step(first, optimizer, 0)
    for parameter in first.parameters():
        optimizer.state[parameter]["momentum_buffer"].copy_(parameter.detach())
    second = fxprune.slim(first, 0.4, image(), score="random", absorb=False)
    assert sum(p.numel() for p in second.parameters()) < sum(p.numel() for p in first.parameters())
    new = train.remap_optimizer(optimizer, first, second)
    for parameter in second.parameters():
        assert torch.equal(new.state[parameter]["momentum_buffer"], parameter.detach())
    with pytest.raises(PlanMismatchError, match="was made from another one"):
        train.remap_optimizer(optimizer, second, first)


def test_factored_state_is_cut_along_what_it_has() -> None:
    model = seeded(Chain())
    optimizer = torch.optim.Adafactor(model.parameters(), lr=0.01)
    step(model, optimizer, 0)
    slim = fxprune.slim(model, 0.4, image())
    new = train.remap_optimizer(optimizer, model, slim)
    wide, narrow = optimizer.state[model.fc.weight], new.state[slim.get_parameter("fc.weight")]
    rows = fxprune.plan_of(slim).kept["fc.weight"][1]
    assert torch.equal(narrow["row_var"], wide["row_var"])
    assert torch.equal(narrow["col_var"], wide["col_var"][:, list(rows)])
    step(slim, new, 1)


def test_state_that_cannot_be_cut_is_refused() -> None:
    model = seeded(Chain())
    slim = fxprune.slim(model, 0.4, image())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    optimizer.state[model.conv2.weight]["flat"] = torch.zeros(model.conv2.weight.numel())
    with pytest.raises(FxpruneError, match=r"state 'flat' of parameter 'conv2.weight' .* cannot be carried over"):
        train.remap_optimizer(optimizer, model, slim)
    bound = torch.optim.LBFGS(model.parameters())

    def closure() -> float:
        bound.zero_grad()
        value = loss(model, image(6, 3, 8, 8))
        value.backward()
        return float(value.detach())

    bound.step(closure)
    with pytest.raises(FxpruneError, match="cannot be carried over"):
        train.remap_optimizer(bound, model, slim)


def test_what_does_not_belong_together_is_refused() -> None:
    model, other = seeded(Chain()), seeded(Residual())
    slim = fxprune.slim(model, 0.4, image())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(PlanMismatchError, match="carries no plan"):
        train.remap_optimizer(optimizer, model, other)
    with pytest.raises(PlanMismatchError, match="was not made from this model"):
        train.remap_optimizer(torch.optim.SGD(seeded(Chain(9)).parameters(), lr=0.1), seeded(Chain(9)), slim)
    with pytest.raises(FxpruneError, match="not Chain's"):
        train.remap_optimizer(torch.optim.SGD(other.parameters(), lr=0.1), model, slim)
    with pytest.raises(PlanMismatchError, match=r"'fc.bias' has shape \(7,\)"):
        train.remap_state({"fc.bias": torch.zeros(7)}, model, slim)


def test_an_optimizer_that_cannot_be_made_anew_says_so() -> None:
    class Odd(torch.optim.SGD):
        def __init__(self, params: Any, secret: int) -> None:
            super().__init__(params, lr=0.1 * secret)

    model = seeded(Chain())
    slim = fxprune.slim(model, 0.4, image())
    with pytest.raises(FxpruneError, match="a Odd cannot be made anew from its defaults"):
        train.remap_optimizer(Odd(model.parameters(), secret=1), model, slim)


@pytest.mark.parametrize("use_buffers", [False, True])
def test_averages_go_on(use_buffers: bool) -> None:
    model = seeded(Residual())
    averaged = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=use_buffers)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    for seed in range(3):
        step(model, optimizer, seed)
        averaged.update_parameters(model)
    slim = fxprune.slim(model, 0.4, image(), absorb=False)
    small = train.remap_averaged(averaged, model, slim, image(), absorb=False)
    assert small.n_averaged.item() == 3
    expected = fxprune.apply(averaged.module, fxprune.plan_of(slim), image(), absorb=False)
    torch.testing.assert_close(small(image()), expected(image()), rtol=1e-12, atol=0)
    assert not torch.equal(small(image()), slim(image()))
    # What follows is the same average: old and new are updated with weights that differ only by what went.
    small.update_parameters(slim)
    averaged.update_parameters(model)
    carried = train.remap_state(dict(averaged.module.named_parameters()), model, slim)
    for name, parameter in small.module.named_parameters():
        torch.testing.assert_close(parameter.detach(), carried[name].detach(), rtol=1e-12, atol=1e-15)


def test_averages_of_a_slim_model_go_on_through_a_second_round() -> None:
    first = fxprune.slim(seeded(Residual()), 0.3, image())
    averaged = AveragedModel(first)
    averaged.update_parameters(first)
    second = fxprune.slim(first, 0.3, image())
    small = train.remap_averaged(averaged, first, second, image())
    torch.testing.assert_close(small(image()), second(image()), rtol=1e-12, atol=0)
    assert fxprune.plan_of(small.module).kept == fxprune.plan_of(second).kept


def scaled_step(model: nn.Module, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler, seed: int) -> None:
    optimizer.zero_grad()
    scaler.scale(loss(model, image(6, 3, 8, 8, seed=seed))).backward()
    scaler.step(optimizer)
    scaler.update()


@pytest.mark.parametrize("name", ["sgd", "adam"])
def test_a_gradient_scaler_goes_on_with_the_new_optimizer(name: str) -> None:
    """Scales are powers of two, so a scaled step is the step; a skipped one changes nothing."""
    models = [seeded(Chain()), seeded(Chain())]
    optimizers = [OPTIMIZERS[name](model.parameters()) for model in models]
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**8, growth_interval=2)
    for seed in range(2):
        step(models[0], optimizers[0], seed)
        scaled_step(models[1], optimizers[1], scaler, seed)
    slims = [fxprune.slim(model, 0.5, image(), score="l1", verify=False).train() for model in models]
    tuners = [train.remap_optimizer(*both) for both in zip(optimizers, models, slims, strict=True)]
    assert scaler.get_scale() == 2.0**9
    step(slims[0], tuners[0], 2)
    scaled_step(slims[1], tuners[1], scaler, 2)
    before = copy.deepcopy(tuners[1].state_dict())
    next(slims[1].parameters()).register_hook(lambda gradient: gradient * torch.inf)
    scaled_step(slims[1], tuners[1], scaler, 3)
    assert scaler.get_scale() == 2.0**8
    torch.testing.assert_close(tuners[1].state_dict(), before, rtol=0, atol=0)
    for one, two in zip(slims[0].parameters(), slims[1].parameters(), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-7)
