"""The coverage that is promised: every torchvision model, nearly every timm module. `benchmarks/coverage` measures and writes docs/coverage.md."""

from __future__ import annotations

import statistics
from typing import Any

import pytest

from benchmarks.coverage import others, pytorch_image_models, vision
from benchmarks.coverage.isolate import isolated

CPU_SECONDS = 240
GIGABYTES = 14
MODELS = 121  # of torchvision 0.29; later versions may name more
SLIM_CPU_SECONDS = 30
TIMM_UNVERIFIED = 2
MEDIAN_PRUNABLE = 0.9


def test_every_torchvision_model_is_named_once() -> None:
    assert len(vision.names()) == len(set(vision.names())) >= MODELS
    assert sum(map(vision.is_classifier, vision.names())) >= 80


def test_every_timm_module_is_there() -> None:
    timm = pytest.importorskip("timm")
    assert set(timm.list_modules()) == pytorch_image_models.sizes().keys(), (
        "run `python -m benchmarks.coverage.pytorch_image_models`"
    )
    assert len(set(pytorch_image_models.more()) - set(pytorch_image_models.smallest())) == pytorch_image_models.MORE


@pytest.mark.slow
@pytest.mark.parametrize("name", vision.names())
def test_torchvision(name: str) -> None:
    record = isolated(vision.case, name, CPU_SECONDS, GIGABYTES)
    assert record["outcome"] == "verified", record
    assert record["without_rule"] == []
    assert record["train"] == "yes"
    assert record["slim_cpu_seconds"] <= SLIM_CPU_SECONDS


@pytest.mark.slow
@pytest.mark.parametrize("name", others.names())
def test_other_libraries(name: str) -> None:
    for package in others.case(name).packages:
        pytest.importorskip(package)
    record = isolated(others.case, name, CPU_SECONDS, GIGABYTES)
    assert record["outcome"] == "verified", record
    assert record["without_rule"] == []
    assert (record["train"], record["batch"]) == ("yes", "dynamic")


@pytest.mark.slow
def test_timm() -> None:
    records: dict[str, dict[str, Any]] = {
        name: isolated(pytorch_image_models.case, name, CPU_SECONDS, GIGABYTES) for name in pytorch_image_models.smallest()
    }
    unverified = {name: record for name, record in records.items() if record["outcome"] != "verified"}
    assert len(unverified) <= TIMM_UNVERIFIED, {name: record.get("error") for name, record in unverified.items()}
    assert all(record["outcome"] == "refused" for record in unverified.values()), unverified
    verified = [record for record in records.values() if record["outcome"] == "verified"]
    assert statistics.median(record["prunable"] for record in verified) >= MEDIAN_PRUNABLE
    assert max(record["slim_cpu_seconds"] for record in verified) <= SLIM_CPU_SECONDS
