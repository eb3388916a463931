"""``measure``: seconds of every layer of a model over widths, on this machine; ``LatencyTable`` adds them up for a plan.

1. 25 slim networks whose groups have widths from a grid (samples.py) are made and deployed (inference/deploy.py, in the form that was fastest for the
   full one), and every node of them is timed while the whole runs (profile.py). ``deployed=False``: they run as they are.
2. A layer's *axes* are the dimensions of parameters whose widths its time is laid over: of a layer with a weight of two dimensions or more, that
   weight's first two, as far as a plan can shrink them; of another node, the dimension whose channels are those of its result. Nodes
   without axes are the constant.
3. Samples are kept on disk as they are measured (cache.py): a second table is there at once, an interrupted one goes on. Samples of
   fewer ``rounds`` than are asked are measured anew.
4. What odd widths cost more is in factors per layer and axis (uneven.py), fitted to samples that have such widths.
5. Nodes add up to less than the whole: calls cost something too. Over all samples the time of a plain call is fitted by a constant, which goes into
   the table's, and ``calibration`` times the sum of its nodes', by which all entries are multiplied. Neither is negative.
6. Between grid points times are linear along each axis (solve/cost_table.py): ``constant`` and ``entries`` are what the solver takes, for widths
   that are multiples of ``alignment``. ``seconds`` multiplies by the factors of clause 4 as well, and so do the solver's figures (``factor``).
7. A sample that took over 8 % longer than its own table says was disturbed: it is measured once more at the end, and so is the full network,
   on which shares rest. Of two times of a node the lesser counts. That is done once: a table on disk stays what it is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Group
from rich.table import Table
from scipy.optimize import nnls
from torch import fx, nn

from fxprune.capture.clone import module_at
from fxprune.capture.inputs import given
from fxprune.errors import BudgetError, CaptureError, FxpruneError
from fxprune.graph.channels import ChannelGraph
from fxprune.inference.deploy import GIVEN, deploy, deployment_of
from fxprune.latency.cache import Samples, default_folder, machine_state
from fxprune.latency.fit import fitted
from fxprune.latency.profile import profile
from fxprune.latency.samples import array, samples
from fxprune.latency.uneven import Factors, alignment, factor, factors
from fxprune.pipeline import Subject, emit_settled, study
from fxprune.plan import Plan
from fxprune.progress import steps
from fxprune.provenance.eager import EagerProgram
from fxprune.provenance.factor import Value
from fxprune.reporting.curves import as_text
from fxprune.solve.cost_table import CostEntry
from fxprune.timing import interleaved, typical

ROUNDS = 9
DISTURBED = 1.08
DEPLOYING = 1.0  # seconds to choose a form in
Axis = tuple[str, int]


@dataclass(frozen=True)
class LatencyTable:
    """Seconds per layer over widths (clause 6), for one machine state and input shape.

    Attributes:
        constant: seconds of what no plan can shrink.
        entries: one per layer that a plan can shrink.
        measured: seconds of the whole unpruned network.
        calibration: clause 5.
        alignment: clause 4: multiples of this are cheap.
        penalties: clause 4; per layer, axis and evenness.
        form: the form of deployment that was measured.
        machine: device, threads, torch version, dtype, and the shapes of the example inputs.
    """

    constant: float
    entries: tuple[CostEntry, ...]
    measured: float
    calibration: float
    alignment: int
    penalties: Mapping[str, Factors]
    form: str
    machine: Mapping[str, Any]

    def seconds(self, plan: Plan | Mapping[Axis, float] | None = None) -> float:
        """Predicted seconds of one call.

        Args:
            plan: a plan for the measured model, or numbers of live channels by (parameter name, dimension); what it does not name keeps its width.

        Raises:
            BudgetError: a plan for a model with other widths.
        """
        return self.constant + sum(self.by_layer(plan).values())

    def by_layer(self, plan: Plan | Mapping[Axis, float] | None = None) -> dict[str, float]:
        """The same per layer, without the constant."""
        found = {}
        for entry in self.entries:
            widths = [_alive(plan, entry, i) for i in range(len(entry.axes))]
            found[entry.name] = entry.at(widths) * self.factor(entry, widths)
        return found

    def factor(self, entry: CostEntry, widths: Sequence[float]) -> float:
        """What a layer of these widths takes longer than its grid says (clause 4)."""
        return factor(entry, self.penalties[entry.name], widths)

    def __rich__(self) -> Group:
        title = f"{1e3 * self.seconds():.3f} ms ({self.form}) on {self.machine['device']}, {self.machine['threads']} threads"
        found = Table()
        for column in ("layer", "axes", "full width, us", "half of each width, us"):
            found.add_column(column, justify="left" if column in ("layer", "axes") else "right")
        for entry in sorted(self.entries, key=lambda e: -float(e.costs.flat[-1])):
            half = entry.at([grid[-1] / 2 for grid in entry.widths])
            axes = ", ".join(f"{name}[{dim}]" for name, dim in entry.axes)
            found.add_row(entry.name, axes, f"{1e6 * float(entry.costs.flat[-1]):.1f}", f"{1e6 * half:.1f}")
        return Group(title, found)

    def __str__(self) -> str:
        return as_text(self.__rich__())


def _alive(plan: Plan | Mapping[Axis, float] | None, entry: CostEntry, index: int) -> float:
    (name, dim), full = entry.axes[index], entry.widths[index][-1]
    if plan is None:
        return full
    if not isinstance(plan, Plan):
        return plan.get((name, dim), full)
    rows = plan.kept.get(name, {}).get(dim)
    if rows is None:
        return full
    if plan.sizes[name][dim] != full:
        raise BudgetError(
            f"the plan has {plan.sizes[name][dim]} channels for {name!r}, dimension {dim}, and the table {full}: it is for another model.",
            node=name,
            expected=full,
            got=plan.sizes[name][dim],
        )
    return len(rows)


def seconds_of(model: nn.Module, example_inputs: Any, *, seconds: float = 2.0) -> float:
    """Seconds of one call of a module, measured as the table's ``measured`` was.

    Args:
        model: called as it is, without gradients.
        example_inputs: a tensor, a tuple of arguments or a dict of keyword arguments.
        seconds: how long to measure.
    """
    inputs = given(example_inputs).map(torch.clone)
    with torch.no_grad():
        (times,) = interleaved([partial(model, *inputs.args, **inputs.kwargs)], _device(model), seconds)
    return typical(times)


@torch.no_grad()
def measure(
    model: nn.Module,
    example_inputs: Any = None,
    *,
    deployed: bool = True,
    cache: str | Path | None = "",
    rounds: int = ROUNDS,
    show: bool = True,
) -> LatencyTable:
    """Measure every layer of a model over widths (clauses 1 to 4).

    Args:
        model: only read.
        example_inputs: as for ``analyze``: the batch size and image size that will be used.
        deployed: measure the deployed form.
        cache: a folder; unless told ``$FXPRUNE_CACHE`` or ``fxprune`` in the user's cache folder. None: nothing is kept.
        rounds: how often each network is run; what was kept of fewer rounds does not count.
        show: draw a progress bar.

    Raises:
        BudgetError: ``rounds`` is no positive number.
        CaptureError: the model runs as an eager module, which has no nodes to time.
        FileFormatError: the cache holds a damaged file.
        FxpruneError: what ``analyze`` raises.
    """
    return measure_subject(study(model, example_inputs), deployed=deployed, cache=cache, rounds=rounds, show=show)


@torch.no_grad()
def measure_subject(
    subject: Subject, *, deployed: bool, cache: str | Path | None = "", rounds: int = ROUNDS, show: bool = True
) -> LatencyTable:
    """``measure``, for a model that was studied.

    Raises:
        BudgetError: ``rounds`` is no positive number.
        CaptureError: the model runs as an eager module, which has no nodes to time.
        FileFormatError: the cache holds a damaged file.
    """
    if rounds < 1:
        raise BudgetError(f"rounds must be at least 1, got {rounds!r}.", got=rounds)
    if isinstance(subject.graph.program, EagerProgram):
        captured = subject.graph.program.captured
        raise CaptureError(f"{captured.name} runs as an eager module: it has no nodes to time.", got=captured.how)
    # What cannot be emitted is pinned here, so that every sample can be.
    subject, _, _ = emit_settled(subject, lambda graph: samples(graph)[-1], pin=True, weights=False)
    bench = Bench(subject, deployed, rounds, cache)
    plans = samples(subject.graph)
    missing = any(not bench.kept.has(number, rounds) for number in range(len(plans)))
    with steps("measuring widths", len(plans), show=show and missing) as step:
        # Round and odd widths in turns: a machine that becomes slower must not pass for the price of odd ones.
        for number in sorted(range(len(plans)), key=lambda n: n % len(array())):
            bench.add(number, plans[number])
            step("")
    table = bench.table()
    again = bench.disturbed(table)
    with steps("measuring once more", len(again), show=show and bool(again)) as step:
        for number in again:
            bench.add(number, plans[number], again=True)
            step("")
    return bench.table() if again else table


class Bench:
    """Samples of one model, as they come in (clauses 1 and 3)."""

    def __init__(self, subject: Subject, deployed: bool, rounds: int, cache: str | Path | None) -> None:
        self.subject, self.rounds = subject, rounds
        module = subject.graph.program.captured.module()
        self.device = _device(module)
        state = machine_state(self.device, module, subject.inputs, deployed=deployed)
        self.kept = Samples(_folder(cache), state)
        if self.kept.form == "":
            full = deploy(module, subject.inputs, seconds=DEPLOYING if deployed else 0.0, form="" if deployed else GIVEN)
            self.kept.start(deployment_of(full).chosen)

    def add(self, number: int, plan: Plan, *, again: bool = False) -> None:
        """Time one sample, unless that was done; a plan that cannot be emitted is left out."""
        if self.kept.has(number, self.rounds) and not again:
            return
        try:
            _, made, slim = emit_settled(self.subject, lambda _: plan, pin=False)
            program = deploy(slim, self.subject.inputs, form=self.kept.form)
            assert isinstance(program, fx.GraphModule)
            seconds, total = profile(program, self.subject.inputs, self.device, self.rounds)
        except FxpruneError:
            self.kept.put(number, {}, {}, 0.0, self.rounds)
            return
        widths = {f"{name}[{dim}]": len(rows) for name, dims in made.kept.items() for dim, rows in dims.items()}
        self.kept.put(number, widths, seconds, total, self.rounds)

    def disturbed(self, table: LatencyTable) -> list[int]:
        """Clause 7: the numbers of the samples to measure once more, the full network last; none if that was done."""
        kept = self.kept.samples
        if kept[0]["looks"] > 1 or not kept[0]["seconds"]:
            return []
        found = []
        for number in sorted(kept)[1:]:
            widths = {entry.name: _widths(entry, kept[number]) for entry in table.entries}
            entries = (e.at(widths[e.name]) * table.factor(e, widths[e.name]) for e in table.entries)
            if kept[number]["looks"] == 1 and kept[number]["total"] > DISTURBED * (table.constant + sum(entries)):
                found.append(number)
        return [*found, 0]

    def table(self) -> LatencyTable:
        """Clauses 2, 4 and 5."""
        axes = _axes_by_node(self.subject.graph)
        sizes = {(a.name, a.dim): a.size for a in self.subject.graph.axes}
        every = self.kept.samples
        found = [every[n] for n in sorted(every) if every[n]["seconds"] and n < len(array())]
        uneven = [every[n] for n in sorted(every) if every[n]["seconds"] and n >= len(array())]
        nodes = list(dict.fromkeys(name for sample in found for name in sample["seconds"]))
        constant, entries, odd = 0.0, [], {}
        for node in nodes:
            here = [sample for sample in found if node in sample["seconds"]]
            times = [sample["seconds"][node] for sample in here]
            own = axes.get(node, ())
            if own:
                widths = [[sample["widths"].get(f"{name}[{dim}]", sizes[name, dim]) for name, dim in own] for sample in here]
                entry = fitted(node, own, [sizes[axis] for axis in own], widths, times)
                others = [sample for sample in uneven if node in sample["seconds"]]
                entries.append(entry)
                odd[node] = factors(entry, [_widths(entry, s) for s in others], [s["seconds"][node] for s in others])
            else:
                constant += float(np.median(times)) * len(here) / len(found)
        between, scale = _calls([*found, *uneven])
        scaled = tuple(CostEntry(e.name, e.axes, e.widths, e.costs * scale) for e in entries)
        kept = self.kept
        return LatencyTable(
            constant * scale + between, scaled, found[0]["total"], scale, alignment(entries, odd), odd, kept.form, kept.state
        )


def _calls(found: Sequence[Mapping[str, Any]]) -> tuple[float, float]:
    """Clause 5: the constant, and the factor."""
    totals = np.array([sample["total"] for sample in found])
    sums = np.array([sum(sample["seconds"].values()) for sample in found])
    (between, scale), _ = nnls(np.stack([1 / totals, sums / totals], axis=1), np.ones(len(found)))
    return float(between), float(scale)


def _widths(entry: CostEntry, sample: Mapping[str, Any]) -> list[int]:
    pairs = zip(entry.axes, entry.widths, strict=True)
    return [sample["widths"].get(f"{name}[{dim}]", grid[-1]) for (name, dim), grid in pairs]


def _axes_by_node(graph: ChannelGraph) -> dict[str, tuple[Axis, ...]]:
    """Clause 2."""
    component, pinned = graph.closed.component, graph.pinned
    shrinking: dict[Axis, bytes] = {}
    by_channels: dict[bytes, Axis] = {}
    for axis in graph.axes:
        own = component[axis.start : axis.start + axis.size]
        if not pinned[own].all():
            shrinking[axis.name, axis.dim] = key = np.sort(own).tobytes()
            by_channels.setdefault(key, (axis.name, axis.dim))
    captured = graph.program.captured
    names = {id(tensor): name for name, tensor in captured.tensors.items()}
    found: dict[str, tuple[Axis, ...]] = {}
    for node in captured.graph.nodes:
        weights = [name for name in _weights(node, captured.root, names) if graph.tensors[name].dim() > 1]
        own_axes = [(name, dim) for name in weights[:1] for dim in (0, 1) if (name, dim) in shrinking]
        distinct = {shrinking[axis]: axis for axis in own_axes}  # a square weight whose sides are coupled has one
        if not distinct:
            made = _made(graph, node, by_channels)
            distinct = {b"": made} if made is not None else {}
        if distinct:
            found[node.name] = tuple(distinct.values())
    return found


def _weights(node: fx.Node, root: nn.Module, names: Mapping[int, str]) -> list[str]:
    if node.op == "call_module":
        return [names[id(p)] for p in module_at(root, str(node.target)).parameters() if id(p) in names]
    reads = [n for n in node.all_input_nodes if n.op == "get_attr" and str(n.target) in names.values()]
    return [str(n.target) for n in reads]


def _made(graph: ChannelGraph, node: fx.Node, by_channels: Mapping[bytes, Axis]) -> Axis | None:
    value = graph.nodes.get(node.name)
    value = value[0] if isinstance(value, (tuple, list)) and value else value
    if isinstance(value, Value):
        for part in value.factors:
            axis = by_channels.get(np.sort(graph.closed.component[part].ravel()).tobytes())
            if axis is not None:
                return axis
    return None


def _folder(cache: str | Path | None) -> Path | None:
    return None if cache is None else Path(cache) if str(cache) else default_folder()


def _device(module: nn.Module) -> torch.device:
    return next((t.device for t in (*module.parameters(), *module.buffers())), torch.device("cpu"))
