"""What a forward pass assigns to modules while it is traced.

1. A model may keep what it computed (positions of the last image size) in an attribute or a buffer. Traced, that is a proxy, which
   has no place in the program's modules: it is taken back, and what stood there before is there again.
2. The program computes such a value anew in every call, as the original does for a new size.
"""

from __future__ import annotations

from typing import Any

from torch import fx, nn

from fxprune.capture.clone import walk

Stores = list[tuple[dict[str, Any], dict[str, Any]]]


def stores(root: nn.Module) -> Stores:
    """The attributes and buffers of every module, with a copy of what they hold now."""
    return [(store, store.copy()) for _, module in walk(root) for store in (module.__dict__, module._buffers)]


def take_back(before: Stores) -> None:
    """Clause 1, for everything assigned since ``stores``."""
    for store, old in before:
        for key in [key for key, value in store.items() if _holds_proxy(value)]:
            if key in old:
                store[key] = old[key]
            else:
                del store[key]


def _holds_proxy(value: Any) -> bool:
    # By type(): proxies that carry a value answer isinstance with the class of that value.
    if type(value) in (list, tuple):
        return any(_holds_proxy(item) for item in value)
    if type(value) is dict:
        return any(_holds_proxy(item) for item in value.values())
    return issubclass(type(value), fx.Proxy)
