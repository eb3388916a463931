"""Masks that hold: a pruned weight is zero whatever an optimizer does.

1. A *mask* is a bool tensor of a weight's shape, True where the weight stays. It is a ``torch.nn.utils.parametrize`` parametrization of
   the weight: the layer computes with ``where(mask, original, 0)``, so a pruned weight has no gradient and no way back.
2. The optimizer keeps seeing the same ``nn.Parameter`` (now ``parametrizations.weight.original``); survivors go on from their values,
   nothing is initialised again (Han et al. 2015, section 3.3).
3. What is pruned stays pruned: masks that are set later are intersected with those that hold.
4. A weight that several modules share gets one mask, which all of them hold.
5. ``permanent`` writes the zeros into the weights and takes the masks off; state-dict keys are then those of the original model.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from fxprune.errors import PlanMismatchError
from fxprune.sparse.layers import layers, parameter


class Mask(nn.Module):
    """The parametrization of clause 1. Attributes: ``keep``, a bool buffer of the weight's shape."""

    keep: Tensor

    def __init__(self, keep: Tensor) -> None:
        super().__init__()
        self.register_buffer("keep", keep)

    def forward(self, weight: Tensor) -> Tensor:
        """The weight with zeros where ``keep`` is False."""
        return torch.where(self.keep, weight, torch.zeros((), dtype=weight.dtype, device=weight.device))

    def right_inverse(self, weight: Tensor) -> Tensor:
        """What is stored when somebody assigns to the weight."""
        return self.forward(weight)


def mask_of(module: nn.Module) -> Mask | None:
    """The mask that a layer's weight holds, if any."""
    if not parametrize.is_parametrized(module, "weight"):
        return None
    chain = module.parametrizations["weight"]  # type: ignore[index]
    return next((step for step in chain if isinstance(step, Mask)), None)


def masks(model: nn.Module) -> dict[str, Tensor]:
    """The masks that hold, by layer name; copies."""
    found = ((name, mask_of(module)) for name, module in layers(model).items())
    return {name: mask.keep.clone() for name, mask in found if mask is not None}


def set_masks(model: nn.Module, keep: Mapping[str, Tensor]) -> None:
    """Prune ``model`` in place: weights go to zero where ``keep[layer]`` is False, and stay there (clauses 1 to 4).

    Raises:
        PlanMismatchError: a name that is no prunable layer, or a mask of another shape or dtype; nothing is changed then.
    """
    known = layers(model)
    for name, wanted in keep.items():
        if name not in known:
            raise PlanMismatchError(f"there is no prunable layer {name!r} to mask; there are {', '.join(known)}.", node=name)
        shape = tuple(parameter(known[name]).shape)
        given: Any = wanted
        if not isinstance(given, Tensor) or wanted.dtype != torch.bool or tuple(wanted.shape) != shape:
            got = (tuple(given.shape), given.dtype) if isinstance(given, Tensor) else type(given).__name__
            raise PlanMismatchError(
                f"the mask of {name!r} must be a bool tensor of shape {shape}, got {got}.", node=name, got=got
            )
    for name, wanted in keep.items():
        _set(model, known[name], wanted)


def _set(model: nn.Module, module: nn.Module, wanted: Tensor) -> None:
    weight = parameter(module)
    held = mask_of(module)
    keep = wanted.to(weight.device)
    with torch.no_grad():
        if held is not None:
            held.keep.logical_and_(keep)
            weight.copy_(held(weight))
            return
        shared = Mask(keep.clone())
        for owner in [m for m in model.modules() if m is not module and m._parameters.get("weight") is weight]:
            parametrize.register_parametrization(owner, "weight", shared)
        parametrize.register_parametrization(module, "weight", shared)
        weight.copy_(shared(weight))


def mask_zeros(model: nn.Module) -> None:
    """Hold every weight that is zero now at zero, in place: masks for a model whose zeros are in its weights."""
    set_masks(model, {name: parameter(module).detach() != 0 for name, module in layers(model).items()})


def permanent(model: nn.Module) -> nn.Module:
    """A copy of ``model`` with the zeros in its weights and without masks (clause 5); what holds no mask is copied as it is."""
    bare = copy.deepcopy(model)
    for module in list(bare.modules()):
        if mask_of(module) is not None:
            _own_class(module)
            parametrize.remove_parametrizations(module, "weight")
            last = {key: module._parameters.pop(key) for key in list(module._parameters) if key != "weight"}
            module._parameters.update(last)  # the order of the original's state dict
    return bare


def _own_class(module: nn.Module) -> None:
    """A parametrized module's copy shares the class made for it, and taking the weight's property off that would break the original."""
    made = type(module)
    content = {key: value for key, value in vars(made).items() if key not in ("__dict__", "__weakref__")}
    module.__class__ = type(made.__name__, made.__bases__, content)


def densities(model: nn.Module) -> dict[str, float]:
    """Share of weights that are not zero, per layer, in [0, 1]."""
    return {name: kept / total for name, (kept, total) in counts(model).items()}


def density(model: nn.Module) -> float:
    """Share of the weights of all prunable layers that are not zero, in [0, 1]."""
    found = counts(model).values()
    return sum(kept for kept, _ in found) / max(1, sum(total for _, total in found))


def counts(model: nn.Module) -> dict[str, tuple[int, int]]:
    """Weights that are not zero, and all weights, per layer."""
    found = {}
    for name, module in layers(model).items():
        held, weight = mask_of(module), parameter(module).detach()
        found[name] = (int(torch.count_nonzero(weight if held is None else held(weight))), weight.numel())
    return found
