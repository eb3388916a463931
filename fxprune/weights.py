"""What a captured model's tensors must be to be pruned, and which of them are scale factors of batch norms."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fxprune.capture.tracer import Captured
from fxprune.errors import WeightError

FLOATING = ("FloatFunctional", "FXFloatFunctional")  # sums and concatenations that can be quantised later


def unchecked(_captured: Captured) -> None:
    """For models whose weights nobody reads."""


def check_weights(captured: Captured) -> None:
    """Weights that can be ranked and copied.

    Raises:
        WeightError: tensors on the meta device, integer or quantised weights, per-channel values that are NaN or infinite.
    """
    channels: dict[tuple[torch.dtype, torch.device], dict[str, Tensor]] = {}
    for name, tensor in captured.tensors.items():
        if tensor.device.type == "meta":
            raise WeightError(
                f"{name!r} is on the meta device: it has no numbers to rank or copy. Load the weights first.",
                node=name,
                got="meta",
            )
        if not isinstance(tensor, nn.Parameter):
            continue
        if tensor.is_quantized or not (tensor.is_floating_point() or tensor.is_complex()):
            raise WeightError(
                f"parameter {name!r} has dtype {tensor.dtype}; only floating-point weights can be pruned. Prune before quantising.",
                node=name,
                got=tensor.dtype,
            )
        if tensor.dim() == 1:
            channels.setdefault((tensor.dtype, tensor.device), {})[name] = tensor
    for alike in channels.values():
        if not bool(torch.isfinite(torch.cat([tensor.detach() for tensor in alike.values()])).all()):
            for name, tensor in alike.items():
                check_finite(name, tensor)
    for name, module in captured.modules:
        kind = type(module).__name__
        quantised = type(module).__module__.startswith(("torch.ao.nn.quantized", "torch.nn.quantized"))
        if quantised and kind not in FLOATING:
            raise WeightError(
                f"module {name!r} is quantised ({kind}). Prune the float model, then quantise.", node=name, got=kind
            )


def check_finite(name: str, tensor: Tensor) -> None:
    """Weights and statistics are finite. Other buffers may hold infinities (masks, bounds), but no NaN."""
    weight = isinstance(tensor, nn.Parameter) or name.endswith(("running_mean", "running_var"))
    finite = torch.isfinite(tensor.detach()) if weight else ~torch.isnan(tensor.detach())
    if not bool(finite.all()):
        bad = int((~finite).sum())
        raise WeightError(
            f"{bad} of the {tensor.numel()} numbers of {name!r} are NaN or infinite. The model's weights are damaged (did training diverge?); "
            "nothing was pruned.",
            node=name,
            expected="finite numbers",
            got=float(tensor.detach()[~finite][0]),
        )


def gammas(captured: Captured) -> frozenset[str]:
    """Names of the weights of batch norms (subclasses and frozen ones included)."""
    names = set()
    for name, module in captured.modules:
        kind = isinstance(module, nn.modules.batchnorm._NormBase) or type(module).__name__ == "FrozenBatchNorm2d"
        if kind and isinstance(getattr(module, "weight", None), Tensor):
            names.add(f"{name}.weight" if name else "weight")
    return frozenset(names)
