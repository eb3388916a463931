"""What absorption did: constants of removed channels, the readers that took them, and what was left.

1. A removed channel still emits something: with gamma = 0, ``act(beta)``. A *fold* says what a reader (a convolution, a linear layer, a product
   with a parameter) is given for its removed input channels: ``values[i]`` in the place of atom ``atoms[i]`` of ``weight``'s dimension ``dim``.
   The slim reader has no such inputs; weight times constant, the *correction*, stands in ``place`` instead.
2. Forms: "bias": added to the reader's bias, ``place``. "norm": taken off the running mean of the batch norm that alone reads the reader.
   "sum": a tensor ``place`` of shape (out, 1, ..) is added behind the reader. "map": the reader pads with zeros, or is transposed, so the
   correction differs at the border; a kernel ``place`` of shape (out, 1, *window) is applied to an image of ones and the result is added.
3. Of the first three the correction is that of the interior, where the window sees no padding.
4. An *addition* is a tensor that the slim model has and the original has not: a bias where there was none, what "sum" and "map" hold.
5. A *loss* is what could not be folded, and why. ``Absorption.exact``: nothing was lost, all constants are known and nothing was approximated, so
   the slim model computes in evaluation mode what the original computes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

OFF, INTERIOR, EXACT = "off", "interior", "exact"
MODES = (OFF, INTERIOR, EXACT)
FORMS = ("bias", "norm", "sum", "map")


@dataclass(frozen=True, slots=True)
class Addition:
    """Clause 4: ``form`` is "bias" (a parameter of the module that node ``node`` calls), "sum" or "map" (added behind ``node``).

    ``weight`` is the reader's, ``shape`` that of the tensor in the slim model.
    """

    name: str
    node: str
    form: str
    weight: str
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Fold:
    """Clauses 1 to 3.

    Attributes:
        node: the reader's node.
        weight: name of the reader's weight.
        dim: its input side.
        atoms: removed atoms along it (plan.py, clause 3), in the original's coordinates.
        values: their constants.
        form: clause 2.
        place: name of the tensor that took the correction.
        exact: every constant is known, and the form is right at every position.
        left: the largest difference that stays in the reader's output, estimated: border against interior, one standard deviation of
            what was replaced by its expected value, and what that misses of the maximum over a window.
    """

    node: str
    weight: str
    dim: int
    atoms: tuple[int, ...]
    values: tuple[float, ...]
    form: str
    place: str
    exact: bool = True
    left: float = 0.0


@dataclass(frozen=True, slots=True)
class Loss:
    """What was dropped: at which node, why, how many channels, and the largest constant among them (NaN: not known)."""

    node: str
    reason: str
    channels: int
    size: float = math.nan

    def __str__(self) -> str:
        known = "" if math.isnan(self.size) else f" of up to {self.size:.2g}"
        plural = "s" * (self.channels != 1)
        return (
            f"at node {self.node!r} the constant{plural} of {self.channels} removed channel{plural}{known} dropped: {self.reason}"
        )


@dataclass(frozen=True, slots=True)
class Absorption:
    """Everything that absorption did for one slim model.

    Attributes:
        mode: "off", "interior" or "exact".
        source: where expected outputs of channels with gamma != 0 come from, "closed form" or "data".
        folds: what readers were given.
        losses: what was dropped.
        exact: clause 5.
        difference: largest relative difference of the outputs to those of the model that was given, on the example inputs, in float64; NaN: not
            measured. Of several rounds, that of the last one, to the slim model that it was given.
    """

    mode: str = OFF
    source: str = ""
    folds: tuple[Fold, ...] = ()
    losses: tuple[Loss, ...] = ()
    exact: bool = False
    difference: float = math.nan

    @property
    def left(self) -> float:
        """The largest difference that a fold leaves in its reader's output."""
        return max((fold.left for fold in self.folds), default=0.0)

    def __str__(self) -> str:
        """A few lines for people."""
        if self.mode == OFF:
            return "absorb off: removed channels were dropped"
        taken = {atom for fold in self.folds for atom in ((fold.weight, fold.dim, a) for a in fold.atoms)}
        forms = {form: sum(fold.form == form for fold in self.folds) for form in FORMS}
        named = {"bias": "biases", "norm": "running means", "sum": "sums", "map": "border maps"}
        where = ", ".join(f"{count} {named[form]}" for form, count in forms.items() if count) or "nothing to fold"
        lines = [f"absorbed {len(taken)} constant inputs ({self.mode}, {self.source}): {where}"]
        if self.exact:
            lines.append("exact: nothing was lost")
        elif self.folds:
            worst = max(self.folds, key=lambda fold: fold.left)
            lines.append(f"largest difference left in a reader's output: {worst.left:.3g} at {worst.node!r}")
        lines += [str(loss) for loss in self.losses[:8]]
        if len(self.losses) > 8:
            lines.append(f"... and {len(self.losses) - 8} more places")
        if not math.isnan(self.difference):
            lines.append(f"outputs differ from the given model's by at most {self.difference:.2g} (relative, example inputs)")
        return "\n".join(lines)

    def to_data(self) -> dict[str, Any]:
        """Dicts, lists and plain values."""
        return {
            "mode": self.mode,
            "source": self.source,
            "exact": self.exact,
            "difference": None if math.isnan(self.difference) else self.difference,
            "folds": [
                [f.node, f.weight, f.dim, list(f.atoms), list(f.values), f.form, f.place, f.exact, f.left] for f in self.folds
            ],
            "losses": [[x.node, x.reason, x.channels, None if math.isnan(x.size) else x.size] for x in self.losses],
        }

    @classmethod
    def from_data(cls, data: Any) -> Absorption:
        """Read what ``to_data`` gave.

        Raises:
            ValueError: the data are damaged (KeyError and TypeError likewise).
        """
        if data["mode"] not in MODES:
            raise ValueError(f"mode {data['mode']!r}")
        folds = []
        for node, weight, dim, atoms, values, form, place, exact, left in data["folds"]:
            if form not in FORMS or len(atoms) != len(values) or not all(type(a) is int and a >= 0 for a in (dim, *atoms)):
                raise ValueError("a fold is damaged")
            numbers = tuple(map(float, values))
            folds.append(Fold(str(node), str(weight), dim, tuple(atoms), numbers, form, str(place), exact is True, float(left)))
        losses = tuple(
            Loss(str(node), str(reason), int(channels), math.nan if size is None else float(size))
            for node, reason, channels, size in data["losses"]
        )
        difference = math.nan if data["difference"] is None else float(data["difference"])
        return cls(data["mode"], str(data["source"]), tuple(folds), losses, data["exact"] is True, difference)


Kept = Mapping[str, Mapping[int, tuple[int, ...]]]


@dataclass(slots=True)
class _Merged:
    fold: Fold
    values: dict[int, float] = field(default_factory=dict)


def composed(first: Absorption, second: Absorption, kept: Kept) -> Absorption:
    """Two rounds as one, in the first one's coordinates, with the last one's difference; ``kept`` is the first round's plan."""
    if first.mode == OFF or not first.folds:
        mode = second.mode if first.mode in (OFF, second.mode) else INTERIOR
    else:
        mode = first.mode if second.mode == first.mode else INTERIOR
    merged: dict[tuple[str, str, int, str], _Merged] = {}
    for fold in first.folds:
        found = merged.setdefault((fold.weight, fold.place, fold.dim, fold.node), _Merged(fold))
        found.values.update(zip(fold.atoms, fold.values, strict=True))
    for fold in second.folds:
        rows = kept.get(fold.weight, {}).get(fold.dim)
        atoms = fold.atoms if rows is None else tuple(rows[a] for a in fold.atoms)
        found = merged.setdefault((fold.weight, fold.place, fold.dim, fold.node), _Merged(fold))
        found.values.update(zip(atoms, fold.values, strict=True))
        found.fold = replace(found.fold, exact=found.fold.exact and fold.exact, left=max(found.fold.left, fold.left))
    folds = tuple(replace(m.fold, atoms=tuple(m.values), values=tuple(m.values.values())) for m in merged.values())
    source = first.source if first.source == second.source or not second.source else second.source
    losses = (*first.losses, *second.losses)
    return Absorption(mode, source, folds, losses, first.exact and second.exact, second.difference)
