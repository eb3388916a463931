"""Weights that let no mistake hide.

1. Norms get random scales of both signs, shifts and running statistics: no two channels are alike.
2. A parameter whose entries are all alike (layer scales of 1e-6, heads and gates of 0, temperatures) is drawn at random around its
   value, or around 0 where that is nearly 0. With zeros left in, whole branches would be multiplied away.
3. Everything else keeps the model's own initialisation.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

NEARLY_ZERO = 1e-2
NORMS = ("norm", "bn")


def randomise(model: nn.Module, seed: int = 0) -> nn.Module:
    """Apply clauses 1 to 3 in place; returns the model in eval mode."""
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in model.modules():
            norm = _is_norm(module)
            for name, value in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]:
                if not value.is_floating_point() or not value.numel():
                    continue
                if name == "running_mean":
                    value.copy_(0.3 * _normal(value, rng))
                elif name == "running_var":
                    value.copy_(_uniform(value, 0.5, 2, rng))
                elif norm and name == "weight":
                    value.copy_(_uniform(value, 0.3, 1.5, rng) * torch.sign(_normal(value, rng) + 0.8))
                elif norm and name == "bias":
                    value.copy_(0.3 * _normal(value, rng))
                elif isinstance(value, nn.Parameter):
                    _unlike(value, rng)
    return model.eval()


def _is_norm(module: nn.Module) -> bool:
    return type(module).__name__.lower().rstrip("0123456789d").endswith(NORMS) or any(
        word in type(module).__name__.lower() for word in ("batchnorm", "layernorm", "groupnorm", "rmsnorm")
    )


def _unlike(value: Tensor, rng: torch.Generator) -> None:
    """Clause 2."""
    low, high = value.aminmax()
    if low != high:
        return
    if abs(float(low)) < NEARLY_ZERO:
        fan_in = value[0].numel() if value.ndim > 1 else 1
        value.copy_(_normal(value, rng) * (0.3 if value.ndim == 1 else fan_in**-0.5))
    else:
        value.mul_(_uniform(value, 0.5, 1.5, rng))


def _normal(like: Tensor, rng: torch.Generator) -> Tensor:
    return torch.randn(like.shape, generator=rng, dtype=torch.float64).to(like.dtype)


def _uniform(like: Tensor, low: float, high: float, rng: torch.Generator) -> Tensor:
    return low + (high - low) * torch.rand(like.shape, generator=rng, dtype=torch.float64).to(like.dtype)
