"""Layers whose ATen call is known without making it.

1. A module of exactly one of these types, without hooks, makes one ATen call. Its rule is applied directly; the way through
   the dispatcher (most of the time of an analysis) is left out. Subclasses and everything else go the whole way.
   The caller does so outside the dispatch mode, or what rules allocate would go through it.
2. A shortcut returns None where its layer would do anything else (padding modes, statistics of the batch).
3. Recurrent layers are composed of hundreds of calls, some per time step, before a dispatch mode sees any. They are caught whole: as
   modules, or where the program calls the function. Their cells are not: those make a few calls that have rules.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from fxprune.provenance.rules.contraction import convolution
from fxprune.provenance.rules.normalization import batch_norm
from fxprune.provenance.rules.recurrent import RULES as RECURRENT
from fxprune.provenance.rules.recurrent import WHOLE
from fxprune.provenance.tracker import Tracker

Shortcut = Callable[[Tracker, Any, Tensor], "Tensor | None"]
CONVOLUTION = torch.ops.aten.convolution.default
BATCH_NORM = torch.ops.aten.native_batch_norm.default


def _convolution(t: Tracker, m: Any, x: Tensor) -> Tensor | None:
    if m.padding_mode != "zeros" or isinstance(m.padding, str) or x.dim() != 4:
        return None
    found: Tensor = convolution(
        t, CONVOLUTION, (x, m.weight, m.bias, m.stride, m.padding, m.dilation, False, m.output_padding, m.groups), {}
    )
    return found


def _batch_norm(t: Tracker, m: Any, x: Tensor) -> Tensor | None:
    if m.training or m.running_mean is None or x.dim() != 4 or x.shape[1] != m.num_features:
        return None
    found: Tensor = batch_norm(t, BATCH_NORM, (x, m.weight, m.bias, m.running_mean, m.running_var), {})[0]
    return found


def _activation(t: Tracker, m: Any, x: Tensor) -> Tensor | None:
    return x if getattr(m, "inplace", False) else t.new(x.shape, x, t.value(x).factors)


def _nothing(t: Tracker, m: Any, x: Tensor) -> Tensor | None:
    return None if m.training else x


SHORTCUTS: dict[type[nn.Module], Shortcut] = {
    nn.Conv2d: _convolution,
    nn.BatchNorm2d: _batch_norm,
    **dict.fromkeys((nn.ReLU, nn.ReLU6, nn.SiLU, nn.Hardswish, nn.Hardsigmoid, nn.Sigmoid, nn.GELU, nn.Tanh), _activation),
    **dict.fromkeys((nn.Dropout, nn.Identity), _nothing),
}


def _recurrent(t: Tracker, m: Any, args: tuple[Any, ...]) -> Any:
    """Clause 3; packed sequences go the whole way."""
    x, *rest = args
    given = rest[0] if rest else None
    if not isinstance(x, Tensor) or m.training:
        return None
    if x.dim() not in (2, 3) or x.shape[-1] != m.input_size or m._flat_weights[1].shape[0] != m.hidden_size * _GATES[m.mode]:
        return None  # the module itself words the complaint
    states = () if given is None else given
    operands = (x, states, m._flat_weights, m.bias, m.num_layers, m.dropout, False, m.bidirectional, m.batch_first)
    output, *finals = RECURRENT[m.mode.lower()](t, None, operands, {})
    return output, tuple(finals) if m.mode == "LSTM" else finals[0]


_GATES = {"LSTM": 4, "GRU": 3, "RNN_TANH": 1, "RNN_RELU": 1}


def short(t: Tracker, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The result of a layer by its shortcut (clauses 1 and 3), or None."""
    kind = type(module)
    rule = SHORTCUTS.get(kind)
    if rule is None and kind not in (nn.LSTM, nn.GRU, nn.RNN):
        return None
    if module._forward_hooks or module._forward_pre_hooks:
        return None
    if rule is None:
        return _recurrent(t, module, (*args, *kwargs.values())) if set(kwargs) <= {"hx"} else None
    if kwargs or len(args) != 1:
        return None
    x = args[0]
    return rule(t, module, x) if isinstance(x, Tensor) and x.is_floating_point() else None


def short_call(t: Tracker, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The result of a function that is caught whole (clause 3), or None."""
    operator = WHOLE.get(target)
    return None if operator is None else t.__torch_dispatch__(operator, (), args, kwargs)
