"""The zoo's networks are the published ones: sizes, MACs, tracing."""

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from fxprune import zoo

# Parameters in the units and to the precision in which they are published.
SIZES: list[tuple[str, Callable[[], nn.Module], float, int]] = [
    ("vgg19_bn", zoo.vgg19_bn, 20.04e6, 4),
    ("resnet164", zoo.resnet164, 1.70e6, 4),
    ("densenet40, stem 16", zoo.densenet40, 1.02e6, 4),
    ("densenet40, stem 24", lambda: zoo.densenet40(stem=24), 1.06e6, 4),
    ("resnet20", zoo.resnet20, 0.27e6, 4),
    ("resnet32", zoo.resnet32, 0.46e6, 4),
    ("resnet44", zoo.resnet44, 0.66e6, 4),
    ("resnet56", zoo.resnet56, 0.85e6, 4),
    ("resnet110", zoo.resnet110, 1.7e6, 5),
    ("lenet5", zoo.lenet5, 431_080, 0),
    ("lenet300", zoo.lenet300, 266_610, 0),
]
OTHERS: list[tuple[str, Callable[[], nn.Module]]] = [
    ("vgg11_bn", zoo.vgg11_bn),
    ("vgg13_bn", zoo.vgg13_bn),
    ("vgg16_bn", zoo.vgg16_bn),
    ("tiny_vgg", zoo.tiny_vgg),
    ("mlp", lambda: zoo.mlp(784, 500, 300, 10)),
    ("lenet5 with BN", lambda: zoo.lenet5(batch_norm=True)),
]
ALL = [(name, build) for name, build, _, _ in SIZES] + OTHERS


def macs(model: nn.Module) -> int:
    """Multiply-adds of convolutions and matrix products for one image."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.eval()(torch.zeros(1, *model.input_size))
    return int(counter.get_total_flops()) // 2


@pytest.mark.parametrize(("build", "published", "digits"), [row[1:] for row in SIZES], ids=[row[0] for row in SIZES])
def test_parameters_are_the_published_ones(build: Callable[[], nn.Module], published: float, digits: int) -> None:
    found = sum(parameter.numel() for parameter in build().parameters())
    assert round(found, -digits) == published


def test_densenet40_has_the_published_flops() -> None:
    assert round(2 * macs(zoo.densenet40()), -7) == 5.3e8


def test_resnet20_has_the_published_macs() -> None:
    assert round(macs(zoo.resnet20()), -5) == 40.6e6


@pytest.mark.parametrize("build", [row[1] for row in ALL], ids=[row[0] for row in ALL])
def test_traces_symbolically_with_an_open_batch_size(build: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    model = build().eval()
    traced = torch.fx.symbolic_trace(model)
    for batch in (1, 3):
        images = torch.randn(batch, *model.input_size)
        with torch.no_grad():
            expected = model(images)
            assert expected.shape == (batch, 10)
            torch.testing.assert_close(traced(images), expected)


@pytest.mark.parametrize("build", [zoo.resnet20, zoo.preresnet, zoo.densenet40])
def test_other_image_sizes_work_where_pooling_is_global(build: Callable[[], nn.Module]) -> None:
    with torch.no_grad():
        assert build().eval()(torch.zeros(1, 3, 48, 40)).shape == (1, 10)


@pytest.mark.parametrize("build", [zoo.vgg19_bn, zoo.resnet20, zoo.resnet164, zoo.densenet40, zoo.lenet5, zoo.lenet300])
def test_any_number_of_classes(build: Callable[..., nn.Module]) -> None:
    model = build(num_classes=7).eval()
    with torch.no_grad():
        assert model(torch.zeros(2, *model.input_size)).shape == (2, 7)


def test_width_multiplies_every_layer_of_vgg() -> None:
    convs = [m.out_channels for m in zoo.vgg_bn(16, width=0.25).modules() if isinstance(m, nn.Conv2d)]
    assert convs == [16, 16, 32, 32, 64, 64, 64, 128, 128, 128, 128, 128, 128]


def test_a_zero_padded_shortcut_keeps_every_second_pixel() -> None:
    block = zoo.resnet20().layer2[0]
    x = torch.randn(2, 16, 8, 8)
    shortcut = block.shortcut(x)
    assert shortcut.shape == (2, 32, 4, 4)
    torch.testing.assert_close(shortcut[:, 8:24], x[:, :, ::2, ::2])
    assert not shortcut[:, :8].any()
    assert not shortcut[:, 24:].any()


def test_a_depth_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ValueError, match="depth must be one of 11, 13, 16, 19, got 18"):
        zoo.vgg_bn(18)
    with pytest.raises(ValueError, match="depth must be 9n"):
        zoo.preresnet(100)
    with pytest.raises(ValueError, match="at least input and output"):
        zoo.mlp(10)
