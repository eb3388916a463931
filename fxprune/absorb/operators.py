"""What the nodes of a captured program do to constants, by the names of modules, functions and methods.

1. *pointwise*: an element of the result is a function of the elements that meet there. *identity*: the operand itself (dropout in evaluation).
2. *movement*: elements are moved, repeated, or joined by padding: the node is run on the constants as it stands.
3. *pooling*: a constant image stays what it is, except where padding is counted in. *reduction*: sums and means over dimensions.
4. Whatever is not named here has no rule: constants end there, and are counted as lost.
5. An *in-place* form changes its operand, so other names of the same memory are not known any more.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx, nn

POINTWISE = frozenset(
    "relu relu6 leaky_relu gelu silu sigmoid tanh hardtanh hardswish hardsigmoid elu celu selu softplus softsign mish logsigmoid "
    "hardshrink softshrink tanhshrink threshold prelu add sub rsub mul div truediv true_divide neg negative abs absolute square sqrt exp log pow "
    "clamp clamp_min clamp_max clip maximum minimum lerp expm1 log1p erf sin cos rsqrt reciprocal multiply subtract divide".split()
)
IDENTITY = frozenset(
    "identity dropout dropout1d dropout2d dropout3d alpha_dropout feature_alpha_dropout feature_dropout stochastic_depth drop_path "
    "clone contiguous detach to float double type type_as alias".split()
)
MOVEMENT = frozenset(
    "flatten view reshape permute transpose t swapaxes swapdims movedim moveaxis squeeze unsqueeze cat concat concatenate stack hstack split chunk "
    "tensor_split split_with_sizes unbind getitem narrow select expand expand_as repeat tile repeat_interleave roll flip pixel_shuffle "
    "pixel_unshuffle channel_shuffle native_channel_shuffle pad constant_pad_nd unflatten index_select view_as reshape_as numpy_t".split()
)
POOLING = frozenset(
    f"{form}_pool{rank}d" for form in ("max", "avg", "adaptive_avg", "adaptive_max") for rank in (1, 2, 3)
) | frozenset("interpolate upsample upsample_nearest2d upsample_bilinear2d".split())
REDUCTION = frozenset("mean sum amax amin".split())
CONTRACTION = frozenset("conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d linear matmul mm".split())
NORM = frozenset(("batch_norm", "instance_norm"))
ALIASES = IDENTITY | MOVEMENT  # results that may share memory with their operand
RULED = IDENTITY | POINTWISE | MOVEMENT | POOLING | REDUCTION

MODULES: dict[type, str] = {
    nn.Identity: "identity",
    nn.Flatten: "flatten",
    nn.Unflatten: "unflatten",
    nn.PixelShuffle: "pixel_shuffle",
    nn.PixelUnshuffle: "pixel_unshuffle",
    nn.ChannelShuffle: "channel_shuffle",
    nn.Upsample: "interpolate",
    nn.UpsamplingNearest2d: "interpolate",
    nn.UpsamplingBilinear2d: "interpolate",
    nn.Linear: "linear",
}
_ACTIVATIONS = (
    "ReLU ReLU6 LeakyReLU GELU SiLU Sigmoid Tanh Hardtanh Hardswish Hardsigmoid ELU CELU SELU Softplus Softsign Mish LogSigmoid Hardshrink "
    "Softshrink Tanhshrink Threshold PReLU"
)
MODULES.update({getattr(nn, name): name.lower() for name in _ACTIVATIONS.split()})
MODULES[nn.LeakyReLU] = "leaky_relu"
MODULES.update({getattr(nn, f"Dropout{rank}"): "dropout" for rank in ("", "1d", "2d", "3d")})
MODULES.update({nn.AlphaDropout: "dropout", nn.FeatureAlphaDropout: "dropout"})
_PADS = ("Constant", "Zero", "Reflection", "Replication", "Circular")
MODULES.update({getattr(nn, f"{form}Pad{r}d"): "pad" for form in _PADS for r in (1, 2, 3) if hasattr(nn, f"{form}Pad{r}d")})
for _rank in (1, 2, 3):
    MODULES[getattr(nn, f"Conv{_rank}d")] = f"conv{_rank}d"
    MODULES[getattr(nn, f"ConvTranspose{_rank}d")] = f"conv_transpose{_rank}d"
    for _form, _name in (("Max", "max"), ("Avg", "avg"), ("AdaptiveAvg", "adaptive_avg"), ("AdaptiveMax", "adaptive_max")):
        MODULES[getattr(nn, f"{_form}Pool{_rank}d")] = f"{_name}_pool{_rank}d"
SETTINGS = ("negative_slope", "min_val", "max_val", "approximate")
_INPLACE = frozenset(
    getattr(operator, f"i{name}") for name in "add sub mul truediv floordiv mod pow matmul and or xor lshift rshift".split()
)


@dataclass(frozen=True, slots=True)
class Operation:
    """What a node is: a name from the tables (empty: no rule), how it is called, and whether it changes its operand."""

    name: str
    call: Callable[..., Any]
    inplace: bool = False
    settings: dict[str, Any] = field(default_factory=dict)


def operation(node: fx.Node, module: nn.Module | None) -> Operation:
    """The operation of a node; ``module`` is what it calls, if it calls a module."""
    if node.op == "call_module":
        assert module is not None
        return _of_module(module)
    if node.op == "call_method":
        name = str(node.target)
        inplace = name.endswith("_") and not name.endswith("__")
        return Operation(name.rstrip("_") if inplace else name, getattr(torch.Tensor, name, _nothing), inplace)
    target: Any = node.target
    name = str(getattr(target, "__name__", "")).partition(".")[0]
    inplace = target in _INPLACE or target is operator.setitem or (name.endswith("_") and not name.startswith("_"))
    inplace = inplace or node.kwargs.get("inplace") is True or "out" in node.kwargs
    if target in _INPLACE:
        name = name[1:]
    settings = {key: node.kwargs[key] for key in SETTINGS if key in node.kwargs}
    if name in ("leaky_relu", "hardtanh") and len(node.args) > 1:
        settings.update(zip(("negative_slope",) if name == "leaky_relu" else ("min_val", "max_val"), node.args[1:], strict=False))
    return Operation(name.rstrip("_"), target, inplace, settings)


def _of_module(module: nn.Module) -> Operation:
    name = MODULES.get(type(module), "")
    if not name and isinstance(module, nn.modules.batchnorm._BatchNorm):
        name = "batch_norm"
    if not name and isinstance(module, nn.modules.instancenorm._InstanceNorm):
        name = "instance_norm"
    settings = {key: vars(module)[key] for key in SETTINGS if key in vars(module)}
    return Operation(name, module, bool(vars(module).get("inplace", False)), settings)


def _nothing(*_: Any, **__: Any) -> Any:
    raise TypeError("no such method")
