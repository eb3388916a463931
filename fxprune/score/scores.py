"""Scores. A score is a callable ``(ChannelGroup) -> Tensor`` of shape (channels,): the least important channels go first.

1. ``gamma``: mean |gamma| of the coupling class over the batch norms it passes (Liu et al. 2017, section 3; where they rank each
   gamma by itself we rank the class, since it goes as a whole). ``gamma_sum`` and ``gamma_max`` are variants.
2. ``magnitude``: L2 norm of what produces a channel, relative to the mean of its axis, so that groups are comparable.
3. ``random``: a seeded baseline.
4. ``auto`` is ``gamma`` where every prunable group has one, and ``magnitude`` otherwise.
5. *Totals* say what a coupled channel is worth wherever it goes: ``gamma_sum``, estimates of the loss (data.py), and every score with a true
   attribute ``totals``. Other scores say what it is worth in each place; where sums over a network count (a budget), they are taken times its places.
6. Names of other scores of the weights (weights.py) work the same; ``"name:by"`` normalises a score (normalise.py). Scores that need data
   are callables made with a loader (data.py).
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fxprune.errors import BudgetError, WeightError
from fxprune.graph.channels import ChannelGroup, Member

Score = Callable[[ChannelGroup], Tensor]


@dataclass(frozen=True, slots=True)
class Scored:
    """The name of the score that was used, its values per group (float64, on the CPU), and whether they are totals (clause 5)."""

    name: str
    values: tuple[Tensor, ...]
    totals: bool = False


def is_total(score: object) -> bool:
    """Clause 5."""
    return score is gamma_sum or bool(getattr(score, "totals", False))


def _gammas(group: ChannelGroup) -> tuple[Tensor, Tensor]:
    """|gamma| of the class, batch norm after batch norm, and the channel each belongs to."""
    members = [m for m in group.members if m.name in group.gammas]
    if not members:
        return torch.zeros(0, dtype=torch.float64, device="cpu"), torch.zeros(0, dtype=torch.long, device="cpu")
    picked = [
        group.tensors[m.name].detach()[torch.from_numpy(m.atom).to(group.tensors[m.name].device)].cpu().to(torch.float64)
        for m in members
    ]
    return torch.cat(picked).abs(), torch.from_numpy(np.concatenate([m.channel for m in members]))


def gamma(group: ChannelGroup) -> Tensor:
    """Clause 1: mean |gamma| over the class; shape (channels,)."""
    values, channels = _gammas(group)
    counts = torch.bincount(channels, minlength=len(group))
    return torch.zeros(len(group), dtype=torch.float64, device="cpu").index_add_(0, channels, values) / counts.clamp(min=1)


def gamma_sum(group: ChannelGroup) -> Tensor:
    """Sum of |gamma| over the class; shape (channels,)."""
    values, channels = _gammas(group)
    return torch.zeros(len(group), dtype=torch.float64, device="cpu").index_add_(0, channels, values)


def gamma_max(group: ChannelGroup) -> Tensor:
    """Largest |gamma| of the class; shape (channels,)."""
    values, channels = _gammas(group)
    return torch.zeros(len(group), dtype=torch.float64, device="cpu").scatter_reduce_(0, channels, values, "amax")


def magnitude(group: ChannelGroup) -> Tensor:
    """Clause 2; shape (channels,)."""
    return relative(group, lambda member: atom_norms(group.tensors[member.name], member))


def relative(group: ChannelGroup, norms: Callable[[Member], Tensor]) -> Tensor:
    """Clause 2, from the L2 norms of each producer's atoms; shape (channels,)."""
    members = producers(group)
    total = torch.zeros(len(group), dtype=torch.float64, device="cpu")
    for member in members:
        found = norms(member)
        total += group.per_channel(member, found / found.mean().clamp(min=1e-30))
    return total / len(members)


def producers(group: ChannelGroup) -> list[Member]:
    """What produces a group's channels: axes that are not read from, of weights; else of whatever there is."""
    members = [m for m in group.members if not m.reads and group.tensors[m.name].dim() > 1]
    return members or [m for m in group.members if group.tensors[m.name].dim() > 1] or list(group.members)


def atom_norms(tensor: Tensor, member: Member) -> Tensor:
    """L2 norm of each atom of an axis (plan.py, clause 3); shape (atoms,), float64 on the CPU."""
    values = tensor.detach()
    if values.dtype in (torch.float16, torch.bfloat16, torch.bool):
        values = values.float()
    if member.blocks > 1:
        values = values.unflatten(0, (member.blocks, -1)).transpose(1, member.dim + 1)  # blocks, atoms, rows, ...
        norms = torch.linalg.vector_norm(values, dim=list(range(2, values.dim()))).flatten()
    else:
        dims = [d for d in range(values.dim()) if d != member.dim]
        norms = torch.linalg.vector_norm(values, dim=dims) if dims else values.abs()
    result: Tensor = norms.cpu().to(torch.float64)
    return result


def random(group: ChannelGroup) -> Tensor:
    """Clause 3: seeded by the group's name; shape (channels,)."""
    generator = torch.Generator().manual_seed(zlib.crc32(group.name.encode()))
    return torch.rand(len(group), generator=generator, dtype=torch.float64, device="cpu")


# weights.py adds its scores when the package is imported
NAMED: dict[str, Score] = {
    "gamma": gamma,
    "gamma_sum": gamma_sum,
    "gamma_max": gamma_max,
    "magnitude": magnitude,
    "random": random,
}


def named(name: str) -> Score:
    """The score of that name (clause 6).

    Raises:
        BudgetError: there is none.
    """
    first, colon, by = name.partition(":")
    if first not in NAMED:
        call = "fxprune.score.taylor(loader, loss)"
        call = f"fxprune.score.normalised({call}, {by!r})" if colon else call
        raise BudgetError(
            f"score must be 'auto', one of {sorted(NAMED)} or a callable, got {name!r}. Scores that look at data are callables: {call}.",
            expected=tuple(sorted(NAMED)),
            got=name,
        )
    if not colon:
        return NAMED[first]
    from fxprune.score.normalise import normalised

    return normalised(NAMED[first], by)


def _numbers(result: object, name: str, group: ChannelGroup) -> Tensor:
    try:
        return torch.as_tensor(result, device="cpu").detach().cpu().to(torch.float64)
    except (TypeError, ValueError, RuntimeError) as error:
        raise BudgetError(
            f"score {name!r} must return a tensor of {len(group)} numbers for group {group.name!r}, got {result!r}.",
            node=group.name,
            expected=(len(group),),
            got=type(result).__name__,
        ) from error


def score(groups: Sequence[ChannelGroup], how: str | Score = "auto") -> Scored:
    """One importance per coupled channel of every group.

    Raises:
        BudgetError: an unknown score, or gammas asked for where a group has none.
        WeightError: scores that are not finite.
    """
    if isinstance(how, str):
        name = how if how != "auto" else "gamma" if all(g.gammas for g in groups) else "magnitude"
        function = named(name)
        bare = [g.name for g in groups if name.startswith("gamma") and not g.gammas]
        if bare:
            raise BudgetError(
                f"score={name!r} needs a batch norm in every group; {bare[0]!r} and {len(bare) - 1} more have none. Use score='auto' or 'magnitude'.",
                node=bare[0],
                got=name,
            )
    else:
        if not callable(how):
            raise BudgetError(f"score must be 'auto', one of {sorted(NAMED)} or a callable, got {how!r}.", got=how)
        function, name = how, getattr(how, "__name__", type(how).__name__)
    values = []
    for group in groups:
        given = _numbers(function(group), name, group)
        if given.shape != (len(group),):
            raise BudgetError(
                f"score {name!r} must return {len(group)} values for group {group.name!r}, got shape {tuple(given.shape)}.",
                node=group.name,
                expected=(len(group),),
                got=tuple(given.shape),
            )
        if not bool(torch.isfinite(given).all()):
            bad = int((~torch.isfinite(given)).sum())
            raise WeightError(
                f"{bad} of the {len(group)} channels of group {group.name!r} have a score that is NaN or infinite. "
                "The model's weights are damaged (did training diverge?); nothing was pruned.",
                node=group.name,
                got=bad,
            )
        values.append(given)
    return Scored(name, tuple(values), is_total(function))
