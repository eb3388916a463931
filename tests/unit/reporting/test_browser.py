"""The report in a real browser: it loads without a complaint and without a network, is searched and clicked, in light and dark.

Needs playwright and a Chromium: that of ``FXPRUNE_CHROMIUM``, or ``chromium``, ``chromium-browser`` or ``google-chrome`` on the path.
With ``FXPRUNE_SCREENSHOTS`` set to a folder, screenshots are left there to be looked at.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import fxprune
from fxprune import zoo

sync_api = pytest.importorskip("playwright.sync_api")
CHROMIUM = os.environ.get("FXPRUNE_CHROMIUM") or next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")

NETS = {"resnet164": (zoo.resnet164, 0.6, "layer2.3.conv1"), "densenet40": (zoo.densenet40, 0.4, "dense2.4.conv1")}
PLACE = """(name) => {
  const chart = echarts.getInstanceByDom(document.getElementById("couplings"));
  const data = chart.getModel().getSeriesByIndex(0).getData();
  const box = document.getElementById("couplings").getBoundingClientRect();
  const [x, y] = chart.convertToPixel({ seriesIndex: 0 }, data.getItemLayout(data.indexOfName(name)));
  return [box.x + x, box.y + y];
}"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as play:
        found = play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield found
        found.close()


@pytest.fixture(scope="module", params=["densenet40", pytest.param("resnet164", marks=pytest.mark.slow)])
def report(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    build, ratio, layer = NETS[request.param]
    torch.manual_seed(0)
    model = build()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight)
    slim = fxprune.slim(model.eval(), ratio, torch.randn(2, 3, 32, 32))
    path = tmp_path_factory.mktemp("report") / f"{request.param}.html"
    return fxprune.report(slim, path), layer


class Opened:
    """A page with all that it said and asked for."""

    def __init__(self, browser: Any, path: Path, scheme: str) -> None:
        self.context = browser.new_context(color_scheme=scheme, viewport={"width": 1280, "height": 900})
        self.page = self.context.new_page()
        self.said: list[str] = []
        self.asked: list[str] = []
        self.page.on("console", lambda message: self.said.append(f"{message.type}: {message.text}"))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.goto(path.as_uri())

    def background(self) -> str:
        found: str = self.page.evaluate("getComputedStyle(document.body).backgroundColor")
        return found

    def close(self, name: str) -> None:
        folder = os.environ.get("FXPRUNE_SCREENSHOTS")
        if folder:
            self.page.screenshot(path=str(Path(folder) / f"{name}.png"), full_page=True)
        self.context.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_loads_is_searched_and_clicked(browser: Any, report: tuple[Path, str], scheme: str) -> None:
    path, layer = report
    opened = Opened(browser, path, scheme)
    page = opened.page
    assert page.locator("canvas").count() == 3
    page.fill("#search", layer)
    page.press("#search", "Enter")
    assert page.inner_text("#layer h3") == layer
    assert "coupled with" in page.inner_text("#layer")
    other = page.locator("#layer a").first.inner_text()
    page.locator("#layer a").first.click()
    assert page.inner_text("#layer h3") == other
    page.locator("#couplings").scroll_into_view_if_needed()
    page.mouse.click(*page.evaluate(PLACE, layer))
    assert page.inner_text("#layer h3") == layer
    page.select_option("#layout", "circular")
    page.mouse.click(*page.evaluate(PLACE, other))
    assert page.inner_text("#layer h3") == other
    page.select_option("#group", "2")
    assert "coupled channels go" in page.inner_text("#cut")
    assert opened.said == []
    assert [url for url in opened.asked if not url.startswith(("file:", "data:"))] == []
    assert len(opened.asked) == 1
    opened.close(f"{path.stem}-{scheme}")


def test_zooming_moves_the_graph(browser: Any, report: tuple[Path, str]) -> None:
    path, layer = report
    opened = Opened(browser, path, "light")
    page = opened.page
    page.locator("#couplings").scroll_into_view_if_needed()
    (x, y), box = page.evaluate(PLACE, layer), page.locator("#couplings").bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.mouse.wheel(0, -300)
    page.wait_for_timeout(100)
    assert page.evaluate(PLACE, layer) != [x, y]
    assert opened.said == []
    opened.close(f"{path.stem}-zoomed")


def test_the_theme_is_chosen_by_the_reader(browser: Any, report: tuple[Path, str]) -> None:
    opened = Opened(browser, report[0], "light")
    light = opened.background()
    opened.page.click("#theme")
    dark = opened.background()
    assert light != dark
    opened.page.click("#theme")
    assert opened.background() == light
    assert opened.said == []
    opened.close(f"{report[0].stem}-theme")


def test_a_search_that_finds_nothing_and_one_that_finds_many(browser: Any, report: tuple[Path, str]) -> None:
    opened = Opened(browser, report[0], "light")
    opened.page.fill("#search", "no such layer")
    assert opened.page.inner_text("#found") == "0 found"
    opened.page.fill("#search", "conv1")
    assert int(opened.page.inner_text("#found").split()[0]) > 10
    assert opened.said == []
    opened.close(f"{report[0].stem}-search")
