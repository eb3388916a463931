"""One phase of a run: train a network from where its state is to the end of the phase.

1. What a step does follows from the settings, the state and the step's number: order, augmentation and the generator of dropout are seeded
   by them. Hence a phase that is interrupted and taken up from its last checkpoint makes the same steps.
2. A checkpoint is written at the end of every epoch, and every ``every`` steps if asked for.
3. With w processes the gradient is the average over equal parts of the global batch, and batch norms see the global batch (synced.py): the
   step of one process, up to the order of sums. Dropout draws differ between processes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import SGD

import fxprune
from fxprune.data import Images, Split
from fxprune.errors import NothingToPruneError
from fxprune.train.distill import distillation
from fxprune.train.gamma_l1 import GammaL1, GroupL1
from fxprune.train.penalty import Penalty
from fxprune.train.recipe.batches import Share, seed_of
from fxprune.train.recipe.checkpoint import State, save_state, write_whole
from fxprune.train.recipe.journal import Journal, csv_of
from fxprune.train.recipe.networks import example, restored
from fxprune.train.recipe.settings import Phase, Settings
from fxprune.train.recipe.synced import synchronized

TEST_BATCH = 256
LOG = "log.csv"


@dataclass(frozen=True, slots=True)
class Run:
    """What all phases of a run share.

    Attributes:
        fabric: processes and devices.
        settings: of the run.
        images: its image set.
        folder: where state and logs go.
        journal: what is shown while it runs.
        every: steps between checkpoints; 0: at the ends of epochs only.
        workers: processes that read ahead.
        on_step: called after every step, with the phase and the steps done in it.
    """

    fabric: Any
    settings: Settings
    images: Images
    folder: Path
    journal: Journal
    every: int = 0
    workers: int = 0
    on_step: Callable[[int, int], None] | None = None

    def save(self, state: State) -> None:
        """Write the state and the log that goes with it, once for all processes."""
        if self.fabric.is_global_zero:
            save_state(self.folder, state)
            write_whole(self.folder / LOG, csv_of(state.rows).encode())


def train(run: Run, state: State, teacher: nn.Module | None = None) -> State:
    """The state at the end of the phase in which ``state`` is."""
    settings, fabric = run.settings, run.fabric
    phase = settings.phases[state.phase]
    inner = restored(settings, state, run.images)
    model = fabric.setup_module(inner)
    inner.load_state_dict(state.model)
    if not _measured(state, phase):
        state = replace(state, stages=[*state.stages, _stage(run, inner, model, phase, "slim")])
    plain = SGD(
        inner.parameters(),
        lr=settings.rate,
        momentum=settings.momentum,
        weight_decay=settings.weight_decay,
        nesterov=settings.momentum > 0,
    )
    if state.optimizer:
        plain.load_state_dict(state.optimizer)
    if state.scaler:
        fabric.strategy.precision.load_state_dict(state.scaler)
    optimizer = fabric.setup_optimizers(plain)
    sparsity = _sparsity(run, inner, phase)
    if sparsity is not None and state.sparsity:
        sparsity.load_state_dict(state.sparsity)
    share = Share(run.images, settings.batch, fabric.global_rank, fabric.world_size, settings.augment, run.workers)
    loop = _Loop(run, phase, inner, model, plain, optimizer, sparsity, share, teacher)
    with synchronized(inner):
        state = loop.to_the_end(state)
    kind = "trained" if phase.kind == "sparse" else "tuned"
    return replace(state, stages=[*state.stages, _stage(run, inner, model, phase, kind)])


def _measured(state: State, phase: Phase) -> bool:
    """The network that a tuning starts with is measured once."""
    return phase.kind != "tune" or any(row["stage"] == "slim" and row["pass"] == phase.number for row in state.stages)


def _sparsity(run: Run, inner: nn.Module, phase: Phase) -> Penalty | None:
    settings = run.settings
    if phase.kind != "sparse" or settings.method == "none":
        return None
    parameter = next(inner.parameters())
    graph = fxprune.analyze(inner, example(run.images, parameter.dtype).to(parameter.device))
    try:
        if not settings.coupled:
            return GammaL1(inner, settings.the_strength, graph=graph)
        return GroupL1(inner, graph, settings.the_strength)
    except NothingToPruneError as error:
        raise NothingToPruneError(f"{error} In the recipe: method='none' (--method none) trains without a penalty.") from error


@dataclass(frozen=True, slots=True)
class _Loop:
    run: Run
    phase: Phase
    inner: nn.Module
    model: Any
    plain: SGD
    optimizer: Any
    sparsity: Penalty | None
    share: Share
    teacher: nn.Module | None

    def to_the_end(self, state: State) -> State:
        while state.step < self.phase.epochs * self.share.steps:
            state = self._epoch(state)
        return self._now(state, state.step, state.sums)

    def _epoch(self, state: State) -> State:
        """The rest of the epoch in which the state is; a checkpoint at its end (clause 2)."""
        run, settings, fabric = self.run, self.run.settings, self.run.fabric
        epoch, done = divmod(state.step, self.share.steps)
        name = (settings.seed, state.phase, epoch)
        rate = settings.rate_at(epoch, self.phase.epochs)
        for group in self.plain.param_groups:
            group["lr"] = rate
        self.model.train()
        local = torch.zeros(3, device=fabric.device)
        for step, batch in enumerate(self.share.epoch(seed_of(*name), done), done + 1):
            torch.manual_seed(seed_of(*name, step, fabric.global_rank))
            local += self._step(*fabric.to_device(batch))
            run.journal.step(self.phase, epoch, step, self.share.steps)
            last = step == self.share.steps
            if not last and run.every and step % run.every == 0:
                state = self._now(state, epoch * self.share.steps + step, self._summed(state.sums, local))
                local.zero_()
                run.save(state)
            if not last and run.on_step is not None:
                run.on_step(state.phase, epoch * self.share.steps + step)
        sums = self._summed(state.sums, local)
        row = self._row(state, epoch, rate, sums)
        state = replace(self._now(state, (epoch + 1) * self.share.steps, [0.0, 0.0, 0.0]), rows=[*state.rows, row])
        run.save(state)
        run.journal.epoch(row)
        if run.on_step is not None:
            run.on_step(state.phase, state.step)
        return state

    def _step(self, images: Tensor, labels: Tensor) -> Tensor:
        """One step; loss, hits and images of this process."""
        settings, sparsity = self.run.settings, self.sparsity
        self.optimizer.zero_grad()
        logits = self.model(images)
        if self.teacher is None:
            loss = F.cross_entropy(logits, labels)
        else:
            with torch.no_grad():
                wanted = self.teacher(images.to(next(self.teacher.parameters()).dtype))
            loss = distillation(logits, wanted.to(logits.dtype), labels, weight=settings.distill)
        # A scaled loss has scaled gradients, to which the subgradient would have to be scaled: the term in the loss is the same.
        in_loss = settings.method == "penalty" or (settings.method == "subgradient" and settings.precision == "16-mixed")
        total = loss + sparsity.penalty() if sparsity is not None and in_loss else loss
        self.run.fabric.backward(total)
        if sparsity is not None and settings.method == "subgradient" and not in_loss:
            sparsity.add_gradient()
        scale = self._scale() if settings.method == "proximal" else 0.0
        self.optimizer.step()
        if sparsity is not None and settings.method == "proximal" and self._scale() >= scale:
            sparsity.shrink(self.plain)
        if sparsity is not None and in_loss:
            sparsity.advance()
        hits = (logits.argmax(1) == labels).sum()
        return torch.stack([loss.detach().float() * len(labels), hits.float(), hits.new_tensor(len(labels)).float()])

    def _scale(self) -> float:
        """What gradients are scaled by; a step that a scaler skips lowers it."""
        scaler = getattr(self.run.fabric.strategy.precision, "scaler", None)
        return 1.0 if scaler is None else float(scaler.get_scale())

    def _summed(self, sums: list[float], local: Tensor) -> list[float]:
        total = self.run.fabric.all_reduce(local.clone(), reduce_op="sum").tolist()
        return [old + new for old, new in zip(sums, total, strict=True)]

    def _now(self, state: State, step: int, sums: list[float]) -> State:
        """The state after so many steps, with copies on the CPU."""
        model = {name: tensor.detach().cpu().clone() for name, tensor in self.inner.state_dict().items()}
        sparsity = {} if self.sparsity is None else self.sparsity.state_dict()
        scaler = dict(self.run.fabric.strategy.precision.state_dict())
        return replace(
            state, step=step, sums=sums, model=model, optimizer=self.plain.state_dict(), sparsity=sparsity, scaler=scaler
        )

    def _row(self, state: State, epoch: int, rate: float, sums: list[float]) -> dict[str, float | int | str]:
        loss, hits, count = sums
        zero = float("nan") if self.sparsity is None else self.sparsity.share_below()
        return {
            "phase": state.phase,
            "pass": self.phase.number,
            "kind": self.phase.kind,
            "epoch": epoch,
            "rate": rate,
            "loss": loss / max(1.0, count),
            "train": hits / max(1.0, count),
            "test": accuracy(self.run.fabric, self.model, self.run.images.test),
            "below 1e-3": zero,
        }


def _stage(run: Run, inner: nn.Module, model: Any, phase: Phase, stage: str) -> dict[str, float | int | str]:
    from fxprune.train.recipe.networks import costs

    parameters, macs = costs(inner, run.images)
    found = accuracy(run.fabric, model, run.images.test)
    return {"pass": phase.number, "stage": stage, "test": found, "parameters": parameters, "macs": macs}


@torch.no_grad()
def accuracy(fabric: Any, model: nn.Module, split: Split) -> float:
    """Share of images classified correctly, by all processes together."""
    mode = model.training
    model.eval()
    hits = torch.zeros((), device=fabric.device)
    for indices in torch.arange(fabric.global_rank, len(split), fabric.world_size, device="cpu").split(TEST_BATCH):
        images, labels = fabric.to_device(split.batch(indices))
        hits += (model(images).argmax(1) == labels).sum()
    model.train(mode)
    return float(fabric.all_reduce(hits, reduce_op="sum")) / len(split)
