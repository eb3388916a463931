"""Absorption under the selection layout: what a batch norm drops, its readers are given as a constant.

The oracle is the original network: where gamma is 0 on all that was dropped, ``absorb="exact"`` changes nothing, emptied layers included.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fxprune
from fxprune import zoo
from fxprune.errors import VerificationError
from tests.property.program import randomise
from tests.reference.compare import relative_error
from tests.unit.api.nets import image, run, seeded
from tests.unit.selection.nets import Shared, with_gammas


def bimodal(model: nn.Module, seed: int, share: float = 0.5) -> nn.Module:
    """Gammas of 0 and gammas of some size, at random."""
    rng = torch.Generator().manual_seed(seed)
    for m in model.modules():
        if isinstance(m, nn.BatchNorm2d):
            size = m.weight.detach().abs() + 0.2
            m.weight.data = torch.where(torch.rand(len(size), generator=rng) < share, 0.0, size)
    return model


def slimmed(model: nn.Module, x: Tensor, ratio: float, absorb: Any, **options: Any) -> Any:
    return fxprune.slim(model, ratio, x, layout="selection", absorb=absorb, strict=True, **{"floor": 0, **options})


PAPER = {
    "pre-activation ResNet": lambda: zoo.preresnet(20),
    "DenseNet": lambda: zoo.DenseNet(3, 8, 16),
    "VGG": lambda: zoo.vgg_bn(11, width=0.25),
}


@pytest.mark.parametrize("emptied", [False, True])
@pytest.mark.parametrize("name", PAPER)
def test_the_papers_networks_compute_what_they_did(name: str, emptied: bool) -> None:
    model = bimodal(randomise(PAPER[name](), 1), seed=2)
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    if emptied:
        norms[len(norms) // 2].weight.data.zero_()
    zeros = sum(int((m.weight == 0).sum()) for m in norms)
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    ratio = zeros / sum(m.num_features for m in norms) - 1e-3
    dropped, exact = (slimmed(model, x, ratio, absorb) for absorb in (False, "exact"))
    assert fxprune.plan_of(exact).kept == fxprune.plan_of(dropped).kept
    assert bool(fxprune.plan_of(exact).silent) == emptied
    assert relative_error(run(dropped, x), run(model, x)) > 1e-2
    assert relative_error(run(exact, x), run(model, x)) <= 1e-9
    smaller = x[:, :, :32, :32] * 3
    assert relative_error(run(exact, smaller), run(model, smaller)) <= 1e-9
    absorption = fxprune.absorption_of(exact)
    assert absorption.exact or emptied
    assert not absorption.losses
    assert absorption.difference <= 1e-9


def test_every_reader_gets_its_own_constant() -> None:
    """Two branches drop different channels of one stem: 1x1 readers, so the interior is everywhere."""
    model = with_gammas(
        seeded(Shared()), branches__0__bn=[0.0, 0.9, 0.0, 0.8, 0.7, 0.7], branches__1__bn=[0.9, 0.0, 0.8, 0.0, 0.6, 0.5]
    )
    for branch in model.branches:  # type: ignore[union-attr]
        branch.bn.bias.data.abs_().add_(0.5)  # type: ignore[union-attr]
    slim = slimmed(model, image(), 0.3, True)
    assert relative_error(run(slim, image()), run(model, image())) <= 1e-12
    folds = {fold.node: fold.atoms for fold in fxprune.absorption_of(slim).folds}
    assert folds == {"branches_0_conv": (0, 2), "branches_1_conv": (1, 3)}
    assert fxprune.plan_of(slim).added == ()


class Narrowing(nn.Module):
    """A reader whose four output channels cannot go (blocks of one), and whose batch norm drops some of them."""

    def __init__(self, *, also: bool) -> None:
        super().__init__()
        self.stem, self.bn0 = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)
        self.conv, self.bn = nn.ConvTranspose2d(8, 4, 1, groups=4, bias=False), nn.BatchNorm2d(4)
        self.a, self.b = nn.Conv2d(4, 3, 1), nn.Conv2d(4, 3, 1)
        self.also = also

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(F.relu(self.bn0(self.stem(x))))
        y = self.a(F.relu(self.bn(x)))
        return y + self.b(x) if self.also else y


@pytest.mark.parametrize(("also", "place"), [(False, "bn.running_mean"), (True, "conv.bias")])
def test_a_reader_whose_batch_norm_drops_some_of_its_channels(also: bool, place: str) -> None:
    """The running mean behind a select has entries for what is selected only; where others hear the reader, a bias takes the correction."""
    model = with_gammas(seeded(Narrowing(also=also)), bn0=[0.0, 1, 1, 0.0, 1, 0, 0, 1], bn=[1.0, 0, 0, 1])
    model.bn0.bias.data.abs_().add_(0.5)  # type: ignore[union-attr, operator]
    slim = slimmed(model, image(), 0.49, True)
    assert fxprune.absorption_of(slim).folds[0].place == place
    assert slim.get_submodule("conv").weight.shape[0] == 4
    assert slim.get_buffer("bn.running_mean").shape == (2,)
    assert relative_error(run(slim, image()), run(model, image())) <= 1e-12


def test_expected_values_and_data_are_closer_than_nothing() -> None:
    model = randomise(zoo.preresnet(11), 3)
    x = torch.randn(4, 3, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    model.train()
    with torch.no_grad():
        for _ in range(20):
            model(x)  # statistics that are those of the data
    model.eval()
    apart = {
        name: relative_error(run(slimmed(model, x, 0.15, absorb), x), run(model, x))
        for name, absorb in (("dropped", False), ("closed form", True), ("data", [x]))
    }
    assert apart["closed form"] < 0.8 * apart["dropped"]
    assert apart["data"] < 0.8 * apart["dropped"]


def test_plans_states_files_and_rounds_carry_what_was_added(tmp_path: Path) -> None:
    model = bimodal(randomise(zoo.preresnet(20), 1), seed=2)
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    first = slimmed(model, x, 0.3, "exact")
    second = slimmed(first, x, 0.2, "exact")
    for slim in (first, second):
        plan = fxprune.Plan.from_json(fxprune.plan_of(slim).to_json())
        assert plan.added
        fresh = fxprune.apply(randomise(zoo.preresnet(20), 7), plan, x, verify=False)
        fresh.load_state_dict(slim.state_dict())
        assert torch.equal(run(fresh, x), run(slim, x))
        fxprune.save(slim, tmp_path / "slim.safetensors")
        loaded = fxprune.load(copy.deepcopy(model), tmp_path / "slim.safetensors")
        assert torch.equal(run(loaded, x), run(slim, x))
        fxprune.verify(model, slim, x)
    assert relative_error(run(first, x), run(model, x)) <= 1e-9


def test_a_wrong_constant_is_found() -> None:
    model = bimodal(randomise(zoo.preresnet(20), 1), seed=2)
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    slim = slimmed(model, x, 0.3, True)
    place = fxprune.absorption_of(slim).folds[0].place
    tensor = slim.state_dict()[place]
    tensor[0] += 1e-3
    with pytest.raises(VerificationError, match="is not what the constants of removed channels make it"):
        fxprune.verify(model, slim, x)
