"""fxprune on an accelerator, which here is pretended (``accelerator.cpp``): calls with tensors of two devices are refused as CUDA refuses them.

Every test is a process of its own (``child.py``), since a device that torch has once come to know is known to all tests that follow.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.devices import accelerator, networks

Child = Callable[..., None]
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def child(tmp_path_factory: pytest.TempPathFactory) -> Child:
    try:
        accelerator.build()
    except accelerator.UnavailableError as error:
        pytest.skip(f"no accelerator to pretend: {error}")

    def run(*arguments: str, narrow: bool = False) -> None:
        known = {
            **os.environ,
            **({"FXPRUNE_PRETEND_NARROW": "1"} if narrow else {}),
            "OMP_NUM_THREADS": "1",
            "FXPRUNE_CACHE": str(tmp_path_factory.mktemp("cache")),
        }
        known["PYTHONPATH"] = str(ROOT)
        command = [sys.executable, "-m", "tests.devices.child", *arguments]
        done = subprocess.run(command, cwd=ROOT, env=known, capture_output=True, text=True, check=False)  # noqa: S603 -- this project's own module
        assert done.returncode == 0, f"{done.stdout}\n{done.stderr[-3000:]}"
        assert "0 failures" in done.stdout

    return run


USUAL = "stages,absorb_images,selection,data_scores,dead,lasso,neurons,persistence,training"


def test_what_everybody_does(child: Child) -> None:
    child("Residual", USUAL)


def test_a_device_without_double_precision(child: Child) -> None:
    child("Residual", USUAL, narrow=True)


@pytest.mark.slow
@pytest.mark.parametrize("narrow", [False, True])
@pytest.mark.parametrize("kind", networks.NETWORKS)
def test_every_feature(kind: str, narrow: bool, child: Child) -> None:
    child(kind, narrow=narrow)


@pytest.mark.slow
def test_the_accelerator_itself_and_models_that_need_it(child: Child) -> None:
    child("checks")
