"""``fxprune sensitivity --of channels``: accuracy against the share of one coupled group that is removed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import typer
from rich.console import Group
from rich.table import Table
from rich.text import Text
from torch import nn

from fxprune.cli.talk import aside


def of_groups(
    model: nn.Module,
    batches: Sequence[Any],
    *,
    shares: Sequence[float] | None,
    score: str,
    groups: Sequence[str],
    points: Path | None,
    plot: Path | None,
    loss: float,
) -> tuple[dict[str, Any], Group]:
    """What is printed as JSON, and what people see.

    Args:
        model: the original.
        batches: (inputs, labels).
        shares: of a group to remove; some of the library's choice if left out.
        score: the name of what chooses channels within a group.
        groups: globs over groups' names.
        points: where measured points are kept.
        plot: where the curves go.
        loss: allowed per group, for the suggestions.

    Raises:
        BadParameter: a share outside (0, 1).
        FxpruneError: what ``fxprune.sensitivity`` raises.
    """
    import fxprune
    from fxprune.sensitivity import SHARES

    chosen = tuple(shares or SHARES)
    if any(not 0 < share < 1 for share in chosen):
        raise typer.BadParameter(f"--share must be in (0, 1): the share that goes; got {', '.join(map(str, chosen))}.")
    found = fxprune.sensitivity(model, batches, chosen, score=score, path=points, groups=groups)
    if plot is not None:
        found.plot(plot)
        aside().print(f"wrote {plot}", markup=False)
    suggested = found.suggest(loss)
    told = {
        "baseline": found.baseline,
        "score": found.ranking,
        "groups": [
            {
                "name": curve.label,
                "channels": curve.channels,
                "accuracy": [list(point) for point in curve.points],
                "suggestion": {"share": suggested[curve.label]},
            }
            for curve in found.curves
        ],
        "loss": loss,
    }
    table = Table(title=f"share of a group that may go for a loss of {100 * loss:g} points", title_justify="left")
    table.add_column("group")
    table.add_column("share", justify="right")
    for name, share in suggested.items():
        table.add_row(Text(name), f"{share:.1%}")
    return told, Group(found.__rich__(), table)
