"""The masked program with constants: what a plan means after absorption.

1. A fold says which constants a reader is given for its removed input channels (folds.py, clause 1). The correction is worked out anew, from the
   original's weights, and held against the number that the slim model has in that place: they may differ by rounding in the slim model's dtype.
2. The masked program then gets the slim model's numbers, so that both programs go on from the same ones: in the place of its bias or running mean,
   as a bias of its own, or added to a node's value before anybody reads it.
3. The *difference* to the original: outputs of the slim program against those of the original as it is, no channel removed, relative to the largest
   magnitude. Where absorption claims to be exact it must vanish, up to rounding.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from fxprune.errors import VerificationError
from fxprune.folds import Absorption, Fold
from fxprune.plan import Plan
from fxprune.precision import double
from fxprune.verify.call import tensors
from fxprune.verify.existence import mark, plan_mask

Behind = Callable[[Tensor, Any], Tensor]
ROUNDINGS = 8
EXACT = 1e-9


def fold_state(
    original: fx.GraphModule, copied: nn.Module, memo: Mapping[int, Any], slim: nn.Module, plan: Plan, absorption: Absorption
) -> dict[str, Behind]:
    """Clauses 1 and 2; the result adds to the values of nodes.

    Raises:
        VerificationError: a number of the slim model is not what its fold says.
    """
    nodes = {node.name: node for node in original.graph.nodes}
    places: dict[str, list[Fold]] = {}
    for fold in absorption.folds:
        places.setdefault(fold.place, []).append(fold)
    behind: dict[str, Behind] = {}
    for place, folds in places.items():
        _fold(_Site(original, nodes, slim, plan, place, folds), copied, memo, behind)
    for addition in plan.added or ():
        if addition.name not in places and bool((_named(slim, addition.name) != 0).any()):
            raise _error(addition.node, f"{addition.name!r} is no fold's and should be zero", 0.0, "other numbers")
    return behind


class _Site:
    """A place and its folds."""

    def __init__(
        self, original: nn.Module, nodes: Mapping[str, fx.Node], slim: nn.Module, plan: Plan, place: str, folds: list[Fold]
    ) -> None:
        self.place, self.folds, self.plan = place, folds, plan
        self.node = nodes[folds[0].node]
        self.form, self.weight = folds[0].form, folds[0].weight
        self.stored = _named(slim, place).detach()
        self.base: Tensor | None = _find(original, place)
        self.source = double(_named(original, self.weight).detach())
        self.window = _window(self.node, original, self.source.ndim - 2)
        self.groups = 1 if self.window is None else int(self.window["groups"])

    @property
    def width(self) -> int:
        return int(self.kernels()[0].shape[0])

    def kernels(self) -> tuple[Tensor, Tensor]:
        """Weight times constants, and its size without cancellation, over all output channels: ``(out, *window)``."""
        total = [_contribution(self.source, self.plan, fold, self.groups) for fold in self.folds]
        return sum(t for t, _ in total), sum(t for _, t in total)  # type: ignore[return-value]

    def rows(self) -> Tensor:
        """The output channels that live, in the slim model's order."""
        name, dim = (self.weight, 1 - self.folds[0].dim) if self.base is None else (self.place, 0)
        kept = self.plan.kept.get(name, {}).get(dim)
        return torch.arange(self.width, device="cpu") if kept is None else torch.tensor(kept, dtype=torch.long, device="cpu")


def _contribution(weight: Tensor, plan: Plan, fold: Fold, groups: int) -> tuple[Tensor, Tensor]:
    sizes = plan.sizes.get(fold.weight, {})
    atoms = torch.zeros(sizes.get(fold.dim, weight.shape[fold.dim]), dtype=torch.float64, device=weight.device)
    atoms[list(fold.atoms)] = torch.tensor(fold.values, dtype=torch.float64, device=weight.device)
    tail = [1] * (weight.ndim - 2)
    if fold.dim == 1:
        rows = atoms.reshape(-1, 1, weight.shape[1]).expand(-1, weight.shape[0] * weight.shape[1] // len(atoms), -1)
        product = weight * rows.reshape(weight.shape[0], weight.shape[1], *tail)
        return product.sum(1), product.abs().sum(1)
    product = weight * atoms.reshape(-1, 1, *tail)
    product = product.reshape(groups, -1, *weight.shape[1:])
    return product.sum(1).flatten(0, 1), product.abs().sum(1).flatten(0, 1)


def _fold(site: _Site, copied: nn.Module, memo: Mapping[int, Any], behind: dict[str, Behind]) -> None:
    kernels, gross = site.kernels()
    rows = site.rows()
    if site.form != "map":
        area = 1
        if site.window is not None and site.window["transposed"]:
            area = math.prod(site.window["stride"])
        kernels = kernels.flatten(1).sum(1) / area if kernels.ndim > 1 else kernels
        gross = gross.flatten(1).sum(1) / area if gross.ndim > 1 else gross
    base = torch.zeros_like(kernels) if site.base is None else double(site.base.detach())
    expected = base[rows] - kernels[rows] if site.form == "norm" else base[rows] + kernels[rows]
    stored = double(site.stored).reshape(expected.shape)
    allowed = ROUNDINGS * torch.finfo(site.stored.dtype).eps * (gross + base.abs())[rows]
    apart = (stored - expected).abs() - allowed
    if bool((apart > 0).any()) or not bool(stored.isfinite().all()):
        worst = float((stored - expected).abs().max())
        raise _error(site.node.name, f"{site.place!r} is not what the constants of removed channels make it", 0.0, worst)
    whole = torch.zeros_like(kernels)
    whole[rows] = stored
    if site.base is not None:
        own = memo[id(site.base)]
        own.detach().copy_(torch.where(_among(rows, base), whole, own))
        return
    mask = plan_mask(site.place, whole, {0: rows.tolist()}, {0: len(whole)})
    if site.form == "bias":
        _attribute(copied, site.place.rpartition(".")[0])._parameters["bias"] = mark(
            nn.Parameter(whole.to(_dtype(copied)), requires_grad=False), mask
        )
    elif site.form == "sum":
        spatial = 0 if site.window is None else len(site.window["stride"])
        shape = (-1, *[1] * spatial)
        added = _adding(mark(whole.reshape(shape), None if mask is None else mask.reshape(shape)))
        behind[site.node.name] = _after(behind.get(site.node.name), added)
    else:
        assert site.window is not None
        behind[site.node.name] = _after(behind.get(site.node.name), _mapping(whole, mask, site.window))


def _among(rows: Tensor, base: Tensor) -> Tensor:
    found = torch.zeros(len(base), dtype=torch.bool, device=base.device)
    found[rows] = True
    return found


def _after(first: Behind | None, second: Behind) -> Behind:
    """Two rounds may add to one node."""
    return second if first is None else lambda value, image: second(first(value, image), image)


def _adding(more: Tensor) -> Behind:
    return lambda value, _: value + more


def _mapping(kernels: Tensor, mask: Any, window: Mapping[str, Any]) -> Behind:
    def add(value: Tensor, image: Any) -> Tensor:
        spatial = len(window["stride"])
        ones = torch.ones(1, 1, *image.shape[2:], dtype=kernels.dtype, device=kernels.device)
        more: Tensor
        settings = {key: window[key] for key in ("stride", "padding", "dilation")}
        if window["transposed"]:
            call: Any = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[spatial - 1]
            more = call(ones, kernels.unsqueeze(0), output_padding=window["output_padding"], **settings)
        else:
            more = (F.conv1d, F.conv2d, F.conv3d)[spatial - 1](ones, kernels.unsqueeze(1), **settings)
        mark(more, None if mask is None else mask.reshape(1, -1, *[1] * spatial))
        return value + more.to(value.dtype)

    return add


def _window(node: fx.Node, module: nn.Module, spatial: int) -> dict[str, Any] | None:
    """How a convolution's node slides its window; None for a product."""
    if spatial < 1:
        return None
    if node.op == "call_module":
        called: Any = _attribute(module, str(node.target))
        found = {key: getattr(called, key) for key in ("stride", "padding", "dilation", "output_padding", "groups")}
        found["transposed"] = called.transposed
        if found["padding"] == "same":
            found["padding"] = tuple(d * (k - 1) // 2 for d, k in zip(called.dilation, called.kernel_size, strict=True))
    else:
        transposed = "transpose" in str(getattr(node.target, "__name__", ""))
        last = ("output_padding", "groups", "dilation") if transposed else ("dilation", "groups")
        found = {"stride": 1, "padding": 0, "dilation": 1, "output_padding": 0, "groups": 1}
        found.update(zip(("stride", "padding", *last), node.args[3:], strict=False))
        found.update(node.kwargs)
        found["transposed"] = transposed
    for key in ("stride", "padding", "dilation", "output_padding"):
        value = 0 if found[key] == "valid" else found[key]
        numbers = tuple(value) if isinstance(value, (tuple, list)) else (value,)
        found[key] = numbers * spatial if len(numbers) == 1 else numbers
    return found


def difference(slim: Any, original: Any) -> float:
    """Clause 3; NaN where there is nothing to compare."""
    worst = math.nan
    for a, b in zip(tensors(original), tensors(slim), strict=True):
        if a.is_floating_point() and a.numel() and a.shape == b.shape:
            apart = float((a - b).abs().nan_to_num(0.0).max()) / max(1e-30, float(a.abs().nan_to_num(0.0, 0.0, 0.0).max()))
            worst = apart if math.isnan(worst) else max(worst, apart)
    return worst


def check_exact(apart: float, slim: nn.Module, rtol: float) -> None:
    """Clause 3, for an absorption that claims to be exact.

    Raises:
        VerificationError: the outputs differ from the original's.
    """
    eps = max((torch.finfo(p.dtype).eps for p in slim.parameters() if p.is_floating_point()), default=0.0)
    allowed = max(rtol, 1000 * eps)
    if apart > allowed:
        raise _error("output", "absorption claims to be exact, and the outputs are not the original's", allowed, apart)


def _error(node: str, what: str, expected: object, got: object) -> VerificationError:
    return VerificationError(f"at node {node!r}: {what} (off by {got})", node=node, expected=expected, got=got)


def _attribute(module: nn.Module, path: str) -> Any:
    found: Any = module
    for part in path.split(".") if path else ():
        found = getattr(found, part)
    return found


def _named(module: nn.Module, name: str) -> Tensor:
    found = _find(module, name)
    if found is None:
        raise _error("", f"the slim model has no tensor {name!r}", name, "nothing")
    return found


def _find(module: nn.Module, name: str) -> Tensor | None:
    found: Any = module
    for part in name.split("."):
        found = getattr(found, part, None)
    return found if isinstance(found, Tensor) else None


def _dtype(module: nn.Module) -> torch.dtype:
    return next((p.dtype for p in module.parameters() if p.is_floating_point()), torch.float64)
