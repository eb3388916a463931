"""Provenance beside numbers: every real tensor of an eager run has a shadow, a meta tensor that the rules see.

1. An ATen call runs on the real tensors first. Then its rule runs on their shadows; what it binds to its results is the provenance of the real
   results. Where a rule asks the operator itself for a meta result it gets one of the real result's shape, so operators whose
   shapes depend on numbers need no meta kernel.
2. A tensor that is met for the first time is a parameter or buffer (its factors are asked for once) or a constant, whose numbers
   are known if they are integers. The program's inputs are neither: they have no factors, and their numbers are not known.
3. A mask that picks elements is read as the positions it picks; which they are tells its channels' numbers, so these are pinned.
4. A rule that fails, or whose result has another shape than the real one, is as good as none: what it touched is pinned.
5. ``numbers`` gathers what Python gave to operators as numbers and not as sizes; ``drawn`` says that an operator drew random numbers or left
   memory as it found it (rules/given.py).
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
from fxprune.provenance.rules.given import MASKS, READS_A_NUMBER, functional, leaves_open, masks, numbers, tells
from fxprune.provenance.tracker import Rule, Tracker

SHADOW = "_fxprune_shadow"

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
        told: the run has read numbers, or made shapes that depend on them.
    """

    def __init__(self, tracker: Tracker, find: Callable[[Any], Rule], enter: Enter) -> None:
        super().__init__()
        self.tracker, self.enter = tracker, enter
        self.numbers: list[float] = []
        self.drawn = self.told = False
        self._find = find
        self._rules: dict[Any, Rule] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        with torch._C.DisableTorchFunction():
            self.numbers += numbers(func, args, kwargs)
            self.drawn = self.drawn or leaves_open(func)
            self.told = self.told or tells(func, args)
            shadows = tree_map_only(Tensor, self.shadow, (args, kwargs))
            picked = self._positions(func, args)
            result = func(*args, **kwargs)
            self._follow(func, shadows, picked, (args, kwargs), result)
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

    def _follow(self, func: Any, shadows: Any, picked: list[Any], real: Any, result: Any) -> None:
        """Let the rule see the shadows of a call, and bind its results to those of the real ones."""
        args, kwargs = shadows
        known = {id(x): getattr(x, SHADOW) for x in tree_leaves(real) if isinstance(x, Tensor)}
        if picked:
            args = (args[0], picked, *args[2:])
        anew = functional(func)
        reshaped = anew is not func  # ``unsqueeze_`` and its kin turn a tensor into a view of itself: as if it were made anew

        def mirrored(x: Tensor) -> Tensor:
            own = None if reshaped else known.get(id(x))
            return torch.empty(x.shape, dtype=x.dtype, device="meta") if own is None else own

        mirror = tree_map_only(Tensor, mirrored, result)
        reals = [x for x in tree_leaves(result) if isinstance(x, Tensor)]
        found = self._ruled(anew, args, kwargs, mirror, reals)
        for x, own in zip(reals, found, strict=True):
            setattr(x, SHADOW, own)

    def _ruled(self, func: Any, args: Any, kwargs: Any, mirror: Any, reals: list[Tensor]) -> list[Tensor]:
        """The shadows of the results: by rule, or pinned (clause 4)."""
        rule = self._rules.get(func)
        if rule is None:
            rule = self._rules[func] = self._find(func)
        try:
            if func is READS_A_NUMBER:
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

    def _positions(self, func: Any, args: Any) -> list[Any]:
        """Indices with every mask as the positions it picks, as shadows (clause 3); nothing where there is no mask."""
        found: list[Any] = []
        for index in masks(func, args):
            if index is None or index.dtype not in MASKS:
                found.append(None if index is None else self.shadow(index))
                continue
            own = self.shadow(index)
            known = self.tracker.constant(own) is not None
            for ids in self.tracker.value(own).factors:
                self.tracker.ledger.pin(ids, "picks elements by numbers that only a run knows")
            for places in index.nonzero().unbind(1):
                made = self.empty(places)
                if known:
                    self.tracker.set_constant(made, places.cpu())
                found.append(made)
        return found
