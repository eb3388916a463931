"""Knowledge distillation: the slim network learns from the unpruned one.

Hinton, Vinyals and Dean 2015 (arXiv:1503.02531): ``weight * T^2 * KL(teacher_T || student_T) + (1 - weight) * cross entropy``, where both
distributions are softmax(logits / T). The factor T^2 keeps the size of the gradients when T changes.
"""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor


def distillation(
    student: Tensor, teacher: Tensor, labels: Tensor | None = None, *, temperature: float = 4.0, weight: float = 0.9
) -> Tensor:
    """The loss, a scalar: the mean over the batch.

    Args:
        student: logits ``(n, classes)`` of the network that is trained.
        teacher: logits of the one it learns from; no gradient goes there.
        labels: ``(n,)``; left out, the distillation term alone is returned, with weight 1.
        temperature: T, positive.
        weight: of the distillation term, in [0, 1].

    Raises:
        ValueError: a temperature or weight outside its range, or logits of different shapes.
    """
    if not (math.isfinite(temperature) and temperature > 0):
        raise ValueError(f"temperature must be positive, got {temperature}.")
    if not 0 <= weight <= 1:
        raise ValueError(f"weight must be in [0, 1], got {weight}.")
    if student.shape != teacher.shape:
        raise ValueError(f"logits must have one shape, got {tuple(student.shape)} and {tuple(teacher.shape)}.")
    ours = F.log_softmax(student / temperature, dim=-1)
    theirs = F.log_softmax(teacher.detach() / temperature, dim=-1)
    soft = F.kl_div(ours, theirs, reduction="batchmean", log_target=True) * temperature**2
    return soft if labels is None else weight * soft + (1 - weight) * F.cross_entropy(student, labels)
