"""Masks: what goes by threshold or density, that it stays gone through training, and that survivors go on from where they were."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from fxprune import BudgetError, FxpruneError, KeepError, NothingToPruneError, PlanMismatchError, WeightError, sparse, zoo


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 6, 3, bias=False), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(54, 12), nn.ReLU(), nn.Linear(12, 3)
    )


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int = 5) -> None:
    for step in range(steps):
        generator = torch.Generator().manual_seed(step)
        x, y = torch.randn(8, 2, 5, 5, generator=generator), torch.randint(0, 3, (8,), generator=generator)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()


@pytest.mark.parametrize("make", [torch.optim.SGD, torch.optim.AdamW])
def test_pruned_weights_stay_zero_through_momentum_and_decay(make: type) -> None:
    model = net()
    options = {"momentum": 0.9} if make is torch.optim.SGD else {}
    optimizer = make(model.parameters(), lr=0.05, weight_decay=0.1, **options)
    train(model, optimizer)  # momentum that would move pruned weights
    sparse.set_masks(model, sparse.by_density(model, 0.25))
    before = {name: module.weight.detach().clone() for name, module in sparse.layers(model).items()}
    train(model, optimizer)
    for name, module in sparse.layers(model).items():
        held = sparse.masks(model)[name]
        assert torch.equal(module.weight == 0, ~held)
        assert (module.weight[held] != before[name][held]).float().mean() > 0.9, "the optimizer lost sight of the weights"


def test_survivors_keep_their_values_and_the_parameter_stays_the_same_object() -> None:
    model = net()
    parameter, values = model[4].weight, model[4].weight.detach().clone()
    keep = sparse.by_density(model, 0.3)
    sparse.set_masks(model, keep)
    assert any(parameter is p for p in model.parameters())
    assert torch.equal(model[4].weight, torch.where(keep["4"], values, 0))
    assert all(parametrize.is_parametrized(model[i], "weight") for i in (0, 4, 6))


def test_what_is_pruned_stays_pruned() -> None:
    model = net()
    sparse.set_masks(model, sparse.by_density(model, 0.2))
    first = sparse.masks(model)
    sparse.set_masks(model, {name: torch.ones_like(keep) for name, keep in first.items()})
    assert all(torch.equal(sparse.masks(model)[name], keep) for name, keep in first.items())
    sparse.set_masks(model, sparse.by_density(model, 0.1))
    for name, keep in sparse.masks(model).items():
        assert not (keep & ~first[name]).any()
        assert int(keep.sum()) == round(0.1 * keep.numel())


def test_density_keeps_the_largest_exactly() -> None:
    model = net()
    for share in (0.0, 0.05, 0.5, 1.0):
        for name, keep in sparse.by_density(model, share).items():
            weight = sparse.layers(model)[name].weight.detach().abs()
            assert int(keep.sum()) == round(share * keep.numel())
            if 0 < keep.sum() < keep.numel():
                assert weight[keep].min() >= weight[~keep].max()


def test_one_ranking_of_all_layers_is_one_threshold() -> None:
    model = net()
    keep = sparse.by_density(model, 0.3, scope="global")
    weights = {name: module.weight.detach().abs() for name, module in sparse.layers(model).items()}
    total = sum(w.numel() for w in weights.values())
    assert sum(int(k.sum()) for k in keep.values()) == round(0.3 * total)
    kept = min(float(weights[n][k].min()) for n, k in keep.items() if k.any())
    gone = max(float(weights[n][~k].max()) for n, k in keep.items() if not k.all())
    assert kept >= gone


def test_equal_magnitudes_go_by_position() -> None:
    model = nn.Sequential(nn.Linear(4, 2))
    nn.init.constant_(model[0].weight, -0.5)
    keep = sparse.by_density(model, 0.375)["0"]
    assert keep.flatten().tolist() == [True] * 3 + [False] * 5


def test_quality_times_deviation_is_the_threshold() -> None:
    model = net()
    keep = sparse.by_quality(model, {"4": 0.7})
    weight = model[4].weight.detach()
    mean = weight.sum() / weight.numel()
    spread = ((weight - mean).square().sum() / (weight.numel() - 1)).sqrt()
    assert set(keep) == {"4"}
    assert torch.equal(keep["4"], weight.abs() >= 0.7 * spread)


def test_the_deviation_is_that_of_the_survivors() -> None:
    model = net()
    sparse.set_masks(model, sparse.by_quality(model, 1.0))
    alive = model[4].weight.detach()
    alive = alive[alive != 0]
    sparse.set_masks(model, sparse.by_quality(model, 1.3, names=("4",)))
    assert int((model[4].weight != 0).sum()) == int((alive.abs() >= 1.3 * alive.std()).sum()) < len(alive)


@pytest.mark.parametrize(("only", "changed"), [("conv", {"0"}), ("linear", {"4", "6"}), ("all", {"0", "4", "6"})])
def test_convolutions_and_linear_layers_apart(only: str, changed: set[str]) -> None:
    model = net()
    sparse.set_masks(model, sparse.by_density(model, 0.5, only=only))
    assert {name for name, share in sparse.densities(model).items() if share < 1} == changed


@pytest.mark.parametrize(("only", "fixed", "moving"), [("conv", (0,), (4, 6)), ("linear", (4, 6), (0,))])
def test_frozen_layers_do_not_move(only: str, fixed: tuple[int, ...], moving: tuple[int, ...]) -> None:
    model = net()
    sparse.set_masks(model, sparse.by_density(model, 0.5))
    before = copy.deepcopy(model)
    with sparse.frozen(model, only):
        train(model, torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1))
    assert all(torch.equal(model[i].weight, before[i].weight) for i in fixed)
    assert all(torch.equal(model[i].bias, before[i].bias) for i in fixed if model[i].bias is not None)
    assert all(not torch.equal(model[i].weight, before[i].weight) for i in moving)
    assert all(p.requires_grad for p in model.parameters())


def test_a_permanent_copy_is_the_plain_model_and_leaves_the_masked_one_alone() -> None:
    model, x = net().eval(), torch.randn(3, 2, 5, 5)
    plain = net().state_dict()
    sparse.set_masks(model, sparse.by_density(model, 0.2))
    bare = sparse.permanent(model)
    assert list(bare.state_dict()) == list(plain)
    assert type(bare[4]) is nn.Linear
    assert torch.equal(bare(x), model(x))
    assert torch.equal(sparse.permanent(model)(x), model(x))  # a second copy, too
    again = copy.deepcopy(bare)
    sparse.mask_zeros(again)
    assert all(torch.equal(sparse.masks(again)[n], k) for n, k in sparse.masks(model).items())


def test_shared_weights_hold_one_mask() -> None:
    table = nn.Embedding(6, 4)
    head = nn.Linear(4, 6, bias=False)
    head.weight = table.weight
    model = nn.Sequential(table, nn.Linear(4, 4), head)
    sparse.set_masks(model, sparse.by_density(model, 0.25))
    assert torch.equal(table.weight, head.weight)
    assert int((table.weight != 0).sum()) == 6
    assert len(list(model.parameters())) == 3
    bare = sparse.permanent(model)
    assert bare[0].weight is bare[2].weight


def test_masks_travel_by_state_dict() -> None:
    model, other = net(), net()
    sparse.set_masks(model, sparse.by_density(model, 0.2))
    sparse.set_masks(other, sparse.by_density(other, 1.0))
    other.load_state_dict(model.state_dict())
    assert all(torch.equal(sparse.masks(other)[n], k) for n, k in sparse.masks(model).items())


def test_counts_and_density() -> None:
    model = net()
    sparse.set_masks(model, sparse.by_density(model, {"4": 0.5}))
    assert sparse.counts(model)["4"] == (324, 648)
    assert sparse.density(model) == pytest.approx((108 + 324 + 36) / (108 + 648 + 36))


def test_refusals_change_nothing() -> None:
    model = net()
    before = copy.deepcopy(model.state_dict())
    mask = {name: torch.ones_like(m.weight, dtype=torch.bool) for name, m in sparse.layers(model).items()}
    for wrong in ({**mask, "nobody": mask["4"]}, {**mask, "6": mask["4"]}, {**mask, "6": mask["6"].float()}):
        with pytest.raises(PlanMismatchError):
            sparse.set_masks(model, wrong)
    for call in (
        lambda: sparse.by_density(model, 1.5),
        lambda: sparse.by_density(model, 0.5, scope="net"),
        lambda: sparse.by_density(model, {"1": 0.5}),
        lambda: sparse.by_density(model, {"0": 0.5}, scope="global"),
        lambda: sparse.by_quality(model, -1.0),
        lambda: sparse.by_quality(model, float("nan")),
        lambda: sparse.by_density(model, True),
        lambda: sparse.by_density(model, 0.5, only="fc"),
    ):
        with pytest.raises(BudgetError):
            call()
    with pytest.raises(KeepError, match="nobody"):
        sparse.by_density(model, 0.5, names=("nobody*",))
    with pytest.raises(NothingToPruneError):
        sparse.by_density(nn.Sequential(nn.ReLU()), 0.5)
    assert list(model.state_dict()) == list(before)


def test_weights_that_cannot_be_ranked() -> None:
    model = net()
    with torch.no_grad():
        model[4].weight[0, 0] = float("nan")
    with pytest.raises(WeightError, match="NaN"):
        sparse.by_density(model, 0.5)
    with pytest.raises(FxpruneError, match="meta"):
        sparse.by_density(nn.Sequential(nn.Linear(2, 2, device="meta")), 0.5)
    with pytest.raises(WeightError, match="lazy"):
        sparse.by_density(nn.Sequential(nn.LazyLinear(2)), 0.5)


def test_the_lenets() -> None:
    for model in (zoo.lenet5(), zoo.lenet300()):
        sparse.set_masks(model, sparse.by_density(model, 0.08, scope="global"))
        assert sparse.density(model) == pytest.approx(0.08, abs=1e-5)
        assert model(torch.randn(2, 1, 28, 28)).shape == (2, 10)
