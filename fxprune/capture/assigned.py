"""What a forward pass assigns to modules while it is traced.

1. A model may keep what it computed (positions of the last image size) in an attribute or a buffer. Traced, that is a proxy, which
   has no place in the program's modules: it is taken back, and what stood there before is there again.
2. The program computes such a value anew in every call, as the original does for a new size.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable
from typing import Any

from torch import fx, nn

Stores = list[tuple[dict[str, Any], dict[str, Any]]]
MUTABLE = frozenset({list, dict, tuple})  # what may hold something else and still be the same object; a tuple may hold a list
TYPED = frozenset({"_parameters", "_modules", "_buffers"})  # hold what nn.Module lets them; buffers are looked at by themselves


def stores(modules: Iterable[tuple[str, nn.Module]]) -> Stores:
    """The attributes and buffers of every module, with a copy of what they hold now."""
    return [(store, store.copy()) for _, module in modules for store in (module.__dict__, module._buffers)]


def take_back(before: Stores) -> None:
    """Clause 1, for everything assigned since ``stores``."""
    for store, old in before:
        if len(store) == len(old) and all(map(operator.is_, store.values(), old.values())):
            looked = [(key, v) for key, v in store.items() if type(v) in MUTABLE and v and key not in TYPED]
        else:
            looked = list(store.items())
        for key in [key for key, value in looked if _holds_proxy(value)]:
            if key in old:
                store[key] = old[key]
            else:
                del store[key]


def _holds_proxy(value: Any) -> bool:
    # By type(): proxies that carry a value answer isinstance with the class of that value.
    if type(value) in (list, tuple):
        return any(type(item) is not int and _holds_proxy(item) for item in value)
    if type(value) is dict:
        return any(_holds_proxy(item) for item in value.values())
    return issubclass(type(value), fx.Proxy)
