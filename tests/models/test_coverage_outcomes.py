"""The coverage suites see what they are there to see: refusals, errors, crashes, hangs, memory hogs."""

from __future__ import annotations

import os
import time
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from benchmarks.coverage.cases import Case, floating, images
from benchmarks.coverage.isolate import isolated
from benchmarks.coverage.measure import measure
from benchmarks.coverage.randomise import randomise


class Small(nn.Module):
    """A net with a zero-initialised scale."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)
        self.norm = nn.BatchNorm2d(8)
        self.scale = nn.Parameter(torch.full((8, 1, 1), 1e-6))
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head((self.norm(self.conv(x)).relu() * self.scale).mean((2, 3)))


class Dies(Small):
    def forward(self, x: Tensor) -> Tensor:
        os.abort()


class Spins(Small):
    def forward(self, x: Tensor) -> Tensor:
        while True:
            pass


class Sleeps(Small):
    def forward(self, x: Tensor) -> Tensor:
        time.sleep(60)
        return x


class Hogs(Small):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + torch.ones(2**33).sum()


class Unprunable(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


KINDS: dict[str, type[nn.Module]] = {kind.__name__: kind for kind in (Small, Dies, Spins, Sleeps, Hogs, Unprunable)}


def find(name: str) -> Case:
    return Case(name, KINDS[name], images((3, 8, 8)))


def run(name: str) -> dict[str, Any]:
    return measure(find(name), lambda _: None)


def test_verified() -> None:
    record = run("Small")
    assert record["outcome"] == "verified", record
    assert (record["train"], record["batch"], record["dtype"]) == ("yes", "dynamic", "float64")
    assert record["parameters_after"] < record["parameters"] == 3 * 8 * 9 + 8 + 16 + 8 + 36
    assert record["macs"] == 3 * 8 * 9 * 36 + 8 * 4
    assert 0.5 < record["prunable"] < 0.9  # all but the head's


def test_refused() -> None:
    record = run("Unprunable")
    assert record["outcome"] == "refused"
    assert record["error"].startswith("NothingToPruneError")
    assert record["stage"] == "slim"


def test_missing_package() -> None:
    record = isolated(lambda name: Case(name, nn.Module, images((1,)), packages=("no_such_package",)), "x", 1, 1)
    assert record["outcome"] == "skipped"
    assert "no_such_package" in record["error"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "says"), [("Dies", "Crash: exit code -6"), ("Spins", "CPU seconds"), ("Sleeps", "wall time"), ("Hogs", "alloc")]
)
def test_what_goes_wrong_is_an_outcome(name: str, says: str) -> None:
    record = isolated(find, name, 3, 4)
    assert record["outcome"] == "failed"
    assert says in record["error"], record


def test_nothing_stays_zero_or_alike() -> None:
    for value in randomise(Small()).parameters():
        assert value.abs().max() > 0.01
        assert value.unique().numel() == value.numel()


def test_every_floating_tensor_of_an_output_is_found() -> None:
    x = torch.ones(1)
    assert len(floating({"a": x, "b": [x, (x, 3)], "c": x.long()})) == 3
