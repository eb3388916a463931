"""L1 sparsity on the scale factors of normalization layers.

1. Network Slimming (Liu et al. 2017, eq. 1, arXiv:1708.06519) adds ``strength * sum |gamma|`` to the training loss, so that the
   gammas of channels that matter little go to zero.
2. The paper optimizes this term by its subgradient ``strength * sign(gamma)``, 0 at gamma = 0: ``add_gradient``.
3. ``penalty`` is the term itself, for those who build one loss; its gradient is that of clause 2. Use one or the other.
4. A gamma is the affine weight of a batch or instance norm. One that several modules share counts once.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from fxprune.errors import NothingToPruneError


def gammas(model: nn.Module) -> dict[str, nn.Parameter]:
    """Name and scale of every affine batch and instance norm, each parameter once, in the order of the modules."""
    found: dict[int, tuple[str, nn.Parameter]] = {}
    for name, module in model.named_modules():
        # batch and instance norms and their subclasses; their common base has no public name
        if isinstance(module, _NormBase) and isinstance(module.weight, nn.Parameter):
            found.setdefault(id(module.weight), (f"{name}.weight" if name else "weight", module.weight))
    return dict(found.values())


class GammaL1:
    """The sparsity term of Network Slimming for one model.

    Usage::

        sparsity = GammaL1(model, strength=1e-4)
        ...
        loss.backward()
        sparsity.add_gradient()
        optimizer.step()

    Attributes:
        strength: the factor lambda of the paper; 1e-4 and 1e-5 there, more for short trainings of small networks.
    """

    def __init__(self, model: nn.Module, strength: float = 1e-4, init: float | None = None) -> None:
        """Collect the gammas of ``model`` that are trained.

        Args:
            model: any module with batch or instance norms.
            strength: not negative.
            init: if given, every gamma is set to this value first; the paper uses 0.5.

        Raises:
            ValueError: ``strength`` is negative or not finite.
            NothingToPruneError: the model has no trained gamma.
        """
        if not (math.isfinite(strength) and strength >= 0):
            raise ValueError(f"strength must be finite and not negative, got {strength}.")
        self.strength = strength
        self._gammas = {name: gamma for name, gamma in gammas(model).items() if gamma.requires_grad}
        if not self._gammas:
            raise NothingToPruneError(
                f"{type(model).__name__} has no batch or instance norm with a trained scale: there is no gamma to make sparse. "
                "Train it without GammaL1 and prune it by magnitude."
            )
        if init is not None:
            with torch.no_grad():
                for gamma in self._gammas.values():
                    gamma.fill_(init)

    def add_gradient(self) -> None:
        """Add the subgradient of the term to the gradient of every gamma (clause 2). Call it after ``backward``."""
        with torch.no_grad():
            for gamma in self._gammas.values():
                if gamma.grad is None:
                    gamma.grad = torch.zeros_like(gamma)
                gamma.grad.add_(gamma.sign(), alpha=self.strength)

    def penalty(self) -> Tensor:
        """``strength * sum |gamma|``, a scalar with gradient (clause 3), on the device of the first gamma."""
        terms = [gamma.abs().sum() for gamma in self._gammas.values()]
        return self.strength * torch.stack([term.to(terms[0]) for term in terms]).sum()

    def share_below(self, threshold: float = 1e-3) -> float:
        """Share of all gammas whose magnitude is below ``threshold``, in [0, 1]."""
        values = torch.cat([gamma.detach().abs().flatten().cpu() for gamma in self._gammas.values()])
        return float((values < threshold).double().mean())
