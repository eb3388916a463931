"""How much accuracy each layer costs: one layer at a time, at falling densities, nothing retrained.

1. ``scan`` prunes one layer of a copy to each density by magnitude, leaves all others as they are, and asks the caller's function for the
   accuracy (Han et al. 2015, section 4.3, figure 6). The model is not changed.
2. With a ``path`` every measured point is written to a JSON file at once (a new file replaces the old one in one step), and a scan that
   is started again goes on from there. The file holds a digest of the model's weights: points of another model are refused.
3. The *cost curve* of a layer is its loss of accuracy against density, made monotone: a density costs at least what every larger one costs.
   Between two points it is linear. At density 1 it is 0.
4. ``suggest(loss)``: per layer the lowest density whose cost is at most ``loss``, with the threshold and the quality (threshold / standard
   deviation) that give it. ``allocate(density)``: the smallest common ``loss`` at which the layers together have at most that density: the
   most sensitive layer gets the smallest threshold, as in the paper.
"""

from __future__ import annotations

import copy
import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from fxprune.errors import BudgetError
from fxprune.sparse.errors import SparseFileError
from fxprune.sparse.layers import layers
from fxprune.sparse.magnitude import by_density, deviation
from fxprune.sparse.masks import permanent, set_masks

DENSITIES = (0.8, 0.6, 0.4, 0.3, 0.2, 0.15, 0.1, 0.05, 0.02)
FORMAT = 1

Curve = tuple[tuple[float, float], ...]


@dataclass(frozen=True, slots=True)
class Suggestion:
    """What one layer may lose: the share of weights that stays, and the threshold that leaves it."""

    density: float
    threshold: float
    quality: float


@dataclass(frozen=True, slots=True)
class Sensitivity:
    """Accuracy against density, per layer.

    Attributes:
        baseline: accuracy of the model as it is, in [0, 1].
        accuracy: per layer, (density, accuracy) pairs by falling density.
        sizes: number of weights per layer.
        digest: of the weights that were measured.
        magnitudes: per layer, (density, threshold, quality) of each measured point.
    """

    baseline: float
    accuracy: Mapping[str, Curve]
    sizes: Mapping[str, int]
    digest: str
    magnitudes: Mapping[str, tuple[tuple[float, float, float], ...]]

    def table(self) -> str:
        """A Markdown table: a row per layer, a column per density, accuracy in percent."""
        columns = sorted({d for curve in self.accuracy.values() for d, _ in curve}, reverse=True)
        lines = ["| layer | 100 % | " + " | ".join(f"{d:.3g} %" for d in (100 * c for c in columns)) + " |"]
        lines.append("|---|" + "---|" * (len(columns) + 1))
        for name, curve in self.accuracy.items():
            points = dict(curve)
            cells = [f"{100 * points[c]:.2f}" if c in points else "" for c in columns]
            lines.append(f"| {name} | {100 * self.baseline:.2f} | " + " | ".join(cells) + " |")
        return "\n".join(lines)

    def cost(self, name: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Clause 3: densities (rising, ending at 1) and the loss of accuracy at each (falling, ending at 0)."""
        curve = sorted(self.accuracy[name], reverse=True)
        lost = np.maximum.accumulate([0.0, *(max(0.0, self.baseline - accuracy) for _, accuracy in curve)])
        return (*(d for d, _ in reversed(curve)), 1.0), tuple(lost[::-1].tolist())

    def lowest(self, name: str, loss: float) -> float:
        """The lowest density of a layer whose cost is at most ``loss`` (clause 3); within what was measured."""
        density, lost = self.cost(name)
        if lost[0] <= loss:
            return density[0]
        low = max(i for i, value in enumerate(lost) if value > loss)
        share = (lost[low] - loss) / (lost[low] - lost[low + 1])
        return density[low] + share * (density[low + 1] - density[low])

    def suggest(self, loss: float) -> dict[str, Suggestion]:
        """Clause 4, for a loss of accuracy in [0, 1] per layer.

        Raises:
            BudgetError: a loss outside [0, 1].
        """
        if not 0 <= loss <= 1:
            raise BudgetError(f"loss is a share of accuracy in [0, 1], got {loss}.", expected="[0, 1]", got=loss)
        found = {}
        for name in self.accuracy:
            density = self.lowest(name, loss)
            points = sorted((*self.magnitudes[name], (1.0, 0.0, 0.0)))
            axes = np.array(points).T
            found[name] = Suggestion(density, *(float(np.interp(density, axes[0], axes[i])) for i in (1, 2)))
        return found

    def allocate(self, density: float) -> dict[str, float]:
        """Clause 4: a density per layer so that all together keep at most ``density`` of their weights.

        Raises:
            BudgetError: not even the lowest densities measured are that low.
        """
        total = sum(self.sizes.values())

        def kept(loss: float) -> float:
            return sum(self.lowest(name, loss) * size for name, size in self.sizes.items()) / total

        low, high = 0.0, 1.0
        if kept(high) > density:
            raise BudgetError(
                f"a density of {density:g} is below what was measured (at least {kept(high):.3g}); scan lower densities.",
                got=density,
            )
        for _ in range(60):
            middle = (low + high) / 2
            low, high = (low, middle) if kept(middle) <= density else (middle, high)
        return {name: self.lowest(name, high) for name in self.accuracy}

    def plot(self, path: str | Path, title: str = "accuracy against density, one layer at a time") -> None:
        """Draw the curves as an SVG file; the horizontal axis is logarithmic."""
        from fxprune.sparse.plot import Line, draw

        lines = [
            Line(name, (*((d, 100 * a) for d, a in curve), (1.0, 100 * self.baseline))) for name, curve in self.accuracy.items()
        ]
        text = draw(lines, title=title, across="density of the layer", up="accuracy, %")
        write_whole(Path(path), text.encode())


def scan(
    model: nn.Module,
    accuracy: Callable[[nn.Module], float],
    densities: Sequence[float] = DENSITIES,
    *,
    path: str | Path | None = None,
    only: str = "all",
    names: Sequence[str] = (),
) -> Sensitivity:
    """Clauses 1 and 2: measure every chosen layer at every density.

    Args:
        model: only read; masks that it holds count as zeros.
        accuracy: called with a pruned copy in eval mode; returns a share in [0, 1].
        densities: in (0, 1).
        path: a JSON file to keep points in, and to go on from.
        only: which layers (layers.py, clause 2).
        names: globs over their names.

    Raises:
        BudgetError: densities outside (0, 1).
        SparseFileError: the file is damaged, or holds points of another model.
    """
    if not densities or any(not 0 < d < 1 for d in densities):
        raise BudgetError(f"densities must be in (0, 1), got {tuple(densities)}.", expected="(0, 1)", got=tuple(densities))
    bare = permanent(model).eval()
    mark = weights_digest(bare)
    file = None if path is None else Path(path)
    done = _read(file, mark)
    if "baseline" not in done:
        done["baseline"] = float(accuracy(bare))
        _write(file, mark, done)
    chosen = layers(bare, only, names)
    for name in chosen:
        for density in sorted(densities, reverse=True):
            key = f"{name}@{density:g}"
            if key not in done:
                done[key] = _measure(bare, name, density, accuracy)
                _write(file, mark, done)
    result = {name: tuple((d, done[f"{name}@{d:g}"][0]) for d in sorted(densities, reverse=True)) for name in chosen}
    magnitudes = {name: tuple((d, *done[f"{name}@{d:g}"][1:]) for d in sorted(densities, reverse=True)) for name in chosen}
    sizes = {name: module.weight.numel() for name, module in chosen.items()}  # type: ignore[operator]
    return Sensitivity(done["baseline"], result, sizes, mark, magnitudes)


def _measure(bare: nn.Module, name: str, density: float, accuracy: Callable[[nn.Module], float]) -> list[float]:
    """Accuracy, threshold and quality of one layer at one density."""
    pruned = copy.deepcopy(bare)
    module = layers(pruned, names=(name,))[name]
    spread = deviation(module)
    keep = by_density(pruned, {name: density})
    weight = module.weight.detach().abs()  # type: ignore[operator]
    alive = weight[keep[name]]
    threshold = float(alive.min()) if len(alive) else float(weight.max())
    set_masks(pruned, keep)
    return [float(accuracy(permanent(pruned).eval())), threshold, threshold / spread if spread else 0.0]


def weights_digest(model: nn.Module) -> str:
    """A SHA-256 over names, shapes and bytes of the state dict."""
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _read(file: Path | None, mark: str) -> dict[str, Any]:
    if file is None or not file.exists():
        return {}
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
        found, points = data["digest"], dict(data["points"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SparseFileError(
            f"{file.name!r} holds no sensitivity scan ({error}). Remove it to start anew.", node=file.name
        ) from error
    if data.get("format") != FORMAT or found != mark:
        raise SparseFileError(
            f"{file.name!r} holds points of another model or version; its weights differ. Use another path, or remove it to start anew.",
            node=file.name,
            expected=mark[:12],
            got=str(found)[:12],
        )
    return points


def _write(file: Path | None, mark: str, points: Mapping[str, Any]) -> None:
    if file is not None:
        write_whole(file, (json.dumps({"format": FORMAT, "digest": mark, "points": dict(points)}, indent=1) + "\n").encode())


def write_whole(file: Path, content: bytes) -> None:
    """Write a file so that a reader sees the old content or the new one, never a part."""
    handle, temporary = tempfile.mkstemp(dir=file.parent, prefix=f".{file.name}.")
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        Path(temporary).chmod(0o644)
        Path(temporary).replace(file)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
