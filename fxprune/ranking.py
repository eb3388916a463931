"""How the scores of a plan were distributed, and what the cut took: histograms that travel with the plan.

1. A histogram has equal bins from ``low`` to ``high``; the last one includes its upper end. ``kept[i]`` and ``removed[i]`` count the coupled
   channels of bin i that stay and that go.
2. ``cut`` is the highest score that goes; NaN where nothing goes. Channels go in units (the order is that of the units' means), so scores below
   the cut may stay: floors, balances and coupled neighbours keep them.
3. A ranking is a tuple of histograms: first that of all groups together, named ``ALL``, then one per group, each over its own range.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

ALL = ""
DIGITS = 6


@dataclass(frozen=True, slots=True)
class Histogram:
    """Clauses 1 and 2; ``group`` is the group's name."""

    group: str
    low: float
    high: float
    cut: float
    kept: tuple[int, ...]
    removed: tuple[int, ...]

    @property
    def edges(self) -> tuple[float, ...]:
        """The ends of the bins, one more than there are bins."""
        bins = len(self.kept)
        return tuple(self.low + (self.high - self.low) * i / bins for i in range(bins + 1))

    def to_data(self) -> dict[str, Any]:
        """Plain data for JSON, which has no NaN."""
        cut = None if math.isnan(self.cut) else self.cut
        return {
            "group": self.group,
            "low": self.low,
            "high": self.high,
            "cut": cut,
            "kept": list(self.kept),
            "removed": list(self.removed),
        }

    @classmethod
    def from_data(cls, data: Any) -> Histogram:
        """Read what ``to_data`` gave.

        Raises:
            TypeError, ValueError, KeyError: the data are no histogram.
        """
        kept, removed = (tuple(_count(n) for n in data[key]) for key in ("kept", "removed"))
        low, high = _number(data["low"]), _number(data["high"])
        cut = math.nan if data["cut"] is None else _number(data["cut"])
        if not kept or len(kept) != len(removed) or low > high:
            raise ValueError("a histogram needs bins, as many kept as removed, and low <= high")
        if not isinstance(data["group"], str):
            raise TypeError(f"{data['group']!r} is no name")
        return cls(data["group"], low, high, cut, kept, removed)


Ranking = tuple[Histogram, ...]


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise ValueError(f"{value!r} is no finite number")
    return float(value)


def _count(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise ValueError(f"{value!r} is no count")
    return value
