"""Run as a process of its own, so that the accelerator is known to no other test: ``python -m tests.devices.child NETWORK[,...] [FEATURE[,...]]``."""

from __future__ import annotations

import contextlib
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path

import torch

import fxprune
from tests.devices import accelerator, checks, features


def main(kinds: str, names: str = "") -> int:
    """The number of failures; each is printed."""
    torch.set_num_threads(1)
    accelerator.load()
    warnings.simplefilter("error")
    warnings.filterwarnings("ignore", category=fxprune.FxpruneWarning)
    failures = 0
    for kind in kinds.split(","):
        if kind == "checks":
            runs: dict[str, Callable[[Path], None]] = checks.CHECKS
        else:
            known = {**features.QUICK, **features.TIMED}
            chosen = (
                names.split(",") if names else [*features.QUICK, "reported_latency", *(["latency"] if kind == "Residual" else [])]
            )
            runs = {name: _feature(kind, known[name]) for name in chosen}
        for name, run in runs.items():
            failure = _failure(run)
            failures += failure != ""
            sys.stdout.write(f"--- {kind}: {name}\n{failure}\n" if failure else "")
    sys.stdout.write(f"{failures} failures\n")
    return failures


def _failure(run: Callable[[Path], None]) -> str:
    try:
        with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(sys.stderr):
            run(Path(folder))
    except Exception:  # noqa: BLE001 -- all are told
        return traceback.format_exc()[-4000:]
    return ""


def _feature(kind: str, feature: Callable[[features.Case], None]) -> Callable[[Path], None]:
    def run(folder: Path) -> None:
        case = features.case(kind, folder, device=f"{accelerator.NAME}:1")
        feature(case)
        case.check()

    return run


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]) > 0)
