"""Scores of the weights alone. Each is a function ``(ChannelGroup) -> Tensor`` of shape (channels,), float64 on the CPU.

1. A channel's *rows* are the entries of what produces it (scores.py: ``producers``), one row per atom of the axis. Where a coupling class has
   several producers, or several atoms in one, the mean over them counts, since the class goes as a whole.
2. None of these is normalised; across layers of different width or scale compare them by ``normalised`` (normalise.py).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fxprune.graph.channels import ChannelGroup, Member
from fxprune.score.scores import atom_norms, gamma, magnitude, producers

ROWS_AT_ONCE = 1024


def atom_rows(tensor: Tensor, member: Member) -> Tensor:
    """The entries of every atom of an axis (plan.py, clause 3); shape (atoms, entries), float64 on the CPU."""
    values = tensor.detach().cpu().to(torch.float64)
    if member.blocks > 1:
        values = values.unflatten(0, (member.blocks, -1)).transpose(1, member.dim + 1)  # blocks, atoms, rows, ...
        rows = values.flatten(0, 1).flatten(1)
    else:
        rows = values.movedim(member.dim, 0).reshape(values.shape[member.dim], -1)
    result: Tensor = rows
    return result


def _over_producers(group: ChannelGroup, of_atoms: Callable[[Member], Tensor]) -> Tensor:
    """Clause 1."""
    members = producers(group)
    total = torch.zeros(len(group), dtype=torch.float64, device="cpu")
    for member in members:
        total += group.per_channel(member, of_atoms(member))
    return total / len(members)


def l1(group: ChannelGroup) -> Tensor:
    """Sum of |w| over a channel's row; shape (channels,). Li et al. 2017, section 3.1, arXiv:1608.08710."""
    return _over_producers(group, lambda m: atom_rows(group.tensors[m.name], m).abs().sum(1))


def l2(group: ChannelGroup) -> Tensor:
    """L2 norm of a channel's row; shape (channels,). The filter norm of He et al. 2018 (SFP), eq. 2, arXiv:1808.06866."""
    return _over_producers(group, lambda m: atom_norms(group.tensors[m.name], m))


def fpgm(group: ChannelGroup) -> Tensor:
    """Sum of Euclidean distances from a channel's row to all others of its layer; shape (channels,).

    He et al. 2019 (filter pruning via geometric median), eq. 5 and 6, arXiv:1811.00250: what lies near the geometric median is represented by
    the others. Here the layer is the group: the channels that can go. Quadratic in its width.
    """

    def distances(member: Member) -> Tensor:
        rows = atom_rows(group.tensors[member.name], member)
        own = torch.zeros(len(rows), dtype=torch.bool, device="cpu")
        own[torch.from_numpy(member.atom)] = True
        result = torch.zeros(len(rows), dtype=torch.float64, device="cpu")
        free = rows[own]
        parts = [torch.cdist(part, free, compute_mode="donot_use_mm_for_euclid_dist").sum(1) for part in free.split(ROWS_AT_ONCE)]
        result[own] = torch.cat(parts)
        return result

    return _over_producers(group, distances)


def lamp(group: ChannelGroup) -> Tensor:
    """Squared norm of a channel over that of all channels of its layer that are at least as large; shape (channels,), in (0, 1].

    Lee et al. 2021, eq. 4, arXiv:2010.07611: score(u) = W[u]^2 / sum of W[v]^2 over v >= u, indices sorted by magnitude. They score single
    weights; here u is a coupled channel, W[u]^2 the squared L2 norm of its rows, and the layer is the group. One channel per group scores 1.
    """
    squared = torch.zeros(len(group), dtype=torch.float64, device="cpu")
    for member in producers(group):
        norms = atom_norms(group.tensors[member.name], member) ** 2
        squared.index_add_(0, torch.from_numpy(member.channel), norms[torch.from_numpy(member.atom)])
    values, order = squared.sort(stable=True)
    remaining = values.flip(0).cumsum(0).flip(0)
    result = torch.zeros_like(squared)
    result[order] = values / remaining.clamp(min=torch.finfo(torch.float64).tiny)
    return result


def gamma_norm(group: ChannelGroup) -> Tensor:
    """|gamma| times the channel's relative weight norm; shape (channels,).

    The product of the scores of Liu et al. 2017 (section 3, arXiv:1708.06519) and of filter norms: for norms whose statistics
    did not follow their convolution, |gamma| alone says little. Groups without a norm score 0: use ``magnitude`` there.
    """
    return gamma(group) * magnitude(group)
