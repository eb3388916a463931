"""What must hold for a whole network at any ratio."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import fxprune
from tests.property.program import randomise
from tests.reference.compare import backward, parameters, relative_error, used_names
from tests.reference.zeroed import zeroed

RATIOS = (0.3, 0.5, 0.7)
TOLERANCE = 1e-9


def check_slim(model: nn.Module, x: Tensor, ratio: float) -> None:
    """Slim a network with random weights and norms; hold it against the zeroed network; train one step."""
    randomise(model, seed=1)
    slim = fxprune.slim(model, ratio, x, absorb=False, verify=False)
    plan = fxprune.plan_of(slim)
    with torch.no_grad():
        output = slim(x)
    assert relative_error(output, zeroed(model, plan, x)) <= TOLERANCE
    assert not plan.empty
    assert abs(plan.achieved - ratio) < 0.15
    assert parameters(slim) < parameters(model)
    assert slim.state_dict().keys() <= model.state_dict().keys()
    gradients = backward(slim, x)
    assert gradients.keys() == used_names(slim) & {name for name, _ in slim.named_parameters()}
    assert all(g.isfinite().all() for g in gradients.values())


def image(side: int, batch: int = 2, seed: int = 0) -> Tensor:
    """Random float64 images."""
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(batch, 3, side, side, generator=rng, dtype=torch.float64)
