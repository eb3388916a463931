"""The accelerator of ``accelerator.cpp``: compiled once into a cache, and loaded into this process as the device "pretend"."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import subprocess
import tempfile
import types
from collections.abc import Iterator
from pathlib import Path

import torch

SOURCE = Path(__file__).with_name("accelerator.cpp")
NAME = "pretend"


class UnavailableError(Exception):
    """There is no accelerator to be had here, and why."""


def load() -> None:
    """Build it if it was never built from this source for this torch, and load it once per process.

    Raises:
        UnavailableError: no compiler, or it does not take the source.
    """
    if hasattr(torch, NAME):
        return
    torch.ops.load_library(str(build()))
    torch.utils.rename_privateuse1_backend(NAME)
    torch._register_device_module(NAME, _module())
    torch.utils.generate_methods_for_privateuse1_backend()


def build() -> Path:
    """The library, from the cache where it is there.

    Raises:
        UnavailableError: see ``load``.
    """
    compiler = next((found for name in (os.environ.get("CXX"), "g++", "clang++") if name and (found := shutil.which(name))), None)
    if compiler is None:
        raise UnavailableError("no C++ compiler (g++, clang++ or $CXX)")
    home = Path(torch.__file__).parent
    if not (home / "include" / "ATen" / "EmptyTensor.h").is_file():
        raise UnavailableError("this torch came without its C++ headers")
    mark = hashlib.sha256(SOURCE.read_bytes() + f"{torch.__version__} {home} {compiler}".encode()).hexdigest()[:16]
    library = Path(tempfile.gettempdir()) / f"fxprune-accelerator-{os.getuid() if hasattr(os, 'getuid') else 0}" / f"{mark}.so"
    if library.is_file():
        return library
    library.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    fresh = library.with_suffix(f".{os.getpid()}")
    command = [
        compiler,
        "-O0",
        "-shared",
        "-fPIC",
        "-std=c++20",
        f"-D_GLIBCXX_USE_CXX11_ABI={int(torch._C._GLIBCXX_USE_CXX11_ABI)}",
    ]
    command += [f"-I{home / 'include'}", str(SOURCE), "-o", str(fresh), f"-L{home / 'lib'}", "-ltorch", "-ltorch_cpu", "-lc10"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 -- the compiler found above
    if done.returncode:
        raise UnavailableError(f"{compiler} does not take accelerator.cpp with torch {torch.__version__}: {done.stderr[-500:]}")
    fresh.replace(library)  # whole or not there, whoever else builds it
    return library


def _module() -> types.ModuleType:
    """What torch asks a device's Python module for."""

    @contextlib.contextmanager
    def device(_which: object) -> Iterator[None]:
        yield

    module = types.ModuleType(f"torch.{NAME}")
    functions = {
        "is_available": lambda: True,
        "is_initialized": lambda: True,
        "current_device": lambda: 0,
        "device_count": lambda: 2,
        "device": device,
        "_is_in_bad_fork": lambda: False,
        "manual_seed_all": lambda _seed: None,
        "get_amp_supported_dtype": lambda: [torch.float16, torch.bfloat16],
    }
    for name, function in functions.items():
        setattr(module, name, function)
    return module
