"""What a model's channels are, what they cost, and what became of them.

1. A *layer* is a module that the program uses and that holds parameters. Its width is the number of its output channels. Nodes
   without parameters that multiply (a product of two activations) have a row without width.
2. ``before`` and ``original_parameters`` are the original's. They differ from the given model's for a slim model only, and come from
   its plan. (Where a grouped convolution has lost whole groups, the fewest groups that explain its plan are taken.)
3. Every parameter counts once, at the first layer that uses it. MACs (multiply-adds; FLOPs / 2) are those of convolutions and matrix
   products of one call on the example inputs, all samples together, counted on meta tensors by ``torch.utils.flop_counter``.
4. Groups and reasons are the given model's: for a slim model, what a second round could still remove. Reasons are told from the
   most channels to the fewest; a channel that several reasons pin counts for each of them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from rich.console import Group
from torch import Tensor, fx, nn

from fxprune.api import absorption_of, analyze, plan_of
from fxprune.capture.clone import same, to_meta
from fxprune.capture.inputs import Inputs, given, infer
from fxprune.capture.signature import inputs_of
from fxprune.errors import InputError, PlanMismatchError
from fxprune.folds import OFF
from fxprune.graph.channels import ChannelGraph, ChannelGroup
from fxprune.plan import Plan
from fxprune.provenance.eager import EagerProgram
from fxprune.provenance.interpret import evaluation_clone
from fxprune.record import record_of
from fxprune.reporting.eager import eager_layers
from fxprune.reporting.render import plain, rendered


@dataclass(frozen=True, slots=True)
class GroupRow:
    """A group of coupled channels: its first producer, that one's width, how many can go, the modules they run through."""

    name: str
    channels: int
    prunable: int
    layers: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class LayerRow:
    """A layer (clause 1): widths, and the given model's parameters and MACs (clause 3)."""

    name: str
    kind: str
    before: int
    after: int
    parameters: int
    macs: int


@dataclass(frozen=True, slots=True)
class Reason:
    """Why coupled channels cannot go: how many, at which node, why, and in which parameters they are."""

    channels: int
    node: str
    reason: str
    axes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Summary:
    """The facts of one model. ``str`` and rich's ``print`` lay them out as tables.

    Attributes:
        model: class name of the model.
        groups: the groups of channels that can go.
        layers: in the order of the program.
        channels: producer-side channels.
        prunable: how many of these can go.
        parameters: number of the model's parameters.
        macs: multiply-adds of one call.
        original_parameters: number of the original's parameters (clause 2).
        asked: the ratio that was asked for; 0 without a plan.
        achieved: the ratio that was achieved; 0 without a plan.
        score: the score that ranked the channels; "" without a plan.
        capture: how the model was captured.
        notes: what a user should know.
        reasons: why the rest cannot go (clause 4).
        operators_without_rule: operators that pin what they touch, with the nodes that call them.
        slim: the model carries a plan.
        figures: of a plan made for a budget: what was there, asked for and achieved, by kind (``Plan.figures``).
    """

    model: str
    groups: tuple[GroupRow, ...]
    layers: tuple[LayerRow, ...]
    channels: int
    prunable: int
    parameters: int
    macs: int
    original_parameters: int
    asked: float
    achieved: float
    score: str
    capture: str
    notes: tuple[str, ...]
    reasons: tuple[Reason, ...]
    operators_without_rule: tuple[tuple[str, tuple[str, ...]], ...]
    slim: bool
    figures: Mapping[str, Mapping[str, float]] = field(default_factory=dict)

    def __str__(self) -> str:
        return plain(self)

    def __rich__(self) -> Group:
        return rendered(self)


def summary(model: nn.Module, example_inputs: Any = None) -> Summary:
    """The facts of a model, or of a slim model and what it was made from. The model is only read.

    Args:
        model: any module that ``analyze`` takes.
        example_inputs: as for ``analyze``; MACs are counted for these. A slim model remembers its own.

    Raises:
        CaptureError: the model cannot be traced.
        InputError: example inputs do not fit or cannot be inferred.
        WeightError: weights that cannot be pruned.
    """
    graph, inputs = analyzed(model, example_inputs)
    try:
        plan, slim = plan_of(model), True
    except PlanMismatchError:
        plan, slim = Plan({}, {}), False
    found = summed(graph, inputs, plan, slim=slim)
    return replace(found, notes=(*found.notes, *_absorbed(model))) if slim else found


def summed(graph: ChannelGraph, inputs: Inputs, plan: Plan, *, slim: bool) -> Summary:
    """The summary of an analyzed model; ``plan`` is the one that made it, an empty one if it is not slim."""
    captured = graph.program.captured
    parameters = dict(captured.root.named_parameters())
    if isinstance(graph.program, EagerProgram):
        rows = eager_layers(captured.root, inputs, lambda name, own: _widths(captured.root, name, own, plan))
        layers = tuple(LayerRow(*row) for row in rows)
    else:
        layers = tuple(_layers(captured.root, captured.graph, plan, _macs(graph, inputs)))
    prunable, channels = graph.prunable()
    return Summary(
        model=captured.name,
        groups=tuple(_group(graph, group) for group in graph.groups),
        layers=layers,
        channels=channels,
        prunable=prunable,
        parameters=sum(p.numel() for p in parameters.values()),
        macs=sum(row.macs for row in layers),
        original_parameters=sum(math.prod(_original(name, p, plan)) for name, p in parameters.items()),
        asked=plan.asked,
        achieved=plan.achieved,
        score=plan.score,
        capture=captured.how,
        notes=tuple(dict.fromkeys((*graph.notes, *plan.notes))),
        reasons=_reasons(graph),
        operators_without_rule=tuple((name, tuple(dict.fromkeys(nodes))) for name, nodes in graph.operators_without_rule.items()),
        slim=slim,
        figures=plan.figures,
    )


def _absorbed(model: nn.Module) -> tuple[str, ...]:
    """What became of the constants of removed channels."""
    found = absorption_of(model)
    return () if found.mode == OFF else tuple(str(found).splitlines())


def analyzed(model: Any, example: Any) -> tuple[ChannelGraph, Inputs]:
    if example is not None:
        inputs = given(example)
        return analyze(model, inputs), inputs
    if not isinstance(model, nn.Module):
        return analyze(model), Inputs((), {})  # raises, and says what is wrong with it
    record = record_of(model)
    if record is not None and record.origin.inputs is not None:
        inputs = inputs_of(record.origin.inputs, model)
        return analyze(model, inputs), inputs
    found: list[ChannelGraph] = []

    def works(candidate: Inputs) -> Exception | None:
        try:
            found.append(analyze(model, candidate))
        except InputError as error:
            return error
        return None

    inputs = infer(model, works)
    return found[-1], inputs


def _group(graph: ChannelGraph, group: ChannelGroup) -> GroupRow:
    producer = next(m for m in group.members if m.name == group.name)
    width = next(axis.size for axis in graph.axes if (axis.name, axis.dim) == (producer.name, producer.dim))
    layers = dict.fromkeys(m.name.rpartition(".")[0] or m.name for m in group.members)
    return GroupRow(group.name, width, len(group), tuple(layers))


def _reasons(graph: ChannelGraph) -> tuple[Reason, ...]:
    pinned = [c for c in graph.constraints if c.kind == "pinned" and c.axes]
    return tuple(Reason(c.channels, c.node, c.reason, c.axes) for c in sorted(pinned, key=lambda c: -c.channels))


class _Counting(fx.Interpreter):
    """Multiply-adds per node of one call."""

    def __init__(self, module: fx.GraphModule, inputs: Inputs) -> None:
        from torch.utils.flop_counter import FlopCounterMode  # importing fxprune stays quick

        super().__init__(module)
        self.inputs = inputs
        self.counter = FlopCounterMode(display=False)
        self.macs: dict[str, int] = {}

    def placeholder(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        name = str(target).lstrip("*")
        return self.inputs.kwargs[name] if name in self.inputs.kwargs else super().placeholder(target, args, kwargs)

    def run_node(self, n: fx.Node) -> Any:
        before = self.counter.get_total_flops()
        result = super().run_node(n)
        self.macs[n.name] = (self.counter.get_total_flops() - before) // 2
        return result

    def counted(self) -> Mapping[str, int]:
        with torch.no_grad(), self.counter:
            self.run(*self.inputs.args)
        return self.macs


def _macs(graph: ChannelGraph, inputs: Inputs) -> Mapping[str, int]:
    captured = graph.program.captured

    def program(tensor: Any) -> fx.GraphModule:
        return fx.GraphModule(evaluation_clone(captured.root, tensor), captured.graph, captured.name)

    try:
        return _Counting(program(to_meta), inputs.on_meta()).counted()
    except (NotImplementedError, RuntimeError):  # numbers are read, which meta tensors do not have
        return _Counting(program(same), inputs).counted()


def _layers(root: nn.Module, graph: fx.Graph, plan: Plan, macs: Mapping[str, int]) -> Iterator[LayerRow]:
    names = {id(p): name for name, p in root.named_parameters()}
    rows: dict[str, int] = {}
    own: dict[str, dict[str, Tensor]] = {}
    kinds: dict[str, str] = {}
    seen: set[int] = set()
    for node in graph.nodes:
        count = macs.get(node.name, 0)
        if node.op == "call_module":
            name, module = str(node.target), root.get_submodule(str(node.target))
            found = list(module.parameters())
        elif node.op == "get_attr":
            name, _, leaf = str(node.target).rpartition(".")
            module = root.get_submodule(name)
            value = getattr(module, leaf, None)
            found = [value] if isinstance(value, nn.Parameter) else []
        else:
            name, module, found = node.name, None, []
        if not found and not count:
            continue
        fresh = {names[id(p)]: p for p in found if id(p) not in seen}
        seen.update(id(p) for p in found)
        rows[name] = rows.get(name, 0) + count
        own[name] = {**own.get(name, {}), **fresh}
        kinds.setdefault(name, type(module).__name__ if module is not None else _called(node))
    for name, count in rows.items():
        before, after = _widths(root, name, own[name], plan)
        yield LayerRow(name or "(root)", kinds[name], before, after, sum(p.numel() for p in own[name].values()), count)


def _called(node: fx.Node) -> str:
    return str(node.target if isinstance(node.target, str) else getattr(node.target, "__name__", node.target))


def _widths(root: nn.Module, name: str, own: Mapping[str, Tensor], plan: Plan) -> tuple[int, int]:
    """Output channels of a layer before and after (clause 1); 0 where it has no parameters of its own."""
    if not own:
        return 0, 0
    first, tensor = next(iter(own.items()))
    module = root.get_submodule(name) if name in dict(root.named_modules()) else root
    if isinstance(module, nn.modules.conv._ConvTransposeNd):
        after = module.out_channels
        return plan.sizes.get(first, {}).get(1, after), after
    after = tensor.shape[0] if tensor.dim() else 1
    return plan.sizes.get(first, {}).get(0, after), after


def _original(name: str, tensor: Tensor, plan: Plan) -> list[int]:
    """The shape of a parameter before slimming (clause 2)."""
    shape = list(tensor.shape)
    for dim, size in plan.sizes.get(name, {}).items():
        kept = plan.kept[name][dim]
        shape[dim] = size if len(kept) == shape[dim] else size // _blocks(kept, size, shape[dim])
    return shape


def _blocks(kept: tuple[int, ...], size: int, each: int) -> int:
    """The fewest blocks of ``size`` atoms such that every block keeps ``each`` or none (plan.py, clause 3)."""
    for blocks in range(len(kept) // max(each, 1), size + 1):
        if blocks and size % blocks == 0:
            counts = [0] * blocks
            for atom in kept:
                counts[atom * blocks // size] += 1
            if set(counts) <= {0, each}:
                return blocks
    return 1
