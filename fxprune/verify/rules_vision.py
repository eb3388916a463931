"""Detection: pooling over regions, and operators that tell which elements satisfy something.

1. A region is cut out of every channel of a feature map alike: a channel's state is carried. The regions must exist in full.
2. Which elements satisfy something has no meaning where some of them do not exist.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from fxprune.verify.call import Call, mark_all, rule, tensors
from fxprune.verify.existence import has_dead, mark, mask_of, no_semantics
from fxprune.verify.rules_contraction import channel_states


@rule("torchvision::roi_align", "torchvision::roi_pool")
def regions(call: Call) -> Any:
    """Clause 1."""
    value: Tensor = call["input"]
    if has_dead(mask_of(call["rois"])):
        raise no_semantics(call.name, "its regions vary with the removed channels")
    states = channel_states(value, 1, call.name)
    result = call.run()
    first = tensors(result)[0]
    mark(first, states.reshape(1, -1, *(1,) * (first.ndim - 2)))
    return result


@rule("torchvision::nms", "nonzero", "_unique2", "unique_dim", "unique_consecutive", "masked_select")
def told(call: Call) -> Any:
    """Clause 2."""
    if call.removed:
        raise no_semantics(call.name, "it tells which of its elements satisfy something, and some of them are removed")
    return mark_all(call.run(), None)
