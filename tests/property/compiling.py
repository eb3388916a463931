"""Calling the compiler on drawn cases, through its public names only."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from hypothesis import currently_in_test_context, event
from torch import Tensor, fx, nn

import fxprune
from fxprune.errors import BudgetError
from fxprune.plan import Plan
from tests.property.program import build, example, randomise
from tests.property.strategies import Case

TOLERANCE = 1e-9


@dataclass(frozen=True)
class Compiled:
    """A case with its network, inputs, slim network and plan."""

    case: Case
    model: nn.Module
    inputs: tuple[Tensor, ...]
    slim: fx.GraphModule
    plan: Plan


def random_score(seed: int) -> Callable[[Any], Tensor]:
    """A score that depends on the group's name and the seed only."""

    def score(group: Any) -> Tensor:
        rng = torch.Generator().manual_seed(zlib.crc32(f"{seed} {group.name}".encode()))
        return torch.rand(len(group), generator=rng, dtype=torch.float64)

    return score


def options(case: Case) -> dict[str, Any]:
    """The options of a case, as ``slim`` takes them."""
    score = random_score(case.seed) if case.score == "random" else case.score
    return {"floor": case.floor, "round_to": case.round_to, "keep": case.keep, "score": score}


def network(case: Case) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """The network of a case with random weights, in eval mode, and its inputs."""
    return randomise(build(case.program), case.seed), example(case.program, case.seed)


def note(outcome: str) -> None:
    """Count an outcome in hypothesis's statistics."""
    if currently_in_test_context():
        event(outcome)


def compiled(case: Case, *, verify: bool = False) -> Compiled | None:
    """Slim a case's network; None if nothing can go.

    A ratio that the floors put out of reach is halved until it is in reach.
    """
    model, inputs = network(case)
    ratio = case.ratio
    while ratio > 0.02:
        try:
            slim = fxprune.slim(model, ratio, inputs, **options(case), absorb=False, verify=verify)
        except BudgetError:
            ratio /= 2
            continue
        plan = fxprune.plan_of(slim)
        note("pruned" if not plan.empty else "nothing went")
        return Compiled(replace(case, ratio=ratio), model, inputs, slim, plan)
    note("nothing to prune")
    return None


def run(model: nn.Module, inputs: tuple[Tensor, ...]) -> Any:
    """Output without gradients."""
    with torch.no_grad():
        return model(*inputs)
