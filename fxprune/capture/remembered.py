"""What was evaluated on fake tensors need not be evaluated again.

1. A call of torch with arguments of the same shapes, strides, dtypes, devices and literals gives a fake tensor of the same kind: networks repeat
   their blocks, and evaluating a node costs more than recording it.
2. Not remembered: what writes into its operands, what is not torch's, tensors whose numbers are known (they decide more than shapes do),
   modules with hooks or of classes that are not listed.
3. Results are shared between nodes. Before a method changes the shape of its operand in place, the operand gets a tensor of its own
   (concrete.py).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx, nn

LITERALS = frozenset({int, float, bool, str, type(None), torch.dtype, torch.device, torch.layout, torch.memory_format, type(...)})
LAYERS = frozenset(
    {nn.Linear, nn.LayerNorm, nn.Dropout, nn.Identity, nn.ReLU, nn.GELU, nn.SiLU, nn.Conv2d, nn.BatchNorm2d, nn.Softmax}
)
RESHAPING = frozenset(
    "unsqueeze_ squeeze_ transpose_ t_ swapaxes_ swapdims_ as_strided_ resize_ resize_as_ set_ swapaxes_ rename_".split()
)
UNKNOWN: Any = object()


def kind(tensor: Tensor) -> Any:
    """What results depend on (clause 1); UNKNOWN for a tensor whose numbers are known."""
    if getattr(tensor, "constant", None) is not None:
        return UNKNOWN
    return (Tensor, tuple(tensor.shape), tensor.stride(), tensor.dtype, tensor.device)


def signature(node: fx.Node, module: nn.Module | None, args: Any, kwargs: Any) -> Any:
    """A key under which the result of a call may be remembered, or UNKNOWN (clauses 1 and 2)."""
    if module is not None:
        hooked = module._forward_hooks or module._forward_pre_hooks
        what: Any = UNKNOWN if type(module) not in LAYERS or hooked else (type(module), module.extra_repr())
    elif node.op == "call_method":
        what = (
            UNKNOWN
            if str(node.target).endswith("_") or not args or not issubclass(type(args[0]), (Tensor, tuple))
            else node.target
        )
    else:
        what = node.target if node.op == "call_function" and _pure(node.target) else UNKNOWN
    if what is UNKNOWN:
        return UNKNOWN
    parts = described((args, kwargs))
    return UNKNOWN if parts is UNKNOWN else (node.op, what, parts)


def _pure(target: Any) -> bool:
    """A function of torch or Python that writes into none of its operands, by its name."""
    module, name = getattr(target, "__module__", None) or "", getattr(target, "__name__", "_")
    if module in ("_operator", "operator"):
        return not name.startswith("i") or name in ("invert", "index")
    return (module == "torch" or module.startswith(("torch.", "builtins")) or target is getattr) and not name.endswith("_")


def described(a: Any) -> Any:
    """Shapes and literals of nested arguments or results, to compare and to hash; UNKNOWN where there is more to it."""
    t = type(a)
    if t in LITERALS:
        return (t, a)
    if issubclass(t, Tensor):
        return kind(a)
    if t is slice:
        ends = described((a.start, a.stop, a.step))
        return UNKNOWN if ends is UNKNOWN else (slice, ends)
    if t in (tuple, list, torch.Size, dict):
        items = [described(item) for item in (a.items() if t is dict else a)]
        return UNKNOWN if any(item is UNKNOWN for item in items) else (t, *items)
    return UNKNOWN
