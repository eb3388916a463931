"""Running a function in several processes that talk over gloo."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]


def free_port() -> int:
    """A port nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def start(arguments: list[str], rank: int = 0, world: int = 1, port: int = 0) -> subprocess.Popen[str]:
    """``python ARGUMENTS`` as one of ``world`` processes, with the variables torchrun sets."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "default"}
    if world > 1:
        environment |= {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(world),
            "LOCAL_WORLD_SIZE": str(world),
            "GROUP_RANK": "0",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "TORCHELASTIC_RUN_ID": "test",
        }
    return subprocess.Popen(  # noqa: S603 - our own interpreter on files that tests write
        [sys.executable, *arguments], cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def run(arguments: list[str], world: int = 1, timeout: float = 240) -> list[str]:
    """What ``world`` processes print; an assertion fails if one of them does."""
    port = free_port()
    running = [start(arguments, rank, world, port) for rank in range(world)]
    try:
        printed = [process.communicate(timeout=timeout)[0] for process in running]
    finally:
        for process in running:
            process.kill()
    for process, text in zip(running, printed, strict=True):
        assert process.returncode == 0, text
    return printed
