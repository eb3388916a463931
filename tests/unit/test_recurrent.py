"""Recurrent layers and cells, whole: against the original network with the weights of everything removed set to zero.

A unit all of whose weights and biases are zero stays zero: tanh(0) = 0 for Elman networks, sigmoid(0) * tanh(0) = 0 for an LSTM, and for a
GRU (1 - z) * tanh(0) + z * 0 = 0. It is read by zeros besides. So the oracle needs nothing of the library but the plan's indices.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxprune
from tests.property.program import randomise
from tests.reference.compare import relative_error


def zeroed(model: nn.Module, plan: fxprune.Plan, *inputs: Any) -> Any:
    """What the model computes when every entry of every removed atom is zero."""
    tensors = dict(model.named_parameters())
    changed = {}
    for name, dims in plan.kept.items():
        tensor = tensors[name].detach().clone()
        for dim, kept in dims.items():
            assert plan.sizes[name][dim] == tensor.shape[dim]
            dead = [i for i in range(tensor.shape[dim]) if i not in set(kept)]
            tensor.index_fill_(dim, torch.tensor(dead, dtype=torch.long), 0)
        changed[name] = tensor
    with torch.no_grad():
        return torch.func.functional_call(model, changed, inputs)


def check(model: nn.Module, *inputs: Any, ratio: float = 0.5, achieved: float = 0.35) -> Any:
    """Slim, and hold against the oracle; the slim model."""
    randomise(model, 3)
    slim = fxprune.slim(model, ratio, inputs)
    plan = fxprune.plan_of(slim)
    assert plan.achieved >= achieved, plan.notes
    expected = zeroed(model, plan, *inputs)
    with torch.no_grad():
        assert relative_error(slim(*inputs), expected) < 1e-9
        if model.first and len(inputs) == 1:  # another batch size
            wider = torch.cat([inputs[0], inputs[0].flip(0) * 0.5])
            assert relative_error(slim(wider), zeroed(model, plan, wider)) < 1e-9
    again = fxprune.apply(model, plan, inputs)
    again.load_state_dict(slim.state_dict())
    return slim


class Net(nn.Module):
    """A linear layer, a recurrent layer, and a reader of what ``read`` picks."""

    def __init__(self, recurrent: nn.RNNBase, read: str = "output") -> None:
        super().__init__()
        self.first = recurrent.batch_first
        directions = 2 if recurrent.bidirectional else 1
        width = getattr(recurrent, "proj_size", 0) or recurrent.hidden_size
        self.before, self.recurrent, self.read = nn.Linear(5, recurrent.input_size), recurrent, read
        rows = directions * recurrent.num_layers
        size = {"output": directions * width, "last": width, "both": 2 * width, "cell": recurrent.hidden_size}
        self.after = nn.Linear({**size, "all": rows * width}[read], 3)

    def forward(self, x: Tensor) -> Any:
        output, state = self.recurrent(self.before(x))
        hidden, cell = state if isinstance(self.recurrent, nn.LSTM) else (state, state)
        if self.read == "output":
            return self.after(torch.relu(output))
        if self.read == "both":
            return self.after(torch.cat([hidden[-2], hidden[-1]], -1))
        if self.read == "all":
            return self.after(hidden.transpose(0, 1).flatten(1))
        return self.after(hidden[-1] if self.read == "last" else cell[-1])


X = torch.randn(4, 7, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
KINDS = (nn.LSTM, nn.GRU, nn.RNN)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"batch_first": True},
        {"bidirectional": True},
        {"num_layers": 3, "dropout": 0.1},
        {"num_layers": 2, "bidirectional": True, "bias": False, "batch_first": True},
    ],
    ids=str,
)
def test_layers(kind: type[nn.RNNBase], options: dict[str, Any]) -> None:
    slim = check(Net(kind(8, 10, **options).double()), X)
    assert slim.recurrent.input_size < 8
    assert slim.recurrent.hidden_size < 10
    assert slim.recurrent._flat_weights[1].shape[1] == slim.recurrent.hidden_size
    assert list(slim.state_dict()) == list(Net(kind(8, 10, **options)).state_dict())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("read", ["last", "both", "all"])
def test_final_states(kind: type[nn.RNNBase], read: str) -> None:
    slim = check(Net(kind(8, 12, num_layers=2, bidirectional=True).double(), read), X)
    assert slim.recurrent.hidden_size < 12


def test_the_final_cell_state() -> None:
    assert check(Net(nn.LSTM(8, 12, num_layers=2).double(), "cell"), X).recurrent.hidden_size < 12


def test_units_of_layers_and_directions_are_chosen_apart() -> None:
    net = Net(nn.GRU(8, 12, num_layers=2, bidirectional=True).double())
    plan = fxprune.plan_of(check(net, X))
    rows = [plan.kept[f"recurrent.weight_hh_{name}"][1] for name in ("l0", "l0_reverse", "l1", "l1_reverse")]
    assert len({len(row) for row in rows}) == 1
    assert len(set(rows)) > 1


@pytest.mark.parametrize("options", [{}, {"bidirectional": True, "num_layers": 2}], ids=str)
@pytest.mark.parametrize("read", ["output", "last", "cell"])
def test_projections_stay_narrower(options: dict[str, Any], read: str) -> None:
    slim = check(Net(nn.LSTM(8, 14, proj_size=6, **options).double(), read), X, achieved=0.2)
    assert slim.recurrent.proj_size < 6
    assert slim.recurrent.proj_size == slim.recurrent.weight_hr_l0.shape[0]
    assert slim.recurrent.proj_size < slim.recurrent.hidden_size < 14


def test_a_projection_as_wide_as_can_be() -> None:
    """All units but one go, if they can: the layer must still know that it projects."""
    slim = check(Net(nn.LSTM(8, 7, proj_size=6).double()), X, ratio=0.15, achieved=0.1)
    assert slim.recurrent.hidden_size == 7
    assert slim.recurrent.proj_size < 6


def test_a_returned_output_keeps_its_width() -> None:
    class Returned(nn.Module):
        first = False

        def __init__(self) -> None:
            super().__init__()
            self.before, self.recurrent = nn.Linear(5, 8), nn.LSTM(8, 10, num_layers=2)

        def forward(self, x: Tensor) -> Any:
            return self.recurrent(self.before(x))

    slim = check(Returned().double(), X)
    assert slim.recurrent.input_size < 8
    assert slim.recurrent.hidden_size == 10


class Given(nn.Module):
    """Initial states: a model input, a parameter, or a linear layer's output."""

    first = False

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.before, self.recurrent, self.after = nn.Linear(5, 8), nn.LSTM(8, 10), nn.Linear(10, 3)
        if how == "parameter":
            self.h, self.c = nn.Parameter(torch.randn(1, 1, 10)), nn.Parameter(torch.randn(1, 1, 10))
        elif how == "linear":
            self.h, self.c = nn.Linear(5, 10), nn.Linear(5, 10)

    def forward(self, x: Tensor, h: Tensor | None = None, c: Tensor | None = None) -> Tensor:
        if self.how == "parameter":
            h, c = self.h.expand(1, x.shape[1], 10).contiguous(), self.c.expand(1, x.shape[1], 10).contiguous()
        elif self.how == "linear":
            h, c = self.h(x[:1]), self.c(x[:1])
        elif self.how == "zeros":
            h, c = torch.zeros(1, x.shape[1], 10, dtype=x.dtype), torch.zeros(1, x.shape[1], 10, dtype=x.dtype)
        return self.after(self.recurrent(self.before(x), (h, c))[0])


def test_given_states() -> None:
    states = torch.randn(2, 1, 7, 10, dtype=torch.float64)
    assert check(Given("input").double(), X, *states, achieved=0.1).recurrent.hidden_size == 10
    for how in ("parameter", "linear", "zeros"):
        assert check(Given(how).double(), X).recurrent.hidden_size < 10


class Cells(nn.Module):
    """A cell that is stepped through time, its state handed on."""

    first = True

    def __init__(self, cell: nn.RNNCellBase, given: bool = False) -> None:
        super().__init__()
        self.before, self.cell, self.after = nn.Linear(5, 8), cell, nn.Linear(10, 3)
        self.given = given

    def forward(self, x: Tensor) -> Tensor:
        x = self.before(x)
        state = None
        if self.given:
            state = x.new_zeros(x.shape[0], 10)
            state = (state, state) if isinstance(self.cell, nn.LSTMCell) else state
        for step in range(3):
            state = self.cell(x[:, step], state)
        return self.after(state[0] if isinstance(self.cell, nn.LSTMCell) else state)


@pytest.mark.parametrize("given", [False, True])
@pytest.mark.parametrize("kind", [nn.LSTMCell, nn.GRUCell, nn.RNNCell])
@pytest.mark.parametrize("bias", [True, False])
def test_cells(kind: type[nn.RNNCellBase], given: bool, bias: bool) -> None:
    slim = check(Cells(kind(8, 10, bias=bias).double(), given), X)
    assert slim.cell.input_size < 8
    assert slim.cell.hidden_size < 10


class OwnLSTM(nn.LSTM):
    """A subclass: symbolic tracing enters it."""

    def forward(self, x: Tensor, hx: Any = None) -> Any:  # type: ignore[override]
        output, state = super().forward(torch.relu(x), hx)
        return output * 2, state


def test_a_subclass() -> None:
    slim = check(Net(OwnLSTM(8, 10).double()), X)
    rows, columns = slim.recurrent.weight_hh_l0.shape
    assert rows == 4 * columns < 40


def test_a_single_sequence() -> None:
    check(Net(nn.GRU(8, 10).double()), X[:, 0])


def test_residual_stack() -> None:
    class Stack(nn.Module):
        first = True

        def __init__(self) -> None:
            super().__init__()
            self.before = nn.Linear(5, 8)
            self.a, self.b = nn.GRU(8, 8, batch_first=True), nn.LSTM(8, 4, batch_first=True, bidirectional=True)
            self.norm, self.after = nn.LayerNorm(8, elementwise_affine=False), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = self.before(x)
            x = x + self.a(x)[0]
            x = x + self.b(x)[0]
            return self.after(x)

    slim = check(Stack().double(), X)
    assert slim.a.hidden_size == 2 * slim.b.hidden_size


@pytest.mark.parametrize("function", [torch.gru, torch.ops.aten.gru.input], ids=["function", "operator"])
def test_the_functional_form(function: Any) -> None:
    class Functional(nn.Module):
        first = False

        def __init__(self) -> None:
            super().__init__()
            self.before, self.after = nn.Linear(5, 8), nn.Linear(10, 3)
            self.ih, self.hh = nn.Parameter(torch.randn(30, 8)), nn.Parameter(torch.randn(30, 10))

        def forward(self, x: Tensor) -> Tensor:
            state = torch.zeros(1, x.shape[1], 10, dtype=x.dtype)
            return self.after(function(self.before(x), state, [self.ih, self.hh], False, 1, 0.0, False, False, False)[0])

    slim = check(Functional().double(), X)
    assert slim.hh.shape[1] < 10


class Translation(nn.Module):
    """An encoder whose final states start a decoder, twice the same layer, and a dot-product attention over its outputs."""

    first = True

    def __init__(self, kind: type[nn.RNNBase]) -> None:
        super().__init__()
        self.before, self.after = nn.Linear(5, 8), nn.Linear(20, 3)
        self.encoder, self.decoder = kind(8, 10, 2, batch_first=True), kind(8, 10, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.before(x)
        memory, state = self.encoder(x)
        y, state = self.decoder(x.flip(1), state)
        y, _ = self.decoder(x + 1, state)
        weights = (y @ memory.transpose(1, 2)).softmax(-1)
        return self.after(torch.cat([weights @ memory, y], -1))


@pytest.mark.parametrize("kind", KINDS)
def test_states_that_start_another_layer(kind: type[nn.RNNBase]) -> None:
    slim = check(Translation(kind).double(), X)
    assert slim.encoder.hidden_size == slim.decoder.hidden_size < 10
    plan = fxprune.plan_of(slim)
    for name in ("l0", "l1"):
        assert plan.kept[f"encoder.weight_hh_{name}"][1] == plan.kept[f"decoder.weight_hh_{name}"][1]


class Lines(nn.Module):
    """Text lines: convolutions, then two directions along the width; ``how`` lays the channels along features or along the batch."""

    first = False

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.conv, self.norm = nn.Conv2d(1, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.recurrent = nn.LSTM(6 * 4 if how == "features" else 4, 10, bidirectional=True)
        self.after = nn.Linear(20 if how == "features" else 6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.conv(x.unsqueeze(1))))  # n, 6, 4, w
        n, c, h, w = x.shape
        if self.how == "features":
            return self.after(self.recurrent(x.view(n, c * h, w).permute(2, 0, 1))[0])
        y = self.recurrent(x.permute(3, 0, 1, 2).reshape(w, n * c, h))[0]
        return self.after(y.mean(-1).view(w, n, c))


@pytest.mark.parametrize("how", ["features", "batch"])
def test_convolutions_before(how: str) -> None:
    model = Lines(how).double()
    randomise(model, 3)
    slim = fxprune.slim(
        model, 0.5, X[:, :4], floor=0.3
    )  # where units are averaged the zeroed network is no oracle: the verifier is
    assert slim.recurrent.hidden_size < 10
    assert slim.recurrent.input_size == (4 * slim.conv.out_channels if how == "features" else 4)
    assert (slim.conv.out_channels < 6) == (how == "features")  # sequences cannot go


def test_an_emptied_layer() -> None:
    """All units of the middle layer go: one is left, and nobody hears it."""

    class Three(nn.Module):
        first = True

        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = (nn.GRU(i, o, batch_first=True) for i, o in ((5, 8), (8, 6), (6, 8)))
            self.after = nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.after(self.c(self.b(self.a(x)[0])[0])[0])

    def middle_first(group: Any) -> Tensor:
        return torch.arange(len(group), dtype=torch.float64) + (0 if group.name.startswith("b.") else 100)

    model = randomise(Three().double(), 3)
    slim = fxprune.slim(model, 0.35, X, floor=0.0, score=middle_first)
    plan = fxprune.plan_of(slim)
    assert slim.b.hidden_size == 1
    assert plan.silent["c.weight_ih_l0"] == {1: plan.kept["b.weight_hh_l0"][1]}
