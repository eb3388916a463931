"""Every score by hand, on networks small enough to see through."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fxprune
from fxprune.errors import BudgetError, WeightError
from fxprune.graph.channels import ChannelGroup
from fxprune.score import scores
from fxprune.score.scores import NAMED, score
from tests.unit.api.nets import Chain, Residual, image, seeded


def groups(model: nn.Module, x: Tensor | None = None) -> dict[str, ChannelGroup]:
    return {group.name: group for group in fxprune.analyze(model, image() if x is None else x).groups}


def test_gamma_of_one_norm() -> None:
    model = seeded(Chain())
    group = groups(model)["conv1.weight"]
    for how in (scores.gamma, scores.gamma_sum, scores.gamma_max):
        assert torch.equal(how(group), model.bn1.weight.detach().abs())


def test_gamma_of_a_coupling_class() -> None:
    """bn0 and bn2 of the residual stream: mean, sum and maximum of both."""
    model = seeded(Residual())
    group = groups(model)["stem.weight"]
    both = torch.stack([model.bn0.weight, model.bn2.weight]).detach().abs()
    torch.testing.assert_close(scores.gamma(group), both.mean(0), rtol=1e-12, atol=0)
    torch.testing.assert_close(scores.gamma_sum(group), both.sum(0), rtol=1e-12, atol=0)
    assert torch.equal(scores.gamma_max(group), both.amax(0))
    assert sorted(group.gammas) == ["bn0.weight", "bn2.weight"]


def test_gamma_counts_every_atom_of_a_class() -> None:
    """A norm over ``cat([x, x])`` has two gammas per channel."""

    class Doubled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.norm, self.head = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(8), nn.Conv2d(8, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x)
            return self.head(F.relu(self.norm(torch.cat([x, x], 1))))

    model = seeded(Doubled())
    group = groups(model)["stem.weight"]
    gammas = model.norm.weight.detach().abs().view(2, 4)
    torch.testing.assert_close(scores.gamma(group), gammas.mean(0), rtol=1e-12, atol=0)
    assert torch.equal(scores.gamma_max(group), gammas.amax(0))


def relative(norms: Tensor) -> Tensor:
    return norms / norms.mean()


def test_magnitude_is_the_norm_of_the_producer_relative_to_its_mean() -> None:
    model = seeded(nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 2)))
    found = scores.magnitude(groups(model, image(2, 3))["0.weight"])
    torch.testing.assert_close(found, relative(model[0].weight.detach().norm(dim=1)), rtol=1e-12, atol=0)
    assert abs(float(found.mean()) - 1) < 1e-12


def test_magnitude_of_a_coupling_class_is_the_mean_over_its_producers() -> None:
    model = seeded(Residual())
    found = scores.magnitude(groups(model)["stem.weight"])
    parts = [relative(w.detach().flatten(1).norm(dim=1)) for w in (model.stem.weight, model.conv2.weight)]
    torch.testing.assert_close(found, torch.stack(parts).mean(0), rtol=1e-12, atol=0)


def test_magnitude_does_not_depend_on_the_scale_of_a_layer() -> None:
    model = seeded(Chain())
    before = scores.magnitude(groups(model)["conv1.weight"])
    with torch.no_grad():
        model.conv1.weight.mul_(100)
    torch.testing.assert_close(scores.magnitude(groups(model)["conv1.weight"]), before, rtol=1e-12, atol=0)


def test_atom_norms_of_a_grouped_convolution() -> None:
    model = seeded(nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 6, 3, groups=2), nn.ReLU(), nn.Conv2d(6, 2, 1)))
    weight = model[2].weight.detach()  # rows 0 to 2 read channels 0 to 3, rows 3 to 5 the others
    group = groups(model)["0.weight"]
    member = next(m for m in group.members if (m.name, m.dim) == ("2.weight", 1))
    expected = torch.cat([weight[3 * b : 3 * b + 3, c].flatten()[None] for b in range(2) for c in range(4)]).norm(dim=1)
    torch.testing.assert_close(scores.atom_norms(weight, member), expected, rtol=1e-12, atol=0)
    assert member.blocks == 2


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("name", sorted(NAMED))
def test_scores_are_float64_on_the_cpu_whatever_the_model_is(name: str, dtype: torch.dtype) -> None:
    model = seeded(Chain(), dtype=dtype)
    scored = score(tuple(groups(model, image(dtype=dtype)).values()), name)
    assert scored.name == name
    assert all(v.dtype == torch.float64 and v.device.type == "cpu" and not v.requires_grad for v in scored.values)
    assert all((v >= 0).all() for v in scored.values)


def test_random_is_seeded_by_name_and_leaves_the_global_generator_alone() -> None:
    found, other = groups(seeded(Chain())), groups(seeded(Chain(), seed=4))
    one = {name: scores.random(group) for name, group in found.items()}
    torch.manual_seed(123)
    expected = torch.rand(1)
    torch.manual_seed(123)
    two = {name: scores.random(group) for name, group in other.items()}
    assert torch.equal(torch.rand(1), expected)
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert not torch.equal(one["conv1.weight"][:8], one["conv2.weight"][:8])


def test_auto_is_gamma_where_every_group_has_one_and_magnitude_otherwise() -> None:
    assert score(tuple(groups(seeded(Chain())).values())).name == "gamma"

    class Bare(Chain):
        def forward(self, x: Tensor) -> Tensor:
            return self.fc(F.relu(self.conv2(F.relu(self.bn1(self.conv1(x))))).mean((2, 3)))

    assert score(tuple(groups(seeded(Bare())).values())).name == "magnitude"


def test_auto_with_norms_without_affine_parameters() -> None:
    model = Chain()
    model.bn1 = nn.BatchNorm2d(8, affine=False)
    assert score(tuple(groups(seeded(model)).values())).name == "magnitude"


def test_a_callable_is_called_once_per_group_and_named() -> None:
    seen: list[str] = []

    def first_go_first(group: ChannelGroup) -> Tensor:
        seen.append(group.name)
        return torch.arange(len(group), dtype=torch.float32, requires_grad=True)

    plan = fxprune.plan(fxprune.analyze(seeded(Chain()), image()), 0.3, score=first_go_first)
    assert seen == ["conv1.weight", "conv2.weight"]
    assert plan.score == "first_go_first"
    for name in ("conv1.weight", "conv2.weight"):
        gone = plan.removed(name, 0)
        assert gone == tuple(range(len(gone)))


def test_callable_objects_are_named_by_their_class() -> None:
    class Flat:
        def __call__(self, group: ChannelGroup) -> Tensor:
            return torch.zeros(len(group))

    assert score(tuple(groups(seeded(Chain())).values()), Flat()).name == "Flat"


def test_per_channel_is_the_mean_over_atoms() -> None:
    class Doubled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.head = nn.Conv2d(3, 4, 1), nn.Conv2d(8, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            x = F.relu(self.stem(x))
            return self.head(torch.cat([x, x], 1))

    group = groups(seeded(Doubled()))["stem.weight"]
    member = next(m for m in group.members if m.name == "head.weight")
    assert member.reads
    values = torch.arange(8.0)
    assert group.per_channel(member, values).tolist() == [2.0, 3.0, 4.0, 5.0]


def test_refusals_of_scores() -> None:
    found = tuple(groups(seeded(Chain())).values())
    with pytest.raises(BudgetError, match="'gama'"):
        score(found, "gama")
    with pytest.raises(BudgetError, match="must return 8 values"):
        score(found, lambda _: torch.zeros(3))
    with pytest.raises(WeightError, match="10 of the 10"):
        score(found, lambda group: torch.full((len(group),), float("inf" if len(group) == 10 else "0")))
