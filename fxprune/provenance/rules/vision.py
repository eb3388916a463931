"""Detection: regions of interest, and operators whose result is as long as numbers say.

1. Pooling over regions carries the channels of the feature map (dimension 1); factors along its batch or space are pinned, as are those
   of the regions' coordinates.
2. Operators that tell which elements satisfy something (nonzero, non-maximum suppression, unique) pin every factor of their operands:
   a removed element would be missing among those told.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torch.utils._pytree import tree_leaves

from fxprune.provenance.factor import along, support
from fxprune.provenance.tracker import Rule, Tracker


def regions(t: Tracker, func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """Clause 1: ``roi_align(input, rois, ...)`` and ``roi_pool``; (n, c, h, w), (k, 5) -> (k, c, ...)."""
    result = func(*args, **kwargs)
    first = result if isinstance(result, Tensor) else result[0]
    channels = []
    for ids in t.value(args[0]).factors:
        if support(ids) == (1,):
            channels.append(along(ids.reshape(-1), 1, first.dim()))
        else:
            t.ledger.pin(ids, "pooled over regions")
    for ids in t.value(args[1]).factors:
        t.ledger.pin(ids, "coordinates of regions")
    t.bind(first, channels)
    return result


def told(t: Tracker, func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """Clause 2."""
    for x in tree_leaves((args, kwargs)):
        if isinstance(x, Tensor):
            for ids in t.value(x).factors:
                t.ledger.pin(ids, f"{func._schema.name} tells which of these elements satisfy something")
    return func(*args, **kwargs)


RULES: dict[str, Rule] = {
    **dict.fromkeys(("torchvision::roi_align", "torchvision::roi_pool"), regions),
    **dict.fromkeys(("torchvision::nms", "nonzero", "_unique2", "unique_dim", "unique_consecutive", "masked_select"), told),
}
