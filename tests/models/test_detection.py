"""Every torchvision detector and both RAFTs, as modules that no tracer takes: verified with boxes to compare, and trained one step."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torchvision import models

import fxprune
from benchmarks.coverage.randomise import randomise
from benchmarks.coverage.vision import case

DETECTORS = models.list_models(models.detection)
SHARE = 0.7  # of a detector's channels can go at least
LIMIT = 1e-9


def detector(name: str) -> tuple[Any, Any]:
    """With random norms, a threshold that leaves boxes to compare, and few of them; one small image."""
    torch.manual_seed(0)
    options: dict[str, Any] = {"weights_backbone": None}
    if not name.startswith("ssd"):
        options |= {"min_size": 128, "max_size": 128}
    model: Any = randomise(models.get_model(name, weights=None, **options))
    owner = getattr(model, "roi_heads", model)
    owner.score_thresh = 1e-3
    owner.detections_per_img = 5
    return model, ([torch.rand(3, 128, 128, generator=torch.Generator().manual_seed(1))],)


@pytest.mark.slow
@pytest.mark.parametrize("name", DETECTORS)
def test_a_detector_is_slimmed_to_its_own_class(name: str) -> None:
    model, inputs = detector(name)
    graph = fxprune.analyze(model, inputs)
    free, total = graph.prunable()
    assert free >= SHARE * total
    assert not graph.operators_without_rule
    slim: Any = fxprune.slim(model, 0.5, inputs, verify=False)
    assert type(slim) is type(model)
    evidence = fxprune.verify(model, slim, inputs)
    assert evidence.max_relative_error <= LIMIT
    assert evidence.outputs_empty == 0
    assert evidence.nodes_compared > 300
    with torch.no_grad():
        found = slim([torch.rand(3, 100, 150), torch.rand(3, 150, 100)])
    assert [sorted(item) for item in found] == [sorted(found[0])] * 2
    # two photographs: batch norm cannot be trained on a single value per channel
    loss: Tensor = case(name).loss(slim.train(), ([*inputs[0], *inputs[0]],))
    loss.backward()  # type: ignore[no-untyped-call]
    assert loss.isfinite()
    assert any(p.grad is not None and p.grad.any() for p in slim.parameters())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["raft_small", "raft_large"])
def test_raft(name: str) -> None:
    torch.manual_seed(0)
    model = randomise(models.get_model(name, weights=None))
    first = torch.randn(1, 3, 128, 128)
    inputs = (first, first.roll(2, 3))
    free, total = fxprune.analyze(model, inputs).prunable()
    assert free >= SHARE * total
    slim = fxprune.slim(model, 0.5, inputs, verify=False)
    assert fxprune.verify(model, slim, inputs).max_relative_error <= LIMIT
    assert sum(p.numel() for p in slim.parameters()) < 0.8 * sum(p.numel() for p in model.parameters())
