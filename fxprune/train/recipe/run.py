"""The recipe: train with sparsity, slim, fine-tune, and again.

1. The run is in its folder: ``state.pt`` (checkpoint.py), ``log.csv`` (one row per epoch), at the end ``results.json`` and
   ``slim.safetensors``, which ``fxprune.load`` reads. The same call takes an interrupted run up where its last checkpoint is, and a
   finished one as it is; other settings for the same folder are refused.
2. Slimming happens in one process, whose result the others get; every phase starts from a state as if it had been read from the file, so
   runs with and without interruptions do the same.
3. A ratio that the network cannot give after all is no reason to lose a training: as much goes as can, with a note.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor, nn

import fxprune
from fxprune.data import Images
from fxprune.errors import BudgetError, FxpruneError, FxpruneWarning
from fxprune.train.gamma_l1 import gammas
from fxprune.train.readiness import readiness
from fxprune.train.recalibrate import recalibrate
from fxprune.train.recipe.amount import below_quantile
from fxprune.train.recipe.batches import Share, seed_of
from fxprune.train.recipe.checkpoint import State, load_state, save, tidy, write_whole
from fxprune.train.recipe.journal import Journal, table_of
from fxprune.train.recipe.launch import launch
from fxprune.train.recipe.networks import dtype_of, example, prepared, restored
from fxprune.train.recipe.phase import Run, train
from fxprune.train.recipe.settings import Settings

RESULTS = "results.json"
TEACHER = "teacher.pt"
SLIM = "slim.safetensors"


def run(
    settings: Settings,
    folder: str | Path,
    *,
    every: int = 0,
    workers: int = 0,
    accelerator: str = "auto",
    download: bool = False,
    tensorboard: bool = False,
    quiet: bool = False,
    on_step: Callable[[int, int], None] | None = None,
) -> State:
    """Do, or go on with, the run of ``settings`` in ``folder``; its final state.

    Args:
        settings: what is trained, and how.
        folder: where the run is (clause 1).
        every: steps between checkpoints; 0: at the ends of epochs only.
        workers: processes that read images ahead.
        accelerator: "auto", "cpu", "cuda", ...; what Fabric knows.
        download: let torchvision fetch missing data.
        tensorboard: write event files too.
        quiet: show nothing.
        on_step: called after every step, with the phase and the steps done in it.

    Raises:
        FxpruneError: the folder holds a run with other settings, or a file that is no run; or the images cannot be read.
        ImportError: a package that the run needs is not installed: Lightning Fabric, scikit-learn for the digits, TensorBoard.
    """
    fabric = launch(settings.precision, accelerator)
    place = Path(folder)
    images = _images(fabric, settings, download=download)
    state: State = fabric.broadcast(_taken_up(settings, place) if fabric.is_global_zero else None)
    leading = bool(fabric.is_global_zero)
    journal = Journal(
        Console() if leading and not quiet else None, place / "tensorboard" if leading and tensorboard else None, len(state.rows)
    )
    shared = Run(fabric, settings, images, place, journal, every, workers, on_step)
    try:
        with torch.random.fork_rng(devices=[]):  # steps seed the generator; the caller's is left as it was
            if not state.model:
                state = _begun(shared, state)
            while state.phase < len(settings.phases):
                state = _next(shared, state)
            if leading:
                _finished(shared, state)
    finally:
        journal.close()
    journal.say(table_of(state.stages))
    journal.say(f"the slim network is in {place / SLIM}")
    return state


def _images(fabric: Any, settings: Settings, *, download: bool) -> Images:
    """The image set: the first process gets it first, then the first one of every machine; the others find it there."""
    first = None
    with fabric.rank_zero_first():
        if fabric.is_global_zero:
            first = prepared(settings, download=download)
    with fabric.rank_zero_first(local=True):
        return prepared(settings, download=download) if first is None else first


def _taken_up(settings: Settings, folder: Path) -> State:
    tidy(folder)
    state = load_state(folder)
    if state is None:
        return State(settings.to_json())
    other = settings.differs(Settings.from_json(state.settings))
    if other:
        raise FxpruneError(
            f"{folder} holds a run with other settings ({', '.join(other)}). Use another folder, or the settings of that run.",
            node=str(folder),
            got=other,
        )
    return state


def _begun(run: Run, state: State) -> State:
    """The state with the first network."""
    model = restored(run.settings, state, run.images)
    if run.settings.precision == "64-true":
        model.double()
    if run.settings.the_gamma:
        with torch.no_grad():
            for gamma in gammas(model).values():
                gamma.fill_(run.settings.the_gamma)
    state = replace(state, model=dict(model.state_dict()))
    run.save(state)
    return state


def _next(run: Run, state: State) -> State:
    """Train the phase in which the state is; after sparse training, slim."""
    phase = run.settings.phases[state.phase]
    state = train(run, state, _teacher(run) if phase.kind == "tune" else None)
    fresh: dict[str, Any] = {"phase": state.phase + 1, "step": 0, "optimizer": {}, "sparsity": {}}
    if phase.kind == "sparse":
        if run.fabric.is_global_zero:
            if phase.number == 0 and run.settings.distill:
                save(run.folder / TEACHER, {"model": state.model})
            state = _slimmed(run, state)
        state = run.fabric.broadcast(state)
    state = replace(state, **fresh)
    run.save(state)
    return state


def _finished(run: Run, state: State) -> None:
    """Write what a finished run leaves, as far as it is not there: its process may have been killed in between."""
    if not (run.folder / RESULTS).exists():
        results = {"settings": json.loads(state.settings), "stages": state.stages}
        write_whole(run.folder / RESULTS, (json.dumps(results, indent=2) + "\n").encode())
    if not (run.folder / SLIM).exists():
        fxprune.save(restored(run.settings, state, run.images), run.folder / SLIM)


def _slimmed(run: Run, state: State) -> State:
    """The state with a smaller network (clause 3)."""
    settings = run.settings
    model = restored(settings, state, run.images).eval()
    inputs = example(run.images, dtype_of(state.model))
    ratio, graph = settings.ratio, fxprune.analyze(model, inputs)
    if settings.passes > 1:
        ratio = below_quantile(graph, ratio, settings.the_floor, settings.layout)
    if any(group.gammas for group in graph.groups):
        coupled = graph if settings.layout == "coupled" else None
        run.journal.say(
            f"{readiness(model, graph=coupled, floor=settings.the_floor).spare:.0%} of the channels are to spare; {ratio:.0%} will go"
        )
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always", FxpruneWarning)
        slim, notes = _smaller(settings, model, inputs, ratio)
    for note in (*(str(warning.message) for warning in seen), *notes):
        run.journal.say(f"note: {note}")
    if settings.recalibrate:
        share = Share(run.images, settings.batch, augment=settings.augment)
        first = next(slim.parameters())
        batches = share.epoch(seed_of(settings.seed, state.phase, "recalibrate"))
        recalibrate(slim, (pixels.to(first.dtype) for pixels, _ in batches), settings.recalibrate, alone=True)
    plan = fxprune.plan_of(slim)
    return replace(state, plan=replace(plan, notes=(*plan.notes, *notes)).to_json(), model=dict(slim.state_dict()))


def _smaller(settings: Settings, model: nn.Module, inputs: Tensor, ratio: float) -> tuple[nn.Module, tuple[str, ...]]:
    """Clause 3: the slim network, and what is to be said of it."""

    def slim(ratio: float) -> nn.Module:
        return fxprune.slim(model, ratio, inputs, layout=settings.layout, floor=settings.the_floor, absorb=settings.absorb)

    try:
        return slim(ratio), ()
    except BudgetError as error:
        if not isinstance(error.expected, float):
            raise
        return slim(error.expected), (f"{error} {error.expected:.3f} went.",)


def _teacher(run: Run) -> nn.Module | None:
    """The network that fine-tuning learns from: the one that the first training made, whole."""
    if not run.settings.distill:
        return None
    found = torch.load(run.folder / TEACHER, weights_only=True) if run.fabric.is_global_zero else None
    state = State(run.settings.to_json(), model=run.fabric.broadcast(found)["model"])
    model = restored(run.settings, state, run.images).eval().requires_grad_(False)
    return model.to(run.fabric.device)
