"""A ``Summary`` as tables that rich prints; as a plain text of ``WIDTH`` columns where there is no terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from fxprune.reporting.summary import Summary

MOST_REASONS = 8
MOST_NAMES = 4
WIDTH = 120


def plain(summary: Summary) -> str:
    """The same tables without colours."""
    console = Console(width=WIDTH, color_system=None, force_terminal=False)
    with console.capture() as captured:
        console.print(rendered(summary))
    return "\n".join(line.rstrip() for line in captured.get().splitlines())


def rendered(summary: Summary) -> Group:
    """Head, budget, layers, groups, reasons, operators without a rule, notes."""
    parts: list[RenderableType] = [Text(_head(summary))]
    if summary.figures:
        parts.append(_budget(summary))
    parts.append(_layers(summary))
    if summary.groups:
        parts.append(_groups(summary))
    if summary.reasons:
        parts.append(_reasons(summary))
    # Text, for names hold brackets, which rich would read as markup
    parts += [Text(f"no rule: {name} at {_names(nodes)}") for name, nodes in summary.operators_without_rule]
    parts += [Text(f"note: {note}") for note in summary.notes]
    return Group(*parts)


def _head(summary: Summary) -> str:
    lines = [f"{summary.model}: {summary.prunable:,} of {summary.channels:,} channels can go (captured by {summary.capture})"]
    if summary.slim:
        before, after = summary.original_parameters, summary.parameters
        if summary.figures:
            lines.append(f"slim: made for a budget, {summary.achieved:.1%} of the channels went, score {summary.score!r}")
        else:
            lines.append(f"slim: asked {summary.asked:.1%}, achieved {summary.achieved:.1%}, score {summary.score!r}")
        lines.append(f"parameters {before:,} -> {after:,} ({after / max(before, 1):.1%})")
    return "\n".join(lines)


def _names(names: Sequence[str]) -> str:
    more = f" and {len(names) - MOST_NAMES} more" if len(names) > MOST_NAMES else ""
    return ", ".join(names[:MOST_NAMES]) + more


def _table(title: str, words: Sequence[str], numbers: Sequence[str], tail: Sequence[str] = ()) -> Table:
    table = Table(title=title, title_justify="left")
    for name in words:
        table.add_column(name, overflow="fold")
    for name in numbers:
        table.add_column(name, justify="right", no_wrap=True)
    for name in tail:
        table.add_column(name, overflow="fold")
    return table


def _layers(summary: Summary) -> Table:
    table = _table("layers", ("layer", "kind"), ("width", "parameters", "MACs"))
    for row in summary.layers:
        width = "" if not row.after else f"{row.before} -> {row.after}" if summary.slim else str(row.after)
        table.add_row(Text(row.name), Text(row.kind), width, f"{row.parameters:,}", f"{row.macs:,}")
    table.add_section()
    table.add_row("total", "", "", f"{summary.parameters:,}", f"{summary.macs:,}")
    return table


def _budget(summary: Summary) -> Table:
    """What was asked for, what is left, and how far the kept score is from the best that any plan could keep."""
    table = _table("budget", ("bound",), ("original", "at most", "left", "share"), ("gap",))
    for name, own in summary.figures.items():
        original, achieved = own["original"], own["achieved"]
        limit, gap = own.get("asked", own.get("bound", 0.0)), own.get("gap")
        told = "" if gap is None else f"{gap:.2%} below the best possible, at most"
        share = f"{achieved / original:.2%}" if original else ""
        label, unit = ("latency, ms", 1e3) if name == "latency" else (name, 1.0)
        table.add_row(Text(label), *(_number(v * unit) for v in (original, limit, achieved)), share, told)
    return table


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 or value == int(value) else f"{value:.4g}"


def _groups(summary: Summary) -> Table:
    table = _table("groups of coupled channels", ("group",), ("channels", "can go"), ("layers",))
    for row in summary.groups:
        table.add_row(Text(row.name), f"{row.channels:,}", f"{row.prunable:,}", Text(_names(row.layers)))
    return table


def _reasons(summary: Summary) -> Table:
    table = _table("what cannot go", (), ("channels",), ("node", "why", "where"))
    for row in summary.reasons[:MOST_REASONS]:
        table.add_row(f"{row.channels:,}", Text(row.node), Text(row.reason), Text(_names(row.axes)))
    return table
