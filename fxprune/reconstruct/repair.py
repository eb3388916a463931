"""``repair``: the weights of a slim network refitted to the original, whatever plan made it.

1. Structure is given. Every convolution and linear layer that lost inputs is refitted, in the order of the slim program: inputs from the
   slim network as repaired so far, wanted outputs from the original's layer of that name, the channels that are left of them (gather.py).
   Layers that do not depend on each other share a pass over the images.
2. What the slim network has learned since it was cut counts: the weights are refitted from what they are, and what is wanted goes through
   its own batch norms backwards.
3. Silent inputs (plan.py, clause 4) stay silent. Layers in ``keep`` are not refitted: where no norm follows, as behind a classifier, least
   squares may make weights many times as large, and a later training that had the right rate before has too large a one then.
"""

from __future__ import annotations

import copy
import fnmatch
import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from torch import fx, nn

from fxprune.capture.eager import EagerCaptured
from fxprune.errors import CaptureError, InputError, NothingToPruneError, PlanMismatchError
from fxprune.pipeline import study
from fxprune.plan import Plan
from fxprune.reconstruct import report
from fxprune.reconstruct.gather import Cache, Calibration, Site, device_of, gather
from fxprune.reconstruct.moments import Moments, size
from fxprune.reconstruct.numbers import Array, Mask
from fxprune.reconstruct.program import Program
from fxprune.reconstruct.prune import MEMORY, first, telling
from fxprune.reconstruct.readers import Reader, ancestors, readers
from fxprune.reconstruct.refit import refit
from fxprune.reconstruct.walk import relative, write
from fxprune.record import entered_by, record_of
from fxprune.solve.plans import removed_by


def repair(
    model: nn.Module,
    slim: fx.GraphModule,
    loader: Iterable[Any],
    *,
    example_inputs: Any = None,
    images: int = 5000,
    positions: int = 10,
    ridge: float = 0.0,
    seed: int = 0,
    memory: int = MEMORY,
    cache: bool = False,
    progress: bool = False,
    keep: Sequence[str] = (),
) -> fx.GraphModule:
    """A copy of a slim network with weights refitted so that its layers put out what the original's do. No labels, no gradients.

    Args:
        model: the original that the slim network was made from; only read.
        slim: what ``fxprune.slim``, ``apply`` or ``load`` returned, on the same device; only read. It may have been trained since.
        loader: images to calibrate on, as for ``channel_prune``.
        example_inputs: what the original is captured with; two samples of the first batch if left out.
        images: how many images of the loader are used.
        positions: output positions per image and layer.
        ridge: pulls refitted weights towards what they were, as a share of the mean variance of the inputs; for few images.
        seed: of the positions.
        memory: bytes that the moments of the layers of one pass may take; a layer that needs more is left as it is.
        cache: keep what both networks have computed up to the layer at work, for all images: much quicker in deep networks.
        progress: show which layer is at work, on stderr.
        keep: names (globs) of layers whose weights stay as they are (clause 3).

    Returns:
        A GraphModule with the slim network's structure, plan, names and mode; ``reconstruct.report_of`` tells the errors before and after.

    Raises:
        PlanMismatchError: ``slim`` carries no plan, or one of another model.
        CaptureError: one of the two is no traced program.
        InputError: a loader that is empty, cannot be gone through twice, or does not fit; networks on different devices; a name in ``keep`` that
            no layer of the slim network has.
        NothingToPruneError: no layer that could be refitted lost inputs.
    """
    record = record_of(slim)
    if record is None:
        raise PlanMismatchError(
            f"this {type(slim).__name__} carries no plan: it was not made by fxprune.", got=type(slim).__name__
        )
    if not isinstance(slim, fx.GraphModule):
        raise CaptureError("an eager slim module has no program that could be run layer by layer.", got=type(slim).__name__)
    calibration = Calibration(loader, images, positions, seed, device_of(model))
    example = first(calibration) if example_inputs is None else example_inputs
    subject = study(model, example, (), entered_by(slim), layout=record.plan.layout, given_plan=True)
    captured = subject.graph.program.captured
    if isinstance(captured, EagerCaptured):
        raise CaptureError("the original runs as an eager module only; repair needs a program.", got="eager")
    removed_by(subject.graph, record.plan, given=True)  # raises where the plan is for another model
    _same_device(model, slim)
    new = copy.deepcopy(slim)
    original, current = Program.of(captured.graph, captured.root), Program.of(new.graph, new)
    sites, skipped = _kept_out(*_sites(original, current, record.plan, memory), new, keep)
    if not sites:
        why = "; ".join(f"{name}: {reason}" for name, reason in skipped[:3]) or "its plan takes no inputs away"
        raise NothingToPruneError(f"no layer of the slim network can be repaired. {why}")
    layers: list[report.Layer] = []
    kept = Cache(calibration) if cache else None
    with telling(len(sites), progress) as tell:
        for part in passes(sites, memory):
            begin = time.process_time()
            for site in part:
                tell(site.target.path)
            found = gather(original, current, part, calibration, kept)
            done = [_refitted(current, site, seen, record.plan, ridge) for site, seen in zip(part, found, strict=True)]
            if kept is not None:
                kept.changed(min(current.order[call.node] for site in part for call in site.target.calls))
            spent = (time.process_time() - begin) / len(part)
            layers += [replace(layer, seconds=spent) for layer in done]
    report.attach(new, report.Report(tuple(layers), tuple(skipped), "repair"))
    return new


def _same_device(model: nn.Module, slim: nn.Module) -> None:
    devices = [{t.device for t in (*module.parameters(), *module.buffers())} for module in (model, slim)]
    if devices[0] != devices[1]:
        raise InputError(
            f"the original is on {_told(devices[0])} and the slim network on {_told(devices[1])}: move one of them.",
            expected=_told(devices[0]),
            got=_told(devices[1]),
        )


def _told(devices: set[Any]) -> str:
    return ", ".join(sorted(map(str, devices))) or "no device"


def _sites(original: Program, current: Program, plan: Plan, memory: int) -> tuple[list[Site], list[tuple[str, str]]]:
    """Clause 1: layers that lost inputs, in the slim program's order, and those that cannot be refitted."""
    sources, targets = readers(original), readers(current)
    sites: list[Site] = []
    skipped: list[tuple[str, str]] = []
    for name, dims in plan.kept.items():
        if 1 not in dims or len(dims[1]) == plan.sizes[name][1] or (name not in targets and name not in sources):
            continue
        source, target = (found.get(name, "it is not called in both programs") for found in (sources, targets))
        if isinstance(source, Reader) and isinstance(target, Reader) and len(source.calls) == len(target.calls):
            rows = plan.kept[name].get(0, tuple(range(source.module.weight.shape[0])))
            needed = _bytes(target)
            if needed > memory:
                skipped.append((name, f"its moments take {needed / 1e9:.1f} GB, more than memory={memory / 1e9:.1f} GB"))
            elif plan.silent.get(name, {}).get(1) and target.blocks > 1:
                skipped.append((name, "a group of it is silent"))
            else:
                sites.append(Site(source, target, np.array(rows, np.int64)))
        else:
            reasons = [found for found in (source, target) if isinstance(found, str)]
            skipped.append((name, reasons[0] if reasons else "it is called more often in one of the programs"))
    return sorted(sites, key=lambda site: current.order[site.target.calls[0].node]), skipped


def _kept_out(
    sites: list[Site], skipped: list[tuple[str, str]], slim: nn.Module, keep: Sequence[str]
) -> tuple[list[Site], list[tuple[str, str]]]:
    """Clause 3: without the layers that are to stay."""
    names = [name for name, _ in slim.named_modules()]
    for glob in keep:
        if not fnmatch.filter(names, glob):
            raise InputError(f"keep={glob!r} matches no layer of the slim network.", expected=tuple(names[1:6]), got=glob)
    stay = [site for site in sites if any(fnmatch.fnmatchcase(site.target.path, glob) for glob in keep)]
    return [site for site in sites if site not in stay], [*skipped, *((site.target.path, "it is kept") for site in stay)]


def _bytes(reader: Reader) -> int:
    weight = reader.module.weight
    return size(reader.blocks, weight.shape[1] * reader.taps, weight.shape[0] // reader.blocks)


def passes(sites: Sequence[Site], memory: int) -> list[list[Site]]:
    """Runs of layers none of which depends on another, within memory."""
    found: list[list[Site]] = []
    for site in sites:
        above = set().union(*(ancestors(call.node) for call in site.target.calls))
        tails = {call.tail.other for call in site.target.calls if call.tail is not None}
        above = above.union(*(ancestors(node) for node in tails))
        last = found[-1] if found else []
        bound = any(call.node in above for other in last for call in other.target.calls)
        if last and not bound and sum(_bytes(other.target) for other in (*last, site)) <= memory:
            last.append(site)
        else:
            found.append([site])
    return found


def _refitted(current: Program, site: Site, seen: Moments, plan: Plan, ridge: float) -> report.Layer:
    reader, normal = site.target, seen.normal()
    old = reader.matrix(reader.module.weight)
    alive = _heard(reader, plan)
    nothing: Array = np.zeros(old.shape[:2])
    before = relative(normal, old, nothing)
    new, shift = refit(normal, old, alive, intercept=bool(reader.bias), ridge=ridge)
    after = relative(normal, new, shift)
    write(current, reader, new, shift)
    note = "" if reader.bias else "no place for an intercept"
    sizes = plan.sizes[reader.weight][1], len(plan.kept[reader.weight][1])
    return report.Layer(reader.path, "", *sizes, before, after, 0.0, seen.count, 0.0, seen.bytes, note)


def _heard(reader: Reader, plan: Plan) -> Mask:
    """Clause 3."""
    weight = reader.module.weight
    silent = set(plan.silent.get(reader.weight, {}).get(1, ()))
    if not silent:
        return np.ones((reader.blocks, weight.shape[1] * reader.taps), np.bool_)
    heard = np.array([atom not in silent for atom in plan.kept[reader.weight][1]], np.bool_)
    return np.repeat(heard, reader.taps)[None]
