"""What the numbers of a benchmark were measured on: ``python benchmarks/machine.py``."""

from __future__ import annotations

import json
import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

PACKAGES = ("fxprune", "torchvision", "numpy", "scipy", "torch-pruning", "torch-kirigami", "timm")


def processor() -> str:
    """The name of the CPU, as far as the system tells."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def memory_bytes() -> int:
    """Physical memory, 0 where the system does not tell."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return 0


def version_of(package: str) -> str:
    """The installed version of a package."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def facts() -> dict[str, str | int | float]:
    """Processor, memory, system, versions, and the threads that torch uses in this process."""
    found: dict[str, str | int | float] = {
        "cpu": processor(),
        "cores": os.cpu_count() or 0,
        "memory_gb": round(memory_bytes() / 2**30, 1),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torch_threads": torch.get_num_threads(),
    }
    return found | {package: version_of(package) for package in PACKAGES}


def line() -> str:
    """The facts that matter beside a table, in one line."""
    found = facts()
    return (
        f"{found['cpu']}, {found['cores']} cores, {found['memory_gb']} GB; Python {found['python']}, torch {found['torch']}, "
        f"torch threads: {found['torch_threads']}"
    )


if __name__ == "__main__":
    print(json.dumps(facts(), indent=2))
