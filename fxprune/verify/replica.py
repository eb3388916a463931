"""A private copy of a module to run: other dtype, eval mode, own tensors; the user's module is left as it is.

1. Every module object is copied shallowly once, so that shared modules stay shared; classes, hooks and settings are kept.
2. Every parameter, buffer and plain tensor attribute is copied once, so that tied tensors stay tied; floating ones are converted.
3. The copy is in eval mode throughout.
"""

from __future__ import annotations

import copy
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn

from fxprune.precision import home

_STATE = ("_parameters", "_buffers", "_modules")
Memo = dict[int, Any]


def replica(module: nn.Module, dtype: torch.dtype) -> tuple[nn.Module, Memo]:
    """The copy, and the map from ``id`` of the originals to the copies (clauses 1 to 3)."""
    memo: Memo = {}
    return _module(module, dtype, memo), memo


def converted(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """A copy of a tensor, in the given dtype if it is floating; on the CPU where the device does not have that dtype."""
    target = dtype if tensor.is_floating_point() else tensor.dtype
    if tensor.is_complex():
        target = torch.complex128 if dtype == torch.float64 else torch.complex64
    return tensor.detach().to(home(tensor.device, dtype)).to(target, copy=True)


def _module(module: nn.Module, dtype: torch.dtype, memo: Memo) -> nn.Module:
    if id(module) in memo:
        found: nn.Module = memo[id(module)]
        return found
    if isinstance(module, torch.jit.ScriptModule):
        memo[id(module)] = copy.deepcopy(module).to(dtype).eval()
        return memo[id(module)]  # type: ignore[no-any-return]
    result: nn.Module = object.__new__(type(module))
    memo[id(module)] = result
    state = {name: _value(value, dtype, memo) for name, value in vars(module).items() if name not in _STATE}
    state["training"] = False
    state["_parameters"] = {name: _parameter(p, dtype, memo) for name, p in module._parameters.items()}
    state["_buffers"] = {name: _value(b, dtype, memo) for name, b in module._buffers.items()}
    state["_modules"] = {name: None if m is None else _module(m, dtype, memo) for name, m in module._modules.items()}
    vars(result).update(state)
    return result


def _parameter(parameter: nn.Parameter | None, dtype: torch.dtype, memo: Memo) -> nn.Parameter | None:
    if parameter is not None and id(parameter) not in memo:
        memo[id(parameter)] = nn.Parameter(converted(parameter, dtype), requires_grad=False)
    return None if parameter is None else memo[id(parameter)]


def _value(value: Any, dtype: torch.dtype, memo: Memo) -> Any:
    """Attributes: tensors and modules are copied, plain containers are rebuilt, methods are bound to the copy."""
    if isinstance(value, nn.Parameter):
        return _parameter(value, dtype, memo)
    if isinstance(value, Tensor):
        if id(value) not in memo:
            memo[id(value)] = converted(value, dtype)
        return memo[id(value)]
    if isinstance(value, nn.Module):
        return _module(value, dtype, memo)
    if isinstance(value, MethodType) and isinstance(value.__self__, nn.Module):
        return MethodType(value.__func__, _module(value.__self__, dtype, memo))
    if type(value) is list or type(value) is tuple:
        return type(value)(_value(item, dtype, memo) for item in value)
    if type(value) is dict:
        return {key: _value(item, dtype, memo) for key, item in value.items()}
    return value
