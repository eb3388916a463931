"""Devices and processes, by Lightning Fabric.

Fabric moves modules, wraps them for several devices, scales losses in half precision, and takes no loop away: the loop of ``phase.py`` is
the loop that anybody would write. Started by ``torchrun --nproc-per-node N`` it finds the processes by the variables torchrun sets;
nothing else changes. (Accelerate would do as well. Fabric is the smaller dependency, is one object instead of a configuration, and leaves
optimizers, samplers and learning rates alone, which a run that must be the same on any number of processes has to control itself.)
"""

from __future__ import annotations

import importlib
import os
from contextlib import suppress
from typing import Any

NAMES = ("lightning_fabric", "lightning.fabric")  # alone, and as a part of lightning


def launch(precision: str = "32-true", accelerator: str = "auto") -> Any:
    """A ``Fabric`` for the processes that torchrun started, or for one.

    Raises:
        ImportError: Lightning Fabric is not installed.
    """
    world = int(os.environ.get("WORLD_SIZE", "1"))
    local = int(os.environ.get("LOCAL_WORLD_SIZE", str(world)))
    fabric = _fabric()(
        accelerator=accelerator,
        devices=local,
        num_nodes=max(1, world // local),
        strategy="ddp" if world > 1 else "auto",
        precision=precision,
    )
    fabric.launch()
    return fabric


def _fabric() -> Any:
    for name in NAMES:
        with suppress(ImportError):
            return importlib.import_module(name).Fabric
    raise ImportError("the recipe stands on Lightning Fabric; install it: pip install 'fxprune[train]'.")
