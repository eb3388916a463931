"""Removing what is cut off changes no output, on random networks with random rows and columns of their weights pruned away."""

from __future__ import annotations

import torch
from hypothesis import event, given, settings
from torch import nn

from fxprune import CaptureError, sparse
from tests.property.compiling import TOLERANCE, network, run
from tests.property.profile import share
from tests.property.strategies import Case, cases
from tests.reference.compare import relative_error


def cut(model: nn.Module, seed: int) -> None:
    """Prune whole rows and columns of weights, and every fourth bias, by chance."""
    generator = torch.Generator().manual_seed(seed)

    def some(count: int, share: float) -> torch.Tensor:
        return torch.rand(count, generator=generator) < share

    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter[some(parameter.shape[0], 0.25)] = 0
            elif (
                name.endswith("weight") and parameter.dim() > 1
            ):  # not the directions of a weight norm, which are divided by their length
                parameter[some(parameter.shape[0], 0.4)] = 0
                parameter[:, some(parameter.shape[1], 0.3)] = 0


def removed(case: Case) -> int:
    model, inputs = network(case)
    cut(model, case.seed)
    expected = run(model, inputs)
    try:
        found = sparse.remove_neurons(model, inputs)
    except CaptureError:
        event("not captured")
        return 0
    assert relative_error(run(found.module, inputs), expected) <= TOLERANCE
    event("smaller" if found.channels else "nothing went")
    return found.channels


@share(0.4)
@given(cases())
def test_outputs_stay_what_they_were(case: Case) -> None:
    removed(case)


def test_many_networks_get_smaller() -> None:
    gone: list[bool] = []

    @settings(share(0.2), derandomize=True, database=None)
    @given(cases(mixing=False))
    def collect(case: Case) -> None:
        gone.append(removed(case) > 0)

    collect()
    assert sum(gone) / len(gone) >= 0.3
