"""The pruning scripts of Network Slimming's reference code, written anew from their definition (Liu et al. 2017, arXiv:1708.06519).

1. All scale factors of all batch norms are sorted by magnitude; ``threshold = sorted[int(n * ratio)]``; a batch norm keeps the channels
   whose factor is greater.
2. VGG: a convolution keeps the rows that its batch norm keeps, and reads what the batch norm before it keeps. The same holds within a
   bottleneck of the pre-activation ResNet, whose third convolution keeps all rows.
3. In front of a pre-activation block and of every dense layer the batch norm keeps all its parameters, and a *channel selection* layer
   behind it passes on the channels it keeps; the next convolution reads those. Dense layers and transitions keep all rows.
4. What the pruned networks compute is computed here by the original with the dropped channels taken out of every reader's input: no network
   is built, nothing is shared with the library. Parameters are counted layer by layer as the scripts build them.
5. A batch norm that keeps nothing makes the scripts fail; here its readers hear nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fxprune.zoo.densenet import DenseLayer, DenseNet, Transition
from fxprune.zoo.preresnet import PreActBottleneck, PreActResNet

Masks = Mapping[str, Tensor]


def masks(model: nn.Module, ratio: float) -> dict[str, Tensor]:
    """What every batch norm keeps (clause 1), by its name."""
    norms = {name: m for name, m in model.named_modules() if isinstance(m, nn.BatchNorm2d)}
    every = torch.cat([m.weight.detach().abs() for m in norms.values()])
    threshold = every.sort().values[int(len(every) * ratio)]
    return {name: m.weight.detach().abs() > threshold for name, m in norms.items()}


@dataclass(frozen=True)
class Pruned:
    """What a script's network computes, its parameters, and its multiply-adds for one image."""

    output: Tensor
    parameters: int
    macs: int


class _Walk:
    """The forward pass of clause 4, and the parameters and multiply-adds (of one image) of what the scripts build."""

    def __init__(self, model: nn.Module, kept: Masks) -> None:
        self.kept, self.parameters, self.macs = kept, 0, 0
        self.names = {module: name for name, module in model.named_modules()}

    def norm(self, m: nn.Module, x: Tensor, *, sliced: bool) -> tuple[Tensor, int]:
        """Batch norm and ReLU with dropped channels at zero; how many are left."""
        mask = self.kept[self.names[m]]
        left = int(mask.sum())
        self.parameters += 2 * (left if sliced else len(mask))
        return F.relu(m(x)) * mask.to(x.dtype).view(1, -1, 1, 1), left

    def conv(self, m: Any, x: Tensor, ins: int, outs: int) -> Tensor:
        self.parameters += ins * outs * m.weight[0, 0].numel() + (0 if m.bias is None else outs)
        result: Tensor = m(x)
        self.macs += ins * outs * m.weight[0, 0].numel() * result[0, 0].numel()
        return result

    def done(self, m: Any, x: Tensor, ins: int) -> Pruned:
        self.parameters += ins * m.out_features + m.out_features
        self.macs += ins * m.out_features
        return Pruned(m(x), self.parameters, self.macs)


def resnet(model: PreActResNet, x: Tensor, kept: Masks) -> Pruned:
    """Logits and size of the pruned pre-activation ResNet."""
    walk = _Walk(model, kept)
    x = walk.conv(model.conv1, x, 3, model.conv1.out_channels)
    for block in [b for stage in (model.layer1, model.layer2, model.layer3) for b in stage]:
        assert isinstance(block, PreActBottleneck)
        y, first = walk.norm(block.bn1, x, sliced=False)
        second, third = (int(kept[walk.names[m]].sum()) for m in (block.bn2, block.bn3))
        y, _ = walk.norm(block.bn2, walk.conv(block.conv1, y, first, second), sliced=True)
        y, _ = walk.norm(block.bn3, walk.conv(block.conv2, y, second, third), sliced=True)
        y = walk.conv(block.conv3, y, third, block.conv3.out_channels)
        if block.downsample is not None:
            (shortcut,) = block.downsample
            x = walk.conv(shortcut, x, shortcut.in_channels, shortcut.out_channels)
        x = y + x
    y, left = walk.norm(model.bn, x, sliced=False)
    return walk.done(model.fc, y.mean((2, 3)), left)


def densenet(model: DenseNet, x: Tensor, kept: Masks) -> Pruned:
    """Logits and size of the pruned DenseNet."""
    walk = _Walk(model, kept)
    x = walk.conv(model.conv1, x, 3, model.conv1.out_channels)
    for part in (*model.dense1, model.trans1, *model.dense2, model.trans2, *model.dense3):
        assert isinstance(part, DenseLayer | Transition)
        y, left = walk.norm(part.bn1, x, sliced=False)
        y = walk.conv(part.conv1, y, left, part.conv1.out_channels)
        x = torch.cat([x, y], 1) if isinstance(part, DenseLayer) else F.avg_pool2d(y, 2)
    y, left = walk.norm(model.bn, x, sliced=False)
    return walk.done(model.fc, y.mean((2, 3)), left)


def vgg(model: nn.Module, x: Tensor, kept: Masks) -> Pruned:
    """Logits and size of the pruned VGG: features, average, classifier."""
    walk = _Walk(model, kept)
    left, layers = 3, list(model.feature)  # type: ignore[arg-type]
    for layer, after in zip(layers, [*layers[1:], None], strict=True):
        if isinstance(layer, nn.Conv2d):
            outs = int(kept[walk.names[after]].sum())  # type: ignore[index]
            x = walk.conv(layer, x, left, outs)
        elif isinstance(layer, nn.BatchNorm2d):
            x, left = walk.norm(layer, x, sliced=True)
        elif not isinstance(layer, nn.ReLU):
            x = layer(x)
    return walk.done(model.classifier, F.adaptive_avg_pool2d(x, 1).flatten(1), left)
