"""Models that keep what a forward pass computed."""

from __future__ import annotations

import torch
from torch import Tensor, fx, nn

import fxprune
from fxprune.capture.clone import walk
from fxprune.capture.concrete import ConcreteTracer
from fxprune.capture.inputs import given
from fxprune.capture.tracer import trace
from tests.unit.api.nets import seeded


class Remembers(nn.Module):
    """Positions in a buffer, computed anew for another number of tokens; the last width in an attribute."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.place = nn.Linear(6, 8), nn.Linear(8, 5), nn.Linear(1, 8)
        self.register_buffer("positions", torch.zeros(1, 1), persistent=False)
        self.last: dict[str, object] = {"width": 0}
        self.tokens: object = None

    def forward(self, x: Tensor) -> Tensor:
        if self.positions is None or self.positions.shape[0] != x.shape[1]:
            positions = x.new_zeros(x.shape[1], 1)
            positions[:, 0] = torch.arange(int(x.shape[1]), dtype=torch.float64)
            self.positions = positions
        self.last = {"width": x.shape[2]}
        self.tokens = x.shape[1]
        y: Tensor = self.b(self.a(x) + self.place(self.positions))
        return y


def test_a_model_that_fills_a_buffer_is_captured_before_and_after_its_first_call() -> None:
    x = torch.randn(2, 3, 6, dtype=torch.float64)
    for called in (False, True):
        model = seeded(Remembers())
        if called:
            model(x)
        slim = fxprune.slim(model, 0.5, x)
        assert fxprune.verify(model, slim, x).max_relative_error <= 1e-9
        assert slim.get_parameter("a.weight").shape == (4, 6)


def test_proxies_do_not_stay_in_the_modules_of_a_captured_program() -> None:
    model, x = seeded(Remembers()), given(torch.randn(2, 3, 6, dtype=torch.float64))
    captured = trace(model, lambda root: ConcreteTracer(root, x, frozenset()), x)
    held = [v for _, m in walk(captured.root) for store in (m.__dict__, m._buffers) for v in store.values()]
    assert not any(issubclass(type(v), fx.Proxy) for v in held)
    assert captured.root.get_buffer("positions").shape == (1, 1)
    assert (captured.root.__dict__["last"], captured.root.__dict__["tokens"]) == ({"width": 0}, None)


def test_an_attribute_that_the_value_does_not_have_is_missing() -> None:
    class Asks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(6, 4)

        def forward(self, x: Tensor) -> Tensor:
            assert not hasattr(x, "mask")
            y: Tensor = self.a(x) * getattr(x, "gain", 2)
            return y

    model, x = seeded(Asks()), given(torch.randn(2, 6, dtype=torch.float64))
    captured = trace(model, lambda root: ConcreteTracer(root, x, frozenset()), x)
    torch.testing.assert_close(captured.module()(*x.args), model(*x.args))
