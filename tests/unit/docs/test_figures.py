"""The figure shows what the analysis finds."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import torch

import fxprune
from tests.unit.docs.snippets import blocks

DOCS = Path(__file__).resolve().parents[3] / "docs"


def drawing() -> ModuleType:
    """docs/figures/channels.py as a module."""
    spec = importlib.util.spec_from_file_location("channels", DOCS / "figures" / "channels.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_figure_is_drawn_from_the_page_s_network() -> None:
    figure = drawing()
    namespace: dict[str, type[torch.nn.Module]] = {}
    exec(blocks(DOCS / "design.md")[0].source.replace("print(", "str("), namespace)  # noqa: S102 - the page's network is wanted
    for kind in (figure.Tiny, namespace["Tiny"]):
        drawn = figure.draw(fxprune.analyze(kind(), torch.randn(1, 1, 2, 2)))
        assert drawn == figure.OUT.read_text(encoding="utf-8"), "run python docs/figures/channels.py"
