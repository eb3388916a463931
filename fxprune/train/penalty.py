"""A penalty at work in somebody's training loop.

1. Three ways to apply a penalty, of which a loop uses one. ``add_gradient()`` after ``backward()`` adds the subgradient;
   ``penalty()`` is a term for the loss; ``shrink(optimizer)`` after ``optimizer.step()`` takes the proximal step with
   the amount ``learning rate * strength`` of each parameter's group, and makes exact zeros.
2. ``add_gradient`` and ``shrink`` are called once per optimizer step, and count it: ``steps``. With ``penalty`` the loop calls ``advance()``.
   Under gradient accumulation that is after the last backward of a step; with a ``GradScaler`` after ``scaler.unscale_(optimizer)``, since the
   subgradient is not scaled; under ``DistributedDataParallel`` after backward, when gradients are averaged: every process adds the same.
3. ``strength`` is a number, or a schedule: a function of the number of steps already done (``schedule.py``).
4. A parameter that was frozen since is left alone.
5. ``shrink`` is the proximal gradient method for plain SGD. With momentum or Adam it is the usual heuristic: the same threshold after
   whatever step the optimizer took; what it leaves at zero is exactly zero.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from fxprune.errors import FxpruneError
from fxprune.train.forms import Form

Schedule = Callable[[int], float]


def _checked(strength: float) -> float:
    if not (math.isfinite(strength) and strength >= 0):
        raise ValueError(f"strength must be finite and not negative, got {strength}.")
    return float(strength)


class Penalty:
    """A penalty on some parameters of a model.

    Attributes:
        steps: optimizer steps that were counted (clause 2).
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], form: Form, strength: float | Schedule) -> None:
        self._parameters = dict(parameters)
        self._form = form
        self.steps = 0
        self._schedule: Schedule | None = None
        self._strength = 0.0
        if callable(strength):
            self._schedule = strength
            _checked(strength(0))
        else:
            self._strength = _checked(strength)

    @property
    def strength(self) -> float:
        """The factor of the penalty at this step; setting it ends a schedule."""
        return self._strength if self._schedule is None else _checked(self._schedule(self.steps))

    @strength.setter
    def strength(self, value: float) -> None:
        self._strength, self._schedule = _checked(value), None

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        """Name and parameter of everything that is penalized."""
        return dict(self._parameters)

    @torch.no_grad()
    def add_gradient(self) -> None:
        """Add ``strength`` times the subgradient to the gradients, and count a step (clauses 1 and 2)."""
        parameters = list(self._parameters.values())
        strength = self.strength
        for parameter, part in zip(parameters, self._form.subgradient(parameters), strict=True):
            if not parameter.requires_grad:
                continue
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            parameter.grad.add_(part, alpha=strength)
        self.steps += 1

    def penalty(self) -> Tensor:
        """``strength`` times the penalty: a scalar with gradient, on the device of the first parameter. Counts nothing."""
        return self.strength * self._form.value(list(self._parameters.values()))

    @torch.no_grad()
    def shrink(self, optimizer: Optimizer) -> None:
        """The proximal step, after ``optimizer.step()``; counts a step (clauses 1, 2, 4 and 5).

        Raises:
            FxpruneError: a penalized parameter is in no group of the optimizer, so its learning rate is not known.
        """
        rates = {id(p): float(group["lr"]) for group in optimizer.param_groups for p in group["params"]}
        for name, parameter in self._parameters.items():
            if parameter.requires_grad and id(parameter) not in rates:
                raise FxpruneError(
                    f"{name!r} is in no parameter group of this {type(optimizer).__name__}: its learning rate is not known. "
                    "Pass the optimizer that trains it, or freeze it before making the penalty.",
                    node=name,
                )
        parameters = list(self._parameters.values())
        strength = self.strength
        amounts = [rates.get(id(parameter), 0.0) * strength for parameter in parameters]
        for parameter, shrunk in zip(parameters, self._form.shrunk(parameters, amounts), strict=True):
            if parameter.requires_grad:
                parameter.copy_(shrunk)
        self.steps += 1

    def advance(self) -> None:
        """Count a step, for loops that use ``penalty``."""
        self.steps += 1

    def share_below(self, threshold: float = 1e-3) -> float:
        """Share of all penalized numbers whose magnitude is below ``threshold``, in [0, 1]."""
        values = torch.cat([parameter.detach().abs().flatten().cpu() for parameter in self._parameters.values()])
        return float((values < threshold).double().mean())

    def state_dict(self) -> dict[str, float | int]:
        """What a resumed training needs: the steps, and the strength if there is no schedule."""
        return {"steps": self.steps} if self._schedule is not None else {"steps": self.steps, "strength": self._strength}

    def load_state_dict(self, state: Mapping[str, float | int]) -> None:
        """Take up where ``state_dict`` was called."""
        self.steps = int(state["steps"])
        if "strength" in state:
            self.strength = float(state["strength"])
