"""Deploying changes no output, on random networks, slim or not."""

from __future__ import annotations

import torch
from hypothesis import given

from fxprune.capture.objects import held
from fxprune.inference import deploy, deployment_of
from fxprune.inference.observe import difference
from tests.property.compiling import compiled
from tests.property.profile import share
from tests.property.strategies import Case, cases


@share(0.2)
@given(cases())
def test_a_deployed_network_computes_the_same(case: Case) -> None:
    c = compiled(case)
    if c is None:
        return
    for model in (c.model, c.slim):
        result = deploy(model, c.inputs, seconds=1e-9)
        told = deployment_of(result)
        assert all(not candidate.dropped and candidate.error <= 1e-9 for candidate in told.candidates), told
        with torch.no_grad():
            assert difference(held(result(*c.inputs)), held(model.eval()(*c.inputs))) <= 1e-9
