"""Dead-channel elimination changes no output, on random networks with zeros, masks and copies planted in them."""

from __future__ import annotations

import torch
from hypothesis import event, given, settings
from torch import nn
from torch.nn.utils import prune

import fxprune
from fxprune.errors import CaptureError
from tests.property.compiling import TOLERANCE, network, run
from tests.property.profile import share
from tests.property.strategies import Case, cases
from tests.reference.compare import relative_error


def plant(model: nn.Module, seed: int, *, copies: bool) -> None:
    """Scale factors of 0, rows and columns of zeros, as numbers or as masks, and rows that repeat others."""
    generator = torch.Generator().manual_seed(seed)

    def some(count: int, share: float) -> torch.Tensor:
        return torch.rand(count, generator=generator) < share

    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.affine:
                module.weight[some(len(module.weight), 0.3)] = 0
            if not isinstance(module, (nn.modules.conv._ConvNd, nn.Linear)) or "weight" not in module._parameters:
                continue
            weight = module.weight
            if copies and not isinstance(module, nn.modules.conv._ConvTransposeNd):
                pairs = min(2, weight.shape[0] // 2)
                for i in range(pairs):
                    factor = 2.0 ** float(torch.randint(-1, 3, (), generator=generator))
                    weight[i] = weight[-1 - i] * factor
                    if module.bias is not None:
                        module.bias[i] = module.bias[-1 - i] * factor
            weight[some(weight.shape[0], 0.2)] = 0
            weight[:, some(weight.shape[1], 0.2)] = 0
            if seed % 3 == 0:
                prune.ln_structured(module, "weight", 0.3, 2, seed % 2)  # type: ignore[no-untyped-call]


def eliminated(case: Case, *, copies: bool = False) -> tuple[int, int]:
    """Parameters before and after."""
    model, inputs = network(case)
    plant(model, case.seed, copies=copies)
    expected = run(model, inputs)
    before = sum(p.numel() for p in model.parameters())
    try:
        slim = fxprune.eliminate_dead_channels(model, inputs, merge_duplicates=copies)
    except CaptureError:
        event("not captured")
        return before, before
    assert relative_error(run(slim, inputs), expected) <= TOLERANCE
    plan = fxprune.plan_of(slim)
    event("nothing is dead" if plan.empty else "smaller")
    event("merged" if any("merged" in note for note in plan.notes) else "not merged")
    assert plan.empty == any("no channel is dead" in note for note in plan.notes)
    assert fxprune.absorption_of(slim).exact
    return before, sum(p.numel() for p in slim.parameters())


@share(0.3)
@given(cases())
def test_outputs_stay_what_they_were(case: Case) -> None:
    eliminated(case)


@share(0.25)
@given(cases())
def test_outputs_stay_what_they_were_when_duplicates_are_merged(case: Case) -> None:
    eliminated(case, copies=True)


def test_many_networks_get_smaller() -> None:
    gone: list[bool] = []

    @settings(share(0.15), derandomize=True, database=None)
    @given(cases(mixing=False))
    def collect(case: Case) -> None:
        before, after = eliminated(case)
        gone.append(after < before)

    collect()
    assert sum(gone) / len(gone) >= 0.5
