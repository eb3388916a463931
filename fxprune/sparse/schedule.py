"""How density falls over time.

1. ``cubic`` (Zhu & Gupta 2017, eq. 1, arXiv:1710.01878): with s = 1 - density, s_t = s_f + (s_i - s_f) (1 - (t - t0) / (t1 - t0))^3 between
   t0 and t1, constant outside: much goes early, while there is redundancy, little at the end.
2. ``rounds``: the densities of so many rounds of prune and retrain, ending at ``final`` (Han et al. 2015, section 3.4): "geometric" (each
   round keeps the same share of what is left), "linear", or "cubic" (clause 1 at equal steps). One round is one-shot pruning.
3. ``Gradual`` prunes within one training run: every ``every`` steps between ``start`` and ``end`` it sets the masks of clause 1.
4. ``iterate`` runs rounds: prune, retrain by what the caller gives, and goes on from the retrained weights.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from torch import nn

from fxprune.errors import BudgetError
from fxprune.sparse.magnitude import by_density
from fxprune.sparse.masks import density, set_masks

SHAPES = ("geometric", "linear", "cubic")


def cubic(step: int, start: int, end: int, final: float, initial: float = 1.0) -> float:
    """Clause 1: the density at a step, in [final, initial].

    Raises:
        BudgetError: densities that do not fall within [0, 1], or ``end`` not after ``start``.
    """
    if not 0 <= final <= initial <= 1:
        raise BudgetError(f"densities must fall: 0 <= final <= initial <= 1, got {initial} to {final}.", got=(initial, final))
    if end <= start:
        raise BudgetError(f"end must come after start, got start={start}, end={end}.", got=(start, end))
    done = min(1.0, max(0.0, (step - start) / (end - start)))
    return final + (initial - final) * (1 - done) ** 3


def rounds(final: float, count: int, shape: str = "geometric") -> tuple[float, ...]:
    """Clause 2: ``count`` densities, falling, the last one ``final``.

    Raises:
        BudgetError: ``final`` outside (0, 1], no rounds, an unknown shape.
    """
    if shape not in SHAPES:
        raise BudgetError(f"shape must be one of {SHAPES}, got {shape!r}.", expected=SHAPES, got=shape)
    if not 0 < final <= 1 or count < 1:
        raise BudgetError(f"final must be in (0, 1] and count at least 1, got {final} and {count}.", got=(final, count))
    steps = range(1, count + 1)
    if shape == "geometric":
        falling = [final ** (i / count) for i in steps]
    elif shape == "linear":
        falling = [1 - (1 - final) * i / count for i in steps]
    else:
        falling = [cubic(i, 0, count, final) for i in steps]
    return (*falling[:-1], float(final))


class Gradual:
    """Clause 3, for one model; call ``step()`` after every ``optimizer.step()``.

    Attributes:
        density: what the masks were last set to.
        steps: calls so far.
    """

    def __init__(
        self,
        model: nn.Module,
        final: float | Mapping[str, float],
        *,
        start: int,
        end: int,
        every: int = 100,
        scope: str = "layer",
        only: str = "all",
        names: Sequence[str] = (),
    ) -> None:
        """Prune the chosen layers to ``final`` (one density, or one per layer) between steps ``start`` and ``end``."""
        if every < 1:
            raise BudgetError(f"every must be at least 1 step, got {every}.", got=every)
        targets = final if isinstance(final, Mapping) else {"": final}
        for target in targets.values():
            cubic(start, start, end, target)  # refuses what makes no sense, before training starts
        self._model, self._final, self._scope, self._only, self._names = model, final, scope, only, names
        self._start, self._end, self._every = start, end, every
        self.steps, self.density = 0, 1.0

    def step(self) -> bool:
        """Count one step; True if masks were set."""
        self.steps += 1
        due = self._start <= self.steps <= self._end and (self.steps - self._start) % self._every == 0
        if not due and self.steps != self._end:
            return False

        def now(target: float) -> float:
            return cubic(self.steps, self._start, self._end, target)

        final = self._final
        wanted = {name: now(target) for name, target in final.items()} if isinstance(final, Mapping) else now(final)
        set_masks(self._model, by_density(self._model, wanted, scope=self._scope, only=self._only, names=self._names))
        self.density = density(self._model)
        return True


def iterate(
    model: nn.Module,
    targets: Sequence[float | Mapping[str, float]],
    retrain: Callable[[int], None],
    *,
    scope: str = "layer",
    only: str = "all",
    names: Sequence[str] = (),
) -> list[float]:
    """Clause 4, in place. ``targets``: one density (or one per layer) for each round; ``retrain(round)`` trains ``model``.

    Returns:
        The density of all prunable layers together after each round.
    """
    reached = []
    for number, wanted in enumerate(targets):
        set_masks(model, by_density(model, wanted, scope=scope, only=only, names=names))
        retrain(number)
        reached.append(density(model))
    return reached
