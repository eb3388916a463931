"""``channel_prune``: LASSO channel pruning with reconstruction (He, Zhang, Sun 2017, arXiv:1707.06168), on the compiler's stages.

1. The model is captured and analysed; a trial plan finds nodes that cannot be made smaller before any channel is chosen.
2. Where first convolutions of branches are to read a part of the stream, they are cut from it (branches.py). Targets are found
   (targets.py), their widths decided (widths.py), the walk done (walk.py).
3. What is gone becomes a plan; rewriter and verifier make and check the slim module from the model's own weights, as for any other plan.
   Then the refitted weights are put in, cut as the plan says, and the slim module is held against the network of zero columns that they
   were fitted in.

Where this differs from the reference implementation: the LASSO sees all rows and not about 400 (on the Gram matrix they cost nothing
more), it has one intercept per output as the refit has, and it is bisected on until just as many channels are left as asked, where a
penalty does that.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, fx, nn

from fxprune.capture.eager import EagerCaptured
from fxprune.capture.inputs import Inputs
from fxprune.errors import BudgetError, CaptureError, NothingToPruneError, RewriteError, VerificationError
from fxprune.graph.channels import ChannelGraph
from fxprune.graph.selection import selected
from fxprune.pipeline import Subject, emit_settled, settle, study, verified
from fxprune.plan import Plan
from fxprune.precision import doubled
from fxprune.reconstruct import report
from fxprune.reconstruct.asked import check, shares
from fxprune.reconstruct.branches import first_of_branches
from fxprune.reconstruct.gather import Cache, Calibration, as_call, device_of, leading
from fxprune.reconstruct.moments import size
from fxprune.reconstruct.numbers import Array, Ids, Mask
from fxprune.reconstruct.program import Program
from fxprune.reconstruct.readers import Reader, readers
from fxprune.reconstruct.targets import Skipped, Target, targets
from fxprune.reconstruct.walk import Settings, State, Tell, walk
from fxprune.reconstruct.widths import by_branch, by_budget, by_name, by_plan, by_ratio, whole
from fxprune.record import attach, extended
from fxprune.score.scores import NAMED, Score
from fxprune.score.scores import score as score_groups
from fxprune.solve.plans import removed_by, removed_channels, to_plan
from fxprune.solve.ratio import Solution, nothing
from fxprune.sparse.neurons import apart

EXACT = 1e-9
SAMPLES = 2  # of the first batch, that analysis and verification run on
MEMORY = 4 * 2**30


def channel_prune(
    model: nn.Module,
    loader: Iterable[Any],
    *,
    ratio: float | None = None,
    ratios: Mapping[str, float] | None = None,
    budget: Any = None,
    plan: Plan | None = None,
    select: str | Score = "lasso",
    refit: bool = True,
    example_inputs: Any = None,
    keep: Sequence[str] = (),
    layout: str = "coupled",
    branches: float | Mapping[str, float] | None = None,
    images: int = 5000,
    positions: int = 10,
    slack: float = 0.1,
    refine: int = 0,
    ridge: float = 0.0,
    seed: int = 0,
    memory: int = MEMORY,
    cache: bool = False,
    verify: bool = True,
    progress: bool = False,
) -> fx.GraphModule:
    """A smaller network whose layers put out what they did, as nearly as the channels that are left allow. No labels, no gradients.

    Args:
        model: any traceable module, on the device where it should run; only read. It runs in evaluation mode, whatever its mode is.
        loader: images to calibrate on, moved to the model's device; gone through once or more for every layer. A batch is a tensor, a tuple or list
            that starts with the input (labels may follow), or a dict of keyword arguments.
        ratio: share of the output channels of every layer that goes, in [0, 1). One of ``ratio``, ``ratios``, ``budget``, ``plan`` is needed.
        ratios: the same for the layers it names (globs): ``{"layer1.0.conv1": 0.5}``.
        budget: a ``fxprune.Budget`` of what remains: parameters, MACs, bytes. Scores of the weights then decide how wide layers are, and
            ``select`` which channels these are. For a latency give a ``plan``. Beside a ``plan`` it says nothing more.
        plan: its widths, with channels chosen anew; the plan's layout counts.
        select: who chooses: "lasso"; "elimination" (one channel after the other goes, the one whose loss the refitted others make up for best);
            "random"; the name of a score of ``fxprune.plan`` ("magnitude", "gamma", ...), or a callable
            ``(ChannelGroup) -> tensor (channels,)``.
        refit: refit the weights of the layers that lose inputs, by least squares.
        example_inputs: what analysis and verification run on; two samples of the first batch if left out.
        keep: names (globs) of modules or parameters whose channels must stay.
        layout: "coupled": a channel goes with all that is coupled with it, and residual streams stay whole. "selection": the first convolution of
            every residual branch reads a part of the stream besides, its own, behind a select.
        branches: for the selection layout: the share of the stream that these convolutions do not read, or such shares by names (globs):
            ``{"layer1.*.conv1": 0.5}``.
            ``ratio``, or nothing beside the others, if left out.
        images: how many images of the loader are used.
        positions: output positions per image and layer.
        slack: where no penalty leaves just as many channels as asked, up to this share more may stay.
        refine: for the LASSO: steps on the way to the wanted width after each of which weights are refitted and the LASSO is set up anew.
        ridge: pulls refitted weights towards what they were, as a share of the mean variance of the inputs; for few images.
        seed: of the positions, and of select="random".
        memory: bytes that the moments of one group's readers may take; larger ones are skipped.
        cache: keep what both networks have computed up to the layer at work, for all images: much quicker in deep networks, and takes memory for the
            activations of all images.
        verify: check the slim module (``fxprune.apply``), and the refitted one against the network it was fitted in.
        progress: show which layer is at work, on stderr.

    Returns:
        A GraphModule like that of ``fxprune.apply``; ``fxprune.plan_of`` tells what went, ``reconstruct.report_of`` how large the errors are.

    Raises:
        BudgetError: none or several of ratio, ratios, budget, plan; a share or budget that makes no sense; an unknown ``layout`` or ``select``.
        PlanMismatchError: a plan for another model.
        KeepError: a name that matches nothing.
        NothingToPruneError: there is no group to choose among.
        InputError: a loader that is empty, cannot be gone through twice, or does not fit the model.
        CaptureError: the model cannot be traced.
        VerificationError: the result is not what was fitted.
    """
    check(ratio, ratios, budget, plan, layout, slack, refine, ridge)
    branches = shares(branches, ratio, layout)
    calibration = Calibration(loader, images, positions, seed, device_of(model))
    subject = _settled(study(model, first(calibration) if example_inputs is None else example_inputs, keep))
    captured = subject.graph.program.captured
    original = Program.of(captured.graph, captured.root)
    if plan is not None and plan.layout == "selection":
        graph, _ = removed_by(_cut(subject, None, frozenset()), plan, given=True)
        subject = replace(subject, graph=graph, layout="selection")
    elif branches:
        subject = _opened(subject, original, whole(subject.graph, ratios, plan))
    graph = subject.graph
    found, skipped = targets(graph, original, readers(original), subject.inputs)
    found, skipped = _within(found, skipped, memory)
    if plan is not None:
        chosen, reasons = by_plan(found, skipped, removed_channels(graph, plan))
    elif budget is not None:
        chosen, reasons = by_budget(graph, found, skipped, budget)
        slack = 0.0
    else:
        chosen, reasons = by_name(found, skipped, ratios) if ratios is not None else by_ratio(found, skipped, ratio or 0.0)
    if branches:
        chosen += by_branch(found, branches)
        place = {target.name: number for number, target in enumerate(found)}
        chosen.sort(key=lambda pair: place[pair[0].name])
    chosen = [(target, count) for target, count in chosen if count < len(target.group)]
    if not chosen and (plan is None or not plan.empty) and (ratio is None or ratio > 0):
        told = "; ".join(f"{name}: {why}" for name, why in reasons[:3]) or nothing(graph)
        if any(not target.stream and not (target.branch and not branches) for target in found):
            told = "What was asked takes no whole channel of any layer."
        raise NothingToPruneError(f"there is nothing that reconstruction could remove. {told}", got=ratio)
    state = _state(graph, original, chosen)
    state.cache = Cache(calibration) if cache and chosen else None
    settings = Settings(calibration, refit, slack, refine, ridge, *_chooser([t for t, _ in chosen], select, seed))
    with telling(len(chosen), progress) as tell:
        layers = walk(state, chosen, settings, tell)
    how = select if isinstance(select, str) else getattr(select, "__name__", "score")
    how = f"{how} + refit" if refit else how
    layout = "selection" if any(target.branch for target, _ in chosen) else "coupled"
    slim = _emitted(model, replace(subject, layout=layout), state, how, ratio, verify=verify)
    report.attach(slim, report.Report(tuple(layers), tuple(reasons), how))
    return slim


def _opened(subject: Subject, original: Program, whole: Callable[[Ids], bool]) -> Subject:
    """Clause 2; the subject as it is where there are no branches, or where no program with selects can be made."""
    firsts = first_of_branches(subject.graph, original, readers(original), whole)
    if not firsts.paths:
        return subject
    try:
        return _settled(replace(subject, graph=_cut(subject, firsts.gammas, firsts.weights), layout="selection"))
    except RewriteError as error:
        note = f"branches read whole streams: no select can stand in front of {firsts.paths[0]!r} and others ({str(error).splitlines()[0]})"
        return replace(subject, graph=replace(subject.graph, notes=(*subject.graph.notes, note)))


def _cut(subject: Subject, gammas: frozenset[str] | None, weights: frozenset[str]) -> ChannelGraph:
    return settle(selected(subject.graph, gammas=gammas, weights=weights, required=False), subject.inputs)


def first(calibration: Calibration) -> Inputs | None:
    """Some samples of the first batch; None if there is no batch."""
    batch = next(iter(calibration.loader), None)
    if batch is None:
        return None
    call = as_call(batch, calibration.device)
    count = leading(call)
    return call.map(lambda x: x[:SAMPLES] if x.dim() and len(x) == count else x)


def _settled(subject: Subject) -> Subject:
    """Clause 1: half of every group goes in a trial without weights."""
    if isinstance(subject.graph.program.captured, EagerCaptured):
        raise CaptureError(
            "this model runs as an eager module only: no tracer takes it, and reconstruction needs a program that it can run layer by layer.",
            got="eager",
        )

    def decide(graph: ChannelGraph) -> Plan:
        removed = np.zeros(graph.closed.count, np.bool_)
        stepped = [c for cells in graph.closed.cells for c in cells.cells]
        inside = np.concatenate([np.zeros(0, np.int64), *stepped])
        for group in graph.groups:
            own = group.channels[~np.isin(group.channels, inside) & ~np.isin(group.channels, graph.closed.owners)]
            removed[own[: min(len(own) // 2, len(group) - 1)]] = True
        for floor in graph.program.recorder.floors:
            removed[graph.closed.component[floor.ids]] = False
        for cut in graph.selection.cuts if graph.selection is not None else ():
            removed[graph.closed.component[cut.source]] = False
        return to_plan(graph, Solution(removed, 0.0, 0.0), "trial")

    if not subject.graph.groups:
        return subject
    settled, _, _ = emit_settled(subject, decide, pin=True, weights=False)
    return settled


def _within(found: Sequence[Target], skipped: Sequence[Skipped], memory: int) -> tuple[list[Target], list[Skipped]]:
    """Targets whose moments fit into memory, and those that are left out."""
    fitting, out = [], list(skipped)
    for target in found:
        shapes = [(r.reader.blocks, r.channel.shape[1], r.reader.module.weight.shape[0]) for r in target.readings]
        needed = sum(size(blocks, columns, rows // blocks) for blocks, columns, rows in shapes)
        if needed <= memory:
            fitting.append(target)
        else:
            reason = f"the moments of what reads it take {needed / 1e9:.1f} GB, more than memory={memory / 1e9:.1f} GB"
            out.append(Skipped(target.producers or (target.group.name,), len(target.group), reason))
    return fitting, out


def _state(graph: ChannelGraph, original: Program, chosen: Sequence[tuple[Target, int]]) -> State:
    reading = [r.reader for target, _ in chosen for r in target.readings]
    own = {name for reader in reading for name in (reader.weight, reader.bias) if name}
    current = Program.of(original.graph, original.root, own)
    known = {name: r for name, r in readers(current).items() if isinstance(r, Reader)}
    return State(graph, original, current, known, np.zeros(graph.closed.count, np.bool_))


def _chooser(found: Sequence[Target], select: str | Score, seed: int) -> tuple[dict[str, Array], str]:
    """The importance of every channel of every target, or who chooses from moments."""
    if isinstance(select, str) and select in ("lasso", "elimination"):
        return {}, select
    if select == "random":
        draws = {t.name: np.random.default_rng([seed, zlib.crc32(t.name.encode())]) for t in found}
        return {t.name: draws[t.name].random(len(t.group)) for t in found}, ""
    if isinstance(select, str) and select.partition(":")[0] not in ("auto", *NAMED):
        raise BudgetError(
            f"select must be 'lasso', 'elimination', 'random', the name of a score or a callable, got {select!r}.", got=select
        )
    scored = score_groups([t.group for t in found], select)
    return {t.name: values.numpy() for t, values in zip(found, scored.values, strict=True)}, ""


def _emitted(model: nn.Module, subject: Subject, state: State, how: str, ratio: float | None, *, verify: bool) -> fx.GraphModule:
    """Clause 3."""
    graph = subject.graph
    achieved = _share(graph, state.gone)
    asked = achieved if ratio is None else ratio
    decided = to_plan(graph, Solution(state.gone, asked, achieved), how, subject.layout)
    subject, final, emitted = emit_settled(subject, lambda _: decided, pin=False)
    slim = cast("fx.GraphModule", emitted)
    attach(slim, extended(model, subject.graph, subject.inputs, final, subject.entered))
    if verify:
        verified(subject, slim, final)
    for name, tensor in state.current.tensors.items():
        if tensor.data_ptr() != state.original.tensors[name].data_ptr():
            put(slim, name, final.slices(name, tensor.shape).whole(tensor))
    if verify:
        same(state.current, slim, subject.inputs)
    return slim


def _share(graph: ChannelGraph, gone: Mask) -> float:
    """The share of the coupled channels of all groups that goes."""
    return sum(int(gone[g.channels].sum()) for g in graph.groups) / max(1, sum(map(len, graph.groups)))


def put(module: nn.Module, name: str, value: Tensor) -> None:
    """Write a parameter or buffer, in place."""
    owner, _, leaf = name.rpartition(".")
    with torch.no_grad():
        getattr(module.get_submodule(owner), leaf).copy_(value)


def same(current: Program, slim: fx.GraphModule, inputs: Inputs) -> None:
    """Hold the slim module against the network of zero columns, in float64.

    Raises:
        VerificationError: their outputs differ.
    """
    call = inputs.map(doubled)
    twins = (Program.of(current.graph, current.root, dtype=torch.float64), Program.of(slim.graph, slim, dtype=torch.float64))
    results = []
    for twin in twins:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            leaves = torch.utils._pytree.tree_leaves(twin.run(call.map(torch.clone)))
        results.append([leaf for leaf in leaves if isinstance(leaf, Tensor)])
    worst = apart(*results)
    if not worst <= EXACT:
        raise VerificationError(
            f"the slim network does not compute what its weights were fitted in: outputs differ by {worst:.3g} (relative). Nothing was returned; "
            "please report this model.",
            node="output",
            expected=EXACT,
            got=worst,
        )


@contextmanager
def telling(total: int, progress: bool) -> Iterator[Tell]:
    """A progress bar on stderr, if asked for."""
    if not progress:
        yield lambda _: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True)) as bar:
        task = bar.add_task("reconstruct", total=total)
        count = -1

        def tell(name: str) -> None:
            nonlocal count
            count += 1
            bar.update(task, completed=count, description=name)

        yield cast("Callable[[str], None]", tell)
        bar.update(task, completed=total)
