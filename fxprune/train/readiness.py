"""Is a network ready to be slimmed? What its gammas say.

1. |gamma| of every batch and instance norm, each parameter once. Nothing is changed.
2. A *global cut* removes the smallest |gamma| of all, as the paper does. ``spare`` is the largest cut that takes no more than ``TOLERANCE`` from the
   sum of |gamma| of any norm. Sums are taken norm by norm, since norms settle at different scales: 0.03 is nothing in a classifier's last norm and
   everything in the one before. What is below ``NEGLIGIBLE`` times the mean of all counts as zero, so a norm that died as a whole is to spare.
3. A norm is *flattened* by a cut if less than ``FLAT`` of its channels would stay. (``slim`` has a floor per group; what it keeps there it must take
   elsewhere.)
4. That is right for chains and for layout="selection", where every norm loses channels of its own. In the coupled layout a channel goes with all its
   scale factors, and some cannot go. Given the channel graph, groups take the place of norms and coupled channels (their mean |gamma|) that of
   scale factors: ``spare`` is the longest cut of ``slim``'s own elimination order (solve/harmless.py) within the same tolerance.
5. ``cut_into``: the share of the sum of |gamma| of a group of coupled channels that a plan removes, where it is largest. Beyond ``LARGE`` the cut
   goes through channels that were in use, and ``slim`` warns. Gammas tell what a channel is worth only after training with a penalty on them.
"""

from __future__ import annotations

import math
import os
import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from rich.console import Console
from rich.table import Table
from rich.text import Text
from torch import Tensor, nn

from fxprune.errors import BudgetError, FxpruneWarning, NothingToPruneError, WeightError
from fxprune.graph.channels import ChannelGraph, ChannelGroup
from fxprune.score.scores import Scored, gamma, gamma_sum
from fxprune.solve.harmless import harmless
from fxprune.solve.ratio import channel_weights, check_options
from fxprune.train.gamma_l1 import _known, gammas

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TOLERANCE = 0.01
FLAT = 0.1
LARGE = 0.02
NEGLIGIBLE = 1e-3
THRESHOLDS = (1e-4, 1e-3, 1e-2, 1e-1)
WIDTH = 120


@dataclass(frozen=True, slots=True)
class Distribution:
    """|gamma| of one layer, or of all.

    Attributes:
        name: of the parameter, or of the group of coupled channels; "all" for the whole network.
        channels: how many; coupled ones with a graph.
        quartiles: minimum, first quartile, median, third quartile, maximum.
        below: share below each threshold, in [0, 1].
        spare: share that the spare cut of clause 2 removes.
    """

    name: str
    channels: int
    quartiles: tuple[float, float, float, float, float]
    below: tuple[float, ...]
    spare: float


@dataclass(frozen=True, slots=True, eq=False)
class Readiness:
    """What ``readiness`` found; ``print`` shows it as a table, and rich renders it.

    Attributes:
        overall: all gammas.
        layers: the same per norm; with a graph, per group of channels that can go.
        thresholds: what ``Distribution.below`` refers to.
        values: |gamma| per norm, sorted, float64 on the CPU; with a graph, means of coupled channels.
        counts: how many channels of a ratio each of the values is.
    """

    overall: Distribution
    layers: tuple[Distribution, ...]
    thresholds: tuple[float, ...]
    values: tuple[Tensor, ...]
    counts: tuple[Tensor, ...]

    @property
    def spare(self) -> float:
        """The ratio that should cost next to nothing, in [0, 1) (clause 2)."""
        return self.overall.spare

    def flattened(self, ratio: float | None = None) -> tuple[str, ...]:
        """Names of the norms of which a global cut leaves less than ``FLAT`` (clause 3); at ``spare`` unless a ratio is given.

        Raises:
            BudgetError: a ratio outside [0, 1].
        """
        if ratio is not None and not 0 <= ratio <= 1:
            raise BudgetError(f"ratio must be in [0, 1], got {ratio!r}.", expected="a share", got=ratio)
        merged, order = torch.cat(self.values).sort()
        gone = torch.cat([torch.zeros(1, dtype=torch.float64, device="cpu"), torch.cat(self.counts)[order].cumsum(0)])
        count = int((gone - (self.spare if ratio is None else ratio) * gone[-1]).abs().argmin())
        if count == 0:
            return ()
        threshold = merged[count - 1]
        return tuple(
            layer.name
            for layer, own in zip(self.layers, self.values, strict=True)
            if float((own > threshold).double().mean()) < FLAT
        )

    def plot(self, path: str | Path | None = None) -> Figure:
        """Sorted |gamma| of every norm and of all, on a logarithmic scale, with the spare ratio; written to ``path`` if given.

        Raises:
            ImportError: matplotlib is not installed.
        """
        from fxprune.train.readiness_plot import plot

        figure = plot(self)
        if path is not None:
            figure.savefig(path)
        return figure

    def __rich__(self) -> Table:
        table = Table(title=f"|gamma|: {self.spare:.0%} of the channels are to spare", title_justify="left")
        table.add_column("norm", overflow="fold")
        for name in ("channels", "min", "median", "max", *(f"< {t:g}" for t in self.thresholds), "spare"):
            table.add_column(name, justify="right", no_wrap=True)
        for layer in self.layers:
            _row(table, layer)
        table.add_section()
        _row(table, self.overall)
        flat = self.flattened()
        if flat:
            more = f" and {len(flat) - 4} more" if len(flat) > 4 else ""
            table.caption = f"a global cut there flattens {', '.join(flat[:4])}{more}"
        return table

    def __str__(self) -> str:
        console = Console(width=WIDTH, color_system=None, force_terminal=False)
        with console.capture() as captured:
            console.print(self)
        return "\n".join(line.rstrip() for line in captured.get().splitlines())


def _row(table: Table, found: Distribution) -> None:
    low, _, median, _, high = found.quartiles
    shares = (f"{share:.0%}" for share in (*found.below, found.spare))
    table.add_row(Text(found.name), str(found.channels), f"{low:.2g}", f"{median:.2g}", f"{high:.2g}", *shares)


def readiness(
    model: nn.Module, thresholds: Sequence[float] = THRESHOLDS, *, graph: ChannelGraph | None = None, floor: float = 0.1
) -> Readiness:
    """The distribution of |gamma| and what it says about slimming (clauses 1 to 4).

    Args:
        model: any module with batch or instance norms; only read.
        thresholds: shares below these are told.
        graph: what ``fxprune.analyze`` returned for the model; if given, ``spare`` is what ``slim`` removes without a warning in the coupled layout.
        floor: as for ``slim``; only with a graph.

    Raises:
        NothingToPruneError: the model has no gamma, or none of a channel that can go.
        BudgetError: a floor outside [0, 1].
        WeightError: gammas that are NaN or infinite.
    """
    found = {name: gamma.detach().abs().flatten().cpu().to(torch.float64).sort().values for name, gamma in gammas(model).items()}
    found = {name: values for name, values in found.items() if len(values)}
    if not found:
        raise NothingToPruneError(
            f"{type(model).__name__} has no batch or instance norm with a scale, so no gamma can say what is to spare."
        )
    for name, values in found.items():
        if not bool(values.isfinite().all()):
            raise WeightError(
                f"{name!r} holds NaN or infinite numbers. The model's weights are damaged (did training diverge?).",
                node=name,
                expected="finite numbers",
            )
    limits = tuple(thresholds)
    if graph is not None:
        return _coupled(model, graph, floor, limits)
    merged = torch.cat(list(found.values()))
    highest = _spare(list(found.values()))
    layers = tuple(_distribution(name, values, limits, highest) for name, values in found.items())
    whole = _distribution("all", merged.sort().values, limits, highest)
    return Readiness(whole, layers, limits, tuple(found.values()), tuple(torch.ones_like(own) for own in found.values()))


def _coupled(model: nn.Module, graph: ChannelGraph, floor: float, limits: tuple[float, ...]) -> Readiness:
    """Clause 4."""
    check_options(floor, 1)
    trained = gammas(model)
    given = {name: _known(graph, trained, name) for group in graph.groups for name in group.gammas}
    own = {name: trained[there] for name, there in given.items() if there}
    if not own:
        raise NothingToPruneError(
            f"no gamma of {type(model).__name__} belongs to a channel that can go, so none can say what is to spare. "
            "Was the graph made from this model?"
        )
    scaled = [replace(group, tensors={**group.tensors, **own}) for group in graph.groups if group.gammas]
    values = [gamma(group) for group in scaled]
    known = iter(values)
    everywhere = (
        next(known) if g.gammas else torch.full((len(g),), math.inf, dtype=torch.float64, device="cpu") for g in graph.groups
    )
    scored = Scored("gamma", tuple(everywhere))
    gone, share = harmless(graph, scored, floor, tolerance=TOLERANCE, negligible=NEGLIGIBLE)
    weight = torch.from_numpy(channel_weights(graph)).to(torch.float64)
    removed = torch.from_numpy(gone).to(torch.float64)
    layers, ordered, counts = [], [], []
    for group, means in zip(scaled, values, strict=True):
        place = means.argsort()
        channels = torch.from_numpy(group.channels)[place]
        spare = float((removed * weight)[channels].sum() / weight[channels].sum())
        layers.append(_described(group.name, means[place], limits, spare))
        ordered.append(means[place])
        counts.append(weight[channels])
    whole = _described("all", torch.cat(ordered).sort().values, limits, share)
    return Readiness(whole, tuple(layers), limits, tuple(ordered), tuple(counts))


def _counted(values: Tensor, mean: float) -> Tensor:
    """|gamma| with what is negligible beside the mean of all set to zero (clause 2)."""
    return values.where(values > NEGLIGIBLE * mean, 0.0)


def _spare(norms: Sequence[Tensor]) -> float:
    """The largest |gamma| that the spare cut removes, -1 if nothing is to spare (clause 2); ties go or stay together."""
    mean = float(torch.cat(list(norms)).mean())
    if mean == 0:
        return 0.0
    highest, lowest_kept = -1.0, math.inf
    for own in norms:
        counted = _counted(own, mean)
        stays = own[counted.cumsum(0) > TOLERANCE * counted.sum() * (1 + 1e-9)]
        lowest_kept = min(lowest_kept, float(stays.min()) if len(stays) else math.inf)
    for own in norms:
        goes = own[own < lowest_kept]
        highest = max(highest, float(goes.max()) if len(goes) else -1.0)
    return highest


def _distribution(name: str, ordered: Tensor, thresholds: Sequence[float], highest: float) -> Distribution:
    return _described(name, ordered, thresholds, float((ordered <= highest).double().mean()))


def _described(name: str, ordered: Tensor, thresholds: Sequence[float], spare: float) -> Distribution:
    marks = torch.quantile(ordered, torch.linspace(0, 1, 5, dtype=torch.float64, device="cpu")).tolist()
    below = tuple(float((ordered < t).double().mean()) for t in thresholds)
    return Distribution(name, len(ordered), (marks[0], marks[1], marks[2], marks[3], marks[4]), below, spare)


def cut_into(
    groups: Sequence[ChannelGroup], removed: npt.NDArray[np.bool_], gammas: Sequence[Tensor] | None = None
) -> tuple[float, str]:
    """The largest share of a group's sum of |gamma| that the removed channels hold, in [0, 1], and the group's name (clause 5).

    Args:
        groups: of the channel graph.
        removed: per coupled channel; what ``ChannelGroup.channels`` counts.
        gammas: per group, the |gamma| of its channels (sum or mean), where that is known already.
    """
    chosen = [index for index, group in enumerate(groups) if group.gammas]
    if not chosen:
        return 0.0, ""
    held = [(gamma_sum(groups[i]) if gammas is None else gammas[i]).numpy() for i in chosen]
    starts = np.cumsum([0, *map(len, held)])[:-1]
    values = np.concatenate(held)
    counted = np.where(values > NEGLIGIBLE * values.mean(), values, 0.0)
    gone = counted * removed[np.concatenate([groups[i].channels for i in chosen])]
    shares = np.add.reduceat(gone, starts) / np.maximum(np.add.reduceat(counted, starts), 1e-300)
    largest = max(range(len(chosen)), key=lambda k: (shares[k], groups[chosen[k]].name))
    return float(shares[largest]), groups[chosen[largest]].name


def warn_if_large(
    groups: Sequence[ChannelGroup], score: str, removed: npt.NDArray[np.bool_], ratio: float | None, values: Sequence[Tensor]
) -> None:
    """Warn where a cut by gamma removes more than ``LARGE`` of what a group holds (clause 5). ``values``: the scores; no ``ratio``: a budget."""
    if not score.startswith("gamma"):
        return
    share, name = cut_into(groups, removed, values if score == "gamma" else None)
    if share > LARGE:
        asked = "that this budget needs" if ratio is None else f"{ratio:g}"
        warnings.warn(
            f"the ratio {asked} cuts into large scale factors: {share:.0%} of the sum of |gamma| of the channels of {name!r} goes. "
            "Expect a loss that fine-tuning has to mend; or train with fxprune.train.GammaL1 first, or ask for less "
            "(fxprune.train.readiness(model) shows how much is to spare).",
            FxpruneWarning,
            stacklevel=_outside(),
        )


def _outside() -> int:
    """The stack level, seen from the caller, of the first frame outside this package: the line of the user's that asked."""
    package = str(Path(__file__).resolve().parents[1]) + os.sep
    frame: Any = sys._getframe(1)
    level = 1
    while frame is not None and (
        frame.f_code.co_filename.startswith(package) or frame.f_code.co_filename.endswith("contextlib.py")
    ):
        frame = frame.f_back
        level += 1
    return level
