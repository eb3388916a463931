"""Provenance beside numbers: every real tensor of an eager run has a shadow, a meta tensor that the rules see.

1. An ATen call runs on the real tensors first. Then its rule runs on their shadows; what it binds to its results is the provenance of the real
   results. Where a rule asks the operator itself for a meta result it gets one of the real result's shape, so operators whose
   shapes depend on numbers need no meta kernel.
2. A tensor that is met for the first time is a parameter or buffer (its factors are asked for once) or a constant, whose numbers
   are known if they are integers. The program's inputs are neither: they have no factors, and their numbers are not known.
3. A mask that picks elements is read as the positions it picks; which they are tells its channels' numbers, so these are pinned.
4. A rule that fails, or whose result has another shape than the real one, is as good as none: what it touched is pinned.
5. ``numbers`` gathers what Python gave to operators as numbers and not as sizes: scalars, literal data, and the scale that attention derives
   from a width if none is given. ``drawn`` says that an operator drew random numbers or left memory as it found it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from fxprune.errors import FxpruneError
from fxprune.provenance.factor import Ids, Value
from fxprune.provenance.tracker import Rule, Tracker

SHADOW = "_fxprune_shadow"
INDEXES = frozenset(f"aten::{name}" for name in "index index_put index_put_ _index_put_impl_ _unsafe_index _unsafe_index_put".split())
LITERALS = 4096  # elements of a literal tensor that are held against the original's

Enter = Callable[[Tensor], "Sequence[Ids] | None"]


class Known:
    """An operator whose results are known: called on meta tensors it gives their shadows, on others it computes (clause 1)."""

    def __init__(self, func: Any, result: Any) -> None:
        self._func, self._shadows = func, result

    def __getattr__(self, name: str) -> Any:
        return getattr(self._func, name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        leaves = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        if any(x.device.type == "meta" for x in leaves) or str(kwargs.get("device")) == "meta":
            return self._shadows
        return self._func(*args, **kwargs)


class Shadowing(TorchDispatchMode):
    """Runs ATen calls on numbers and keeps provenance on the side (clauses 1 to 5).

    Attributes:
        tracker: binds values to shadows; its own dispatch is not used.
        enter: gives the factors of a parameter or buffer, None for any other tensor.
        numbers: see clause 5; the caller clears it.
        drawn: likewise.
    """

    def __init__(self, tracker: Tracker, find: Callable[[Any], Rule], enter: Enter) -> None:
        super().__init__()
        self.tracker, self.enter = tracker, enter
        self.numbers: list[float] = []
        self.drawn = False
        self._find = find
        self._rules: dict[Any, Rule] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        with torch._C.DisableTorchFunction():
            self._note(func, args, kwargs)
            before = tree_map_only(Tensor, self.shadow, (args, kwargs))
            picked = _positions(func, args, self)
            result = func(*args, **kwargs)
            self._follow(func, *before, picked, args, kwargs, result)
        return result

    # -- shadows -------------------------------------------------------------------------------------------------------

    def shadow(self, real: Tensor) -> Tensor:
        """The shadow of a tensor (clause 2)."""
        found: Tensor | None = getattr(real, SHADOW, None)
        if found is None:
            found = self.empty(real)
            factors = self.enter(real)
            if factors is not None:
                self.tracker.bind(found, factors)
            elif not real.is_floating_point() and not real.is_complex():
                self.tracker.set_constant(found, real.detach().cpu())
        return found

    def empty(self, real: Tensor) -> Tensor:
        """A new shadow, without factors."""
        made = torch.empty(real.shape, dtype=real.dtype, device="meta")
        setattr(real, SHADOW, made)
        return made

    def value(self, real: Tensor) -> Value:
        """The provenance of a real tensor."""
        return self.tracker.value(self.shadow(real))

    # -- one call ------------------------------------------------------------------------------------------------------

    def _follow(self, func: Any, args: Any, kwargs: Any, picked: Any, real_args: Any, real_kwargs: Any, result: Any) -> None:
        shadows = {id(x): getattr(x, SHADOW) for x in tree_leaves((real_args, real_kwargs)) if isinstance(x, Tensor)}
        if picked is not None:
            args = (args[0], picked, *args[2:])
        reshaped = torch.Tag.inplace_view in func.tags
        if reshaped:  # ``unsqueeze_`` and its kin turn a tensor into a view of itself: as if it were made anew
            func = _functional(func)

        def mirrored(real: Tensor) -> Tensor:
            known = None if reshaped else shadows.get(id(real))
            return torch.empty(real.shape, dtype=real.dtype, device="meta") if known is None else known

        mirror = tree_map_only(Tensor, mirrored, result)
        reals = [x for x in tree_leaves(result) if isinstance(x, Tensor)]
        found = self._ruled(func, args, kwargs, mirror, reals)
        for real, own in zip(reals, found, strict=True):
            setattr(real, SHADOW, own)

    def _ruled(self, func: Any, args: Any, kwargs: Any, mirror: Any, reals: list[Tensor]) -> list[Tensor]:
        """The shadows of the results: by rule, or pinned (clause 4)."""
        rule = self._rules.get(func)
        if rule is None:
            rule = self._rules[func] = self._find(func)
        try:
            if func is torch.ops.aten._local_scalar_dense.default:
                return []
            result = rule(self.tracker, Known(func, mirror), args, kwargs)
            found = [x for x in tree_leaves(result) if isinstance(x, Tensor)]
            mirrored = [x for x in tree_leaves(mirror) if isinstance(x, Tensor)]
            # Statistics for a backward pass are empty in rules; nothing reads them in evaluation mode.
            found = [b if a.shape != b.shape and a.numel() == 0 else a for a, b in zip(found, mirrored, strict=True)]
            if all(a.shape == b.shape for a, b in zip(found, reals, strict=True)):
                return found
        except FxpruneError:
            raise
        except Exception:  # noqa: BLE001, S110 - whatever a rule cannot do, it does not know
            pass
        operands = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        self.tracker.ledger.missing(func._schema.name, [ids for x in operands for ids in self.tracker.value(x).factors])
        return [x for x in tree_leaves(mirror) if isinstance(x, Tensor)]

    def _note(self, func: Any, args: Any, kwargs: Any) -> None:
        """Clause 5."""
        name = func._schema.name
        self.drawn = self.drawn or torch.Tag.nondeterministic_seeded in func.tags or "empty" in name
        if name == "aten::lift_fresh" and args[0].numel() <= LITERALS and args[0].device.type != "meta":
            self.numbers += args[0].detach().reshape(-1).tolist() if not args[0].is_complex() else []
            return
        for index, argument in enumerate(func._schema.arguments):
            given = args[index] if index < len(args) else kwargs.get(argument.name)
            if isinstance(given, float) or (type(given) is int and str(argument.type) in SCALARS):
                self.numbers.append(float(given))
            elif argument.name == "scale" and given is None and func._schema.arguments[0].name == "query":
                self.numbers.append(args[0].shape[-1] ** -0.5)


SCALARS = frozenset(("number", "Optional[number]", "Tensor", "Optional[Tensor]"))


def _positions(func: Any, args: Any, shadowing: Shadowing) -> list[Any] | None:
    """Indices with every mask as the positions it picks (clause 3); None where there is no mask. As shadows."""
    if func._schema.name not in INDEXES or not any(isinstance(i, Tensor) and i.dtype in MASKS for i in args[1]):
        return None
    found: list[Any] = []
    for index in args[1]:
        if not isinstance(index, Tensor) or index.dtype not in MASKS:
            found.append(None if index is None else shadowing.shadow(index))
            continue
        own = shadowing.shadow(index)
        known = shadowing.tracker.constant(own) is not None
        for ids in shadowing.tracker.value(own).factors:
            shadowing.tracker.ledger.pin(ids, "picks elements by numbers that only a run knows")
        for places in index.nonzero().unbind(1):
            made = shadowing.empty(places)
            if known:
                shadowing.tracker.set_constant(made, places.cpu())
            found.append(made)
    return found


MASKS = (torch.bool, torch.uint8)


def _functional(func: Any) -> Any:
    """``aten.unsqueeze`` of ``aten.unsqueeze_``; the operator itself where there is none."""
    packet = getattr(torch.ops.aten, func._schema.name.removeprefix("aten::").removesuffix("_"), None)
    return getattr(packet, func._overloadname, func) if packet is not None else func
