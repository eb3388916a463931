"""The recipe as processes: killed at any moment, and two instead of one."""

from __future__ import annotations

import json
import random
import signal
import time
from pathlib import Path

import pytest
import torch

from fxprune.train.recipe.checkpoint import STATE, State, load_state
from tests.unit.train.processes import run, start

pytest.importorskip("lightning_fabric")

RECIPE = ["-m", "fxprune.train", "--accelerator", "cpu", "--quiet"]


def ended(folder: Path) -> State:
    state = load_state(folder)
    assert state is not None
    return state


def modified(folder: Path) -> int:
    return (folder / STATE).stat().st_mtime_ns if (folder / STATE).exists() else 0


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("seed", [0, 1])
def test_kill_9_at_any_moment_changes_nothing(tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    options = ["--epochs", "3", "--tune-epochs", "2", "--passes", "2", "--ratio", "0.3", "--strength", "0.02", "--every", "3"]
    options += ["--network", "tiny_vgg", "--distill", "0.3", "--seed", str(seed)]
    run([*RECIPE, *options, "--out", str(tmp_path / "whole")])
    folder = tmp_path / "broken"
    kills = 0
    while kills < 5:
        process = start([*RECIPE, *options, "--out", str(folder)])
        try:
            before = modified(folder)
            while process.poll() is None and modified(folder) == before:  # until it has got somewhere, then a little longer
                time.sleep(0.01)
            time.sleep(chance.random())
        finally:
            process.send_signal(signal.SIGKILL)
            process.communicate()
        if process.returncode == 0:
            break
        assert process.returncode == -signal.SIGKILL
        kills += 1
    run([*RECIPE, *options, "--out", str(folder)])
    assert kills >= 2
    found, expected = ended(folder), ended(tmp_path / "whole")
    assert found.plan == expected.plan
    assert found.model.keys() == expected.model.keys()
    assert all(torch.equal(tensor, expected.model[name]) for name, tensor in found.model.items())
    for name in ("log.csv", "results.json"):
        assert (folder / name).read_text() == (tmp_path / "whole" / name).read_text()


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("method", ["subgradient", "proximal"])
def test_two_processes_compute_what_one_does(tmp_path: Path, method: str) -> None:
    options = ["--epochs", "2", "--tune-epochs", "1", "--passes", "2", "--ratio", "0.3", "--strength", "0.02", "--method", method]
    options += ["--network", "tiny_vgg", "--precision", "64-true", "--subset", "512", "--recalibrate", "2"]
    run([*RECIPE, *options, "--out", str(tmp_path / "one")])
    torchrun = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
    run([*torchrun, *RECIPE, *options, "--out", str(tmp_path / "two")])
    one, two = ended(tmp_path / "one"), ended(tmp_path / "two")
    assert json.loads(one.plan)["axes"] == json.loads(two.plan)["axes"]
    worst = 0.0
    for name, tensor in one.model.items():
        if tensor.is_floating_point():
            worst = max(worst, float((tensor - two.model[name]).abs().max() / tensor.abs().max().clamp(min=1e-12)))
        else:
            assert torch.equal(tensor, two.model[name])
    assert worst < 1e-9, worst
    assert [row["test"] for row in one.stages] == [row["test"] for row in two.stages]
