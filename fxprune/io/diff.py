"""What differs between two plans for one model.

1. Axes that keep the same channels in both are not shown. Axes that differ in the same way stand in one row, under the name of the first.
2. *Only a* (*only b*) counts the channels that one plan keeps and the other does not; *order* says that the same ones stand in another
   order.
3. An axis that one plan does not name keeps everything there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from rich import box
from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from fxprune.errors import PlanMismatchError
from fxprune.plan import Plan


@dataclass(frozen=True, slots=True)
class AxisDiff:
    """Axes that differ in one way (clauses 1 and 2).

    Attributes:
        axes: their labels, such as ``conv1.weight[0]``.
        size: how many channels they have in the original.
        kept_a: how many of these the first plan keeps.
        kept_b: how many the second keeps.
        only_a: channels that the first keeps and the second does not, ascending.
        only_b: the other way round.
        reordered: the same channels in another order.
    """

    axes: tuple[str, ...]
    size: int
    kept_a: int
    kept_b: int
    only_a: tuple[int, ...]
    only_b: tuple[int, ...]
    reordered: bool


@dataclass(frozen=True, slots=True)
class PlanDiff:
    """The difference of two plans. ``str`` and rich's ``print`` lay it out; it is true in a condition if there is one.

    Attributes:
        axes: what is kept differently.
        fields: what else differs: (name, in the first, in the second), as texts.
        equal: number of axes that keep the same.
    """

    axes: tuple[AxisDiff, ...]
    fields: tuple[tuple[str, str, str], ...]
    equal: int

    def __bool__(self) -> bool:
        return bool(self.axes or self.fields)

    def __str__(self) -> str:
        console = Console(width=110, color_system=None, legacy_windows=False)
        with console.capture() as captured:
            console.print(self)
        return captured.get().rstrip("\n")

    def __rich__(self) -> Group:
        parts: list[Table | Text] = []
        if self.fields:
            table = Table("", "a", "b", box=box.SIMPLE_HEAD)
            for row in self.fields:
                table.add_row(*map(Text, row))
            parts.append(table)
        if self.axes:
            table = Table("axis", box=box.SIMPLE_HEAD)
            for name in ("of", "a keeps", "b keeps", "only a", "only b"):
                table.add_column(name, justify="right")
            for axis in self.axes:
                more = f" and {len(axis.axes) - 1} more" if len(axis.axes) > 1 else ""
                only_b = "another order" if axis.reordered else str(len(axis.only_b))
                numbers = (axis.size, axis.kept_a, axis.kept_b, len(axis.only_a))
                table.add_row(Text(axis.axes[0] + more), *map(str, numbers), only_b)
            parts.append(table)
        parts.append(Text(f"{self.equal} axes keep the same" if self else f"the plans are equal ({self.equal} axes)"))
        return Group(*parts)


def diff(plan_a: Plan, plan_b: Plan) -> PlanDiff:
    """What differs between two plans for one model (module docstring).

    Raises:
        PlanMismatchError: the plans are for different models.
    """
    ways: dict[tuple[int, tuple[int, ...], tuple[int, ...]], list[str]] = {}
    equal = 0
    for name, dim in dict.fromkeys((name, dim) for plan in (plan_a, plan_b) for name, dims in plan.kept.items() for dim in dims):
        sizes = {plan.sizes[name][dim] for plan in (plan_a, plan_b) if dim in plan.kept.get(name, {})}
        if len(sizes) > 1:
            raise PlanMismatchError(
                f"the plans are for different models: {name!r}, dimension {dim}, has {plan_a.sizes[name][dim]} channels in the first and "
                f"{plan_b.sizes[name][dim]} in the second.",
                node=name,
                expected=plan_a.sizes[name][dim],
                got=plan_b.sizes[name][dim],
            )
        size = sizes.pop()
        a, b = (plan.kept.get(name, {}).get(dim, tuple(range(size))) for plan in (plan_a, plan_b))
        if a == b:
            equal += 1
        else:
            ways.setdefault((size, a, b), []).append(f"{name}[{dim}]")
    rows = tuple(_row(tuple(axes), size, a, b) for (size, a, b), axes in ways.items())
    return PlanDiff(rows, tuple(_fields(plan_a, plan_b)), equal)


def _row(axes: tuple[str, ...], size: int, a: tuple[int, ...], b: tuple[int, ...]) -> AxisDiff:
    first, second = set(a), set(b)
    return AxisDiff(axes, size, len(a), len(b), tuple(sorted(first - second)), tuple(sorted(second - first)), first == second)


def _fields(a: Plan, b: Plan) -> list[tuple[str, str, str]]:
    names = [f.name for f in fields(Plan) if f.compare and f.name not in ("kept", "sizes")]
    return [(name, _text(getattr(a, name)), _text(getattr(b, name))) for name in names if getattr(a, name) != getattr(b, name)]


def _text(value: Any) -> str:
    """A field as people read it: sentences one after the other, of figures what is left and what there was."""
    if isinstance(value, Mapping):
        return "; ".join(
            f"{name}: {_figure(own['achieved'])} of {_figure(own['original'])}"
            if own.keys() >= {"achieved", "original"}
            else f"{name}: {own}"
            for name, own in value.items()
        )
    if isinstance(value, tuple):
        return "; ".join(map(str, value))
    return _figure(value) if isinstance(value, float) else str(value)


def _figure(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"
