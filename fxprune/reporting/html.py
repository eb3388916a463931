r"""A report: one HTML file that holds all it needs, for people who want to see what became of their model.

1. The page is a template (page/) with tables written here and charts that Apache ECharts draws in the browser from data in the page. It loads
   nothing: its content security policy forbids it.
2. What comes from models (names, reasons) is text, never markup: escaped in tables, and in the data ``<`` is written ``\u003c``.
3. Numbers of layers and lines are those of the story (story.py); nodes that couple layers are written once and referred to by number.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from dataclasses import asdict
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any

from torch import nn

from fxprune.io.atomic import replacing
from fxprune.reporting.couplings import Couplings, places
from fxprune.reporting.story import Cost, Story, story

MOST_REASONS = 30
MOST_NAMES = 6


def report(
    slim: nn.Module,
    path: str | os.PathLike[str],
    model: nn.Module | None = None,
    example_inputs: Any = None,
    *,
    latency: bool = True,
) -> Path:
    """Write what became of a model as one HTML file that can be read without a network.

    Args:
        slim: what ``slim``, ``apply`` or ``load`` gave; or any model, to see what can go.
        path: where the file goes; it appears there when it is whole.
        model: the original with its weights, if it is at hand; a slim model remembers its program.
        example_inputs: as for ``analyze``; those that the slim model was made with if left out.
        latency: measure both models, for about three seconds.

    Returns:
        The path.

    Raises:
        CaptureError: the model cannot be traced.
        InputError: example inputs do not fit or cannot be inferred.
        WeightError: weights that cannot be pruned.
    """
    place = Path(path)
    text = page(story(slim, model, example_inputs, latency=latency))
    with replacing(place) as file:
        file.write(text.encode())
    return place


def page(told: Story) -> str:
    """The page that tells a story."""
    from fxprune import __version__

    folder = files("fxprune.reporting") / "page"
    parts = {name: (folder / name).read_text(encoding="utf-8") for name in ("page.html", "page.css", "page.js", "echarts.min.js")}
    data = json.dumps(page_data(told), separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
    slots = {
        "version": escape(__version__),
        "title": escape(_title(told)),
        "subtitle": escape(_subtitle(told)),
        "costs": _costs(told),
        "latency": _latency(told),
        "evidence": _evidence(told),
        "notes": _notes(told),
        "couplings": escape(_graph(told)),
        "reasons": _reasons(told),
        "layers": _layers(told),
        "css": parts["page.css"],
        "js": parts["page.js"],
        "echarts": parts["echarts.min.js"],
        "data": data,
    }
    pieces = parts["page.html"].split("{")
    made = [pieces[0]]
    for piece in pieces[1:]:
        name, _, rest = piece.partition("}")
        made += [slots[name], rest]
    return "".join(made)


def page_data(told: Story) -> dict[str, Any]:
    """What the charts are drawn from (clause 3)."""
    groups = told.couplings.groups
    index = {name: i for i, name in reversed(list(enumerate(groups)))}
    ranking = [{**h.to_data(), "index": _group_number(h.group, number, groups, index)} for number, h in enumerate(told.ranking)]
    return {
        "slim": told.slim,
        "score": told.score,
        "layers": [asdict(layer) for layer in told.layers],
        "ranking": ranking,
        "couplings": _couplings(told.couplings),
    }


def _group_number(name: str, number: int, groups: Sequence[str], index: dict[str, int]) -> int:
    """The number of a histogram's group among the couplings' groups: its place where the lists agree, else its name's; -1 for none."""
    place = number - 1
    return place if 0 <= place < len(groups) and groups[place] == name else index.get(name, -1)


def _couplings(found: Couplings) -> dict[str, Any]:
    nodes = {name: i for i, name in enumerate(dict.fromkeys(n for link in found.links for n in link.nodes))}
    return {
        "layers": [asdict(layer) for layer in found.layers],
        "places": [list(place) for place in places(found)],
        "links": [[link.left, link.right, [nodes[n] for n in link.nodes], link.channels] for link in found.links],
        "nodes": list(nodes),
    }


def _title(told: Story) -> str:
    return f"{told.model}: {told.achieved:.1%} of the channels removed" if told.slim else f"{told.model}: what can go"


def _subtitle(told: Story) -> str:
    rounds = f" in {told.rounds} rounds (the last is told here)" if told.rounds > 1 else ""
    wanted = "Made for a budget" if told.figures else f"Asked for {told.asked:.1%}"
    asked = (
        f"{wanted}, {told.achieved:.1%} of the channels went{rounds}, ranked by {told.score}, layout {told.layout}. "
        if told.slim
        else ""
    )
    return f"{asked}Captured by {told.capture}. Example inputs {told.inputs or 'none'}."


def _row(*cells: str, kind: str = "td", numbers: Sequence[int] = ()) -> str:
    return (
        "<tr>" + "".join(f"<{kind}{' class=n' if i in numbers else ''}>{cell}</{kind}>" for i, cell in enumerate(cells)) + "</tr>"
    )


def _number(value: float) -> str:
    return "?" if math.isnan(value) else f"{value:,.0f}"


def _costs(told: Story) -> str:
    if not told.slim:
        rows = [_row(cost.name, _number(cost.before), numbers=(1,)) for cost in told.costs]
        return f"<table>{_row('', 'now', kind='th', numbers=(1,))}{''.join(rows)}</table>"
    head = _row("", "before", "after", "left", "", kind="th", numbers=(1, 2, 3))
    return f"<table>{head}{''.join(map(_cost, told.costs))}</table>"


def _cost(cost: Cost) -> str:
    known = not math.isnan(cost.before) and cost.before > 0
    share = cost.after / cost.before if known else math.nan
    cells = [cost.name, _number(cost.before), _number(cost.after), f"{share:.1%}" if known else ""]
    row = _row(*cells, numbers=(1, 2, 3)).removesuffix("</tr>")
    bar = f'<div><div style="width:{min(share, 1):.1%}"></div></div>' if known else ""
    return f"{row}<td class=bar>{bar}</td></tr>"


def _latency(told: Story) -> str:
    if not told.latency:
        return ""
    rows = [
        _row(
            entry.name,
            f"{entry.wall * 1e3:.2f} ms",
            f"{entry.cpu * 1e3:.2f} ms",
            f"{entry.speedup:.2f} x" if number else "",
            numbers=(1, 2, 3),
        )
        for number, entry in enumerate(told.latency)
    ]
    head = _row("latency", "wall", "CPU", "faster", kind="th", numbers=(1, 2, 3))
    rounds = told.latency[0].rounds
    said = f"Medians of {rounds} interleaved rounds on the machine that wrote this, inputs {told.inputs}."
    return f"<h2>How long it takes</h2><table>{head}{''.join(rows)}</table><p class=hint>{escape(said)}</p>"


def _evidence(told: Story) -> str:
    seen = told.evidence
    if not told.slim:
        return "<p>Nothing was removed yet.</p>"
    if seen is None:
        return (
            "<p><span class=warn>Not verified.</span> No numbers were compared when this model was made; "
            "<code>fxprune.verify(model, slim)</code> does so. Shapes were checked node by node.</p>"
        )
    rows = [
        ("outputs compared", str(seen.outputs_compared)),
        ("nodes compared", f"{seen.nodes_compared:,}"),
        ("computed in", seen.dtype),
        ("greatest relative error of an output", f"{seen.max_relative_error:.1e}"),
        ("greatest error of a node", f"{seen.worst_error:.1e} at {seen.worst_node}"),
        ("nodes without a counterpart", f"{len(seen.nodes_skipped)}{_some(seen.nodes_skipped)}"),
        ("equal up to the order of channels", f"{len(seen.nodes_reordered)}{_some(seen.nodes_reordered)}"),
        ("seconds", f"{seen.seconds:.2f}"),
    ]
    body = "".join(_row(escape(name), escape(value)) for name, value in rows)
    return (
        "<p><span class=ok>Verified.</span> The slim model computes what the original computes without the removed channels, "
        f"node by node, when it was made.</p><table>{body}</table>"
    )


def _some(names: Sequence[str]) -> str:
    return f" ({', '.join(names[:MOST_NAMES])}{', ...' if len(names) > MOST_NAMES else ''})" if names else ""


def _notes(told: Story) -> str:
    lines = [escape(note) for note in told.notes]
    rules = [
        f"no rule for <code>{escape(name)}</code> at {escape(', '.join(nodes[:MOST_NAMES]))}" for name, nodes in told.without_rule
    ]
    rule = "<p>Every operator that was met has a rule.</p>" if not rules else ""
    listed = f"<ul>{''.join(f'<li>{line}</li>' for line in (*lines, *rules))}</ul>" if lines or rules else ""
    return f"<h2>Capture and rules</h2><p>Captured by {escape(told.capture)}.</p>{rule}{listed}"


def _graph(told: Story) -> str:
    found = told.couplings
    return f"The {told.couplings_of}: {len(found.layers):,} layers, {len(found.links):,} couplings."


def _reasons(told: Story) -> str:
    found: dict[tuple[str, str], tuple[int, list[str]]] = {}
    for layer in told.couplings.layers:
        for pin in layer.pins:
            most, names = found.get((pin.node, pin.reason), (0, []))
            found[(pin.node, pin.reason)] = (max(most, pin.channels), [*names, layer.name])
    if not found:
        return "<p>Every channel can go.</p>"
    ranked = sorted(found.items(), key=lambda entry: -entry[1][0])
    rows = [
        _row(
            f"{most:,}",
            f"<code>{escape(node)}</code>",
            escape(reason),
            escape(", ".join(names[:MOST_NAMES]) + (", ..." if len(names) > MOST_NAMES else "")),
            numbers=(0,),
        )
        for (node, reason), (most, names) in ranked[:MOST_REASONS]
    ]
    more = f"<p class=hint>and {len(ranked) - MOST_REASONS} more reasons</p>" if len(ranked) > MOST_REASONS else ""
    return f"<table>{_row('channels', 'node', 'why', 'layers', kind='th', numbers=(0,))}{''.join(rows)}</table>{more}"


def _layers(told: Story) -> str:
    def pair(before: int, after: int) -> str:
        if after < 0 or before == after:
            return f"{before:,}"
        return f"{after:,}" if before < 0 else f"{before:,} → {after:,}"

    rows = [
        _row(
            f"<code>{escape(layer.name)}</code>",
            escape(layer.kind),
            pair(layer.before, layer.after) if layer.before else "",
            pair(layer.parameters_before, layer.parameters),
            pair(layer.macs_before, layer.macs),
            numbers=(2, 3, 4),
        )
        for layer in told.layers
    ]
    head = _row("layer", "kind", "channels", "parameters", "MACs", kind="th", numbers=(2, 3, 4))
    return f"<table>{head}{''.join(rows)}</table>"
