"""Forms, schedules, the three ways to apply a penalty, and the loops they must fit into."""

from __future__ import annotations

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fxprune
from fxprune import train
from fxprune.errors import FxpruneError, NothingToPruneError
from fxprune.train.forms import L1, L2, Classes, Form
from tests.unit.api.nets import Chain, Residual, image, seeded

MEMBERS = (torch.tensor([1, 2, 0, 1]), torch.tensor([2, 2, 3]))
FORMS: list[Form] = [L1(), L2(), Classes(MEMBERS, 4)]


def numbers(seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(4, generator=generator, dtype=torch.float64), torch.randn(3, generator=generator, dtype=torch.float64)]


@pytest.mark.parametrize("form", FORMS, ids=lambda form: type(form).__name__)
def test_the_subgradient_is_that_of_the_value(form: Form) -> None:
    tensors = [x.requires_grad_() for x in numbers()]
    expected = torch.autograd.grad(form.value(tensors), tensors, materialize_grads=True)
    for got, want in zip(form.subgradient([x.detach() for x in tensors]), expected, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-12, atol=0)


@pytest.mark.parametrize("form", FORMS, ids=lambda form: type(form).__name__)
@pytest.mark.parametrize("amount", [0.05, 0.4, 3.0])
def test_the_proximal_step_is_the_minimum_of_what_defines_it(form: Form, amount: float) -> None:
    tensors = numbers(1)
    least = form.shrunk(tensors, [amount, amount])

    def objective(ys: list[Tensor]) -> float:
        return float(amount * form.value(ys) + sum((y - x).square().sum() / 2 for x, y in zip(tensors, ys, strict=True)))

    best = objective(least)
    generator = torch.Generator().manual_seed(2)
    for size in (1e-4, 1e-2, 1.0):
        for _ in range(50):
            other = [y + size * torch.randn(y.shape, generator=generator, dtype=y.dtype) for y in least]
            assert objective(other) > best


def test_classes_by_hand() -> None:
    form = Classes((torch.tensor([1, 0]), torch.tensor([1, 2])), 3)
    tensors = [torch.tensor([3.0, 9.0]), torch.tensor([4.0, 2.0])]
    assert form.value(tensors).item() == pytest.approx(math.sqrt(2) * 5 + 2)
    left = form.shrunk(tensors, [5 / math.sqrt(2) / 2, 2.0])
    assert left[0].tolist() == pytest.approx([1.5, 9])  # what is outside stays; half of class 1 is left
    assert left[1][1].item() == 0
    zero = [torch.zeros(2, requires_grad=True), torch.zeros(2, requires_grad=True)]
    form.value(zero).backward()
    assert torch.cat([x.grad for x in zero if x.grad is not None]).tolist() == [0] * 4


def test_shrink_takes_each_groups_learning_rate_and_makes_exact_zeros() -> None:
    model = nn.Sequential(nn.BatchNorm1d(3), nn.BatchNorm1d(2))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([0.5, -0.05, 0.0]))
        model[1].weight.copy_(torch.tensor([0.5, -0.05]))
    groups = [{"params": model[0].parameters(), "lr": 0.1}, {"params": model[1].parameters(), "lr": torch.tensor(0.01)}]
    sparsity = train.GammaL1(model, strength=1.0)
    sparsity.shrink(torch.optim.SGD(groups, lr=1.0))
    assert model[0].weight.tolist() == pytest.approx([0.4, 0, 0])
    assert model[0].weight[1].item() == 0
    assert model[1].weight.tolist() == pytest.approx([0.49, -0.04])
    assert sparsity.share_below(0.0) == 0
    assert sparsity.share_below(1e-30) == pytest.approx(2 / 5)


def test_shrink_with_a_foreign_optimizer_is_refused_and_changes_nothing() -> None:
    model = nn.Sequential(nn.BatchNorm1d(3), nn.BatchNorm1d(3))
    with pytest.raises(FxpruneError, match=r"'1\.weight' is in no parameter group of this SGD"):
        train.GammaL1(model, 1.0).shrink(torch.optim.SGD(model[0].parameters(), lr=0.1))
    assert model[0].weight.tolist() == [1, 1, 1]


def test_coupled_channels_go_to_zero_together() -> None:
    model = seeded(Residual())
    graph = fxprune.analyze(model, image())
    with torch.no_grad():
        model.bn0.weight.copy_(torch.linspace(0.01, 1, 8))
        model.bn2.weight.copy_(torch.linspace(0.4, 0.02, 8))  # the other way round: L1 alone would zero different channels
    sparsity = train.GroupL1(model, graph, strength=1.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3)
    sparsity.shrink(optimizer)
    zeros = [(norm.weight == 0).nonzero().flatten().tolist() for norm in (model.bn0, model.bn2)]
    assert zeros[0] == zeros[1]
    assert 0 < len(zeros[0]) < 8


def test_without_couplings_the_group_form_is_l1() -> None:
    model = seeded(Chain())
    grouped, plain = train.GroupL1(model, fxprune.analyze(model, image()), 0.1), train.GammaL1(model, 0.1)
    assert list(grouped.parameters) == list(plain.parameters) == ["bn1.weight", "bn2.weight"]
    assert grouped.penalty().item() == pytest.approx(plain.penalty().item(), rel=1e-12)
    other = copy.deepcopy(model)
    train.GammaL1(other, 0.1).add_gradient()
    grouped.add_gradient()
    for norm, twin in ((model.bn1, other.bn1), (model.bn2, other.bn2)):
        torch.testing.assert_close(norm.weight.grad, twin.weight.grad, rtol=1e-12, atol=0)


def test_what_cannot_go_is_left_alone() -> None:
    class Head(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm, self.last = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 5, 1)
            self.out = nn.BatchNorm2d(5)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(self.last(self.norm(self.conv(x))))

    model = seeded(Head())
    graph = fxprune.analyze(model, image())
    train.GroupL1(model, graph, 0.1, init=0.5).add_gradient()
    assert model.out.weight.grad is None
    assert model.out.weight.tolist() == [0.5] * 5
    assert model.norm.weight.grad is not None
    assert list(train.GammaL1(model, graph=graph).parameters) == ["norm.weight"]
    assert list(train.GammaL1(model).parameters) == ["norm.weight", "out.weight"]
    for kind in (train.GroupL1, lambda model, graph: train.GammaL1(model, graph=graph)):
        with pytest.raises(NothingToPruneError, match="no trained gamma of Head belongs to a channel that can go"):
            kind(model, fxprune.analyze(model, image(), keep=["norm"]))


def test_a_graph_serves_the_model_in_its_wrapper_too() -> None:
    model = seeded(Residual())
    graph = fxprune.analyze(model, image())
    wrapped = nn.DataParallel(model)
    for kind in (train.GroupL1(wrapped, graph, 0.1), train.GammaL1(wrapped, 0.1, graph=graph)):
        assert sorted(kind.parameters) == ["module.bn0.weight", "module.bn1.weight", "module.bn2.weight"]


def test_weight_penalties() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0, -2.0], [0.0, 3.0]]))
    one, two = train.WeightL1(model, 0.5), train.WeightL2(model, 0.5)
    assert list(one.parameters) == list(two.parameters) == ["0.weight"]
    assert one.penalty().item() == 3
    assert two.penalty().item() == 3.5
    two.add_gradient()
    assert model[0].weight.grad is not None
    assert model[0].weight.grad.flatten().tolist() == [0.5, -1, 0, 1.5]
    with pytest.raises(NothingToPruneError, match="no trained weight"):
        train.WeightL1(nn.BatchNorm1d(2))


def test_schedules() -> None:
    ramp, anneal = train.ramp(0.2, 4), train.anneal(0.2, 10, hold=0.5)
    assert [ramp(i) for i in (0, 1, 4, 9)] == pytest.approx([0, 0.05, 0.2, 0.2])
    assert [anneal(i) for i in (0, 5, 10, 20)] == pytest.approx([0.2, 0.2, 0, 0])
    assert 0 < anneal(7) < 0.2
    model = nn.BatchNorm1d(1)
    sparsity = train.GammaL1(model, ramp)
    added = []
    for _ in range(6):
        model.weight.grad = None
        sparsity.add_gradient()
        assert model.weight.grad is not None
        added.append(model.weight.grad.item())
    assert added == pytest.approx([0, 0.05, 0.1, 0.15, 0.2, 0.2])
    again = train.GammaL1(model, ramp)
    again.load_state_dict(sparsity.state_dict())
    assert (again.steps, again.strength) == (6, pytest.approx(0.2))
    sparsity.strength = 0.7
    assert sparsity.strength == 0.7
    for wrong in (train.ramp, train.anneal):
        with pytest.raises(ValueError, match="steps must be positive, got 0"):
            wrong(0.1, 0)
    with pytest.raises(ValueError, match=r"hold must be in \[0, 1\), got 1"):
        train.anneal(0.1, 3, hold=1)
    with pytest.raises(ValueError, match="strength must be finite and not negative, got -1"):
        train.GammaL1(model, lambda _: -1.0)


def test_a_fixed_strength_survives_a_resume() -> None:
    model = nn.BatchNorm1d(1)
    sparsity = train.GammaL1(model, 0.25)
    sparsity.advance()
    again = train.GammaL1(model, 0.1)
    again.load_state_dict(sparsity.state_dict())
    assert (again.steps, again.strength) == (1, 0.25)


def loss(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(model(images), labels)


def per_sample() -> nn.Module:
    """A network with gammas that treats every image by itself, so that a batch may be cut anywhere."""
    torch.manual_seed(0)
    layers = (nn.Conv2d(3, 6, 3), nn.InstanceNorm2d(6, affine=True), nn.ReLU(), nn.Conv2d(6, 4, 1), nn.AvgPool2d(6), nn.Flatten())
    return seeded(nn.Sequential(*layers)).train()


def trained_at_once(steps: int = 3) -> nn.Module:
    model = per_sample()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    sparsity = train.GammaL1(model, 0.1)
    for step in range(steps):
        optimizer.zero_grad()
        loss(model, image(8, 3, 8, 8, seed=step), torch.arange(8) % 4).backward()
        sparsity.add_gradient()
        optimizer.step()
    return model


def test_gradient_accumulation_adds_the_subgradient_once() -> None:
    model = per_sample()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    sparsity = train.GammaL1(model, 0.1)
    for step in range(3):
        optimizer.zero_grad()
        images, labels = image(8, 3, 8, 8, seed=step), torch.arange(8) % 4
        for part in range(4):
            (loss(model, images[2 * part : 2 * part + 2], labels[2 * part : 2 * part + 2]) / 4).backward()
        sparsity.add_gradient()
        optimizer.step()
    assert sparsity.steps == 3
    for got, want in zip(model.parameters(), trained_at_once().parameters(), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-12)


def test_a_gradient_scaler_sees_the_subgradient_unscaled() -> None:
    model = per_sample()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    sparsity = train.GammaL1(model, 0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    for step in range(3):
        optimizer.zero_grad()
        scaler.scale(loss(model, image(8, 3, 8, 8, seed=step), torch.arange(8) % 4)).backward()
        scaler.unscale_(optimizer)
        sparsity.add_gradient()
        scaler.step(optimizer)
        scaler.update()
    for got, want in zip(model.parameters(), trained_at_once().parameters(), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-12)


def test_under_autocast_gammas_and_their_subgradient_stay_float32() -> None:
    model = per_sample().float()
    sparsity = train.GammaL1(model, 0.1)
    with torch.autocast("cpu", torch.bfloat16):
        value = loss(model, image(8, 3, 8, 8).float(), torch.arange(8) % 4)
    value.backward()
    gamma = model.get_parameter("1.weight")
    assert gamma.grad is not None
    before = gamma.grad.clone()
    sparsity.add_gradient()
    assert gamma.grad.dtype == torch.float32
    torch.testing.assert_close(gamma.grad - before, 0.1 * gamma.detach().sign(), rtol=1e-5, atol=1e-6)
