"""Reading the code blocks of a Markdown page.

1. A block is ```` ```python ```` at the start of a line, up to the next ```` ``` ````. Blocks of other languages are not looked at.
2. `<!-- no-run: reason -->` on the last line with text before a block: it is not run, for that reason.
3. `<!-- output -->` on the last line with text before a ```` ```text ```` block: this is what the python block before it prints;
   `...` stands for anything, as in doctest.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path

NO_RUN = re.compile(r"<!-- no-run:(.*)-->")


@dataclass(frozen=True, slots=True)
class Block:
    """One python block: its first line's number, its source, why it is not run ("": it is), and what it prints, if the page says so."""

    line: int
    source: str
    no_run: str = ""
    output: str | None = None


def blocks(page: Path) -> list[Block]:
    """The python blocks of a page, in order (clauses 1 to 3)."""
    found: list[Block] = []
    lines = page.read_text(encoding="utf-8").splitlines()
    before = ""
    number = 0
    while number < len(lines):
        line = lines[number]
        if not line.startswith("```"):
            before = line.strip() or before
            number += 1
            continue
        end = next((i for i in range(number + 1, len(lines)) if lines[i].startswith("```")), None)
        if end is None:
            raise ValueError(f"{page}:{number + 1}: this block has no end")
        body = "\n".join(lines[number + 1 : end]) + "\n"
        if line == "```python":
            excuse = NO_RUN.fullmatch(before)
            if excuse is not None and not excuse.group(1).strip():
                raise ValueError(f"{page}:{number + 1}: a block that is not run needs a reason")
            found.append(Block(number + 1, body, excuse.group(1).strip() if excuse is not None else ""))
        elif before == "<!-- output -->":
            if line != "```text" or not found or found[-1].output is not None or found[-1].no_run:
                raise ValueError(f"{page}:{number + 1}: an output is a text block after the python block that prints it")
            found[-1] = replace(found[-1], output=body)
        before = ""
        number = end + 1
    return found
