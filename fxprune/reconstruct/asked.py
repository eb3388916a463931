"""What ``channel_prune`` may be asked for, held against what makes sense."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fxprune.errors import BudgetError
from fxprune.plan import Plan
from fxprune.solve.budget import Budget
from fxprune.solve.ratio import check_ratio

LAYOUTS = ("coupled", "selection")


def check(
    ratio: float | None,
    ratios: Mapping[str, float] | None,
    budget: Any,
    plan: Plan | None,
    layout: str,
    slack: float,
    refine: int,
    ridge: float,
) -> None:
    if budget is not None and plan is None and (not isinstance(budget, Budget) or budget.latency is not None):
        raise BudgetError(
            f"budget must be a fxprune.Budget of parameters, MACs or bytes, got {budget!r}. For a latency make a plan, "
            "fxprune.plan(graph, budget=...), and give that as plan=; its widths are used.",
            got=budget,
        )
    if layout not in LAYOUTS:
        raise BudgetError(f"layout must be 'coupled' or 'selection', got {layout!r}.", expected=LAYOUTS, got=layout)
    wanted = (("ratio", ratio), ("ratios", ratios), ("plan", plan), ("budget", budget if plan is None else None))
    given = [name for name, value in wanted if value is not None]
    if len(given) != 1:
        raise BudgetError(
            "give one of ratio= (the share of channels that goes), ratios= (by layer), budget= and plan= (its widths), "
            f"got {' and '.join(given) or 'none'}.",
            expected="one",
            got=tuple(given),
        )
    if plan is not None and not isinstance(plan, Plan):
        raise BudgetError(f"plan must be a fxprune.Plan, got {type(plan).__name__}.", got=type(plan).__name__)
    numbers: dict[str, Any] = {"slack": slack, "ridge": ridge}
    for name, value in numbers.items():
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < float("inf"):
            raise BudgetError(f"{name} must be a number from 0 on, got {value!r}.", got=value)
    steps: Any = refine
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 0:
        raise BudgetError(f"refine must be a whole number from 0 on, got {refine!r}.", got=refine)


def shares(branches: float | Mapping[str, float] | None, ratio: float | None, layout: str) -> float | Mapping[str, float]:
    """What first convolutions of branches do not read; 0 if they read all."""
    if layout == "coupled" and branches:
        raise BudgetError(
            f"branches={branches!r} takes selects: give layout='selection' too.",
            expected="selection",
            got=layout,
        )
    if branches is None:
        return ratio or 0.0 if layout == "selection" else 0.0
    return branches if isinstance(branches, Mapping) else check_ratio(branches)
