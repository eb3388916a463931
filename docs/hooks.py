"""What mkdocs does to the pages: README, CONTRIBUTING and the benchmarks' README, which lie outside of this folder, become pages of the site.

The same files are read on a code host, where their links lead through the folders; here links are those of the site.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parent.parent
OUTSIDE = {"readme.md": "README.md", "contributing.md": "CONTRIBUTING.md", "benchmarks.md": "benchmarks/README.md"}
LINK = re.compile(r"(\]\()([^)\s]+)(\))|(<img[^>]*src=\")([^\"]+)(\")")


def on_files(files: Files, config: Any) -> Files:
    """Add the pages from outside."""
    for name, source in OUTSIDE.items():
        files.append(File.generated(config, name, content=(ROOT / source).read_text(encoding="utf-8")))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Lead every link to the page of the site that it means."""
    del config, files
    name = page.file.src_uri
    home = (ROOT / OUTSIDE[name]).parent if name in OUTSIDE else ROOT / "docs"
    return LINK.sub(lambda match: _link(match, home), markdown)


def _link(match: re.Match[str], home: Path) -> str:
    before, target, after = match.group(1, 2, 3) if match.group(1) else match.group(4, 5, 6)
    path, hash_, anchor = target.partition("#")
    if not path or ":" in path:
        return match.group(0)
    place = (home / path).resolve()
    inside = next((name for name, source in OUTSIDE.items() if place == ROOT / source), None)
    if inside is None and place.is_relative_to(ROOT / "docs"):
        inside = place.relative_to(ROOT / "docs").as_posix()
    if inside is None or inside.endswith(".py"):  # a file of the sources: the site has it not
        return f"{before}#{after}" if match.group(4) else re.sub(r"\]\(.*", "]", match.group(0))
    return f"{before}{inside}{hash_}{anchor}{after}"


def on_post_page(output: str, page: Any, config: Any) -> str:
    """Take the search's helper from the site itself: nothing is loaded from elsewhere."""
    del page, config
    return output.replace("https://unpkg.com/iframe-worker/shim", "javascripts/iframe-worker.js")


def on_post_template(output_content: str, template_name: str, config: Any) -> str:
    """The same for pages without a source."""
    del template_name
    return on_post_page(output_content, None, config)
