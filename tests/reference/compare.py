"""Comparing what two networks return."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn

TINY = 1e-6  # below this size outputs are compared absolutely


def leaves(output: Any, path: str = "out") -> dict[str, Tensor]:
    """Every tensor of a nested output, by its path."""
    if isinstance(output, Tensor):
        return {path: output}
    if isinstance(output, Mapping):
        parts = [(f"{path}[{key!r}]", value) for key, value in output.items()]
    elif isinstance(output, list | tuple):
        parts = [(f"{path}[{i}]", value) for i, value in enumerate(output)]
    else:
        return {}
    return {name: tensor for where, value in parts for name, tensor in leaves(value, where).items()}


def relative_error(got: Any, expected: Any) -> float:
    """Largest absolute difference over largest absolute value, the worst of all tensors.

    Infinite where paths or shapes differ, or where anything is not finite.
    """
    a, b = leaves(got), leaves(expected)
    if a.keys() != b.keys() or any(a[k].shape != b[k].shape for k in a):
        return float("inf")
    worst = 0.0
    for key in b:
        if not (a[key].isfinite().all() and b[key].isfinite().all()):
            return float("inf")
        if b[key].numel():
            worst = max(worst, (a[key] - b[key]).abs().max().item() / max(b[key].abs().max().item(), TINY))
    return worst


def parameters(model: nn.Module) -> int:
    """Number of parameters, shared ones once."""
    return sum(p.numel() for p in model.parameters())


def backward(model: nn.Module, *inputs: Tensor) -> dict[str, Tensor]:
    """Gradients by parameter name after one forward and backward in train mode. Leaves the model in train mode."""
    model.train()
    model.zero_grad()
    total = torch.stack([y.square().mean() for y in leaves(model(*inputs)).values()]).sum()
    total.backward()  # type: ignore[no-untyped-call]
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def used_names(model: nn.Module) -> set[str]:
    """State-dict keys that a traced program of the model reads, dead code and what tracing adds left out."""
    own = set(model.state_dict())
    traced = fx.symbolic_trace(model)
    traced.graph.eliminate_dead_code()
    traced.recompile()
    traced.delete_all_unused_submodules()
    return own & set(traced.state_dict())


class Snapshot:
    """Everything of a module that compiling it must leave alone."""

    def __init__(self, model: nn.Module) -> None:
        self.state = {name: value.clone() for name, value in model.state_dict().items()}
        self.identity = self._identity(model)

    @staticmethod
    def _identity(model: nn.Module) -> dict[str, Any]:
        tensors = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
        return {
            "tensors": {name: (id(t), t.data_ptr(), t.dtype, t.device, t.requires_grad, tuple(t.shape)) for name, t in tensors},
            "gradients": {name: None if t.grad is None else id(t.grad) for name, t in tensors},
            "modules": {
                name: (id(m), type(m), m.training, len(m._forward_hooks), len(m._forward_pre_hooks), m.extra_repr())
                for name, m in model.named_modules(remove_duplicate=False)
            },
        }

    def differences(self, model: nn.Module) -> list[str]:
        """What has changed since."""
        now, found = self._identity(model), []
        for kind, before in self.identity.items():
            keys = sorted(before.keys() | now[kind].keys())
            found += [f"{kind} {k}: {before.get(k)} -> {now[kind].get(k)}" for k in keys if before.get(k) != now[kind].get(k)]
        state = model.state_dict()
        return found + [f"value of {k}" for k, v in self.state.items() if k in state and not torch.equal(v, state[k])]
