"""The layers whose single weights are pruned.

1. A *prunable layer* is a convolution (of any rank, transposed ones included) or a linear layer whose ``weight`` is one
   parameter; biases and norms are never pruned (Han et al. 2015, arXiv:1506.02626). A weight that several layers share is one layer, named
   by the first. A weight that is computed from several parameters (weight norm) is none.
2. ``only`` takes the convolutions ("conv"), the linear layers ("linear") or both ("all"); ``names`` are globs over module names.
3. ``frozen`` keeps the parameters of the taken modules as they are for the length of a ``with`` block: section 3.3 of the paper retrains the
   linear layers with the convolutions fixed, and the reverse.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.parameter import UninitializedParameter

from fxprune.errors import BudgetError, KeepError, NothingToPruneError, WeightError

KINDS = ("all", "conv", "linear")


def kind(module: nn.Module) -> str:
    """Which of the two a module is: "conv" or "linear", or "" for what is not pruned (clause 1)."""
    if not isinstance(module, (_ConvNd, nn.Linear)) or _holder(module) is None:
        return ""
    return "conv" if isinstance(module, _ConvNd) else "linear"


def layers(model: nn.Module, only: str = "all", names: Sequence[str] = ()) -> dict[str, nn.Module]:
    """Prunable layers by name, in the order of the modules (clauses 1 and 2).

    Raises:
        BudgetError: ``only`` is none of "all", "conv", "linear".
        KeepError: a glob in ``names`` that matches no prunable layer.
        NothingToPruneError: nothing is left.
        WeightError: a weight that is not floating point, not finite, or on the meta device.
    """
    if only not in KINDS:
        raise BudgetError(f"only must be one of {KINDS}, got {only!r}.", expected=KINDS, got=only)
    globs = (names,) if isinstance(names, str) else tuple(names)
    every = {name: module for name, module in model.named_modules() if kind(module)}
    for glob in globs:
        if not fnmatch.filter(every, glob):
            raise KeepError(f"names={glob!r} matches no prunable layer; there are {', '.join(every) or 'none'}.", got=glob)
    found: dict[int, tuple[str, nn.Module]] = {}
    for name, module in every.items():
        if only in ("all", kind(module)) and (not globs or any(fnmatch.fnmatchcase(name, glob) for glob in globs)):
            weight = _weight(name, module)
            found.setdefault(id(weight), (name, module))
    if not found:
        raise NothingToPruneError(
            f"{type(model).__name__} has no convolution or linear layer to prune (only={only!r}, names={globs}).", got=globs
        )
    return dict(found.values())


def parameter(module: nn.Module) -> nn.Parameter:
    """The parameter behind a prunable layer's weight, masked or not."""
    found = _holder(module)
    assert found is not None, "not a prunable layer"
    return found


def _holder(module: nn.Module) -> nn.Parameter | None:
    parametrized: Any = module._modules.get("parametrizations")
    if parametrized is not None and "weight" in parametrized:
        original: nn.Parameter | None = getattr(parametrized["weight"], "original", None)
        return original
    return module._parameters.get("weight")


def _weight(name: str, module: nn.Module) -> Tensor:
    weight = parameter(module)
    if isinstance(weight, UninitializedParameter):
        raise WeightError(f"{name!r} is lazy: call the model once, so that it has weights.", node=name, got=type(module).__name__)
    if weight.device.type == "meta" or not weight.is_floating_point():
        got = "meta" if weight.device.type == "meta" else weight.dtype
        raise WeightError(
            f"the weight of {name!r} cannot be ranked: {got}. Prune floating-point weights with values.", node=name, got=got
        )
    if not bool(torch.isfinite(weight.detach()).all()):
        bad = int((~torch.isfinite(weight.detach())).sum())
        raise WeightError(
            f"{bad} of the {weight.numel()} weights of {name!r} are NaN or infinite (did training diverge?); nothing was pruned.",
            node=name,
            expected="finite numbers",
            got=bad,
        )
    return weight


@contextmanager
def frozen(model: nn.Module, only: str = "all", names: Sequence[str] = ()) -> Iterator[None]:
    """Clause 3: inside the block the chosen layers' weights and biases ask for no gradient; afterwards all is as before.

    An optimizer skips parameters without a gradient, but not their momentum: build it inside the block, or from the parameters that
    still ask for one. Norms between convolutions are no prunable layers and stay as they are.
    """
    before: list[tuple[nn.Parameter, bool]] = []
    for module in layers(model, only, names).values():
        before += [(p, p.requires_grad) for p in module.parameters()]
    try:
        for held, _ in before:
            held.requires_grad_(False)
            held.grad = None
        yield
    finally:
        for held, asked in before:
            held.requires_grad_(asked)
