"""L1 or L2 on the weights that are pruned, during training.

1. ``strength * sum |w|`` (order 1) or ``strength / 2 * sum w^2`` (order 2, what optimizers call weight decay) over the weights of the
   chosen layers. Han et al. 2015, section 3.1: L1 gives better accuracy right after pruning, L2 after retraining.
2. ``add_gradient`` adds its (sub)gradient, ``strength * sign(w)`` or ``strength * w``, after ``backward``; ``penalty`` is the term itself
   for those who build one loss. Use one or the other.
3. A pruned weight is zero and adds nothing to either.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fxprune.errors import BudgetError
from fxprune.sparse.layers import layers, parameter


class Penalty:
    """The term of clause 1 for one model.

    Attributes:
        strength: not negative.
        order: 1 or 2.
    """

    def __init__(self, model: nn.Module, strength: float, order: int, *, only: str = "all", names: Sequence[str] = ()) -> None:
        """Collect the weights.

        Raises:
            BudgetError: another order than 1 or 2, or a strength that is negative or not finite.
        """
        if order not in (1, 2):
            raise BudgetError(f"order must be 1 or 2, got {order!r}.", expected=(1, 2), got=order)
        if not (math.isfinite(strength) and strength >= 0):
            raise BudgetError(f"strength must be finite and not negative, got {strength}.", got=strength)
        self.strength, self.order = strength, order
        self._modules = list(layers(model, only, names).values())

    def add_gradient(self) -> None:
        """Clause 2; call it after ``backward``. Weights that ask for no gradient are left alone."""
        with torch.no_grad():
            for weight in (parameter(module) for module in self._modules):
                if weight.requires_grad:
                    if weight.grad is None:
                        weight.grad = torch.zeros_like(weight)
                    weight.grad.add_(weight.sign() if self.order == 1 else weight, alpha=self.strength)

    def penalty(self) -> Tensor:
        """Clause 1: a scalar with gradient, on the device of the first weight."""
        weights = [parameter(module) for module in self._modules]
        terms = [w.abs().sum() if self.order == 1 else 0.5 * w.square().sum() for w in weights]
        return self.strength * torch.stack([term.to(terms[0]) for term in terms]).sum()
