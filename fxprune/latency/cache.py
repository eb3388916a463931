"""Measured samples on disk.

1. Every combination of device name, threads, torch version and settings, dtype, input shapes and strides, and model structure has a file of its own,
   whose name is a digest of them and of this file's format, and in which they stand. Weights' numbers are no part of it; how they lie in memory is.
2. Every sample is written at once (io/atomic.py): a measurement that is interrupted goes on from the last one. A file that cannot be read
   is an error that says so.
3. A sample says how many rounds it was run. Asked for more, it is not there, and takes the place of the old one.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import platform
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx

from fxprune.capture.inputs import Inputs
from fxprune.errors import FileFormatError
from fxprune.inference.deploy import FORMS
from fxprune.io.atomic import replacing

FORMAT = 3  # another one for other samples, or other forms of deployment
ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")  # of objects, in the words for them: another one in every process


def processor() -> str:
    """The name of the CPU, as far as the system tells."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def device_name(device: torch.device) -> str:
    """What the device calls itself."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"{processor()} ({device.type})"


def machine_state(device: torch.device, program: fx.GraphModule, inputs: Inputs, *, deployed: bool) -> dict[str, Any]:
    """Clause 1."""
    tensors = [x for x in torch.utils._pytree.tree_leaves((inputs.args, dict(inputs.kwargs))) if isinstance(x, Tensor)]
    return {
        "device": device_name(device),
        "threads": torch.get_num_threads() if device.type == "cpu" else 0,
        "torch": torch.__version__,
        "dtype": str(next((p.dtype for p in program.parameters()), torch.float32)),
        "inputs": [f"{tuple(x.shape)} {x.dtype}{_laid_out(x)}" for x in tensors],
        "model": structure(program),
        "settings": _settings(),
        "deployed": deployed,
    }


def _laid_out(tensor: Tensor) -> str:
    """How a tensor lies in memory, where that is not row by row."""
    return "" if tensor.is_contiguous() else f" strides {tensor.stride()}"


def _settings() -> list[str]:
    """What else decides which kernels run."""
    kernels = {
        "mkldnn": torch.backends.mkldnn.is_available() and torch.backends.mkldnn.enabled,
        "cudnn": torch.backends.cudnn.enabled,
    }
    found = [name for name, on in kernels.items() if on]
    found += ["cudnn.benchmark"] if torch.backends.cudnn.benchmark else []
    return [*found, f"matmul {torch.get_float32_matmul_precision()}"]


def structure(program: fx.GraphModule) -> str:
    """A SHA-256 over the program, its modules' options, and the shapes and strides of its tensors; not over numbers."""
    lines = [f"{node.name} {node.op} {_called(node.target)} {node.args} {node.kwargs}" for node in program.graph.nodes]
    lines += [f"{name} {type(module).__name__} {module.extra_repr()}" for name, module in program.named_modules()]
    lines += [f"{name} {tuple(tensor.shape)} {tensor.dtype}{_laid_out(tensor)}" for name, tensor in program.state_dict().items()]
    return hashlib.sha256(ADDRESS.sub("", "\n".join(lines)).encode()).hexdigest()


def _called(target: Any) -> str:
    """What a node calls, by a name that another process has for it too."""
    return target if isinstance(target, str) else f"{torch.typename(target)} {target}"


def default_folder() -> Path:
    """``$FXPRUNE_CACHE``, or ``fxprune`` in the user's cache folder."""
    chosen = os.environ.get("FXPRUNE_CACHE")
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(chosen) if chosen else Path(base) / "fxprune"


class Samples:
    """What was measured, for one machine state (clauses 1 and 2)."""

    def __init__(self, folder: Path | None, state: Mapping[str, Any]) -> None:
        self.state = dict(state)
        digest = hashlib.sha256(json.dumps([FORMAT, self.state], sort_keys=True).encode()).hexdigest()[:16]
        self.file = None if folder is None else folder / f"latency-{digest}.json"
        self.form = ""
        self.by_number: dict[str, dict[str, Any]] = {}
        self._read()

    @property
    def samples(self) -> dict[int, dict[str, Any]]:
        """Widths by axis label and seconds by node, per sample."""
        return {int(number): sample for number, sample in self.by_number.items()}

    def start(self, form: str) -> None:
        """The form of deployment that samples take."""
        self.form = form
        self._write()

    def has(self, number: int, rounds: int) -> bool:
        """A sample of that many rounds, or of more (clause 3)."""
        return str(number) in self.by_number and int(self.by_number[str(number)]["rounds"]) >= rounds

    def put(self, number: int, widths: Mapping[str, int], seconds: Mapping[str, float], total: float, rounds: int) -> None:
        """Clauses 2 and 3; no seconds: this sample cannot be made. Of a sample that was there before the lesser times count."""
        before = self.by_number[str(number)] if self.has(number, rounds) else None
        looks = 1 if before is None else int(before["looks"]) + 1
        if before is not None and before["seconds"].keys() == seconds.keys():
            seconds = {node: min(value, before["seconds"][node]) for node, value in seconds.items()}
            total = min(total, before["total"])
            rounds = max(rounds, int(before["rounds"]))
        made = {"widths": dict(widths), "seconds": dict(seconds), "total": total, "looks": looks, "rounds": rounds}
        self.by_number[str(number)] = made
        self._write()

    def _write(self) -> None:
        if self.file is None:
            return
        self.file.parent.mkdir(parents=True, exist_ok=True)
        content = {
            "format": FORMAT,
            "machine": self.state,
            "form": self.form,
            "samples": self.by_number,
        }
        with replacing(self.file) as stream:
            stream.write((json.dumps(content) + "\n").encode())

    def _read(self) -> None:
        if self.file is None or not self.file.exists():
            return
        try:
            data = json.loads(self.file.read_text(encoding="utf-8"))
            same = data["format"] == FORMAT and data["machine"] == self.state
            self.form = _form(data["form"])
            self.by_number = {str(int(number)): _sample(sample) for number, sample in data["samples"].items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise FileFormatError(
                f"{self.file} holds no latency measurements ({error}). Remove it to measure anew.", node=str(self.file)
            ) from error
        if not same:
            raise FileFormatError(
                f"{self.file} holds measurements of another machine or format. Remove it to measure anew.",
                node=str(self.file),
                expected=self.state,
                got=data.get("machine"),
            )


def _form(name: str) -> str:
    if name not in FORMS:
        raise ValueError(f"no form of deployment: {name!r}")
    return name


def _sample(data: Mapping[str, Any]) -> dict[str, Any]:
    widths = {str(label): int(width) for label, width in data["widths"].items()}
    seconds = {str(node): _seconds(value) for node, value in data["seconds"].items()}
    looks, rounds = int(data["looks"]), int(data.get("rounds", 0))  # files of before clause 3 do not say
    return {"widths": widths, "seconds": seconds, "total": _seconds(data["total"]), "looks": looks, "rounds": rounds}


def _seconds(value: Any) -> float:
    if not 0 <= float(value) < math.inf:
        raise ValueError(f"no time: {value!r}")
    return float(value)
