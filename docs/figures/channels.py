"""Draw channels.svg from a real analysis: ``python docs/figures/channels.py``.

A row per node of the program of docs/design.md. Left: the ids of its value, one cell per position; right: what the node couples. Cells of
one colour are one coupled channel.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

import fxprune

OUT = Path(__file__).with_suffix(".svg")

COLOURS = ("#77aadd", "#99ddff", "#44bb99", "#eedd88", "#ee8866", "#ffaabb")  # Paul Tol's light scheme: told apart by everybody
FIXED = "#dddddd"
CELL, HEIGHT, ROW = 24, 22, 74
LABEL, VALUES, COUPLINGS, WIDTH = 14, 218, 596, 990


class Tiny(nn.Module):
    """A residual sum, a concatenation, a split across its seam, a flatten."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(1, 4, 3, padding=1, bias=False)
        self.b = nn.Conv2d(4, 4, 3, padding=1, bias=False)
        self.c = nn.Conv2d(4, 2, 3, padding=1, bias=False)
        self.d = nn.Conv2d(3, 5, 1, bias=False)
        self.fc = nn.Linear(12, 5, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """``(n, 1, 2, 2)`` to ``(n, 5)``."""
        a = self.a(x)
        add = a + self.b(a)
        cat = torch.cat([add, self.c(add)], 1)
        left, right = cat.split([3, 3], 1)
        return self.fc(left.flatten(1)) + self.d(right).mean((2, 3))


# node of the graph, the line of the program, the horizontal places (in cells) of the positions, nodes whose channels arrive here
ROWS: tuple[tuple[str, str, tuple[float, ...], tuple[str, ...]], ...] = (
    ("a", "a = self.a(x)", (0, 1, 2, 3), ()),
    ("b", "self.b(a)", (6, 7, 8, 9), ()),
    ("add", "add = a + self.b(a)", (0, 1, 2, 3), ("a", "b")),
    ("c", "self.c(add)", (4, 5), ()),
    ("cat", "cat = cat([add, c], 1)", (0, 1, 2, 3, 4, 5), ("add", "c")),
    ("getitem", "left, right = cat.split", (0, 1, 2), ("cat",)),
    ("flatten", "left.flatten(1)", tuple(range(12)), ("getitem",)),
    ("fc", "self.fc(...)", (0, 1, 2, 3, 4), ()),
    ("d", "self.d(right)", (0, 1, 2, 3, 4), ()),
)
RIGHT = ("getitem_1", (6, 7, 8))  # the split's other part, in the same row


class Drawing:
    """SVG lines, and the places of the cells that were drawn."""

    def __init__(self, graph: fxprune.ChannelGraph) -> None:
        self.graph = graph
        self.lines: list[str] = []
        self.cells: dict[str, list[tuple[float, float, int]]] = {}
        free = sorted({int(c) for group in graph.groups for c in group.channels})
        self.colour = dict(zip(free, COLOURS, strict=True))

    def channel(self, atom: int) -> str:
        """The colour of an atom's coupled channel; grey if it cannot go."""
        return self.colour.get(int(self.graph.closed.component[atom]), FIXED)

    def text(self, x: float, y: float, text: str, **attributes: str) -> None:
        """A line of text; its baseline starts at (x, y). ``class_`` is the attribute ``class``."""
        named = "".join(f' {key.rstrip("_").replace("_", "-")}="{value}"' for key, value in attributes.items())
        self.lines.append(f'<text x="{x:g}" y="{y:g}"{named}>{escape(text)}</text>')

    def row(self, x: float, y: float, ids: Sequence[int], places: Sequence[float], name: str = "") -> None:
        """Cells with ids."""
        for atom, place in zip(ids, places, strict=True):
            left = x + place * CELL
            self.lines.append(
                f'<rect x="{left:g}" y="{y:g}" width="{CELL - 2}" height="{HEIGHT}" rx="3" fill="{self.channel(atom)}" stroke="#333"/>'
            )
            middle = left + (CELL - 2) / 2
            self.text(middle, y + HEIGHT / 2 + 4, str(atom), text_anchor="middle", class_="id")
            self.cells.setdefault(name, []).append((middle, y, atom))

    def threads(self, source: str, target: str) -> None:
        """A line from every cell of a row to the cells of the same coupled channel in a later row."""
        for x0, y0, atom in self.cells[source]:
            for x1, y1, other in self.cells[target]:
                if self.graph.closed.component[atom] == self.graph.closed.component[other]:
                    dashed = "" if atom == other else ' stroke-dasharray="4 3"'
                    self.lines.insert(
                        0,
                        f'<path d="M{x0:g} {y0 + HEIGHT:g} L{x1:g} {y1:g}" stroke="{self.channel(atom)}" stroke-width="2" '
                        f'fill="none"{dashed}/>',
                    )


def ids_of(graph: fxprune.ChannelGraph, node: str) -> list[int]:
    """The ids of a node's value, position by position along dimension 1."""
    (factor,) = graph.nodes[node].factors
    return [int(i) for i in np.moveaxis(factor, 1, 0).ravel()]


def axis_label(graph: fxprune.ChannelGraph, atom: int) -> str:
    """The parameter dimension an atom belongs to."""
    return next(axis.label for axis in graph.axes if axis.start <= atom < axis.start + axis.size)


def draw(graph: fxprune.ChannelGraph) -> str:
    """The figure as SVG."""
    drawing = Drawing(graph)
    drawing.text(LABEL, 26, "the program", class_="head")
    drawing.text(VALUES, 26, "ids of the value, along its channels", class_="head")
    drawing.text(COUPLINGS, 26, "what the node couples", class_="head")
    for number, (node, code, places, sources) in enumerate(ROWS):
        y = 48 + number * ROW
        drawing.text(LABEL, y + 15, code, class_="code")
        drawing.row(VALUES, y, ids_of(graph, node), places, node)
        if node == "getitem":
            drawing.row(VALUES, y, ids_of(graph, RIGHT[0]), RIGHT[1], RIGHT[0])
            drawing.threads("cat", RIGHT[0])
        for source in sources:
            drawing.threads(source, node)
        for coupling in graph.program.recorder.couplings:
            if coupling.node == node:
                for ids, shift in ((coupling.left, -13), (coupling.right, 13)):
                    drawing.row(COUPLINGS, y + shift, ids.tolist(), range(len(ids)), "")
                    end = COUPLINGS + len(ids) * CELL + 8
                    labels = dict.fromkeys(axis_label(graph, int(atom)) for atom in ids)
                    drawing.text(end, y + shift + 15, ", ".join(labels), class_="note")
        if graph.pinned[graph.closed.component[ids_of(graph, node)]].all():
            drawing.text(VALUES + len(places) * CELL + 8, y + 15, "pinned: the output keeps its shape", class_="note")
    below = 48 + len(ROWS) * ROW
    drawing.text(LABEL, below + 4, "coupled channels", class_="head")
    for number, (component, colour) in enumerate(drawing.colour.items()):
        atoms = np.flatnonzero(graph.closed.component == component).tolist()
        y = below + 18 + number * 24
        drawing.lines.append(f'<rect x="{LABEL}" y="{y}" width="{CELL - 2}" height="16" rx="3" fill="{colour}" stroke="#333"/>')
        drawing.text(LABEL + CELL + 8, y + 13, " ".join(map(str, atoms)), class_="code")
        drawing.text(VALUES, y + 13, ", ".join(dict.fromkeys(axis_label(graph, atom) for atom in atoms)), class_="note")
    height = below + 18 + len(drawing.colour) * 24 + 14
    style = (
        "text{font-family:Helvetica,Arial,sans-serif;font-size:13px;fill:#222}.head{font-weight:bold}"
        ".code{font-family:Menlo,Consolas,monospace;font-size:12px}.note{font-size:11px;fill:#555}"
        ".id{font-family:Menlo,Consolas,monospace;font-size:11px;font-weight:bold;fill:#000}"
    )
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}">',
            f"<style>{style}</style>",
            f'<rect width="{WIDTH}" height="{height}" fill="#fff"/>',
            *drawing.lines,
            "</svg>\n",
        ]
    )


def main() -> None:
    """Write the figure."""
    OUT.write_text(draw(fxprune.analyze(Tiny(), torch.randn(1, 1, 2, 2))), encoding="utf-8")


if __name__ == "__main__":
    main()
