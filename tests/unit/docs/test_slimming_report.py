"""The page of results is written from stored rows alone."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).resolve().parents[3] / "benchmarks"


@pytest.fixture
def report(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.setattr(sys, "path", [str(BENCHMARKS), *sys.path])
    import slimming_report

    yield slimming_report
    for name in ("slimming_report", "slimming_prose"):
        sys.modules.pop(name, None)


def row(seed: int, way: str, level: float, before: float, after: float) -> dict[str, object]:
    training = {"rate": 0.05, "steps": 150}
    return {
        "seed": seed,
        "way": way,
        "level": level,
        "before": before,
        "after": after,
        "macs_left": level - 0.001,
        "training": training,
        "machine": "a machine",
    }


def store(folder: Path, *rows: dict[str, object]) -> None:
    folder.mkdir()
    for number, facts in enumerate(rows):
        (folder / f"{number}.json").write_text(json.dumps(facts))


def test_means_and_spread_come_from_the_stored_cells(report: Any, tmp_path: Path) -> None:
    store(
        tmp_path / "curve",
        row(0, "gamma", 0.6, 0.5, 0.80),
        row(1, "gamma", 0.6, 0.5, 0.84),
        row(0, "control", 1.0, 0.8, 0.85),
    )
    page = report.page(tmp_path)
    assert "|  | 40 % fewer MACs |\n|---|---|\n| gamma | 82.0 % (80.0 to 84.0) |" in page
    assert "| gamma | 50.0 % |" in page
    assert "85.0 % at a rate of 0.05" in page
    assert "by 0.1 points of the original's at most" in page
    assert page.endswith("Measured on: a machine.\n")


def test_a_study_without_cells_has_no_section(report: Any, tmp_path: Path) -> None:
    store(tmp_path / "mlp", {**row(0, "control", 1.0, 0.1, 0.985), "parameters": 545_000})
    page = report.page(tmp_path)
    assert "## A perceptron on MNIST" in page
    assert "| unpruned control | 545,000 |  | 1.50 % | 1 |" in page
    assert "## ResNet-20, from" not in page


def test_half_compares_a_slim_network_with_the_control_of_its_own_seed(report: Any, tmp_path: Path) -> None:
    network = {"network": "resnet20", "parameters_left": 0.5}
    store(
        tmp_path / "half",
        {**row(0, "control", 1.0, 0.8, 0.85), **network},
        {**row(1, "control", 1.0, 0.8, 0.86), **network},
        {**row(101, "gamma", 0.5, 0.3, 0.855), **network},
    )
    assert "| 85.5 % | -0.50 |" in report.page(tmp_path)
