"""The plan: which channel atoms go.

1. An *axis* is one dimension of one parameter or buffer. ``sizes[name][dim]`` is the number of its atoms.
2. ``kept[name][dim]`` lists the surviving atoms of that axis, in the ORIGINAL model's coordinates and in the order in which
   they stand in the slim tensor. Axes that are not listed keep everything.
3. Where an axis has m times as many atoms as the dimension has entries (the second dimension of a grouped convolution's
   weight), dimension 0 consists of m equal blocks of rows, and atom ``b * shape[dim] + j`` is entry j in the rows of block b.
4. ``silent[name][dim]`` lists atoms of input axes that stay but are read with weight zero: a layer that is emptied keeps one channel
   that nobody hears, so that what the layer still contributes is a constant and no operator sees an empty tensor.
5. A plan knows nothing of devices, dtypes or weights. ``Plan.from_json(plan.to_json()) == plan``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fxprune.errors import PlanMismatchError

FORMAT = 1

Kept = Mapping[str, Mapping[int, tuple[int, ...]]]


@dataclass(frozen=True, slots=True)
class Plan:
    """Which channels survive, and how that was decided.

    Attributes:
        kept: surviving atoms per tensor name and dimension (module docstring, clauses 2 and 3).
        sizes: number of atoms per tensor name and dimension in the original model; same keys as ``kept``.
        asked: the share of channels that was asked to go, in [0, 1).
        achieved: the share of channels that goes, counted the same way.
        score: name of the score that ranked the channels.
        layout: "coupled" or "selection".
        notes: what a user should know about this plan, one sentence each.
        silent: atoms that are kept but read with weight zero (clause 4).
    """

    kept: Kept
    sizes: Mapping[str, Mapping[int, int]]
    asked: float = 0.0
    achieved: float = 0.0
    score: str = ""
    layout: str = "coupled"
    notes: tuple[str, ...] = field(default=())
    silent: Kept = field(default_factory=dict)

    @property
    def empty(self) -> bool:
        """True if nothing goes."""
        return all(len(rows) == self.sizes[name][dim] for name, dims in self.kept.items() for dim, rows in dims.items())

    def removed(self, name: str, dim: int) -> tuple[int, ...]:
        """The atoms of an axis that go, ascending."""
        alive = set(self.kept.get(name, {}).get(dim, ()))
        size = self.sizes.get(name, {}).get(dim, 0)
        return tuple(i for i in range(size) if i not in alive)

    def to_json(self, indent: int | None = None) -> str:
        """A self-contained, diffable JSON text."""
        return json.dumps(
            {
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
            },
            indent=indent,
        )

    @classmethod
    def from_json(cls, text: str) -> Plan:
        """Read what ``to_json`` wrote.

        Raises:
            PlanMismatchError: the text is no plan, or one of an unknown format.
        """
        try:
            data: Any = json.loads(text)
        except json.JSONDecodeError as error:
            raise PlanMismatchError(f"this is not a plan: the JSON text cannot be read ({error}).") from error
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
            name, dim, size = str(axis["name"]), int(axis["dim"]), int(axis["size"])
            rows = tuple(int(i) for i in axis["kept"])
            if len(set(rows)) != len(rows) or any(not 0 <= i < size for i in rows):
                raise PlanMismatchError(
                    f"this plan is damaged: the kept indices of {name!r}, dimension {dim}, are not distinct indices below {size}.",
                    node=name,
                )
            kept.setdefault(name, {})[dim] = rows
            sizes.setdefault(name, {})[dim] = size
        silent: dict[str, dict[int, tuple[int, ...]]] = {}
        for axis in data["silent"]:
            silent.setdefault(str(axis["name"]), {})[int(axis["dim"])] = tuple(int(i) for i in axis["atoms"])
        return cls(
            silent=silent,
            kept=kept,
            sizes=sizes,
            asked=float(data["asked"]),
            achieved=float(data["achieved"]),
            score=str(data["score"]),
            layout=str(data["layout"]),
            notes=tuple(str(note) for note in data["notes"]),
        )
