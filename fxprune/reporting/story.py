"""All that a report tells about a slim model, as data: what the HTML page, the figures and the command line have in common.

1. *After* is the slim model as it is. *Before* is the first original: the model that is handed over, or the program that the slim
   model remembers (original.py). Where there is neither, before is known from the plan alone: widths and parameters, no MACs and no couplings.
2. Bytes are those of parameters and buffers. MACs (multiply-adds; FLOPs / 2) are those of one call on the example inputs, all samples together.
3. Latency is measured here and now, in turns (latency.py). An original without weights is measured with random ones.
4. A model that is not slim has a story too: one without an after.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn

from fxprune.api import analyze
from fxprune.capture.clone import clone, named_tensors, walk
from fxprune.capture.inputs import Inputs, given
from fxprune.capture.signature import inputs_of
from fxprune.errors import CaptureError, FxpruneError, InputError
from fxprune.graph.channels import ChannelGraph
from fxprune.original import Original
from fxprune.plan import Plan
from fxprune.ranking import Ranking
from fxprune.record import Record, record_of
from fxprune.reporting.couplings import Couplings, couplings
from fxprune.reporting.latency import Latency, measure, runnable
from fxprune.reporting.summary import Summary, analyzed, summed
from fxprune.verify import Evidence


@dataclass(frozen=True, slots=True)
class Cost:
    """One line of the table: ``before`` or ``after`` is NaN where it is not known (clauses 1 and 4)."""

    name: str
    unit: str
    before: float
    after: float


@dataclass(frozen=True, slots=True)
class Layer:
    """A layer's output channels, parameters and MACs, before and after; -1 where a number is not known."""

    name: str
    kind: str
    before: int
    after: int
    parameters_before: int
    parameters: int
    macs_before: int
    macs: int


@dataclass(frozen=True, slots=True)
class Story:
    """What a report tells (module docstring). Texts and numbers only.

    Attributes:
        model: class name of the original.
        slim: there is an after.
        asked: the ratio that was asked for; 0 for a budget.
        figures: what a budget asked for and what is left (``Plan.figures``).
        achieved: the ratio that was achieved, counted the same way.
        score: what ranked the channels.
        layout: of the plan.
        rounds: how often the model was slimmed.
        capture: how the original was captured.
        notes: what a user should know.
        costs: channels, parameters, MACs, bytes.
        latency: of the original and the slim model (clause 3); empty where it was not measured.
        layers: in the order of the program.
        ranking: how the scores of the last round lay (ranking.py).
        couplings: of the original; of the slim model where the original is not known.
        couplings_of: "original" or "slim model".
        evidence: what the verification of the last round saw; None if there was none.
        without_rule: operators without a rule, with the nodes that call them.
        inputs: shapes of the example inputs.
    """

    model: str
    slim: bool
    asked: float
    achieved: float
    score: str
    layout: str
    rounds: int
    capture: str
    notes: tuple[str, ...]
    costs: tuple[Cost, ...]
    latency: tuple[Latency, ...]
    layers: tuple[Layer, ...]
    ranking: Ranking
    couplings: Couplings
    couplings_of: str
    evidence: Evidence | None
    without_rule: tuple[tuple[str, tuple[str, ...]], ...]
    inputs: str
    figures: Mapping[str, Mapping[str, float]] = field(default_factory=dict)


def story(
    slim: nn.Module, model: nn.Module | None = None, example_inputs: Any = None, *, latency: bool = True, seconds: float = 3.0
) -> Story:
    """What there is to tell about a slim model, or about a model that has not been slimmed yet. Models are only read.

    Args:
        slim: what ``slim``, ``apply`` or ``load`` gave; or any model.
        model: the original, where it is at hand: then its couplings are told and its latency is measured with its own weights.
        example_inputs: as for ``analyze``; those that the slim model remembers if left out.
        latency: measure it.
        seconds: how long measuring may take.

    Raises:
        CaptureError: the model cannot be traced.
        InputError: example inputs do not fit or cannot be inferred.
        WeightError: weights that cannot be pruned.
    """
    record = record_of(slim)
    after_graph, inputs = _now(slim, record, example_inputs)
    plan = record.plan if record is not None else Plan({}, {})
    after = summed(after_graph, inputs, plan, slim=record is not None)
    found = _before(model, record, inputs)
    graph = found[0] if found is not None else after_graph
    before = summed(*found, Plan({}, {}), slim=False) if found is not None else None
    times: tuple[Latency, ...] = ()
    if latency:
        times = _latency(slim, model, record, inputs, seconds)
    first = before if before is not None else after
    return Story(
        model=first.model,
        slim=record is not None,
        asked=plan.asked,
        achieved=plan.achieved,
        score=plan.score,
        layout=plan.layout,
        rounds=len(record.rounds) if record is not None else 0,
        capture=first.capture,
        notes=tuple(dict.fromkeys((*first.notes, *after.notes))),
        costs=_costs(slim, before, after, record),
        latency=times,
        layers=_layers(before, after, plain=record is None),
        ranking=plan.ranking,
        couplings=couplings(graph),
        couplings_of="original" if found is not None or record is None else "slim model",
        evidence=record.evidence if record is not None else None,
        without_rule=first.operators_without_rule,
        inputs=_shapes(inputs),
        figures=plan.figures,
    )


def _now(slim: nn.Module, record: Record | None, example: Any) -> tuple[ChannelGraph, Inputs]:
    if example is not None or record is None or record.origin.inputs is None:
        return analyzed(slim, example)
    try:
        inputs = inputs_of(record.origin.inputs, slim)
        return analyze(slim, inputs), inputs
    except (InputError, ValueError):
        return analyzed(slim, None)


def _before(model: nn.Module | None, record: Record | None, inputs: Inputs) -> tuple[ChannelGraph, Inputs] | None:
    """The original's channel graph, and inputs for it (clause 1)."""
    if model is not None:
        return analyze(model, inputs), inputs
    if record is None or record.original is None:
        return None
    try:
        return record.original.graph(), record.original.inputs()
    except (FxpruneError, ValueError, RuntimeError, NotImplementedError):  # it reads numbers, which it has not any more
        return None


def _latency(
    slim: nn.Module, model: nn.Module | None, record: Record | None, inputs: Inputs, seconds: float
) -> tuple[Latency, ...]:
    models: dict[str, nn.Module] = {}
    if record is not None:
        first = model if model is not None else _filled(record.original, slim) if record.original is not None else None
        if first is not None:
            models["original"] = first
    models["slim" if record is not None else "model"] = slim
    try:
        return measure(models, runnable(inputs.map(torch.clone)), seconds=seconds)
    except (CaptureError, RuntimeError):
        return ()


def _filled(original: Original, like: nn.Module) -> nn.Module:
    """The original with random weights, where the slim model's are (clause 3)."""
    device = next((p.device for p in like.parameters()), torch.device("cpu"))
    generator = torch.Generator().manual_seed(0)

    def tensor(_name: str, bare: Tensor) -> Tensor:
        if not bare.is_floating_point():
            return bare if not bare.is_meta else torch.zeros(bare.shape, dtype=bare.dtype, device=device)
        spread = 1 / math.sqrt(max(1, bare.numel() // max(1, bare.shape[0]))) if bare.dim() > 1 else 0.0
        numbers = (
            torch.randn(bare.shape, generator=generator, device="cpu") * spread
            if spread
            else torch.ones(bare.shape, device="cpu")
        )
        new = numbers.to(device, bare.dtype)
        return nn.Parameter(new, requires_grad=False) if isinstance(bare, nn.Parameter) else new

    program = original.program()
    return fx.GraphModule(clone(program.root, tensor), program.graph, program.name)


def _costs(slim: nn.Module, before: Summary | None, after: Summary, record: Record | None) -> tuple[Cost, ...]:
    size = _bytes(named_tensors(walk(slim)))
    if record is None:
        return (
            Cost("channels", "", after.channels, math.nan),
            Cost("parameters", "", after.parameters, math.nan),
            Cost("MACs", "", after.macs, math.nan),
            Cost("bytes", "B", size, math.nan),
        )
    dtypes = {name: tensor.element_size() for name, tensor in named_tensors(walk(slim)).items()}
    whole = sum(math.prod(shape) * dtypes.get(name, 4) for name, shape in record.origin.shapes.items())
    channels = before.channels if before is not None else math.nan
    macs = before.macs if before is not None else math.nan
    parameters = before.parameters if before is not None else after.original_parameters
    return (
        Cost("channels", "", channels, after.channels),
        Cost("parameters", "", parameters, after.parameters),
        Cost("MACs", "", macs, after.macs),
        Cost("bytes", "B", whole, size),
    )


def _bytes(tensors: Mapping[str, Tensor]) -> int:
    return sum(t.numel() * t.element_size() for t in tensors.values())


def _layers(before: Summary | None, after: Summary, *, plain: bool) -> tuple[Layer, ...]:
    """The rows of both summaries, joined by name; the rows of an original that is not known have widths alone."""
    if plain:
        return tuple(Layer(r.name, r.kind, r.before, -1, r.parameters, -1, r.macs, -1) for r in after.layers)
    now = {row.name: row for row in after.layers}
    if before is None:
        return tuple(Layer(r.name, r.kind, r.before, r.after, -1, r.parameters, -1, r.macs) for r in after.layers)
    rows = []
    for row in before.layers:
        own = now.get(row.name)
        if own is not None:
            rows.append(Layer(row.name, row.kind, row.before, own.after, row.parameters, own.parameters, row.macs, own.macs))
        else:  # nothing of it is left, or the slim graph calls it by another name
            rows.append(Layer(row.name, row.kind, row.before, 0, row.parameters, 0, row.macs, 0))
    return tuple(rows)


def _shapes(inputs: Inputs) -> str:
    tensors = [x for x in torch.utils._pytree.tree_leaves((inputs.args, dict(inputs.kwargs))) if isinstance(x, Tensor)]
    return ", ".join("x".join(map(str, t.shape)) or "()" for t in tensors)


def example_of(slim: nn.Module, example_inputs: Any = None) -> Inputs | None:
    """Example inputs with memory of their own: those given, or those that a slim model remembers; None where there are none."""
    if example_inputs is not None:
        return given(example_inputs)
    record = record_of(slim)
    if record is None or record.origin.inputs is None:
        return None
    return runnable(inputs_of(record.origin.inputs, slim))
