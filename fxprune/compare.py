"""Which score to use: accuracy (or any metric) against ratio, for several scores on one network, nothing retrained.

1. The model is analysed once. Every score makes a plan for every ratio; the slim network is emitted (not verified, which costs more than it
   tells here) and measured. The model is only read.
2. ``recalibrate`` batches re-estimate the batch norms of each slim network first, as one would after slimming; 0 measures it as it is.
3. A ratio that floors or balances put out of reach has no value, but a reason.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from rich.console import Console, Group
from rich.table import Table
from torch import Tensor, nn

from fxprune.api import plan
from fxprune.errors import BudgetError, FxpruneWarning
from fxprune.evaluate import Metric, accuracy
from fxprune.graph.channels import ChannelGraph
from fxprune.pipeline import Subject, emit_settled, study
from fxprune.plan import Plan
from fxprune.progress import steps
from fxprune.quiet import without
from fxprune.reporting.curves import as_text, figure
from fxprune.score import activation, apoz, fisher, normalised, obd, taylor, taylor_gates
from fxprune.score.data import DataScore, on
from fxprune.score.scores import Score
from fxprune.train.recalibrate import recalibrate as recalibrated

if TYPE_CHECKING:
    from matplotlib.figure import Figure

RATIOS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8)
OF_DATA: Mapping[str, Callable[..., DataScore]] = {
    "taylor": taylor,
    "taylor_gates": taylor_gates,
    "fisher": fisher,
    "obd": obd,
    "activation": activation,
    "apoz": apoz,
}
WITHOUT_LOSS = ("activation", "apoz")


@dataclass(frozen=True, slots=True)
class Point:
    """One slim network: what was asked and achieved, parameters left, the metric (NaN with a reason where there is no such network)."""

    asked: float
    achieved: float
    parameters: int
    value: float
    reason: str = ""


@dataclass(frozen=True)
class Comparison:
    """The metric against the ratio, per score. ``print`` (rich's too) shows a table.

    Attributes:
        baseline: the metric of the model as it is.
        metric: its name.
        curves: per score, its points in the order of the ratios.
    """

    baseline: float
    metric: str
    curves: Mapping[str, tuple[Point, ...]]

    def best(self) -> dict[float, str]:
        """Per ratio, the score with the largest value."""
        found: dict[float, str] = {}
        for index, ratio in enumerate(self.ratios):
            values = {name: points[index].value for name, points in self.curves.items() if not math.isnan(points[index].value)}
            if values:
                found[ratio] = max(values, key=lambda name: values[name])
        return found

    @property
    def ratios(self) -> tuple[float, ...]:
        return tuple(point.asked for point in next(iter(self.curves.values()), ()))

    def __rich__(self) -> Group:
        title = f"{self.metric} against ratio; {self.baseline:.4f} before"
        table = Table()
        table.add_column("score")
        for ratio in self.ratios:
            table.add_column(f"{ratio:g}", justify="right")
        best = self.best()
        for name, points in self.curves.items():
            cells = ["-" if math.isnan(p.value) else f"{p.value:.4f}" for p in points]
            marked = [f"[bold]{cell}[/]" if best.get(p.asked) == name else cell for cell, p in zip(cells, points, strict=True)]
            table.add_row(name, *marked)
        return Group(title, table)

    def __str__(self) -> str:
        return as_text(self.__rich__())

    def plot(self) -> Figure:
        """A curve per score. Needs matplotlib.

        Raises:
            ImportError: matplotlib is not installed.
        """
        lines = {name: [(p.achieved, p.value) for p in points if not math.isnan(p.value)] for name, points in self.curves.items()}
        return figure(lines, across="share of channels removed", up=self.metric, level=self.baseline)


def compare_scores(
    model: nn.Module,
    loader: Iterable[Any],
    scores: Sequence[str | Score | DataScore] | Mapping[str, str | Score | DataScore] = (),
    ratios: Sequence[float] = RATIOS,
    *,
    metric: Metric = accuracy,
    calibration: Iterable[Any] | None = None,
    loss: Callable[[Any, Any], Tensor] | None = None,
    example_inputs: Any = None,
    recalibrate: int = 0,
    floor: float = 0.1,
    round_to: int = 1,
    show: bool = True,
) -> Comparison:
    """Measure a network slimmed by several scores to several ratios, print the table and return it (clauses 1 to 3).

    Args:
        model: only read.
        loader: what ``metric`` gets; any iterable that can be iterated again.
        scores: names, callables or scores of data, or a dict of them by name. The names "taylor", "taylor_gates", "fisher", "obd", "activation"
            and "apoz" stand for these scores on ``calibration``, "taylor:mean" and the like for them normalised. Unless told: gamma where every
            group has one, magnitude, fpgm, lamp, taylor, random.
        ratios: shares of channels to remove.
        metric: a function ``(model, loader) -> number``, larger is better.
        calibration: what data-driven scores and ``recalibrate`` look at; ``loader`` unless told. Use training data, or the comparison is flattered.
        loss: ``(output, target) -> mean``; cross entropy unless told.
        example_inputs: as for ``analyze``.
        recalibrate: how many batches re-estimate batch norms before measuring.
        floor: as for ``plan``.
        round_to: as for ``plan``.
        show: print progress and the table.

    Raises:
        BudgetError: an unknown score, or a ratio outside [0, 1).
        FxpruneError: what ``analyze`` raises.
    """
    subject = study(model, example_inputs)
    data = loader if calibration is None else calibration
    chosen = _chosen(subject.graph, scores, data, loss)
    baseline = float(metric(subject.model, loader))
    curves: dict[str, tuple[Point, ...]] = {}
    with steps("comparing scores", len(chosen) * len(ratios), show=show) as step:
        for name, score in chosen.items():
            points = []
            for ratio in ratios:
                points.append(_point(subject, ratio, score, metric, loader, data, recalibrate, floor, round_to))
                step(f"{name} {ratio:g}")
            curves[name] = tuple(points)
    found = Comparison(baseline, getattr(metric, "__name__", "metric"), curves)
    if show:
        Console().print(found)
    return found


def _chosen(graph: ChannelGraph, scores: Any, data: Iterable[Any], loss: Any) -> dict[str, Any]:
    if not scores:
        gammas = ("gamma",) if graph.groups and all(group.gammas for group in graph.groups) else ()
        scores = (*gammas, "magnitude", "fpgm:mean", "lamp", "taylor", "random")
    named = dict(scores) if isinstance(scores, Mapping) else {_name(score): score for score in scores}
    return {name: _made(score, data, loss) for name, score in named.items()}


def _name(score: Any) -> str:
    return score if isinstance(score, str) else getattr(score, "__name__", type(score).__name__)


def _made(score: Any, data: Iterable[Any], loss: Any) -> Any:
    name, colon, by = score.partition(":") if isinstance(score, str) else ("", "", "")
    if name not in OF_DATA:
        return score
    made = OF_DATA[name](data) if loss is None or name in WITHOUT_LOSS else OF_DATA[name](data, loss)
    return normalised(made, by) if colon else made


def _point(
    subject: Subject,
    ratio: float,
    score: Any,
    metric: Metric,
    loader: Iterable[Any],
    data: Iterable[Any],
    recalibrate: int,
    floor: float,
    round_to: int,
) -> Point:
    try:
        slim, made = slimmed(subject, partial(plan, ratio=ratio, score=score, floor=floor, round_to=round_to))
    except BudgetError as error:
        on(score, subject.graph)  # a score that cannot be computed is no matter of this ratio
        if not 0 <= ratio < 1 or "cannot be reached" not in str(error):
            raise
        return Point(ratio, math.nan, 0, math.nan, str(error))
    if recalibrate:
        recalibrated(slim, data, recalibrate)
    return Point(ratio, made.achieved, sum(p.numel() for p in slim.parameters()), float(metric(slim, loader)))


def slimmed(subject: Subject, decide: Callable[[ChannelGraph], Plan]) -> tuple[nn.Module, Plan]:
    """The slim network of a plan, without verification and without the warning about large scale factors."""
    with without(FxpruneWarning):
        _, made, slim = emit_settled(subject, decide, pin=True)
    return slim, made
