"""What may remain: budgets as people write them.

1. An amount is a share of the original (a float in (0, 1], or a text like "50%", "0.5", "5e-1") or absolute (a whole number, or a text like "2M",
   "1.8G", "2_000_000"). Bytes take "10MB" and "10MiB", latencies "12ms", "800us", "0.5s". Numbers of numpy are as good as Python's.
2. All amounts are upper bounds on what REMAINS; any number of them hold together.
3. ``bounds`` holds bounds for parts: a glob matches modules (with all inside), parameters, or nodes. Shares are of that part's own cost.
4. ``floors`` gives groups whose producers a glob matches a floor of their own: the share of their channels that stays.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from numbers import Integral, Real
from typing import Any

from fxprune.errors import BudgetError
from fxprune.solve.cost_table import CostTable

KINDS = ("params", "macs", "activation_bytes", "latency")
PER_PART = KINDS[:3]
Quantity = float | int | str
COUNTS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "b": 10**9, "t": 10**12}
BYTES = {"b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30}
TIMES = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6}
WRITTEN = {"params": '0.5 or "2M"', "macs": '0.5 or "1.8G"', "activation_bytes": '0.5 or "10MB"', "latency": '0.5 or "12ms"'}


@dataclass(frozen=True, slots=True)
class Amount:
    """A share of the original, or an absolute bound."""

    value: float
    share: bool

    def of(self, original: float) -> float:
        """The bound, for an original of this size."""
        return self.value * original if self.share else self.value


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Budget:
    """Upper bounds on what remains of a model (clauses 1 to 4).

    Attributes:
        params: elements of all parameters.
        macs: multiply-adds of one call on the example inputs, all samples together.
        activation_bytes: bytes of all that one call on the example inputs writes.
        latency: seconds of one call on the example inputs. ``slim`` holds them against the clock.
        bounds: glob -> {"params": ..., "macs": ..., "activation_bytes": ...}.
        floors: glob -> share of channels that stays, in [0, 1].
        table: measured costs of layers over widths; what ``latency`` is predicted from. Measured on this machine where it is left out.

    Raises:
        BudgetError: an amount that makes no sense, or no amount at all.
    """

    params: Quantity | None = None
    macs: Quantity | None = None
    activation_bytes: Quantity | None = None
    latency: Quantity | None = None
    bounds: Mapping[str, Mapping[str, Quantity]] = field(default_factory=dict)
    floors: Mapping[str, float] = field(default_factory=dict)
    table: CostTable | None = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        self.amounts()
        for glob, share in self.floors.items():
            known: Any = share
            if isinstance(known, bool) or not isinstance(known, (int, float)) or not 0 <= known <= 1:
                raise BudgetError(
                    f"floors[{glob!r}] must be in [0, 1] (the share of channels that stays), got {share!r}.",
                    expected="[0, 1]",
                    got=share,
                )
        if self.table is not None and not isinstance(self.table, CostTable):
            raise BudgetError(
                f"table must have `constant` and `entries` (fxprune.solve.cost_table.CostTable), got {type(self.table).__name__}.",
                got=type(self.table).__name__,
            )
        object.__setattr__(self, "bounds", {glob: dict(own) for glob, own in self.bounds.items()})
        object.__setattr__(self, "floors", dict(self.floors))

    def __repr__(self) -> str:
        given = [f"{kind}={getattr(self, kind)!r}" for kind in KINDS if getattr(self, kind) is not None]
        given += [f"{name}={getattr(self, name)!r}" for name in ("bounds", "floors") if getattr(self, name)]
        return f"Budget({', '.join(given)})"

    def amounts(self) -> dict[tuple[str, str], Amount]:
        """Every bound by (kind, glob); the glob of the whole model is "*"."""
        found = {(kind, "*"): amount(kind, getattr(self, kind)) for kind in KINDS if getattr(self, kind) is not None}
        for glob, own in self.bounds.items():
            given: Any = own
            if not isinstance(given, Mapping) or not given or set(given) - set(PER_PART):
                raise BudgetError(
                    f"bounds[{glob!r}] must be a dict with some of {PER_PART}, got {own!r}.", expected=PER_PART, got=own
                )
            twice = next((kind for kind in own if (kind, glob) in found), None)
            if twice is not None:
                raise BudgetError(
                    f"bounds[{glob!r}] and {twice}= both bound the {twice} of the whole model: give one of them, the lower.",
                    expected=getattr(self, twice),
                    got=own[twice],
                )
            found.update({(kind, glob): amount(kind, value) for kind, value in own.items()})
        if not found:
            raise BudgetError("this budget bounds nothing: give params=, macs=, activation_bytes=, latency= or bounds=.")
        return found


def amount(kind: str, given: Any) -> Amount:
    """Read an amount (clause 1).

    Raises:
        BudgetError: what is no positive amount of this kind, with a guess at what was meant.
    """
    say = f"{kind} must be a share of the original in (0, 1] or an absolute bound, such as {WRITTEN[kind]}"
    if isinstance(given, str):
        return _read(kind, given, say)
    if isinstance(given, bool) or not isinstance(given, Real):
        raise BudgetError(f"{say}; got {given!r}.", got=given)
    given = int(given) if isinstance(given, Integral) else float(given)
    if math.isnan(given) or given <= 0 or math.isinf(given):
        raise BudgetError(f"{say}; got {given!r}. It is what REMAINS.", got=given)
    if isinstance(given, float) and given <= 1:
        return Amount(given, True)
    if given <= 100 and (kind != "params" or given != 1):
        unit = "ms" if kind == "latency" else ""
        guess = "1.0" if given == 1 else f"{given / 100:g}"
        raise BudgetError(
            f"{say}; got {given!r}. Did you mean {guess}? (An absolute bound this small is written as a text: '{given}{unit}'.)",
            expected=float(guess),
            got=given,
        )
    if kind == "latency":
        raise BudgetError(f"{say}; got {given!r}, without a unit. Did you mean '{given:g}ms'?", got=given)
    return Amount(float(given), False)


def _read(kind: str, text: str, say: str) -> Amount:
    found = re.fullmatch(r"\s*((?:[0-9]+(?:_[0-9]+)*)?\.?[0-9]+(?:_[0-9]+)*(?:[eE][+-]?[0-9]+)?)[\s_]*([a-zA-Zµ%]*)\s*", text)
    unit = found[2].lower() if found else ""
    value = float(found[1]) if found else 0.0
    if found and not unit and not found[1].isdigit() and 0 < value <= 1:
        return Amount(value, True)
    units: Mapping[str, float] = TIMES if kind == "latency" else BYTES if kind == "activation_bytes" else COUNTS
    if found and unit == "%" and 0 < value <= 100:
        return Amount(value / 100, True)
    if kind == "activation_bytes" and unit in ("", *COUNTS):
        units = {**COUNTS, **BYTES}
    if not found or unit not in units or value <= 0:
        hint = f" Units of {kind}: {', '.join(u for u in units if u) or 'none'}, %."
        raise BudgetError(f"{say}; got {text!r}.{hint}", got=text)
    return Amount(value * units[unit], False)
