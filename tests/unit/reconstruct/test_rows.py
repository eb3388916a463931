"""Sampled rows times the weight are the layer's output at those positions."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fxprune.reconstruct.gather import Calibration, device_of
from fxprune.reconstruct.rows import inputs_at, outputs_at, positions

LAYERS = {
    "plain": (nn.Conv2d(6, 4, 3), (2, 6, 9, 8)),
    "strided": (nn.Conv2d(6, 4, (3, 2), stride=(2, 3), padding=(1, 2), dilation=(2, 1)), (2, 6, 9, 11)),
    "same": (nn.Conv2d(6, 4, 4, padding="same"), (2, 6, 7, 5)),
    "valid": (nn.Conv2d(6, 4, 3, padding="valid"), (2, 6, 7, 5)),
    "reflect": (nn.Conv2d(6, 4, 3, padding=1, padding_mode="reflect"), (2, 6, 7, 5)),
    "circular": (nn.Conv2d(6, 4, 3, padding=1, padding_mode="circular"), (2, 6, 7, 5)),
    "grouped": (nn.Conv2d(6, 9, 3, padding=1, groups=3), (2, 6, 5, 5)),
    "depthwise": (nn.Conv2d(6, 12, 3, groups=6), (2, 6, 5, 5)),
    "one dimension": (nn.Conv1d(6, 4, 5, padding=2), (3, 6, 17)),
    "three dimensions": (nn.Conv3d(6, 4, 3, stride=2, padding=1), (2, 6, 4, 5, 6)),
    "one image": (nn.Conv2d(6, 4, 3), (6, 9, 8)),
    "linear": (nn.Linear(6, 4), (5, 6)),
    "tokens": (nn.Linear(6, 4), (3, 4, 5, 6)),
    "one vector": (nn.Linear(6, 4), (6,)),
}


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("count", [3, 1000])
def test_inputs_times_weight_are_outputs(name: str, count: int) -> None:
    torch.manual_seed(0)
    layer, shape = LAYERS[name]
    layer = layer.double()
    x = torch.randn(shape, dtype=torch.float64)
    y = layer(x)
    places = positions(layer, y, count, torch.Generator().manual_seed(0))
    assert all(len(set(row.tolist())) == len(row) for row in places), "a position was drawn twice"
    rows, wanted = inputs_at(layer, x, places), outputs_at(layer, y, places)
    blocks = getattr(layer, "groups", 1)
    weight = layer.weight.reshape(blocks, layer.weight.shape[0] // blocks, -1)
    found = torch.einsum("nbc,brc->nbr", rows, weight).flatten(1) + layer.bias
    assert rows.shape[:2] == (len(wanted), blocks)
    assert torch.allclose(found, wanted, rtol=0, atol=1e-12)


def test_positions_depend_on_the_seed_alone() -> None:
    layer, shape = LAYERS["plain"]
    y = layer(torch.randn(shape).to(layer.weight))
    one, other = (positions(layer, y, 4, torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(one, other)
    assert not torch.equal(one, positions(layer, y, 4, torch.Generator().manual_seed(4)))


def test_batches_are_moved_to_the_model() -> None:
    batch = (torch.zeros(2, 3), torch.zeros(2))
    there = torch.device("meta")
    (call,) = Calibration([batch], device=there).calls()
    assert call.args[0].device == there
    assert next(Calibration([{"x": batch[0]}], device=there).calls()).kwargs["x"].device == there
    model = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Linear(3, 3))
    assert device_of(model) == torch.device("cpu")
    model[1].to("meta")
    assert device_of(model) is None
    assert next(Calibration([batch], device=device_of(model)).calls()).args[0] is batch[0]
