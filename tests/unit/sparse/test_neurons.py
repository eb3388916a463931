"""Neurons that pruning cut off: what is removed, that outputs stay what they were, and what is left with its reason."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import fxprune
from fxprune import sparse, zoo


def randomised(model: nn.Module, seed: int = 0) -> nn.Module:
    """Float64, with norms that do something and biases that are not zero."""
    generator = torch.Generator().manual_seed(seed)
    model = model.double().eval()
    for module in model.modules():
        for name in ("weight", "bias", "running_mean", "running_var"):
            value = getattr(module, name, None)
            if isinstance(value, Tensor) and value.dim() == 1:
                value.data = torch.rand(value.shape, generator=generator, dtype=torch.float64) + 0.2
    return model


def silence(module: nn.Module, rows: tuple[int, ...] = (), columns: tuple[int, ...] = ()) -> None:
    """Prune whole rows (no inputs) or columns (nobody reads that input) of a weight; biases stay."""
    with torch.no_grad():
        module.weight[list(rows)] = 0  # type: ignore[index, operator]
        module.weight[:, list(columns)] = 0  # type: ignore[index, operator]


def same(model: nn.Module, x: Tensor) -> sparse.Removed:
    """Remove, and compare outputs with the untouched model's, on images that removal has not seen."""
    before = copy.deepcopy(model.state_dict())
    found = sparse.remove_neurons(model, x[:2])
    with torch.no_grad():
        expected, got = model(x), found.module(x)
    assert float((expected - got).abs().max() / expected.abs().max()) <= 1e-9
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    return found


def chain() -> nn.Sequential:
    torch.manual_seed(0)
    made = nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 7), nn.ReLU(), nn.Linear(7, 4))
    return randomised(made)  # type: ignore[return-value]


X = torch.randn(9, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(7))


def test_a_neuron_that_nobody_reads_goes() -> None:
    model = chain()
    silence(model[2], columns=(1, 4))
    found = same(model, X)
    assert found.plan.removed("0.weight", 0) == (1, 4)
    assert (found.channels, found.unheard, found.unfed, found.folded) == (2, 2, 0, 0)
    assert found.left == ()


def test_a_neuron_without_inputs_is_a_constant_that_readers_absorb() -> None:
    model = chain()
    silence(model[2], rows=(0, 3))
    model[2].bias.data[0] = -1.0  # ReLU makes it zero: nothing to fold
    found = same(model, X)
    assert found.plan.removed("2.weight", 0) == (0, 3)
    assert (found.unheard, found.unfed, found.folded) == (0, 2, 1)
    expected = model[4].bias + model[4].weight[:, 3] * model[2].bias[3]
    assert torch.allclose(found.module.get_submodule("4").bias, expected, rtol=1e-12)


def test_the_cascade_runs_upstream() -> None:
    model = chain()
    silence(model[4], columns=(2,))
    weight = model[2].weight.data
    weight[:2, 5] = 0
    weight[3:, 5] = 0  # neuron 5 of the first layer is read by neuron 2 alone, which nobody reads
    found = same(model, X)
    assert found.plan.removed("2.weight", 0) == (2,)
    assert found.plan.removed("0.weight", 0) == (5,)


def test_the_cascade_runs_downstream() -> None:
    model = chain()
    silence(model[0], rows=(1,))
    model[2].weight.data[4] = 0
    model[2].weight.data[4, 1] = 1.5  # fed by the constant alone, and so a constant itself
    found = same(model, X)
    assert found.plan.removed("0.weight", 0) == (1,)
    assert found.plan.removed("2.weight", 0) == (4,)
    assert found.folded == 2


def test_a_group_keeps_one_channel() -> None:
    model = chain()
    silence(model[2], columns=tuple(range(6)))
    found = same(model, X)
    assert found.module.get_submodule("0").weight.shape[0] == 1
    assert any("keeps one channel" in why for _, why, _ in found.left)


def test_nothing_to_remove_is_no_error() -> None:
    found = same(chain(), X)
    assert found.channels == 0
    assert found.plan.empty


def conv(reader: nn.Module, **options: bool) -> nn.Sequential:
    torch.manual_seed(0)
    made = nn.Sequential(
        nn.Conv2d(2, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.MaxPool2d(2), reader, nn.Flatten(), nn.LazyLinear(3)
    )
    made(torch.randn(1, 2, 8, 8))
    return randomised(made)  # type: ignore[return-value]


IMAGES = torch.randn(5, 2, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(8))


@pytest.mark.parametrize(
    "reader",
    [
        nn.Conv2d(6, 4, 3),
        nn.Conv2d(6, 4, 3, padding=1, padding_mode="circular"),
        nn.Conv2d(6, 4, 3, padding="valid", stride=2),
        nn.Conv2d(6, 4, 3, groups=2, bias=True),
    ],
    ids=["plain", "circular", "valid", "grouped"],
)
def test_constants_are_folded_through_norm_and_pooling_into_convolutions(reader: nn.Module) -> None:
    model = conv(reader)
    silence(model[0], rows=(1, 4))  # one in each group of a grouped reader
    found = same(model, IMAGES)
    assert found.plan.removed("0.weight", 0) == (1, 4)
    assert found.folded == 2


@pytest.mark.parametrize(
    ("reader", "why"),
    [
        (nn.Conv2d(6, 4, 3, padding=1), "pads with zeros"),
        (nn.Conv2d(6, 4, 3, padding="same"), "pads with zeros"),
        (nn.Conv2d(6, 4, 3, bias=False), "no bias"),
        (nn.ConvTranspose2d(6, 4, 3), "transposed"),
    ],
    ids=["padded", "same", "biasless", "transposed"],
)
def test_constants_that_cannot_be_folded_stay_with_the_reason(reader: nn.Module, why: str) -> None:
    model = conv(reader)
    silence(model[0], rows=(1, 4))
    found = same(model, IMAGES)
    assert found.channels == 0
    assert [(reason, count) for _, reason, count in found.left if why in reason] == [(found.left[0][1], 2)]
    assert why in str(found)


@pytest.mark.parametrize("reader", [nn.Conv2d(6, 4, 3, padding=1), nn.Conv2d(6, 4, 3, bias=False), nn.ConvTranspose2d(6, 4, 3)])
def test_a_constant_of_zero_goes_whatever_reads_it(reader: nn.Module) -> None:
    model = conv(reader)
    silence(model[0], rows=(1, 4))
    model[1].running_mean[:] = 5.0  # type: ignore[index, operator]
    model[1].weight.data[:], model[1].bias.data[:], model[0].bias.data[:] = 1.0, -1.0, 0.0
    model[0].weight.data[[0, 2, 3, 5]] *= 50
    found = same(model, IMAGES)
    assert set(found.plan.removed("0.weight", 0)) == {1, 4}
    assert found.folded == 0


def test_channels_of_a_grouped_reader_go_in_step() -> None:
    model = conv(nn.Conv2d(6, 4, 3, groups=2))
    silence(model[0], rows=(0, 1, 4))  # two in the first group, one in the second
    found = same(model, IMAGES)
    assert len(found.plan.removed("0.weight", 0)) == 2
    assert any("equally many" in why for _, why, _ in found.left)


class Residual(nn.Module):
    """Two producers of one stream, a flatten, a concatenation."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(2, 6, 1)
        self.b = nn.Conv2d(6, 6, 3, padding=1)
        self.c = nn.Conv2d(12, 3, 1)
        self.fc = nn.Linear(3 * 16, 4)

    def forward(self, x: Tensor) -> Tensor:
        a = self.a(x)
        stream = a + self.b(a.relu())
        y: Tensor = self.fc(self.c(torch.cat([stream, a], 1)).flatten(1))
        return y


def test_a_stream_goes_only_if_all_its_producers_are_cut() -> None:
    x = torch.randn(4, 2, 4, 4, dtype=torch.float64)
    torch.manual_seed(0)
    model = randomised(Residual())
    silence(model.a, rows=(0, 2))
    silence(model.b, rows=(0,))
    model.a.bias.data[0] = -0.3  # zero for the padded reader b, a constant for the reader c
    found = same(model, x)
    assert found.plan.removed("a.weight", 0) == (0,)
    silence(model.c, columns=(3, 9))
    found = same(model, x)
    assert found.plan.removed("a.weight", 0) == (0,), "b still reads channel 3"
    silence(model.b, columns=(3,))
    assert same(model, x).plan.removed("a.weight", 0) == (0, 3)


class Through(nn.Module):
    """Something between two layers."""

    def __init__(self, between: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a = nn.Linear(5, 8)
        self.norm = nn.LayerNorm(8)
        self.b = nn.Linear(8, 3)
        self.between = between

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x)
        h = self.norm(h) if self.between is nn.LayerNorm else self.between(h)
        y: Tensor = self.b(h)
        return y


@pytest.mark.parametrize(
    "between",
    [nn.LayerNorm, lambda h: h.softmax(-1), lambda h: h / h.norm(dim=-1, keepdim=True), lambda h: h - h.amax(-1, keepdim=True)],
    ids=["layer norm", "softmax", "unit length", "maximum"],
)
@pytest.mark.parametrize("cut", ["unheard", "unfed"])
def test_what_is_mixed_with_other_channels_stays(between: Callable[[Tensor], Tensor], cut: str) -> None:
    model = randomised(Through(between))
    silence(model.b, columns=(2, 5)) if cut == "unheard" else silence(model.a, rows=(2, 5))
    found = same(model, X)
    assert found.channels == 0


def test_what_is_read_in_two_places_needs_both() -> None:
    class Gate(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.g, self.b, self.c = nn.Linear(5, 8), nn.Linear(5, 8), nn.Linear(8, 3), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            h = self.a(x) * self.g(x).sigmoid()
            y: Tensor = self.b(h) + self.c(h.relu())
            return y

    torch.manual_seed(0)
    model = randomised(Gate())
    silence(model.b, columns=(1, 2))
    silence(model.c, columns=(2, 3))
    silence(model.a, rows=(4,))
    model.a.bias.data[4] = 0.0  # zero times anything
    silence(model.g, rows=(4, 6))
    found = same(model, X)
    assert found.plan.removed("a.weight", 0) == (2, 4)


def test_a_module_that_is_called_twice_sees_two_values() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(5, 6), nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            h = self.a(x)
            y: Tensor = self.b(h) + self.b(2 * h)
            return y

    torch.manual_seed(0)
    model = randomised(Twice())
    silence(model.a, rows=(1, 2))
    model.a.bias.data[1] = 0.0
    found = same(model, X)
    assert found.plan.removed("a.weight", 0) == (1,)
    assert any("not a constant" in why for _, why, _ in found.left)


@pytest.mark.parametrize(("make", "density"), [(zoo.lenet5, 0.02), (zoo.lenet300, 0.01)])
def test_pruned_lenets_shrink_and_compute_the_same(make: Callable[[], nn.Module], density: float) -> None:
    torch.manual_seed(0)
    model = make().double().eval()
    sparse.set_masks(model, sparse.by_density(model, density, scope="global"))
    x = torch.randn(6, 1, 28, 28, dtype=torch.float64)
    found = same(model, x)
    assert found.channels > 40
    whole, small = (sum(p.numel() for p in m.parameters()) for m in (sparse.permanent(model), found.module))
    assert small < 0.95 * whole
    assert found.error <= 1e-9


def test_the_slim_model_goes_on_training_under_its_zeros() -> None:
    torch.manual_seed(0)
    model = zoo.lenet300()
    sparse.set_masks(model, sparse.by_density(model, 0.01, scope="global"))
    found = sparse.remove_neurons(model, torch.randn(2, 1, 28, 28))
    slim = found.module
    assert slim.training
    assert found.error < 1e-6
    zeros = sum(int((p == 0).sum()) for p in slim.parameters())
    sparse.mask_zeros(slim)
    optimizer = torch.optim.SGD(slim.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)
    for _ in range(2):
        slim(torch.randn(8, 1, 28, 28)).square().mean().backward()
        optimizer.step()
    assert sum(int((p == 0).sum()) for p in sparse.permanent(slim).parameters()) >= zeros
    again = fxprune.plan_of(slim)
    assert again.kept == found.plan.kept


def test_the_check_would_see_a_wrong_removal(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the probe for mixing turned off, a layer norm's channels would go; outputs are compared in any case."""
    from fxprune.sparse import neurons

    monkeypatch.setattr(neurons, "_loud", lambda *arguments: arguments[2] & False)
    model = randomised(Through(nn.LayerNorm))
    silence(model.b, columns=(2, 5))
    with pytest.raises(fxprune.VerificationError, match="nothing was removed"):
        sparse.remove_neurons(model, X[:2])


class Attending(nn.Module):
    """The attention's output projection is a module of its own, which nobody calls."""

    def __init__(self) -> None:
        super().__init__()
        self.inside = nn.Linear(5, 6)
        self.attention = nn.MultiheadAttention(6, 2, batch_first=True)
        self.out = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.inside(x[:, None, :])
        return self.out(self.attention(y, y, y, need_weights=False)[0][:, 0])


def test_a_projection_that_is_never_called_itself() -> None:
    torch.manual_seed(3)
    model = Attending().double().eval()
    nn.init.normal_(model.attention.in_proj_bias)
    silence(model.attention.out_proj, rows=(0, 2), columns=(1, 3))  # type: ignore[arg-type]
    with torch.no_grad():
        model.attention.in_proj_weight[12:16] = 0  # values without inputs
    same(model, X)
