"""A stranger's path: a fresh environment, the wheel, the tutorial, a model of one's own, another process, ONNX.

    python benchmarks/stranger.py [--download-torch] [--keep FOLDER]

1. Wheel and sdist are built from this checkout.
2. ``python -m venv`` makes an environment; pip installs the wheel with ``[export,demo]`` in it, with all that it depends on. Only torch and
   torchvision with the libraries of their devices (5.6 GB) are *borrowed* from the environment that runs this script, by links and a ``.pth``
   file, which pip takes for installed packages. ``--download-torch`` borrows nothing.
3. In an empty folder, without this checkout on the path: the README's and the tutorial's Python blocks run; a model of one's own is slimmed and
   saved in one process, loaded in another, exported to ONNX there, and run by onnxruntime in a third, which has no torch loaded. All outputs
   are compared with the first process's.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BORROWED = re.compile(r"^(torch|torchvision|triton|nvidia[-_].*|cuda[-_].*)$")
BLOCK = re.compile(r"(?<!-->\n)^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)

OWN = '''
import torch
from torch import nn


class Own(nn.Module):
    """Convolutions, a residual sum, attention over positions, a classifier."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 24, 3, padding=1)
        self.norm = nn.BatchNorm2d(24)
        self.inner = nn.Conv2d(24, 24, 3, padding=1)
        self.down = nn.Conv2d(24, 32, 2, stride=2)
        self.attention = nn.MultiheadAttention(32, 4, batch_first=True)
        self.head = nn.Linear(32, 5)

    def forward(self, x):
        x = self.norm(self.stem(x)).relu()
        x = x + self.inner(x).relu()
        tokens = self.down(x).flatten(2).transpose(1, 2)
        mixed, _ = self.attention(tokens, tokens, tokens, need_weights=False)
        return self.head((tokens + mixed).mean(1))
'''
SLIM = """
import numpy, torch, fxprune
from own import Own
torch.manual_seed(0)
model, x = Own().eval(), torch.randn(3, 3, 16, 16)
slim = fxprune.slim(model, 0.4, x)
assert sum(p.numel() for p in slim.parameters()) < 0.8 * sum(p.numel() for p in model.parameters())
fxprune.save(slim, "own.safetensors")
numpy.savez("expected.npz", x=x.numpy(), y=slim(x).detach().numpy())
print(fxprune.plan_of(slim).achieved)
"""
LOAD = """
import numpy, torch, fxprune
from own import Own
from fxprune.io.export import export
slim = fxprune.load(Own().eval(), "own.safetensors")
expected = numpy.load("expected.npz")
x = torch.from_numpy(expected["x"])
assert torch.equal(slim(x).detach(), torch.from_numpy(expected["y"]))
print(export(slim, "own.onnx", x))
"""
RUN = """
import sys, numpy, onnxruntime
expected = numpy.load("expected.npz")
session = onnxruntime.InferenceSession("own.onnx", providers=["CPUExecutionProvider"])
(y,) = session.run(None, {session.get_inputs()[0].name: expected["x"]})
error = abs(y - expected["y"]).max() / abs(expected["y"]).max()
assert error < 1e-5, error
assert "torch" not in sys.modules
print(f"onnxruntime equals the slim model within {error:.1e}")
"""


class Walk:
    """Steps in a fresh environment, told as they are done."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.venv, self.home = folder, folder / "venv", folder / "home"
        self.home.mkdir()
        kept = ("HOME", "LANG", "PATH", "TMPDIR", "PIP_INDEX_URL", "PIP_FIND_LINKS", "PIP_CONFIG_FILE", "OMP_NUM_THREADS")
        self.environment = {name: os.environ[name] for name in kept if name in os.environ}
        self.environment.setdefault("OMP_NUM_THREADS", "1")
        self.begin = time.perf_counter()

    def step(self, what: str, command: Sequence[str | Path], cwd: Path | None = None) -> str:
        done = subprocess.run(  # noqa: S603 - our own commands
            [str(part) for part in command],
            check=False,
            cwd=cwd or self.home,
            env=self.environment,
            capture_output=True,
            text=True,
        )
        if done.returncode:
            raise SystemExit(f"{what}: failed ({done.returncode})\n{done.stdout[-3000:]}\n{done.stderr[-5000:]}")
        print(f"{time.perf_counter() - self.begin:6.0f} s  {what}", flush=True)
        return done.stdout

    @property
    def python(self) -> Path:
        return self.venv / "bin" / "python"

    def script(self, what: str, name: str, text: str) -> None:
        (self.home / name).write_text(text)
        said = self.step(what, [self.python, name]).strip()
        if said:
            print("          " + "\n          ".join(said.splitlines()[-4:]), flush=True)


def borrow(target: Path) -> list[str]:
    """Links to torch, torchvision and the libraries of their devices, with what pip knows them by; their names."""
    target.mkdir()
    names = []
    for distribution in metadata.distributions():
        name = distribution.metadata["Name"]
        if not BORROWED.match(name):
            continue
        names.append(name)
        home = Path(str(distribution.locate_file("")))
        for entry in {file.parts[0] for file in distribution.files or () if file.parts[0] not in ("..", "__pycache__")}:
            link = target / entry
            if not link.exists() and (home / entry).exists():
                link.symlink_to(home / entry)
    return names


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--download-torch", action="store_true", help="borrow nothing")
    parser.add_argument("--keep", type=Path, help="do it in this folder, which must not exist, and leave it there")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.keep or Path(temporary) / "walk"
        folder.mkdir(parents=True)
        walk(Walk(folder), download=options.download_torch)


def walk(path: Walk, *, download: bool) -> None:
    path.step(
        "built wheel and sdist", [sys.executable, "-m", "build", "--no-isolation", "--outdir", path.folder / "dist", ROOT], ROOT
    )
    (wheel,) = (path.folder / "dist").glob("*.whl")
    path.step("made an environment", [sys.executable, "-m", "venv", path.venv])
    if not download:
        names = borrow(path.folder / "borrowed")
        (site,) = (path.venv / "lib").glob("python*/site-packages")
        (site / "borrowed.pth").write_text(f"{path.folder / 'borrowed'}\n")
        print(f"          borrowed {len(names)} packages: torch, torchvision and the libraries of their devices")
    path.step(
        "installed the wheel", [path.python, "-m", "pip", "install", "-q", "--disable-pip-version-check", f"{wheel}[export,demo]"]
    )
    where = path.step("imported it", [path.python, "-c", "import fxprune; print(fxprune.__file__)"]).strip()
    assert where.startswith(str(path.venv)), f"{where} is not the installed package"
    assert path.step("ran the command", [path.venv / "bin" / "fxprune", "--version"]).startswith("fxprune ")
    for page in ("README.md", "docs/tutorial.md"):
        blocks = BLOCK.findall((ROOT / page).read_text(encoding="utf-8"))
        path.script(f"ran the {len(blocks)} blocks of {page}", f"{Path(page).stem.lower()}_blocks.py", "\n".join(blocks))
    (path.home / "own.py").write_text(OWN)
    path.script("slimmed and saved a model of one's own", "slim_it.py", SLIM)
    path.script("loaded it in another process, exported it to ONNX", "load_it.py", LOAD)
    path.script("ran it with onnxruntime alone", "run_it.py", RUN)
    path.step(
        "did the same on the command line",
        [
            path.venv / "bin" / "fxprune",
            "slim",
            "own:Own",
            "--ratio",
            "0.4",
            "--input",
            "2x3x16x16",
            "-o",
            "again.safetensors",
            "--json",
        ],
    )
    print("all outputs are equal")


if __name__ == "__main__":
    main()
