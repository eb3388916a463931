"""What a file says about its tensors: the text that stands in its metadata.

1. It is a JSON object: the format's number; versions of fxprune and torch; the origin (origin.py) with its fingerprint; the plan of every
   round; figures; which tensors were channels-last. Axes that keep the same atoms share one list, in ``rows``.
2. A reader refuses a format that it does not know before it looks at anything else.
3. ``complete``: the tensors are all that the slim module holds. A slimmed checkpoint is not complete: it holds what the original's
   checkpoint held.
4. ``evidence`` is what the last verification saw (verify/validate.py), if there was one. It is a report, not a proof: ``fxprune.verify`` makes one.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from functools import reduce
from typing import Any

import torch

from fxprune.errors import FileFormatError, FxpruneError
from fxprune.folds import Absorption
from fxprune.io.layout import damaged
from fxprune.origin import Origin
from fxprune.plan import Plan
from fxprune.record import Record, compose
from fxprune.verify import Evidence

KEY = "fxprune"
FORMAT = 1
BLANK = Evidence(0.0, 0, (), (), 0, "", 0.0, False, "", 0.0)  # one value of every field's type


@dataclass(frozen=True, slots=True)
class Document:
    """Clauses 1 and 3.

    Attributes:
        origin: the original's architecture.
        rounds: the plan of every round, each in the coordinates of the model before it.
        version: the fxprune that wrote the file.
        torch_version: the torch that it ran with.
        figures: the report's numbers: ``parameters``, ``original_parameters``, ``bytes``, ``asked``, ``achieved``.
        channels_last: names of tensors that were laid out channels-last.
        complete: clause 3.
        absorption: what was folded into readers, of all rounds.
        shards: digests of the files that hold the tensors, by name; empty where this file holds them.
        evidence: clause 4.
    """

    origin: Origin
    rounds: tuple[Plan, ...]
    version: str
    torch_version: str = torch.__version__
    figures: Mapping[str, float] = field(default_factory=dict)
    channels_last: tuple[str, ...] = ()
    complete: bool = True
    shards: Mapping[str, str] = field(default_factory=dict)
    evidence: Evidence | None = None
    absorption: Absorption = field(default_factory=Absorption)

    @property
    def plan(self) -> Plan:
        """All rounds as one plan, in the original's coordinates."""
        return reduce(compose, self.rounds)

    def record(self) -> Record:
        return Record(self.plan, self.rounds, self.origin, evidence=self.evidence, absorption=self.absorption)

    def text(self) -> str:
        rows: dict[tuple[int, ...], int] = {}
        rounds = []
        for plan in self.rounds:
            data = plan.to_data()
            for axis in data["axes"]:
                axis["kept"] = rows.setdefault(tuple(axis["kept"]), len(rows))
            rounds.append(data)
        origin = self.origin
        return json.dumps(
            {
                "format": FORMAT,
                "fxprune": self.version,
                "torch": self.torch_version,
                "model": origin.model,
                "capture": origin.capture,
                "fingerprint": origin.fingerprint,
                "figures": dict(self.figures),
                "complete": self.complete,
                "channels_last": list(self.channels_last),
                "shards": dict(self.shards),
                "absorption": self.absorption.to_data(),
                "inputs": origin.inputs,
                "entered": list(origin.entered),
                "shapes": {name: list(shape) for name, shape in origin.shapes.items()},
                "program": [list(line) for line in origin.program],
                "rounds": rounds,
                "rows": [list(kept) for kept in rows],
                **({"evidence": asdict(self.evidence)} if self.evidence is not None else {}),
            },
            separators=(",", ":"),
        )


def check_format(metadata: Mapping[str, str], where: str) -> Any:
    """The data of a file's document (clause 2).

    Raises:
        FileFormatError: the file was not written by fxprune, or by a version with another format.
    """
    if KEY not in metadata:
        raise FileFormatError(
            f"{where} was not written by fxprune.save or fxprune.io.slim_checkpoint: it holds weights, but no plan. "
            "Weights of a slim model go with fxprune.apply(model, plan).load_state_dict(...).",
            expected=KEY,
            got=tuple(metadata),
        )
    try:
        data = json.loads(metadata[KEY])
        found = data["format"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise damaged(where, f"what it says about its plan cannot be read ({type(error).__name__})") from error
    if found != FORMAT or isinstance(found, bool):
        raise FileFormatError(
            f"{where} has format {found!r}, and this fxprune reads format {FORMAT}. It was written by fxprune {data.get('fxprune', '?')!s}; "
            "install that version, or a later one.",
            expected=FORMAT,
            got=found,
        )
    return data


def document(data: Any, where: str) -> Document:
    """Read what ``text`` wrote.

    Raises:
        FileFormatError: it is damaged.
    """
    try:
        rows = [list(kept) for kept in data["rows"]]
        rounds = tuple(_plan(plan, rows) for plan in data["rounds"])
        origin = Origin(
            str(data["model"]),
            str(data["capture"]),
            {name: tuple(map(_number, shape)) for name, shape in data["shapes"].items()},
            tuple((str(name), str(digest)) for name, digest in data["program"]),
            data["inputs"],
            tuple(map(str, data["entered"])),
        )
        found = Document(
            origin,
            rounds,
            str(data["fxprune"]),
            str(data["torch"]),
            {str(key): float(value) for key, value in data["figures"].items()},
            tuple(map(str, data["channels_last"])),
            data["complete"] is True,
            {str(name): str(digest) for name, digest in data["shards"].items()},
            _evidence(data["evidence"]) if "evidence" in data else None,
            Absorption.from_data(data["absorption"]) if "absorption" in data else Absorption(),
        )
        if not rounds or origin.fingerprint != data["fingerprint"]:
            raise damaged(where, "its fingerprint is not that of what it describes" if rounds else "it has no plan")
        _ = found.plan
    except FileFormatError:
        raise
    except (FxpruneError, KeyError, TypeError, ValueError, AttributeError, IndexError, OverflowError, RecursionError) as error:
        raise damaged(
            where, f"what it says about its plan cannot be read ({type(error).__name__}: {str(error).splitlines()[0][:200]})"
        ) from error
    return found


def _plan(data: Any, rows: list[list[int]]) -> Plan:
    axes = [{**axis, "kept": rows[_number(axis["kept"])]} for axis in data["axes"]]
    return Plan.from_data({**data, "axes": axes})


def _evidence(data: Any) -> Evidence:
    """What ``asdict`` made of an ``Evidence``: numbers, texts and lists of texts."""
    values: dict[str, Any] = {}
    for entry in fields(Evidence):
        value = data[entry.name]
        if isinstance(value, list):
            value = tuple(map(str, value))
        elif not isinstance(value, (bool, int, float, str)):
            raise TypeError(f"{entry.name} is {type(value).__name__}")
        values[entry.name] = value
    kinds = {entry.name: type(getattr(BLANK, entry.name)) for entry in fields(Evidence)}
    for name, kind in kinds.items():
        if type(values[name]) is not kind and not (kind is float and type(values[name]) is int):
            raise TypeError(f"{name} is {type(values[name]).__name__}")
    return Evidence(**values)


def _number(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise ValueError(f"{value!r} is no whole number")
    return value
