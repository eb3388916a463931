"""Saving a slim model in one file, and building it anew from its original's code and that file.

1. The file is safetensors (container.py): every parameter and buffer of the slim module, persistent or not, and tensors that modules
   hold as plain attributes; each distinct tensor once. Its metadata hold the document (document.py). Nothing in it is code, nothing is
   unpickled.
2. ``load`` captures the given model with the saved signature of inputs, compares origins, and applies the plans of all rounds as
   ``apply`` would, on tensors without memory: neither the model's weights nor scores are looked at. It may be on the meta device.
3. What was emitted must keep the channels of the plan in the plan's order, and have the names and shapes of the file; then every tensor
   gets its numbers, dtype and memory format from the file. Ties, ``requires_grad`` and the mode are those of the given model.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx, nn

from fxprune.absorb.places import install
from fxprune.capture.clone import clone, hollow, named_tensors, walk
from fxprune.capture.inputs import Inputs, given
from fxprune.capture.signature import inputs_of
from fxprune.errors import FileFormatError, InputError, PlanMismatchError, WeightError
from fxprune.inference.deploy import deployment_of
from fxprune.io.container import write
from fxprune.io.document import KEY, Document, check_format, document
from fxprune.io.layout import Entry
from fxprune.io.shards import Shards
from fxprune.origin import difference, functions, origin
from fxprune.original import Original, original
from fxprune.pipeline import Decide, emit_settled, study
from fxprune.plan import Plan
from fxprune.record import Record, attach, record_of

Place = str | os.PathLike[str]
Saved = Document


def save(slim: nn.Module, path: Place) -> None:
    """Write a slim model to one safetensors file: its weights as they are now, its plan, and where it comes from.

    The file appears under its name when it is whole; until then, and if anything fails, what was there before stays.

    Raises:
        PlanMismatchError: the module was not made by fxprune, or its layers were changed since.
        WeightError: tensors without numbers (meta device), or of a dtype that the format does not know.
    """
    record = record_of(slim)
    if record is None:
        kind = type(slim).__name__
        raise PlanMismatchError(f"this {kind} carries no plan: {_unsaved(slim)}", got=kind)
    tensors = tensors_of(slim)
    _check(tensors, record)
    said = described(record, tensors)
    entries = [Entry(name, tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()]

    def numbers(entry: Entry) -> Iterable[Tensor]:
        return (tensors[entry.name],)

    write(path, entries, {"format": "pt", KEY: said.text()}, numbers)


def _unsaved(module: Any) -> str:
    """Why a module that carries no plan does not, and what to save instead."""
    for name in ("module", "_orig_mod"):  # wrappers of torch: parallel ones, and compiled modules
        inner = getattr(module, name, None)
        if isinstance(inner, nn.Module) and record_of(inner) is not None:
            return f"it wraps a slim model, which does. Save that: its .{name}."
    with suppress(InputError):
        deployment_of(module)
        return "it was made by deploy(), which folds layers into one another. Save the slim model, and deploy what load() gives."
    return "it was not made by fxprune. Save what slim() or apply() gave."


def described(record: Record, tensors: Mapping[str, Tensor]) -> Document:
    """What a file of these tensors says."""
    from fxprune import __version__

    parameters = [t for t in tensors.values() if isinstance(t, nn.Parameter)]
    figures = {
        "parameters": sum(t.numel() for t in parameters),
        "bytes": sum(t.numel() * t.element_size() for t in parameters),
        "original_parameters": sum(
            torch.Size(record.origin.shapes.get(name, t.shape)).numel()
            for name, t in tensors.items()
            if isinstance(t, nn.Parameter)
        ),
        "asked": record.plan.asked,
        "achieved": record.plan.achieved,
    }
    last = tuple(name for name, tensor in tensors.items() if _memory_format(tensor) is not torch.contiguous_format)
    return Document(
        record.origin,
        record.rounds,
        __version__,
        figures=figures,
        channels_last=last,
        evidence=record.evidence,
        absorption=record.absorption,
    )


def _memory_format(tensor: Tensor) -> torch.memory_format:
    for rank, format_ in ((4, torch.channels_last), (5, torch.channels_last_3d)):
        if tensor.dim() == rank and tensor.is_contiguous(memory_format=format_) and not tensor.is_contiguous():
            return format_
    return torch.contiguous_format


def tensors_of(module: nn.Module) -> dict[str, Tensor]:
    """Clause 1: the distinct tensors of a module by their first names."""
    modules = walk(module)
    found = named_tensors(modules)
    seen = {id(tensor) for tensor in found.values()}
    for name, part in modules:
        for key, value in part.__dict__.items():
            if isinstance(value, Tensor) and id(value) not in seen:
                seen.add(id(value))
                found[f"{name}.{key}" if name else key] = value
    return found


def _check(tensors: Mapping[str, Tensor], record: Record) -> None:
    for name, tensor in tensors.items():
        if tensor.is_meta:
            raise WeightError(f"{name!r} is on the meta device: it has no numbers to save.", node=name, got="meta")
        shape = record.origin.shapes.get(name)
        if shape is None:
            continue
        expected = record.plan.slices(name, shape).shape
        if tuple(tensor.shape) != expected:
            raise PlanMismatchError(
                f"{name!r} has shape {tuple(tensor.shape)}, and the plan leaves {expected}: the module was changed after it was slimmed. "
                "Save it with torch.save, or make the change on the original and slim that.",
                node=name,
                expected=expected,
                got=tuple(tensor.shape),
            )


def describe(path: Place) -> Saved:
    """What a file or folder says about itself: the plans, the original's fingerprint, versions and figures. Reads no weights.

    Raises:
        FileFormatError: it was not written by fxprune, is truncated, or has another format.
    """
    with Shards(path) as files:
        return document(check_format(files.metadata, str(path)), str(path))


def load(
    model: nn.Module, path: Place, example_inputs: Any = None, *, device: str | torch.device | None = None
) -> fx.GraphModule:
    """The slim model that a file holds, built from a fresh instance of its original.

    Args:
        model: the original, with whatever weights, or on the meta device; only read.
        path: what ``save`` wrote, or the folder or file that ``io.slim_checkpoint`` wrote.
        example_inputs: as for ``slim``; only needed where those that ``slim`` had could not be written down.
        device: where the weights go; the model's device if left out (the CPU for a model on the meta device).

    Raises:
        FileFormatError: the file is truncated, damaged, changed, of an unknown format, or not fxprune's.
        PlanMismatchError: the model is another architecture than the original.
        CaptureError: the model cannot be traced.
        InputError: ``model`` is no module; or example inputs are needed, or do not fit.
    """
    where = str(path)
    if not isinstance(model, nn.Module):
        raise InputError(
            f"model must be a torch.nn.Module, the original that {where} was made from; got {type(model).__name__}.",
            expected="torch.nn.Module",
            got=type(model).__name__,
        )
    with Shards(path) as files:
        data = check_format(files.metadata, where)
        files.check()
        saved = document(data, where)
        files.open(saved.shards)
        bare = clone(model, hollow)
        target = torch.device(device) if device is not None else next((p.device for p in bare.parameters()), torch.device("cpu"))
        module, first = _rebuilt(bare, saved, example_inputs, where)
        _fill(module, files, saved, target, where)
    attach(module, replace(saved.record(), original=first))
    return module


def _rebuilt(model: nn.Module, saved: Document, example: Any, where: str) -> tuple[fx.GraphModule, Original | None]:
    """Clause 2, and the first half of clause 3."""
    current: Any = model
    first = None
    for number, plan in enumerate(saved.rounds):
        entered = functions(saved.origin.entered) if number == 0 else frozenset()
        try:
            subject = study(
                current, _inputs(model, saved, example, where), (), entered, weights=False, layout=plan.layout, given_plan=True
            )
        except InputError as error:
            if example is not None or saved.origin.inputs is None:
                raise
            raise PlanMismatchError(
                f"{where} was made from another architecture than this {type(model).__name__}, which does not take the inputs of that one. "
                f"Build the {saved.origin.model} it was made from. ({error})",
                expected=saved.origin.fingerprint,
                got=error.got,
            ) from error
        if number == 0:
            first = original(subject.graph, saved.origin.inputs)
            other = difference(saved.origin, origin(subject.graph.program.captured, subject.inputs))
            if other:
                raise PlanMismatchError(
                    f"{where} was made from another architecture than this {type(model).__name__}: {other}. "
                    f"{_wanted(model, saved)}",
                    expected=saved.origin.fingerprint,
                    got=other,
                )
        _, final, current = emit_settled(subject, _decided(plan), pin=False)
        if isinstance(current, fx.GraphModule):
            install(current, subject.graph.program.captured, final)
        if not _same_order(plan, final):
            raise PlanMismatchError(
                f"the channels of {where} stand in another order than this version of fxprune gives them. "
                f"It was written by fxprune {saved.version}; load it with that version.",
                expected=saved.version,
            )
    module: fx.GraphModule = current
    return module, first


def _wanted(model: nn.Module, saved: Document) -> str:
    if record_of(model) is not None:
        return f"It is slim already; load() takes the original: build the whole {saved.origin.model}."
    return f"Build the {saved.origin.model} it was made from."


def _decided(plan: Plan) -> Decide:
    return lambda _: plan


def _inputs(model: nn.Module, saved: Document, example: Any, where: str) -> Inputs:
    if example is not None:
        return given(example)
    if saved.origin.inputs is None:
        raise InputError("the example inputs that this file's model was slimmed with could not be saved. Pass example_inputs=.")
    try:
        return inputs_of(saved.origin.inputs, model)
    except ValueError as error:
        raise FileFormatError(f"{where} is damaged: {error}. Copy or save it again.", got=str(error)) from error


def _same_order(plan: Plan, final: Plan) -> bool:
    """What ``emit_settled`` gives back unchanged was emitted in the plan's order."""
    return final is plan or final.kept == plan.kept


def _fill(module: fx.GraphModule, files: Shards, saved: Document, device: torch.device, where: str) -> None:
    """The second half of clause 3."""
    last = frozenset(saved.channels_last)
    used = set()
    names = _all_names(module)
    for first, tensor in tensors_of(module).items():
        name = next((name for name in names[id(tensor)] if name in files), None)
        if name is None:
            if saved.complete or isinstance(tensor, nn.Parameter):
                raise FileFormatError(f"{where} has no tensor {first!r}, which the model needs.", node=first, expected=first)
            if tensor.is_meta:
                raise FileFormatError(
                    f"{where} has no tensor {first!r}, and the model has it on the meta device. Build the model with real buffers.",
                    node=first,
                    expected=first,
                )
            _put(module, tensor, tensor.data.to(device))
            continue
        used.add(name)
        new = files.tensor(name)
        if new.shape != tensor.shape:
            raise FileFormatError(
                f"{where} has {name!r} with shape {tuple(new.shape)}; its plan makes it {tuple(tensor.shape)}.",
                node=name,
                expected=tuple(tensor.shape),
                got=tuple(new.shape),
            )
        if name in last and new.dim() in (4, 5):
            new = new.contiguous(memory_format=torch.channels_last if new.dim() == 4 else torch.channels_last_3d)
        _put(module, tensor, new.to(device))
    extra = sorted(files.names - used)
    if saved.complete and extra:
        raise FileFormatError(f"{where} has a tensor {extra[0]!r}, which the model has not.", node=extra[0], got=extra[0])


def _put(module: nn.Module, old: Tensor, new: Tensor) -> None:
    """Give a tensor of a module other numbers; ties stay."""
    if not old.is_meta and torch._has_compatible_shallow_copy_type(old, new):
        old.data = new
        return
    # a buffer without numbers has no place to put them, nor has any tensor for those of some other kinds of devices
    if isinstance(old, nn.Parameter):
        new = nn.Parameter(new, requires_grad=old.requires_grad)
    for _, part in walk(module):
        for key in [key for key, value in part._parameters.items() if value is old]:
            setattr(part, key, new)  # recurrent layers keep a list of theirs
        for store in (part._buffers, part.__dict__):
            store.update({key: new for key, value in store.items() if value is old})


def _all_names(module: nn.Module) -> dict[int, list[str]]:
    """Every name of every tensor, the first one first."""
    names: dict[int, list[str]] = {}
    for first, tensor in tensors_of(module).items():
        names[id(tensor)] = [first]
    for found in (module.named_parameters(remove_duplicate=False), module.named_buffers(remove_duplicate=False)):
        for name, tensor in found:
            names.setdefault(id(tensor), []).append(name)
    return names
