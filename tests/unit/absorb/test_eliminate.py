"""What is dead, what is not, and what is said about it."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune

import fxprune
from fxprune import eliminate
from tests.property.program import randomise
from tests.reference.compare import Snapshot


def chain() -> nn.Sequential:
    torch.manual_seed(0)
    return randomise(  # type: ignore[return-value]
        nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1, bias=False),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Conv2d(8, 8, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(8, 8, 1, bias=False),
            nn.AdaptiveAvgPool2d(2),
            nn.Flatten(),
            nn.Linear(32, 6),
            nn.SiLU(),
            nn.Linear(6, 4),
        )
    )


IMAGE = torch.randn(2, 3, 9, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def widths(model: nn.Module) -> list[int]:
    return [m.weight.shape[0] for m in model.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]


def same(a: nn.Module, b: nn.Module, tolerance: float = 1e-12) -> bool:
    with torch.no_grad():
        return float((a(IMAGE) - b(IMAGE)).abs().max()) <= tolerance


def test_nothing_is_dead() -> None:
    model = chain()
    before = Snapshot(model)
    slim = fxprune.eliminate_dead_channels(model, IMAGE)
    assert not before.differences(model)
    assert fxprune.plan_of(slim).empty
    assert "no channel is dead" in fxprune.plan_of(slim).notes[-1]
    assert widths(slim) == widths(model)
    assert same(slim, model, 0.0)


def test_each_kind_of_dead_channel_cascading() -> None:
    model = chain()
    with torch.no_grad():
        model[1].weight[:2] = 0  # constants, one of them before a padded convolution
        model[1].bias[0], model[1].bias[1] = 0.7, -0.2
        model[3].weight[1] = 0  # a filter of zeros: its bias, through relu
        model[3].bias[1] = 0.4
        model[5].weight[:, 6] = 0  # nobody reads what filter 6 of layer 3 makes
        model[8].weight.view(6, 8, 4)[:, 3] = 0  # nor what layer 5 makes of its channel 3, after flattening
        model[5].weight[3, 2] = 1.0
        model[5].weight[[0, 1, 2, 4, 5, 6, 7], 2] = 0  # only that channel reads channel 2 of layer 3
        model[10].weight[:, 5] = 0
    slim = fxprune.eliminate_dead_channels(model, IMAGE)
    assert widths(slim) == [6, 5, 7, 5, 4]
    found = fxprune.absorption_of(slim)
    assert found.exact
    assert {fold.form for fold in found.folds} == {"map", "bias"}
    assert same(slim, model)
    fxprune.verify(model, slim, IMAGE)


@pytest.mark.parametrize("dim", [0, 1])
def test_masks_of_torch_become_channels(dim: int, tmp_path: Path) -> None:
    model = chain()
    prune.ln_structured(model[3], "weight", 0.5, 2, dim)  # type: ignore[no-untyped-call]
    prune.l1_unstructured(model[8], "weight", 0.3)  # type: ignore[no-untyped-call]
    keys = set(model.state_dict())
    slim = fxprune.eliminate_dead_channels(model, IMAGE)
    assert "3.weight_orig" in keys
    assert set(model.state_dict()) == keys
    assert widths(slim)[1 - dim] == 4
    assert {k for k in slim.state_dict() if not k.endswith("absorbed")} - {"5.bias"} <= set(chain().state_dict())
    assert same(slim, model)
    fxprune.save(slim, tmp_path / "slim.safetensors")
    assert same(fxprune.load(chain(), tmp_path / "slim.safetensors", IMAGE), slim, 0.0)


def test_masks_of_this_library_go_too() -> None:
    from fxprune import sparse

    model = chain()
    keep = torch.ones(8, 8, 3, 3, dtype=torch.bool)
    keep[:3] = False
    sparse.set_masks(model, {"3": keep})
    slim = fxprune.eliminate_dead_channels(model, IMAGE)
    assert widths(slim) == [8, 5, 8, 6, 4]
    assert same(slim, model)


def test_duplicates_on_request() -> None:
    model = chain()
    with torch.no_grad():
        for t in (model[0].weight, model[1].running_mean, model[1].bias):
            t[3] = 2 * t[5]
        model[1].running_var[3], model[1].weight[3] = model[1].running_var[5], model[1].weight[5]
        model[5].weight[2] = -1.5 * model[5].weight[4]  # linear up to its reader: any factor
        model[8].weight[0], model[8].bias[0] = model[8].weight[3], model[8].bias[3]  # equal: any activation
        model[3].weight[1], model[3].bias[1] = -model[3].weight[2], -model[3].bias[2]  # not through relu
    assert fxprune.plan_of(fxprune.eliminate_dead_channels(model, IMAGE)).empty
    slim = fxprune.eliminate_dead_channels(model, IMAGE, merge_duplicates=True)
    assert widths(slim) == [7, 8, 7, 5, 4]
    assert "3 duplicate channels were merged" in fxprune.plan_of(slim).notes[-1]
    assert same(slim, model)


class Residual(nn.Module):
    """A sum is a constant where both terms are; a gate and a layer norm keep what they meet."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8)
        self.inner, self.inner_norm = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.gate = nn.Conv2d(8, 8, 1)
        self.head = nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.stem(x)).relu()
        x = (x + self.inner_norm(self.inner(x))).relu()
        return self.head(x) + self.head(x * self.gate(x.mean((2, 3), keepdim=True)).sigmoid())  # type: ignore[no-any-return]


def test_sums_and_gates() -> None:
    model = randomise(Residual())
    with torch.no_grad():
        for norm, beta in ((model.norm, -1.0), (model.inner_norm, -0.5)):
            norm.weight[:4], norm.bias[:4] = 0, beta  # type: ignore[operator, index]
        model.norm.bias[2] = 3.0  # type: ignore[operator, index]  # a sum other than zero meets a live gate
    model.norm.weight.data[3] = 0.5  # type: ignore[operator, index, union-attr]  # half a sum is no constant
    slim = fxprune.eliminate_dead_channels(model, IMAGE)
    assert fxprune.plan_of(slim).removed("norm.weight", 0) == (0, 1)
    assert same(slim, model)


def test_an_emptied_layer_keeps_one_channel() -> None:
    model = chain()
    with torch.no_grad():
        model[1].weight.zero_()
    slim = fxprune.eliminate_dead_channels(model, IMAGE)
    assert widths(slim)[0] == 1
    assert same(slim, model)


def test_what_feeds_an_emptied_layer_is_dead_too() -> None:
    """The channel that has to stay is beta whatever it reads, so it reads next to nothing."""
    model = chain()
    model[1].weight.data.zero_()  # type: ignore[index, operator]
    model[3].weight.data.zero_()  # type: ignore[index, operator]
    slim = fxprune.eliminate_dead_channels(model, IMAGE)
    assert widths(slim)[:3] == [1, 1, 1]
    assert same(slim, model)
    assert fxprune.absorption_of(slim).exact
    assert not fxprune.absorption_of(slim).losses


def test_masks_on_several_tensors_of_one_module() -> None:
    model = chain()
    prune.ln_structured(model[3], "weight", 0.5, 2, 0)
    prune.random_unstructured(model[3], "bias", 0.5)
    prune.l1_unstructured(model[1], "weight", 0.5)
    prune.random_unstructured(model[1], "bias", 0.25)
    before = Snapshot(model)
    slim = fxprune.eliminate_dead_channels(model, IMAGE)
    assert not before.differences(model)
    assert widths(slim)[:2] == [4, 4]
    assert same(slim, model)
    assert list(slim.state_dict()) == list(chain().state_dict())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_held_to_its_own_rounding(dtype: torch.dtype) -> None:
    """Constants that go into biases are rounded to the model's dtype."""
    model = chain().to(dtype)
    model[1].weight.data[:4] = 0  # type: ignore[index, operator]
    slim = fxprune.eliminate_dead_channels(model, IMAGE.to(dtype))
    assert widths(slim)[0] == 4
    assert {p.dtype for p in slim.parameters()} == {dtype}
    assert fxprune.absorption_of(slim).difference <= 8 * torch.finfo(dtype).eps


class Amplified(nn.Module):
    """Dead channels whose constant is a hundred times what the next norm divides by: one rounding of it is seen in the output."""

    def __init__(self, biased: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.norm = nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16)
        self.second, self.between = nn.Conv2d(16, 16, 1, bias=biased), nn.BatchNorm2d(16)
        self.head = nn.Linear(16, 5)
        with torch.no_grad():
            self.norm.bias.normal_()
            self.norm.weight[:6], self.norm.bias[:6] = 0.0, torch.rand(6) * 2
            spread = self.inner().std((0, 2, 3))
            constant = self.second.weight[:, :6, 0, 0] @ self.norm.bias[:6]
            self.second.weight[:, :6] *= (100 * spread / constant.abs()).reshape(-1, 1, 1, 1)
            seen = self.inner()
            self.between.running_mean, self.between.running_var = seen.mean((0, 2, 3)), seen.var((0, 2, 3))

    def inner(self) -> Tensor:
        y: Tensor = self.second(self.norm.eval()(self.first(torch.randn(64, 3, 16, 16))).relu())
        return y

    def forward(self, x: Tensor) -> Tensor:
        y = self.second(self.norm(self.first(x)).relu())
        return self.head(self.between(y).relu().mean((2, 3)))  # type: ignore[no-any-return]


@pytest.mark.parametrize("biased", [True, False])
def test_a_model_is_held_to_what_it_computes_in_its_own_precision(biased: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = Amplified(biased).eval(), torch.randn(2, 3, 16, 16)
    slim = fxprune.eliminate_dead_channels(model, x)
    assert widths(slim)[0] == 10
    found = fxprune.absorption_of(slim).difference
    with torch.no_grad():
        exact = model.double()(x.double())
        own = float((model.float()(x) - exact).abs().max() / exact.abs().max())
    assert found < 4 * own
    assert (found > 1e-6) == biased
    monkeypatch.setattr(eliminate, "_rounded", lambda *_: 0.0)
    if biased:
        with pytest.raises(fxprune.VerificationError, match="the outputs differ by"):
            fxprune.eliminate_dead_channels(model, x)


def test_a_slim_model_and_other_precisions() -> None:
    model = chain()
    with torch.no_grad():
        model[1].weight[:2] = 0
    for given in (copy.deepcopy(model), copy.deepcopy(model).train()):
        slim = fxprune.eliminate_dead_channels(given, IMAGE)
        assert slim.training == given.training
    first = fxprune.slim(model, 0.3, IMAGE)
    second = fxprune.eliminate_dead_channels(first, IMAGE)
    assert same(second, first)
    small = fxprune.eliminate_dead_channels(copy.deepcopy(model).float(), IMAGE.float())
    assert small(IMAGE.float()).dtype == torch.float32


def test_a_wrong_verdict_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Channels taken for dead that are not: the outputs tell, and nothing is returned."""
    from fxprune.absorb import dead

    monkeypatch.setattr(dead._Site, "mark", lambda *_: None)
    with pytest.raises(fxprune.VerificationError):
        fxprune.eliminate_dead_channels(chain(), IMAGE)
