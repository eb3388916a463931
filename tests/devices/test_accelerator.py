"""fxprune on an accelerator, which here is pretended (``accelerator.cpp``): calls with tensors of two devices are refused as CUDA refuses them.

Every test is a process of its own (``child.py``), since a device that torch has once come to know is known to all tests that follow.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.devices import accelerator, networks

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def child(tmp_path_factory: pytest.TempPathFactory) -> object:
    try:
        accelerator.build()
    except accelerator.UnavailableError as error:
        pytest.skip(f"no accelerator to pretend: {error}")

    def run(*arguments: str) -> None:
        known = {**os.environ, "OMP_NUM_THREADS": "1", "FXPRUNE_CACHE": str(tmp_path_factory.mktemp("cache"))}
        known["PYTHONPATH"] = str(ROOT)
        command = [sys.executable, "-m", "tests.devices.child", *arguments]
        done = subprocess.run(command, cwd=ROOT, env=known, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{done.stdout}\n{done.stderr[-3000:]}"
        assert "0 failures" in done.stdout

    return run


def test_what_everybody_does(child) -> None:
    child("Residual,Attention", "stages,inferred,absorb_exact,selection,data_scores,dead,lasso,persistence,training,deploy")


@pytest.mark.slow
@pytest.mark.parametrize("kind", networks.NETWORKS)
def test_every_feature(kind: str, child) -> None:
    child(kind)


@pytest.mark.slow
def test_the_accelerator_itself_and_models_that_need_it(child) -> None:
    child("checks")
