"""A table of what a model's channels are, what they cost, and what became of them.

1. A *layer* is a module with parameters of its own that the program uses. Its width is the number of output channels: rows of its
   weight (columns times groups of a transposed convolution's). ``before`` is the original's and ``after`` the given model's; they
   differ only for a slim model, where ``before`` comes from its plan.
2. Parameters count each tensor once, at the first layer that holds it. MACs (multiply-adds, FLOPs / 2) are those of matrix products
   and convolutions for the example inputs, batch included, counted by ``torch.utils.flop_counter`` on meta tensors.
3. Groups and reasons are those of the given model: a slim model's own groups are what a second round could still remove.
4. Reasons are told from the most channels to the fewest. A coupled channel that several reasons pin is counted for each.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from rich.console import Console, Group
from rich.table import Table
from torch import Tensor, fx, nn
from torch.utils.flop_counter import FlopCounterMode

from fxprune.api import analyze, plan_of
from fxprune.capture.clone import clone, to_meta
from fxprune.capture.inputs import Inputs, given, infer
from fxprune.errors import InputError, PlanMismatchError
from fxprune.graph.channels import ChannelGraph
from fxprune.plan import Plan

MOST_REASONS = 8
MOST_NAMES = 4
WIDTH = 110


@dataclass(frozen=True, slots=True)
class GroupRow:
    """One group of coupled channels: its name, how many there are, and the layers they run through."""

    name: str
    channels: int
    prunable: int
    layers: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class LayerRow:
    """One layer (clause 1); ``parameters`` and ``macs`` are those of the given model (clause 2)."""

    name: str
    kind: str
    before: int
    after: int
    parameters: int
    macs: int


@dataclass(frozen=True, slots=True)
class Reason:
    """Why so many coupled channels cannot go: at which node, and in which parameters."""

    channels: int
    node: str
    reason: str
    axes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Summary:
    """The facts of one model (module docstring).

    Attributes:
        model: class name of the model.
        groups: free coupled channels by kind.
        layers: layers in the order of the program.
        channels: producer-side channels of all layers.
        prunable: how many of these can go.
        parameters: number of parameters of the model, each tensor once.
        macs: multiply-adds of one call on the example inputs.
        original_parameters: those of the original; equal to ``parameters`` for a model that is not slim.
        asked: ratio that was asked for; 0 where there is no plan.
        achieved: ratio that was achieved.
        score: name of the score of the plan; "" where there is no plan.
        capture: how the model was captured.
        notes: what a user should know.
        reasons: why channels cannot go (clause 4).
        operators_without_rule: ATen operators that pinned what they touch, with the nodes that call them.
        slim: True if the model carries a plan.
    """

    model: str
    groups: tuple[GroupRow, ...]
    layers: tuple[LayerRow, ...]
    channels: int
    prunable: int
    parameters: int
    macs: int
    original_parameters: int
    asked: float = 0.0
    achieved: float = 0.0
    score: str = ""
    capture: str = ""
    notes: tuple[str, ...] = ()
    reasons: tuple[Reason, ...] = ()
    operators_without_rule: tuple[tuple[str, tuple[str, ...]], ...] = ()
    slim: bool = False

    def __str__(self) -> str:
        console = Console(width=WIDTH, color_system=None, force_terminal=False, legacy_windows=False)
        with console.capture() as captured:
            console.print(self)
        return "\n".join(line.rstrip() for line in captured.get().splitlines())

    def __rich__(self) -> Group:
        parts: list[Any] = [self._head(), _layer_table(self), _group_table(self)]
        if self.reasons:
            parts.append(_reason_table(self))
        parts += [_line(f"no rule: {name}", f"at {_names(nodes)}") for name, nodes in self.operators_without_rule]
        parts += [_line("note", note) for note in self.notes]
        return Group(*parts)

    def _head(self) -> Table:
        lines = [f"{self.model}: {self.prunable:,} of {self.channels:,} channels can go"]
        if self.slim:
            before = self.original_parameters
            lines.append(f"asked {self.asked:.1%}, achieved {self.achieved:.1%} by score {self.score!r}")
            lines.append(f"parameters {before:,} -> {self.parameters:,} ({self.parameters / max(before, 1):.1%})")
        lines.append(f"captured by {self.capture}")
        head = Table.grid()
        for line in lines:
            head.add_row(_text(line))
        return head


def _text(text: str) -> Any:
    from rich.text import Text  # names hold brackets, which rich would read as markup

    return Text(text)


def _line(label: str, text: str) -> Any:
    return _text(f"{label}: {text}")


def _names(names: Sequence[str]) -> str:
    more = f" and {len(names) - MOST_NAMES} more" if len(names) > MOST_NAMES else ""
    return ", ".join(names[:MOST_NAMES]) + more


def _layer_table(summary: Summary) -> Table:
    table = Table(title="layers", title_justify="left")
    for name in ("layer", "kind"):
        table.add_column(name, overflow="fold")
    for name in ("width", "parameters", "MACs"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in summary.layers:
        width = f"{row.before} -> {row.after}" if summary.slim else f"{row.after}"
        table.add_row(_text(row.name), row.kind, width, f"{row.parameters:,}", f"{row.macs:,}")
    table.add_section()
    table.add_row("total", "", "", f"{summary.parameters:,}", f"{summary.macs:,}")
    return table


def _group_table(summary: Summary) -> Table:
    table = Table(title="groups of coupled channels", title_justify="left")
    table.add_column("group", overflow="fold")
    for name in ("channels", "can go"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("layers", overflow="fold")
    for row in summary.groups:
        table.add_row(_text(row.name), f"{row.channels:,}", f"{row.prunable:,}", _text(_names(row.layers)))
    return table


def _reason_table(summary: Summary) -> Table:
    table = Table(title="what cannot go", title_justify="left")
    table.add_column("channels", justify="right", no_wrap=True)
    for name in ("node", "why", "where"):
        table.add_column(name, overflow="fold")
    for row in summary.reasons[:MOST_REASONS]:
        table.add_row(f"{row.channels:,}", _text(row.node), _text(row.reason), _text(_names(row.axes)))
    return table


def summary(model: nn.Module, example_inputs: Any = None) -> Summary:
    """The facts of a model or of a slim model; only reads it.

    Args:
        model: any module that ``analyze`` takes.
        example_inputs: as for ``analyze``; they decide what MACs are counted for.

    Raises:
        CaptureError: the model cannot be traced.
        InputError: example inputs do not fit or cannot be inferred.
        WeightError: weights that cannot be pruned.
    """
    inputs = given(example_inputs) if example_inputs is not None else infer(model, lambda candidate: _fails(model, candidate))
    graph = analyze(model, inputs)
    plan = _plan(model)
    prunable, channels = graph.prunable()
    layers = tuple(_layers(graph, plan, _macs(graph, inputs)))
    parameters = {name: p for name, p in graph.program.captured.root.named_parameters()}
    return Summary(
        model=graph.program.captured.name,
        groups=_groups(graph),
        layers=layers,
        channels=channels,
        prunable=prunable,
        parameters=sum(p.numel() for p in parameters.values()),
        macs=sum(row.macs for row in layers) + _outside(graph, inputs),
        original_parameters=sum(_original_size(name, p, plan) for name, p in parameters.items()),
        asked=plan.asked if plan else 0.0,
        achieved=plan.achieved if plan else 0.0,
        score=plan.score if plan else "",
        capture=graph.program.captured.how,
        notes=tuple(dict.fromkeys((*graph.notes, *(plan.notes if plan else ())))),
        reasons=_reasons(graph),
        operators_without_rule=tuple((name, tuple(nodes)) for name, nodes in graph.operators_without_rule.items()),
        slim=plan is not None,
    )
