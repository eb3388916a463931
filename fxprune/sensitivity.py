"""What each group of channels costs: one group at a time, a growing share of it removed, nothing retrained.

1. For every group and every share the network is slimmed by the channels of that group that ``score`` ranks lowest, all others left as they are, and
   ``metric`` is asked. Groups whose balance allows no such share have fewer points. The model is not changed.
2. With a ``path`` every point is written at once (io/atomic.py), and a scan that is started again goes on from there. The file holds a digest
   of the weights, and the names of the score and the metric: points of others are refused. That the loader, the data of a score and the example
   inputs are the same is not looked at.
3. The *cost curve* of a group is its loss of the metric against the share removed, made monotone, 0 at 0; beyond the last point it is a straight
   line to the loss of everything (the baseline) at 1.
4. A ``Sensitivity`` is a score: within a group channels keep the order of the score that was measured; the k-th lowest of n is worth
   C((k + 1) / n) - C(k / n), with C the largest convex curve below the cost curve. The least-cost plan of a given size takes channels by rising
   worth, if costs of groups add up.
5. ``suggest(loss)``: per group the largest share whose cost is at most ``loss``.
"""

from __future__ import annotations

import fnmatch
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from rich.console import Group
from rich.table import Table
from torch import Tensor, nn

from fxprune.api import plan
from fxprune.compare import slimmed
from fxprune.errors import BudgetError, FileFormatError
from fxprune.evaluate import Metric, accuracy
from fxprune.graph.channels import ChannelGraph, ChannelGroup
from fxprune.io.atomic import replacing
from fxprune.pipeline import Subject, study
from fxprune.progress import steps
from fxprune.reporting.curves import as_text, figure
from fxprune.score.data import DataScore, on
from fxprune.score.scores import Score, named
from fxprune.score.scores import score as score_groups
from fxprune.sparse.sensitivity import weights_digest

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SHARES = (0.1, 0.25, 0.4, 0.55, 0.7, 0.85)
FORMAT = 1
MOST_LINES = 16
TIE = 1e-9


@dataclass(frozen=True, slots=True)
class Curve:
    """The metric of one group: its name, the first of its atoms (two groups can share a name), its width, (share removed, metric) pairs."""

    name: str
    first: int
    channels: int
    points: tuple[tuple[float, float], ...]

    @property
    def label(self) -> str:
        return f"{self.name}@{self.first}" if self.first else self.name


@dataclass(frozen=True)
class Sensitivity:
    """The metric against the share removed, per group; usable as a score (clause 4).

    Attributes:
        baseline: the metric of the model as it is.
        curves: per group.
        ranking: name of the score that chose the channels.
        metric: name of the metric.
    """

    baseline: float
    curves: tuple[Curve, ...]
    ranking: str
    metric: str = "accuracy"
    _score: Any = field(default=None, repr=False, compare=False)

    totals: ClassVar[bool] = True  # score/scores.py, clause 5

    @property
    def __name__(self) -> str:
        return f"sensitivity ({self.ranking})"

    def on(self, graph: ChannelGraph) -> Sensitivity:
        """The same, its ranking having seen the graph."""
        return replace(self, _score=on(self._score, graph))

    def __call__(self, group: ChannelGroup) -> Tensor:
        """Clause 4; shape (channels,).

        Raises:
            BudgetError: the group was not measured.
        """
        base = score_groups((group,), self._score if self._score is not None else named(self.ranking)).values[0]
        order = torch.argsort(base, stable=True)
        edges = np.arange(len(group) + 1) / len(group)
        share, cost = _convex(*self.cost(self.curve(group)))
        worth = np.diff(np.interp(edges, share, cost)) + TIE * max(cost[-1], TIE) * edges[1:]
        result = torch.zeros(len(group), dtype=torch.float64, device="cpu")
        result[order] = torch.from_numpy(worth)
        return result

    def curve(self, group: ChannelGroup) -> Curve:
        """The curve of a group.

        Raises:
            BudgetError: it was not measured.
        """
        first = _first(group)
        own = [c for c in self.curves if c.name == group.name and c.first <= first]
        if not own:
            raise BudgetError(
                f"group {group.name!r} was not measured for sensitivity. Measure it too, or name it in keep=.", node=group.name
            )
        return max(own, key=lambda curve: curve.first)

    def cost(self, curve: Curve) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Clause 3: shares removed, from 0 to 1, and the loss at each."""
        points = sorted(curve.points)
        lost = [0.0, *(self.baseline - value for _, value in points)]
        monotone = np.maximum.accumulate([max(0.0, x) for x in lost])
        return (0.0, *(s for s, _ in points), 1.0), (*monotone.tolist(), max(self.baseline, float(monotone[-1])))

    def suggest(self, loss: float) -> dict[str, float]:
        """Clause 5: per group the share that may go.

        Raises:
            BudgetError: a loss that is negative or no number.
        """
        if not loss >= 0:
            raise BudgetError(f"loss must not be negative, got {loss!r}.", got=loss)
        found = {}
        for curve in self.curves:
            share, cost = self.cost(curve)
            last = max(i for i, value in enumerate(cost) if value <= loss)
            if last == len(share) - 1:
                found[curve.label] = share[-2]
            else:
                part = (loss - cost[last]) / (cost[last + 1] - cost[last])
                found[curve.label] = min(share[last] + part * (share[last + 1] - share[last]), share[-2])
        return found

    def __rich__(self) -> Group:
        asked = sorted({round(s, 2) for curve in self.curves for s, _ in curve.points})
        shares = asked if len(asked) <= 10 else sorted({round(s, 1) for s in asked})
        title = f"{self.metric} when a share of one group goes; {self.baseline:.4f} before"
        table = Table()
        table.add_column("group")
        table.add_column("channels", justify="right")
        for share in shares:
            table.add_column(f"{share:g}", justify="right")
        for curve in self.curves:
            cells = []
            for share in shares:
                near = [value for s, value in curve.points if math.isclose(round(s, 2 if shares is asked else 1), share)]
                cells.append(f"{near[0]:.4f}" if near else "")
            table.add_row(curve.label, str(curve.channels), *cells)
        return Group(title, table)

    def __str__(self) -> str:
        return as_text(self.__rich__())

    def plot(self, path: str | Path) -> None:
        """Draw the most sensitive groups as an SVG file; needs no plotting library."""
        from fxprune.sparse.plot import Line, draw

        chosen = sorted(self.curves, key=lambda curve: -self.cost(curve)[1][-2])[:MOST_LINES]
        lines = [Line(c.label, ((1.0, self.baseline), *((1 - s, value) for s, value in c.points))) for c in chosen]
        text = draw(lines, title=f"{self.metric}, one group at a time", across="share of the group that stays", up=self.metric)
        with replacing(path) as file:
            file.write(text.encode())

    def figure(self) -> Figure:
        """All curves as a matplotlib figure.

        Raises:
            ImportError: matplotlib is not installed.
        """
        lines = {c.label: ((0.0, self.baseline), *c.points) for c in self.curves}
        return figure(lines, across="share of the group removed", up=self.metric, level=self.baseline)


def sensitivity(
    model: nn.Module,
    loader: Iterable[Any],
    shares: Sequence[float] = SHARES,
    *,
    metric: Metric = accuracy,
    score: str | Score | DataScore = "auto",
    path: str | Path | None = None,
    groups: Sequence[str] = (),
    example_inputs: Any = None,
    show: bool = True,
) -> Sensitivity:
    """Measure what each group costs (clauses 1 and 2).

    Args:
        model: only read.
        loader: what ``metric`` gets; any iterable that can be iterated again.
        shares: of one group to remove, in (0, 1).
        metric: a function ``(model, loader) -> number``, larger is better.
        score: chooses the channels within a group.
        path: a JSON file to keep points in, and to go on from.
        groups: globs over groups' names; all unless told.
        example_inputs: as for ``analyze``.
        show: draw a progress bar.

    Raises:
        BudgetError: shares outside (0, 1), an unknown score, or a glob that matches no group.
        FileFormatError: the file is damaged, or holds points of another model or other settings.
        FxpruneError: what ``analyze`` raises.
    """
    if not shares or any(not 0 < share < 1 for share in shares):
        raise BudgetError(f"shares must be in (0, 1), got {tuple(shares)}.", expected="(0, 1)", got=tuple(shares))
    subject = study(model, example_inputs)
    graph = subject.graph
    scored = score_groups(graph.groups, on(score, graph))
    ranking = named(scored.name) if isinstance(score, str) else score
    chosen = [g for g in graph.groups if not groups or any(fnmatch.fnmatchcase(g.name, glob) for glob in groups)]
    if not chosen:
        raise BudgetError(
            f"no group has a name like {', '.join(groups) or '*'}.", expected=[g.name for g in graph.groups][:5], got=groups
        )
    file = None if path is None else Path(path)
    mark = {"weights": weights_digest(model), "score": scored.name, "metric": getattr(metric, "__name__", "metric")}
    done = _read(file, mark)
    if "baseline" not in done:
        done["baseline"] = float(metric(model, loader))
        _write(file, mark, done)
    curves = []
    with steps("sensitivity", len(chosen) * len(shares), show=show) as step:
        for group in chosen:
            points: dict[float, float] = {}
            for share in sorted(shares):
                key = f"{group.name}@{_first(group)}@{share:g}"
                if key not in done:
                    done[key] = _measure(subject, group, share, ranking, metric, loader)
                    _write(file, mark, done)
                if done[key] is not None:
                    points[done[key][0]] = done[key][1]
                step(f"{group.name} {share:g}")
            curves.append(Curve(group.name, _first(group), len(group), tuple(sorted(points.items()))))
    return Sensitivity(done["baseline"], tuple(curves), scored.name, mark["metric"], ranking)


def _first(group: ChannelGroup) -> int:
    return min(int(m.atom.min()) for m in group.members if m.name == group.name and not m.reads)


def _measure(
    subject: Subject, group: ChannelGroup, share: float, ranking: Any, metric: Metric, loader: Iterable[Any]
) -> list[float] | None:
    """Share removed and metric; None where the group allows no such share."""
    others = [g.channels for g in subject.graph.groups if g is not group]
    graph = subject.graph
    if others:
        graph = graph.bar(np.concatenate(others), group.name, "another group is measured")
    try:
        slim, made = slimmed(replace(subject, graph=graph), partial(plan, ratio=share, score=ranking, floor=TIE))
    except BudgetError:
        return None
    return [made.achieved, float(metric(slim, loader))] if made.achieved > 0 else None


def _convex(share: Sequence[float], cost: Sequence[float]) -> tuple[list[float], list[float]]:
    """The corners of the largest convex curve below the points."""
    hull: list[tuple[float, float]] = []
    for x, y in zip(share, cost, strict=True):
        while len(hull) > 1 and (hull[-1][1] - hull[-2][1]) * (x - hull[-2][0]) >= (y - hull[-2][1]) * (
            hull[-1][0] - hull[-2][0]
        ):
            hull.pop()
        hull.append((x, y))
    return [x for x, _ in hull], [y for _, y in hull]


def _read(file: Path | None, mark: Mapping[str, str]) -> dict[str, Any]:
    if file is None or not file.exists():
        return {}
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
        found, points = dict(data["of"]), dict(data["points"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise FileFormatError(
            f"{file.name!r} holds no sensitivity scan ({error}). Remove it to start anew.", node=file.name
        ) from error
    if data.get("format") != FORMAT or found != mark:
        different = [key for key in mark if found.get(key) != mark[key]] or ["format"]
        raise FileFormatError(
            f"{file.name!r} holds points of another scan: {', '.join(different)} differ. Use another path, or remove it to start anew.",
            node=file.name,
            expected=mark.get(different[0], str(FORMAT)),
            got=found.get(different[0], ""),
        )
    return points


def _write(file: Path | None, mark: Mapping[str, str], points: Mapping[str, Any]) -> None:
    if file is not None:
        with replacing(file) as stream:
            stream.write((json.dumps({"format": FORMAT, "of": dict(mark), "points": dict(points)}, indent=1) + "\n").encode())
