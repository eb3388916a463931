"""The sparsity term of Network Slimming."""

import pytest
import torch
from torch import nn

from fxprune import train
from fxprune.errors import NothingToPruneError


def network() -> nn.Sequential:
    torch.manual_seed(0)
    layers = (
        nn.Conv2d(3, 4, 3),
        nn.BatchNorm2d(4),
        nn.InstanceNorm2d(4, affine=True),
        nn.GroupNorm(2, 4),
        nn.BatchNorm2d(4, affine=False),
        nn.Flatten(),
        nn.LazyBatchNorm1d(),
    )
    model = nn.Sequential(*layers)
    model(torch.randn(2, 3, 4, 4))
    for module in (model[1], model[2], model[6]):
        nn.init.normal_(module.weight)
    return model


def test_gammas_are_the_affine_weights_of_batch_and_instance_norms() -> None:
    model = network()
    assert list(train.gammas(model)) == ["1.weight", "2.weight", "6.weight"]
    assert list(train.gammas(nn.BatchNorm1d(3))) == ["weight"]


def test_a_shared_gamma_counts_once() -> None:
    norm = nn.BatchNorm1d(3)
    other = nn.BatchNorm1d(3)
    other.weight = norm.weight
    model = nn.Sequential(norm, norm, other)
    assert list(train.gammas(model)) == ["0.weight"]
    assert train.GammaL1(model, 0.1).penalty().item() == pytest.approx(0.3)


def test_subgradient_and_penalty_agree() -> None:
    model = network()
    with torch.no_grad():
        model[1].weight[0] = 0
    sparsity = train.GammaL1(model, strength=0.25)
    images = torch.randn(5, 3, 4, 4)

    model(images).square().sum().backward()
    sparsity.add_gradient()
    added = {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}

    model.zero_grad()
    (model(images).square().sum() + sparsity.penalty()).backward()
    for name, gradient in added.items():
        torch.testing.assert_close(model.get_parameter(name).grad, gradient)


def test_the_term_alone_when_nothing_was_backpropagated() -> None:
    model = nn.BatchNorm1d(3)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([2.0, 0.0, -3.0]))
    sparsity = train.GammaL1(model, strength=0.5)
    sparsity.add_gradient()
    assert model.weight.grad is not None
    assert model.weight.grad.tolist() == [0.5, 0, -0.5]
    assert sparsity.penalty().item() == 2.5
    assert sparsity.share_below(1e-3) == pytest.approx(1 / 3)


def test_init_sets_every_gamma_and_nothing_else() -> None:
    model = network()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    train.GammaL1(model)
    torch.testing.assert_close(dict(model.state_dict()), before)
    train.GammaL1(model, init=0.5)
    for name, value in model.state_dict().items():
        expected = torch.full_like(value, 0.5) if name in train.gammas(model) else before[name]
        torch.testing.assert_close(value, expected)


def test_frozen_gammas_are_left_alone() -> None:
    model = nn.Sequential(nn.BatchNorm1d(3), nn.BatchNorm1d(3))
    model[0].weight.requires_grad_(False)
    train.GammaL1(model, 0.1, init=0.5).add_gradient()
    assert model[0].weight.grad is None
    assert model[0].weight.tolist() == [1, 1, 1]


def test_gammas_that_are_frozen_later_are_left_alone_too() -> None:
    model = nn.Sequential(nn.BatchNorm1d(3), nn.BatchNorm1d(3))
    sparsity = train.GammaL1(model, 0.5)
    model[0].weight.requires_grad_(False)
    sparsity.add_gradient()
    assert model[0].weight.grad is None
    assert model[1].weight.grad is not None
    sparsity.shrink(torch.optim.SGD(model.parameters(), lr=0.1))
    assert model[0].weight.tolist() == [1, 1, 1]
    assert model[1].weight.tolist() == pytest.approx([0.95] * 3)


def test_nothing_to_make_sparse_is_an_error() -> None:
    with pytest.raises(NothingToPruneError, match="Linear has no batch or instance norm"):
        train.GammaL1(nn.Linear(2, 2))


@pytest.mark.parametrize("strength", [-1e-4, float("nan"), float("inf")])
def test_a_strength_that_makes_no_sense_is_refused(strength: float) -> None:
    with pytest.raises(ValueError, match="strength must be finite and not negative"):
        train.GammaL1(nn.BatchNorm1d(2), strength)
