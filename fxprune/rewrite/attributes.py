"""Module attributes that repeat a shape, by ``isinstance`` (subclasses included).

1. ``from_weights``: what follows from the module's own slim tensors alone.
2. ``from_values``: what follows from the slim values at one call (modules without parameters).
3. Depthwise convolutions have as many groups as input channels are left; others keep their groups.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fxprune.errors import RewriteError


def from_weights(module: nn.Module, original: nn.Module, groups: int = 0) -> None:
    """Clause 1, in place on the slim clone's module. ``groups``: how many groups of a convolution or group norm live, if known."""
    if isinstance(module, nn.modules.conv._ConvNd):
        _convolution(module, original, groups)
    elif isinstance(module, nn.Linear):
        shape = _shape(module)
        _set(module, out_features=shape[0], in_features=shape[1])
    elif isinstance(module, nn.modules.batchnorm._NormBase):
        own = next((t for t in (module.weight, module.running_mean) if isinstance(t, Tensor)), None)
        if own is not None:
            _set(module, num_features=own.shape[0])
    elif isinstance(module, (nn.LayerNorm, nn.RMSNorm)):
        if isinstance(module.weight, Tensor):
            _set(module, normalized_shape=tuple(module.weight.shape))
    elif isinstance(module, nn.GroupNorm):
        if isinstance(module.weight, Tensor):
            _set(module, num_channels=module.weight.shape[0], num_groups=groups or module.num_groups)
    elif isinstance(module, nn.PReLU):
        _set(module, num_parameters=module.weight.shape[0])
    elif isinstance(module, (nn.Embedding, nn.EmbeddingBag)):
        _set(module, num_embeddings=module.weight.shape[0], embedding_dim=module.weight.shape[1])
    elif isinstance(module, nn.Bilinear):
        out, first, second = module.weight.shape
        _set(module, out_features=out, in1_features=first, in2_features=second)
    elif isinstance(module, (nn.RNNBase, nn.RNNCellBase)):
        _recurrent(module, original)


def _set(module: nn.Module, **values: Any) -> None:
    """Plain attributes, without the checks of ``nn.Module.__setattr__``, which cost more than the rest of this file."""
    module.__dict__.update(values)


def _shape(module: nn.Module) -> torch.Size:
    for name in ("weight_v", "weight_orig", "weight"):
        found = module._parameters.get(name)
        if found is not None:
            return found.shape
    weight = module.weight
    assert isinstance(weight, Tensor)
    return weight.shape


def _recurrent(module: Any, original: Any) -> None:
    """Layers and cells; a layer's list of its parameters is rebuilt where they are filled in (emit.py, clause 5)."""
    layer = isinstance(module, nn.RNNBase)
    gates = (
        original.weight_hh_l0.shape[0] // original.hidden_size if layer else original.weight_hh.shape[0] // original.hidden_size
    )
    ins, hidden = (module.weight_ih_l0, module.weight_hh_l0) if layer else (module.weight_ih, module.weight_hh)
    _set(module, input_size=ins.shape[1], hidden_size=hidden.shape[0] // gates)
    if layer and module.proj_size:
        _set(module, proj_size=hidden.shape[1])


def _convolution(module: Any, original: Any, living: int) -> None:
    shape = _shape(module)
    groups = living or original.groups
    if not living and original.groups > 1 and original.in_channels == original.groups:
        groups = shape[0] if module.transposed else shape[0] // (original.out_channels // original.groups)
    ins, outs = (shape[0], shape[1] * groups) if module.transposed else (shape[1] * groups, shape[0])
    _set(module, groups=groups, in_channels=ins, out_channels=outs)


def from_values(
    module: nn.Module, given: tuple[int, ...], predicted: tuple[int, ...], pads: list[int] | None, blocks: int = 0
) -> bool:
    """Clause 2, in place. ``given`` and ``predicted`` are the slim shapes of input and output; True if something changed.

    ``blocks``: how many blocks (groups) are left, where some have gone.

    Raises:
        RewriteError: the module was already fitted to another width.
    """
    before = dict(module.__dict__)
    if isinstance(module, (nn.LayerNorm, nn.RMSNorm)):
        module.normalized_shape = tuple(given[len(given) - len(module.normalized_shape) :])
    elif isinstance(module, nn.modules.batchnorm._NormBase):
        module.num_features = given[1]
    elif isinstance(module, nn.GroupNorm):
        module.num_channels = given[1]
        module.num_groups = blocks or module.num_groups
    elif isinstance(module, nn.Unflatten):
        unflatten: Any = module
        dim = int(unflatten.dim) % len(given)
        old = unflatten.unflattened_size
        sizes = predicted[dim : dim + len(old)]
        unflatten.unflattened_size = tuple(o if o == -1 else n for o, n in zip(old, sizes, strict=True))
    elif pads is not None and hasattr(module, "padding"):
        padded: Any = module
        padded.padding = tuple(pads)
    else:
        return False
    changed = {key: value for key, value in module.__dict__.items() if before.get(key) != value}
    fitted = module.__dict__.get("_fxprune_fitted")
    if changed and fitted is not None and fitted != changed:
        raise RewriteError(f"a {type(module).__name__} without parameters is called on values of different slim widths.")
    if changed:
        module.__dict__["_fxprune_fitted"] = changed
    return bool(changed)
