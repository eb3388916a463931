"""A layer with a shortcut is analysed exactly like a subclass of it, which goes the whole way through the dispatcher."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

import fxprune
from fxprune.graph.channels import ChannelGraph
from fxprune.provenance.rules.shortcuts import SHORTCUTS

LAYERS: dict[type[nn.Module], Callable[[type[nn.Module]], nn.Module]] = {
    nn.Conv2d: lambda kind: kind(8, 6, 3, stride=2, padding=1, groups=2),
    nn.BatchNorm2d: lambda kind: kind(8),
    **dict.fromkeys(
        (nn.ReLU, nn.ReLU6, nn.SiLU, nn.Hardswish, nn.Hardsigmoid, nn.Sigmoid, nn.GELU, nn.Tanh), lambda kind: kind()
    ),
    **dict.fromkeys((nn.Dropout, nn.Identity), lambda kind: kind()),
}


def analysed(layer: nn.Module) -> ChannelGraph:
    width = layer.out_channels if isinstance(layer, nn.Conv2d) else 8
    net = nn.Sequential(
        nn.Conv2d(3, 8, 1), layer, nn.Conv2d(width, 5, 1, bias=False), nn.BatchNorm2d(5), nn.ReLU(), nn.Conv2d(5, 2, 1)
    )
    return fxprune.analyze(net.eval(), torch.zeros(2, 3, 8, 8))


@pytest.mark.parametrize("kind", SHORTCUTS, ids=lambda kind: kind.__name__)
def test_a_shortcut_leads_where_the_dispatcher_leads(kind: type[nn.Module]) -> None:
    long = type(kind.__name__, (kind,), {"__module__": "torch.nn.modules.subclassed"})
    short, whole = analysed(LAYERS[kind](kind)), analysed(LAYERS[kind](long))
    assert np.array_equal(short.closed.component, whole.closed.component)
    assert np.array_equal(short.pinned, whole.pinned)
    assert [a.label for a in short.axes] == [a.label for a in whole.axes]
    assert [b.blocks.shape for b in short.closed.balances] == [b.blocks.shape for b in whole.closed.balances]
    shapes = [[getattr(value, "shape", None) for value in graph.nodes.values()] for graph in (short, whole)]
    assert shapes[0] == shapes[1]


def test_a_hook_takes_the_whole_way() -> None:
    layer = nn.ReLU()
    layer.register_forward_hook(lambda _module, _args, output: output[:, :4].repeat(1, 2, 1, 1))
    graph = analysed(layer)
    assert len(np.unique(graph.closed.component[1:9])) == 8
    assert not np.array_equal(graph.closed.component, analysed(nn.ReLU()).closed.component)
