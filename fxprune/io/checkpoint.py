"""Slimming a checkpoint that does not fit into memory.

1. The checkpoint is a safetensors file, or a folder with ``model.safetensors.index.json`` and the shards that it names, or with one
   ``model.safetensors``. Its names are those of the model's state dict; tied weights may stand in it under any of their names.
2. The model gives the program alone; it may be on the meta device. Of its tensors only whole numbers are read, where it has them.
3. A ratio needs scores: weights are read once, in pieces, for their norms (norms.py); vectors (gammas, biases) are small and are read whole.
4. Then every shard is cut, tensor by tensor in pieces, into one of the same name. At no time is more than some pieces in memory.
5. The result appears under its name when it is whole: a file, or a folder (shards.py, clause 2), as the source was.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fxprune.api import plan as plan_for
from fxprune.capture.clone import clone
from fxprune.errors import BudgetError
from fxprune.graph.channels import ChannelGraph, ChannelGroup, Member
from fxprune.io.atomic import flush_directory
from fxprune.io.container import Container, Scratch, write
from fxprune.io.document import KEY, Document
from fxprune.io.layout import Entry
from fxprune.io.matched import Checkpoint
from fxprune.io.model import described
from fxprune.io.norms import norms
from fxprune.io.shards import DESCRIPTION, index_text, sources
from fxprune.pipeline import Decide, emit_settled, study
from fxprune.plan import Plan
from fxprune.record import Record, extended
from fxprune.score.scores import NAMED, atom_norms, producers, relative
from fxprune.slices import Fetch, Slices

PIECE = 1 << 22
Place = str | os.PathLike[str]


@dataclass(frozen=True, slots=True)
class Streamed:
    """What became of a checkpoint.

    Attributes:
        plan: which channels stay.
        files: the shards that were written, by name.
        original_bytes: bytes of its tensors before.
        bytes: bytes of its tensors now.
        unknown: tensors that the model does not have; they were copied as they are.
    """

    plan: Plan
    files: tuple[str, ...]
    original_bytes: int
    bytes: int
    unknown: tuple[str, ...]


def slim_checkpoint(
    source: Place,
    target: Place,
    plan: Plan | float,
    model: nn.Module,
    example_inputs: Any = None,
    *,
    score: str = "auto",
    floor: float = 0.1,
    round_to: int = 1,
    keep: Sequence[str] = (),
) -> Streamed:
    """Slim a checkpoint on disk without ever having it in memory (module docstring).

    Args:
        source: the original's checkpoint (clause 1); only read.
        target: where the slim one goes: a file if the source is one, else a new folder. ``fxprune.load(model, target)`` builds the slim model.
        plan: a plan for the model, or the ratio of channels to remove.
        model: the original's code, best built under ``torch.device("meta")`` (clause 2).
        example_inputs: as for ``slim``; tensors may be on the meta device.
        score: "auto", "gamma", "gamma_sum", "gamma_max", "magnitude" or "random"; with a ratio.
        floor: as for ``slim``; with a ratio.
        round_to: as for ``slim``; with a ratio.
        keep: as for ``slim``; with a ratio.

    Raises:
        FileFormatError: a file that is damaged, or lacks a tensor of the model.
        PlanMismatchError: the checkpoint or the plan belongs to another model.
        FileExistsError: the target folder is there and not empty.
        FxpruneError: what ``slim`` raises about the model and the ratio.
    """
    with ExitStack() as stack:
        files = {name: stack.enter_context(Container(path)) for name, path in sources(source).items()}
        found = Checkpoint.match(model, files)
        subject = study(clone(model, found.stand_in), example_inputs, keep, weights=False)
        decide = _given(plan) if isinstance(plan, Plan) else _by_ratio(found, plan, score, floor, round_to)
        subject, final, _ = emit_settled(subject, decide, pin=not isinstance(plan, Plan), weights=False)
        final = replace(final, added=())  # weights are cut as they are read: what removed channels emit is dropped
        record = extended(model, subject.graph, subject.inputs, final, subject.entered)
        cut = {name: final.slices(found.first.get(name, name), entry.shape) for name, (_, entry) in found.tensors.items()}
        after = {name: Entry(name, entry.dtype, cut[name].shape) for name, (_, entry) in found.tensors.items()}
        document = _document(found, record, after)
        if Path(source).is_dir():
            _folder(Path(target), found, cut, after, document)
        else:
            (container,) = files.values()
            _shard(Path(target), container, cut, after, {KEY: document.text()})
        sizes = (sum(entry.bytes for _, entry in found.tensors.values()), sum(entry.bytes for entry in after.values()))
        return Streamed(final, tuple(files), *sizes, tuple(name for name in found.tensors if name not in found.first))


def _given(plan: Plan) -> Decide:
    return lambda _: plan


def _by_ratio(found: Checkpoint, ratio: float, score: str, floor: float, round_to: int) -> Decide:
    """Clause 3."""
    if score not in ("auto", *NAMED):
        raise BudgetError(
            f"score must be 'auto' or one of {sorted(NAMED)}, got {score!r}: a checkpoint is ranked as it is read.", got=score
        )
    known: dict[tuple[str, int], Tensor] = {}

    def decide(graph: ChannelGraph) -> Plan:
        how = score if score != "auto" else "gamma" if all(g.gammas for g in graph.groups) else "magnitude"
        if how != "magnitude":
            return plan_for(graph, ratio, score=how, floor=floor, round_to=round_to)
        _measure(found, [m for g in graph.groups for m in producers(g)], known)

        def magnitude(group: ChannelGroup) -> Tensor:
            return relative(
                group, lambda m: known[m.name, m.dim] if (m.name, m.dim) in known else atom_norms(group.tensors[m.name], m)
            )

        return plan_for(graph, ratio, score=magnitude, floor=floor, round_to=round_to)

    return decide


def _measure(found: Checkpoint, members: Sequence[Member], known: dict[tuple[str, int], Tensor]) -> None:
    """The norms of these axes that are not known yet, in the order of the files."""
    wanted: dict[str, dict[int, int]] = {}
    for member in members:
        if (member.name, member.dim) not in known:
            wanted.setdefault(member.name, {})[member.dim] = member.blocks
    pieces, wide = Scratch(), Scratch()
    for name, (container, entry) in found.tensors.items():
        axes = wanted.pop(found.first.get(name, ""), None)
        if axes is not None:
            for dim, values in norms(entry.shape, _fetch(container, entry, pieces), _ranges(entry), axes.items(), wide).items():
                known[found.first[name], dim] = values


def _fetch(container: Container, entry: Entry, scratch: Scratch | None = None) -> Fetch:
    return lambda start, stop: container.rows(entry, start, stop, scratch)


def _ranges(entry: Entry) -> Iterator[tuple[int, int]]:
    step = max(1, PIECE // max(1, entry.row_bytes))
    return ((start, min(start + step, entry.shape[0])) for start in range(0, entry.shape[0], step))


def _document(found: Checkpoint, record: Record, after: Mapping[str, Entry]) -> Document:
    tensors: dict[str, Tensor] = {}
    for own, name in found.names.items():
        empty = torch.empty(after[name].shape, dtype=after[name].dtype, device="meta")
        tensors[own] = nn.Parameter(empty, requires_grad=False) if own in found.parameters else empty
    return replace(described(record, tensors), complete=False)


def _shard(
    path: Path,
    container: Container,
    cut: Mapping[str, Slices],
    after: Mapping[str, Entry],
    metadata: Mapping[str, str],
) -> str:
    """Clause 4, for one file."""

    def pieces(entry: Entry) -> Iterator[Tensor]:
        old = container.entries[entry.name]
        if not old.shape:
            yield container.tensor(old)
            return
        for start, stop in cut[entry.name].ranges(old.row_bytes, PIECE):
            yield cut[entry.name].rows(_fetch(container, old), start, stop)

    return write(path, [after[name] for name in container.entries], {"format": "pt", **metadata}, pieces)


def _folder(target: Path, found: Checkpoint, cut: Mapping[str, Slices], after: Mapping[str, Entry], document: Document) -> None:
    """Clauses 4 and 5."""
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise FileExistsError(f"{target} is there already and not empty. Name a new folder.")
    target = target.absolute()
    work = target.with_name(f".{target.name}.{os.getpid()}-{os.urandom(4).hex()}.part")
    work.mkdir()
    try:
        digests = {name: _shard(work / name, container, cut, after, {}) for name, container in found.files.items()}
        total = sum(entry.bytes for entry in after.values())
        place = {entry: name for name, container in found.files.items() for entry in container.entries}
        (work / "model.safetensors.index.json").write_text(index_text(place, total), encoding="utf-8")
        write(work / DESCRIPTION, (), {KEY: replace(document, shards=digests).text()}, lambda _: ())
        flush_directory(work)
        work.replace(target)
    except BaseException:
        shutil.rmtree(work, ignore_errors=True)
        raise
    flush_directory(target.parent)
