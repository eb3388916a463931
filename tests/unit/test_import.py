"""``import fxprune`` is quick, and does not load what only some commands need."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
MOST_SECONDS = 0.3
HEAVY = (
    "typer",
    "click",
    "matplotlib",
    "networkx",
    "sklearn",
    "scipy.stats",
    "lightning_fabric",
    "onnx",
    "onnxruntime",
    "timm",
    "IPython",
)
CODE = f"""
import json, sys, time
import torch, torchvision
before, start = set(sys.modules), time.process_time()
import fxprune
print(json.dumps([time.process_time() - start, sorted((set(sys.modules) - before) & set({HEAVY!r}))]))
"""


def test_import_is_quick_and_light() -> None:
    best, loaded = float("inf"), []
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    for _ in range(2):  # the second finds compiled files and a warm disk
        said = subprocess.run([sys.executable, "-c", CODE], check=True, cwd=ROOT, capture_output=True, text=True, env=environment)  # noqa: S603 - our own
        seconds, loaded = json.loads(said.stdout)
        best = min(best, seconds)
    assert loaded == []
    assert best < MOST_SECONDS, f"import fxprune takes {best:.2f} s of CPU time beyond torch and torchvision"
