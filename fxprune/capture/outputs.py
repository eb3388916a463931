"""The tensors in what a model returns, whatever it is made of.

1. Tuples, lists, dicts and all that PyTorch's pytrees know, in their order.
2. Of what pytrees take for a leaf: dataclasses by their fields, mappings by their values, other objects by their attributes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor, nn


def tensors_in(result: Any) -> Iterator[Tensor]:
    """Every tensor of a nested value (clauses 1 and 2); attributes of one object are looked at once."""
    return _tensors(result, set())


def _tensors(result: Any, seen: set[int]) -> Iterator[Tensor]:
    for leaf in torch.utils._pytree.tree_leaves(result):
        if isinstance(leaf, Tensor):
            yield leaf
        elif id(leaf) not in seen:
            parts = list(_parts(leaf))
            if parts:
                seen.add(id(leaf))
                yield from _tensors(parts, seen)


def _parts(leaf: Any) -> Iterator[Any]:
    """Clause 2."""
    if isinstance(leaf, (type, nn.Module)) or callable(leaf):
        return
    if is_dataclass(leaf):
        yield from (getattr(leaf, field.name, None) for field in fields(leaf))
    elif isinstance(leaf, Mapping):
        yield from leaf.values()
    elif hasattr(leaf, "__dict__"):
        yield from vars(leaf).values()
