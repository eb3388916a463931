"""The site builds without a warning and without a network, and a page of it asks nobody for anything."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("mkdocs")
pytest.importorskip("material")
pytest.importorskip("mkdocstrings")

ROOT = Path(__file__).resolve().parents[3]
LOADED = re.compile(
    r"<(?:script|img|iframe)[^>]*\ssrc=[\"']?(?:https?:)?//|<link[^>]*rel=[\"']?(?:stylesheet|preload|preconnect)[^>]*https?://|@import"
)
NOWHERE = "http://127.0.0.1:9"  # a proxy that is not there


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("site")
    environment = {
        **os.environ, "http_proxy": NOWHERE, "https_proxy": NOWHERE, "HTTP_PROXY": NOWHERE, "HTTPS_PROXY": NOWHERE,
        "NO_MKDOCS_2_WARNING": "1",
    }  # fmt: skip
    done = subprocess.run(  # noqa: S603 - our own
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(place)],
        check=False, cwd=ROOT, env=environment, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    return place


def test_every_page_is_there(site: Path) -> None:
    pages = {path.stem for path in (ROOT / "docs").glob("*.md")} | {"readme", "contributing", "benchmarks"}
    assert {path.stem for path in site.glob("*.html")} >= pages


def test_nothing_is_loaded_from_elsewhere(site: Path) -> None:
    for page in site.glob("*.html"):
        found = LOADED.search(page.read_text(encoding="utf-8"))
        assert found is None, f"{page.name}: {found.group(0)[:200]}"


def test_the_reference_has_the_docstrings(site: Path) -> None:
    text = (site / "api.html").read_text(encoding="utf-8")
    for name in ("slim", "analyze", "apply", "report", "load"):
        assert f'id="fxprune.{name}"' in text
    assert "A physically smaller, verified version of" in text


def test_links_between_pages_and_files_outside_hold(site: Path) -> None:
    for page in site.glob("*.html"):
        if page.stem == "404":  # stands anywhere on a server, so its links begin at the root
            continue
        for target in re.findall(r'<a[^>]*href="([^"#:]+)(?:#[^"]*)?"', page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"
