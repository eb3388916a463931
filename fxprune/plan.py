"""The plan: which channel atoms go.

1. An *axis* is one dimension of one parameter or buffer. ``sizes[name][dim]`` is the number of its atoms.
2. ``kept[name][dim]`` lists the surviving atoms of that axis, in the ORIGINAL model's coordinates and in the order in which
   they stand in the slim tensor. Axes that are not listed keep everything.
3. Where an axis has m times as many atoms as the dimension has entries (the second dimension of a grouped convolution's
   weight), dimension 0 consists of m equal blocks of rows, and atom ``b * shape[dim] + j`` is entry j in the rows of block b.
4. ``silent[name][dim]`` lists atoms of input axes that stay but are read with weight zero: a layer that is emptied keeps one channel
   that nobody hears, so that what the layer still contributes is a constant and no operator sees an empty tensor.
5. ``added`` lists tensors that the slim model has and the original has not (folds.py, clause 4): biases and border maps that take the constants of
   removed channels. None: not decided yet, the plan has made no model.
6. A plan knows nothing of devices, dtypes or weights. ``Plan.from_json(plan.to_json()) == plan``.
7. ``ranking`` (ranking.py) tells how the scores lay. It travels with the plan and is no part of what the plan is: two plans that keep the same
   for the same reason are equal whatever it says.
8. ``figures`` of a plan made for a budget: per bound ("macs", "params of 'layer4.*'") the numbers "original", "asked" and "achieved"; under
   "kept score" what is "achieved" of the "original", the "bound" that no plan of this budget can exceed, and the "gap" between them as a share.
   Of a latency that was timed also what was "predicted" and "measured" (which is "achieved"), in seconds, and the "rounds" that took.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from fxprune.errors import PlanMismatchError
from fxprune.folds import Addition
from fxprune.ranking import Histogram, Ranking
from fxprune.slices import Slices, slices

FORMAT = 1
LAYOUTS = ("coupled", "selection")

Kept = Mapping[str, Mapping[int, tuple[int, ...]]]


@dataclass(frozen=True, slots=True)
class Plan:
    """Which channels survive, and how that was decided.

    Attributes:
        kept: surviving atoms per tensor name and dimension (module docstring, clauses 2 and 3).
        sizes: number of atoms per tensor name and dimension in the original model; same keys as ``kept``.
        asked: the share of channels that was asked to go, in [0, 1); 0 for a budget, whose bounds are in ``figures``.
        achieved: the share of channels that goes, counted the same way.
        score: name of the score that ranked the channels.
        layout: "coupled" or "selection".
        notes: what a user should know about this plan, one sentence each.
        silent: atoms that are kept but read with weight zero (clause 4).
        added: tensors that are added (clause 5).
        ranking: how the scores lay (clause 7); empty where nobody said.
        figures: what a budget asked for and what is left (clause 8).
    """

    kept: Kept
    sizes: Mapping[str, Mapping[int, int]]
    asked: float = 0.0
    achieved: float = 0.0
    score: str = ""
    layout: str = "coupled"
    notes: tuple[str, ...] = field(default=())
    silent: Kept = field(default_factory=dict)
    added: tuple[Addition, ...] | None = None
    ranking: Ranking = field(default=(), compare=False, repr=False)
    figures: Mapping[str, Mapping[str, float]] = field(default_factory=dict)

    @property
    def empty(self) -> bool:
        """True if nothing goes."""
        return all(len(rows) == self.sizes[name][dim] for name, dims in self.kept.items() for dim, rows in dims.items())

    def removed(self, name: str, dim: int) -> tuple[int, ...]:
        """The atoms of an axis that go, ascending."""
        alive = set(self.kept.get(name, {}).get(dim, ()))
        size = self.sizes.get(name, {}).get(dim, 0)
        return tuple(i for i in range(size) if i not in alive)

    def slices(self, name: str, shape: Sequence[int]) -> Slices:
        """How this plan cuts the tensor of that name, which has that shape in the original.

        Raises:
            PlanMismatchError: the plan is for a tensor of another shape.
        """
        return slices(name, shape, self.kept.get(name, {}), self.sizes.get(name, {}), self.silent.get(name, {}))

    def apply_to_state_dict(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A state dict of the original, or a part of one, as the slim model's: new tensors, without the original's storage.

        What the plan does not name is copied as it is. A tensor that the state dict holds under two names is one: tied weights are
        cut together and stay tied. The original's parameters that its program never uses come along; the slim model has them not. What removed
        channels emit is not in it: tensors that the plan adds are zeros.

        Raises:
            PlanMismatchError: tensors of other shapes, or none that the plan names.
        """
        if self.kept and not self.kept.keys() & state.keys():
            near = ", ".join(map(repr, list(state)[:3])) or "nothing"
            raise PlanMismatchError(f"the state dict holds none of the tensors that the plan names; it has {near}.", got=near)
        own = {_storage(tensor): name for name, tensor in state.items() if name in self.kept}
        made: dict[Any, Tensor] = {}
        for name, tensor in state.items():
            key = _storage(tensor)
            if key not in made:
                made[key] = self.slices(own.get(key, name), tensor.shape).whole(tensor.detach())
        result = {name: made[_storage(tensor)] for name, tensor in state.items()}
        for addition in self.added or ():
            if addition.weight in result:
                result[addition.name] = result[addition.weight].new_zeros(addition.shape)
        return result

    def to_data(self) -> dict[str, Any]:
        """What ``to_json`` writes, as dicts, lists and plain values."""
        figures = {"figures": {name: dict(own) for name, own in self.figures.items()}} if self.figures else {}
        return {
            "format": FORMAT,
            "asked": self.asked,
            "achieved": self.achieved,
            "score": self.score,
            "layout": self.layout,
            "notes": list(self.notes),
            "axes": [
                {"name": name, "dim": dim, "size": self.sizes[name][dim], "kept": list(rows)}
                for name, dims in self.kept.items()
                for dim, rows in dims.items()
            ],
            "silent": [
                {"name": name, "dim": dim, "atoms": list(rows)}
                for name, dims in self.silent.items()
                for dim, rows in dims.items()
            ],
            "added": None if self.added is None else [[a.name, a.node, a.form, a.weight, list(a.shape)] for a in self.added],
            **({"ranking": [histogram.to_data() for histogram in self.ranking]} if self.ranking else {}),
            **figures,
        }

    def to_json(self, indent: int | None = None) -> str:
        """A self-contained, diffable JSON text."""
        return json.dumps(self.to_data(), indent=indent)

    @classmethod
    def from_json(cls, text: str) -> Plan:
        """Read what ``to_json`` wrote.

        Raises:
            PlanMismatchError: the text is no plan, or one of an unknown format.
        """
        try:
            data: Any = json.loads(text)
        except (ValueError, TypeError, RecursionError) as error:
            raise PlanMismatchError(
                f"this is not a plan: the JSON text cannot be read ({error}).", got=type(text).__name__
            ) from error
        return cls.from_data(data)

    @classmethod
    def from_data(cls, data: Any) -> Plan:
        """Read what ``to_data`` gave.

        Raises:
            PlanMismatchError: the data are no plan, or one of an unknown format.
        """
        if not isinstance(data, dict) or data.get("format") != FORMAT:
            found = data.get("format") if isinstance(data, dict) else type(data).__name__
            raise PlanMismatchError(
                f"plan format must be {FORMAT}, got {found!r}. It was written by another version of fxprune.",
                expected=FORMAT,
                got=found,
            )
        try:
            return cls._from_dict(data)
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            if isinstance(error, PlanMismatchError):
                raise
            raise PlanMismatchError(f"this plan is damaged: {type(error).__name__}: {error}.") from error

    @classmethod
    def _from_dict(cls, data: dict[str, Any]) -> Plan:
        kept: dict[str, dict[int, tuple[int, ...]]] = {}
        sizes: dict[str, dict[int, int]] = {}
        for axis in data["axes"]:
            name, dim = _typed(axis["name"], str), _index(axis["dim"])
            size = _index(axis["size"])
            if dim in kept.get(name, {}):
                raise PlanMismatchError(f"this plan is damaged: {name!r}, dimension {dim}, stands in it twice.", node=name)
            kept.setdefault(name, {})[dim] = _indices(axis["kept"], size, name, dim)
            sizes.setdefault(name, {})[dim] = size
        silent: dict[str, dict[int, tuple[int, ...]]] = {}
        for axis in data["silent"]:
            name, dim = _typed(axis["name"], str), _index(axis["dim"])
            atoms = _indices(axis["atoms"], sizes[name][dim], name, dim)
            if not set(atoms) <= set(kept[name][dim]):
                raise PlanMismatchError(f"this plan is damaged: silent channels of {name!r} are not kept.", node=name)
            silent.setdefault(name, {})[dim] = atoms
        shares = [float(_typed(data[key], (int, float))) for key in ("asked", "achieved")]
        if not all(0 <= share <= 1 for share in shares):
            raise PlanMismatchError(f"this plan is damaged: shares must be in [0, 1], got {shares}.", got=shares)
        layout = _typed(data["layout"], str)
        if layout not in LAYOUTS:
            raise PlanMismatchError(f"layout must be one of {LAYOUTS}, got {layout!r}.", expected=LAYOUTS, got=layout)
        notes = tuple(_typed(note, str) for note in _typed(data["notes"], list))
        ranking = tuple(map(Histogram.from_data, _typed(data.get("ranking", []), list)))
        figures = {
            _typed(name, str): {_typed(key, str): float(_typed(value, (int, float))) for key, value in own.items()}
            for name, own in data.get("figures", {}).items()
        }
        score = _typed(data["score"], str)
        return cls(kept, sizes, shares[0], shares[1], score, layout, notes, silent, _additions(data), ranking, figures)


def _storage(tensor: Tensor) -> Any:
    """What two names of one tensor have in common."""
    place = id(tensor) if tensor.is_meta or not tensor.numel() else tensor.data_ptr()
    return tensor.device, place, tuple(tensor.shape), tensor.stride()


def _additions(data: Any) -> tuple[Addition, ...] | None:
    if data.get("added", []) is None:
        return None
    added = tuple(
        Addition(*(_typed(word, str) for word in (name, node, form, weight)), tuple(map(_index, _typed(shape, list))))  # type: ignore[call-arg]
        for name, node, form, weight, shape in _typed(data.get("added", []), list)
    )
    if any(addition.form not in ("bias", "sum", "map") for addition in added):
        raise PlanMismatchError("this plan is damaged: it adds a tensor in a form that is not known.")
    return added


def _typed(value: Any, kind: Any) -> Any:
    if not isinstance(value, kind) or isinstance(value, bool):
        raise TypeError(f"{value!r} is no {getattr(kind, '__name__', 'number')}")
    return value


def _index(value: Any) -> int:
    number: int = _typed(value, int)
    if number < 0:
        raise ValueError(f"{number} is negative")
    return number


def _indices(values: Any, size: int, name: str, dim: int) -> tuple[int, ...]:
    rows = tuple(_index(i) for i in _typed(values, list))
    if len(set(rows)) != len(rows) or any(i >= size for i in rows):
        raise PlanMismatchError(
            f"this plan is damaged: the indices of {name!r}, dimension {dim}, are not distinct indices below {size}.", node=name
        )
    return rows
