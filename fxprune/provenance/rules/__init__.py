"""The one table from ATen operators to transfer rules.

Lookup order: the named tables of the rule files; then by family: pointwise by tag, views by schema; then no rule (pinned).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fxprune.provenance.rules import (
    contraction,
    creation,
    indexing,
    movement,
    normalization,
    pointwise,
    recurrent,
    reduction,
    spatial,
    vision,
)
from fxprune.provenance.tracker import Rule, Tracker, data_dependent

TABLE: dict[str, Rule] = {
    **movement.RULES,
    **contraction.RULES,
    **normalization.RULES,
    **reduction.RULES,
    **spatial.RULES,
    **indexing.RULES,
    **creation.RULES,
    **recurrent.RULES,
    **vision.RULES,
    **pointwise.RULES,
}


def find(func: Any) -> Rule:
    """The rule of an ATen operator; the sound top where there is none."""
    packet = func._schema.name.removeprefix("aten::")
    rule = TABLE.get(packet) or TABLE.get(packet.removesuffix("_copy"))
    if rule is None and packet.endswith("_") and not packet.startswith("__"):
        rule = TABLE.get(packet[:-1])
    if rule is None and not func._schema.name.startswith("aten::"):
        return _no_rule
    if rule is None and (torch.Tag.pointwise in func.tags or packet.removesuffix("_") in pointwise.UNTAGGED):
        rule = pointwise.apply
    if rule is None and func.is_view and packet != "as_strided":
        rule = movement.generic
    if rule is None and not any("Tensor" in str(argument.type) for argument in func._schema.arguments):
        rule = creation.constant
    return rule or _no_rule


def _no_rule(t: Tracker, func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    if func is torch.ops.aten._local_scalar_dense.default:
        numbers = t.constant(args[0])
        if numbers is None:
            raise data_dependent(func, t.ledger.node)
        return numbers.item()
    operands = [x for x in torch.utils._pytree.tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
    factors = [ids for x in operands for ids in t.value(x).factors]
    t.ledger.missing(func._schema.name, factors)
    try:
        return func(*args, **kwargs)
    except NotImplementedError as error:
        raise data_dependent(func, t.ledger.node) from error
