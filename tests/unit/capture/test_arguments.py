"""Arguments of nodes: what functions get to see, and what they may do with it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx, nn

import fxprune
from fxprune.capture.arguments import arguments
from tests.unit.api.nets import seeded


def fitted(window: list[int], options: dict[str, int], height: int) -> list[int]:
    """Writes to what it was given, as torchvision's window sizes do."""
    window[0] = min(window[0], height)
    options["calls"] = options.get("calls", 0) + 1
    return [window[0] * options["calls"], *window[1:]]


fx.wrap("fitted")


class Windows(nn.Module):
    """A function that tracing does not enter writes to a list and a dict that the program holds as literals."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        window = fitted([8, 4], {}, x.shape[2])
        y: Tensor = self.b(self.a(x).unflatten(2, (-1, window[0])).mean(3))
        return y


def test_a_function_may_write_to_the_lists_and_dicts_it_is_given() -> None:
    model, x = seeded(Windows()), torch.randn(2, 3, 4, 6, dtype=torch.float64)
    slim = fxprune.slim(model.double(), 0.5, x)
    assert fxprune.verify(model, slim, x).max_relative_error <= 1e-9
    assert slim.get_parameter("a.weight").shape[0] == 4


def test_literals_are_new_in_every_call_and_values_are_handed_on_as_they_are() -> None:
    graph = fx.Graph()
    x = graph.placeholder("x")
    node = graph.call_function(print, ([1, (x, [2])], x), {"key": {"a": x}, "cut": slice(x, None)})
    value = [5]
    first: Any = arguments(node, lambda _: value)
    second: Any = arguments(node, lambda _: value)
    assert first == second == (([1, ([5], [2])], [5]), {"key": {"a": [5]}, "cut": slice([5], None)})
    assert type(first[0][0]) is list
    assert first[0][0] is not second[0][0]
    assert first[0][1] is second[0][1] is value
    first[0][0][1][1].append(3)
    assert arguments(node, lambda _: value) == second
