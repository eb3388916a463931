"""Every python block of README.md and docs/ runs, and prints what the page says it prints.

The blocks of one page run in order in one namespace, as a reader would type them.
"""

from __future__ import annotations

import contextlib
import difflib
import doctest
import io
import linecache
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from fxprune.provenance.rules import TABLE
from fxprune.verify.call import RULES
from tests.unit.docs.snippets import blocks

ROOT = Path(__file__).resolve().parents[3]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.glob("*.md"))]
LINK = re.compile(r"\[[^\]]*\]\(([^)#\s]+)(?:#[^)]*)?\)|<img[^>]*src=\"([^\"]+)\"")


@pytest.fixture(autouse=True)
def _as_it_was(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """A page may add operators to the tables, seed the generator and measure latencies; the next test sees nothing of it."""
    monkeypatch.setenv("FXPRUNE_CACHE", str(tmp_path / "cache"))
    rules, masked = dict(TABLE), dict(RULES)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield
    for table, before in ((TABLE, rules), (RULES, masked)):
        table.clear()
        table.update(before)  # type: ignore[arg-type]


def run(page: Path) -> None:
    """Run the blocks of a page and hold what they print against what the page says."""
    namespace: dict[str, Any] = {"__name__": f"snippets_of_{page.stem}"}
    for block in blocks(page):
        if block.no_run:
            continue
        name = f"<{page.name}:{block.line}>"
        linecache.cache[name] = (len(block.source), None, block.source.splitlines(keepends=True), name)
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(block.source, name, "exec"), namespace)  # noqa: S102 - running the pages is what this test is for
        if block.output is not None:
            same(block.output, printed.getvalue(), name)


def same(expected: str, printed: str, where: str) -> None:
    """Compare as doctest does with ELLIPSIS; white space at the ends of lines does not count."""
    expected, printed = ("".join(f"{line.rstrip()}\n" for line in text.strip("\n").splitlines()) for text in (expected, printed))
    if not doctest.OutputChecker().check_output(expected, printed, doctest.ELLIPSIS):
        difference = "\n".join(difflib.unified_diff(expected.splitlines(), printed.splitlines(), "page", "printed", lineterm=""))
        pytest.fail(f"{where} prints something else than the page says:\n{difference}", pytrace=False)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_blocks_run_and_print_what_the_page_says(page: Path) -> None:
    run(page)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for match in LINK.finditer(page.read_text(encoding="utf-8")):
        target = match.group(1) or match.group(2)
        if not target.startswith(("http:", "https:", "mailto:")):
            assert (page.parent / target).exists(), f"{page.name} links to {target}, which is not there"


def test_the_index_leads_to_every_page() -> None:
    linked = {match.group(1) for match in LINK.finditer((DOCS / "index.md").read_text(encoding="utf-8"))}
    assert {page.name for page in DOCS.glob("*.md")} - {"index.md"} <= linked


PAGE = """
<!-- no-run: it would fail -->
```python
raise RuntimeError
```

```python
number = {number}
```
```python
print("the number is", number, object())
```

<!-- output -->
```text
the number is 2 <object object at ...>
```
"""


def test_a_page_that_tells_the_truth_passes(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(PAGE.format(number=2))
    run(page)


def test_a_page_that_does_not_fails(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(PAGE.format(number=3))
    with pytest.raises(pytest.fail.Exception, match="the number is 3"):
        run(page)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("<!-- no-run: -->\n```python\n```\n", "needs a reason"),
        ("```python\nprint()\n", "no end"),
        ("<!-- output -->\n```text\n```\n", "after the python block"),
        ("<!-- no-run: slow -->\n```python\n```\n<!-- output -->\n```text\n```\n", "after the python block"),
    ],
)
def test_malformed_pages_are_refused(tmp_path: Path, text: str, complaint: str) -> None:
    page = tmp_path / "page.md"
    page.write_text(text)
    with pytest.raises(ValueError, match=complaint):
        blocks(page)
