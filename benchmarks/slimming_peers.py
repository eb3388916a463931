"""torch-pruning at a given number of MACs.

1. Its pruners rank globally; the ratio is bisected until the MACs come as close to the wanted share as its widths allow.
2. ``bnscale`` is its Network Slimming (BNScalePruner, BNScaleImportance), ``groupnorm`` its group norm (GroupNormPruner, GroupMagnitudeImportance;
   without its own sparse training this is what its MagnitudePruner removes).
3. Called on a CIFAR ResNet as it is, 1.6 fails in the next forward: shortcuts that pad with zero channels make streams of three widths one group. So
   the layers that make the streams (``keep``) are on its list of ignored layers, as a user would find out.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from fnmatch import fnmatchcase

from torch import Tensor, nn

import fxprune

STEPS = 14  # of the bisection


def pruned(model: nn.Module, kind: str, ratio: float, image: Tensor, keep: Sequence[str]) -> nn.Module:
    """A copy that torch-pruning has pruned (clauses 2 and 3)."""
    import torch_pruning as tp

    own = copy.deepcopy(model).eval()
    classes = {"bnscale": tp.pruner.BNScalePruner, "groupnorm": tp.pruner.GroupNormPruner}
    importance = {"bnscale": tp.importance.BNScaleImportance, "groupnorm": tp.importance.GroupMagnitudeImportance}[kind]()
    ignored = [
        module
        for name, module in own.named_modules()
        if any(fnmatchcase(name, glob) for glob in keep) or (isinstance(module, nn.Linear) and module.out_features == 10)
    ]
    classes[kind](own, image, importance, global_pruning=True, pruning_ratio=ratio, ignored_layers=ignored).step()
    return own


def at_macs(model: nn.Module, kind: str, share: float, image: Tensor, keep: Sequence[str]) -> nn.Module:
    """The pruned copy whose MACs are closest to ``share`` of the original's (clause 1)."""
    whole = fxprune.summary(model, image).macs
    low, high = 0.0, 1.0
    best, distance = model, 1.0
    for _ in range(STEPS):
        ratio = (low + high) / 2
        found = pruned(model, kind, ratio, image, keep)
        left = fxprune.summary(found, image).macs / whole
        if abs(left - share) < distance:
            best, distance = found, abs(left - share)
        low, high = (ratio, high) if left > share else (low, ratio)
    return best
