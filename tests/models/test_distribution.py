"""What is distributed holds what it needs, and a stranger gets from the wheel to onnxruntime."""

from __future__ import annotations

import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = {
    f"fxprune/reporting/page/{name}"
    for name in ("page.html", "page.css", "page.js", "echarts.min.js", "echarts.LICENSE", "echarts.NOTICE")
}

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("build")
    place = tmp_path_factory.mktemp("dist")
    subprocess.run([sys.executable, "-m", "build", "--no-isolation", "--outdir", str(place), str(ROOT)], check=True, cwd=place)  # noqa: S603 - our own
    return place


def test_the_wheel_holds_what_it_needs(built: Path) -> None:
    (wheel,) = built.glob("*.whl")
    with zipfile.ZipFile(wheel) as file:
        names = set(file.namelist())
        home = next(name.partition("/")[0] for name in names if ".dist-info/" in name)
        entry = file.read(f"{home}/entry_points.txt").decode()
        said = file.read(f"{home}/METADATA").decode()
    assert names >= PAGE | {"fxprune/py.typed", "fxprune/cli/__init__.py", f"{home}/licenses/LICENSE"}
    assert not [name for name in names if name.startswith(("tests", "docs", "benchmarks"))]
    assert "fxprune = fxprune.cli:main" in entry
    for extra in ("report", "train", "export", "all"):
        assert f"Provides-Extra: {extra}" in said
    assert "License-Expression: Apache-2.0" in said
    assert wheel.stat().st_size < 2_000_000


def test_the_sdist_can_be_built_from(built: Path) -> None:
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as file:
        names = {name.partition("/")[2] for name in file.getnames()}
    assert names >= PAGE | {"pyproject.toml", "LICENSE", "README.md", "fxprune/__init__.py"}


@pytest.mark.timeout(1800)
def test_a_stranger_gets_there() -> None:
    pytest.importorskip("onnxruntime")
    reach = subprocess.run(
        [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", "/dev/null/x", "typer"],
        check=False,
        capture_output=True,
        text=True,
    )
    if "No matching distribution" in reach.stderr:
        pytest.skip("no package index can be reached")
    done = subprocess.run([sys.executable, str(ROOT / "benchmarks" / "stranger.py")], check=False, capture_output=True, text=True)  # noqa: S603 - our own
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.rstrip().endswith("all outputs are equal")
