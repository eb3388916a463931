"""The layout of a safetensors file.

1. Eight bytes, the length of the header (little-endian); the header, a JSON object; the data. The header names every tensor with its
   dtype, shape and place in the data; under ``__metadata__`` it holds texts by name.
2. The tensors fill the data without gaps or overlaps, in whatever order.
3. Written here: metadata first, then tensors by falling size of their elements (so that each is aligned), otherwise as given; the
   header is padded with spaces to a multiple of eight bytes. The same content gives the same bytes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from fxprune.errors import FileFormatError, WeightError

LONGEST_HEADER = 100_000_000  # what other readers of the format accept
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "C64": torch.complex64,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
NAMES = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True, slots=True)
class Entry:
    """A tensor of a file: what it is, and where its bytes begin (counted from the start of the data)."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int = 0

    @property
    def bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def row_bytes(self) -> int:
        """Bytes of one index of the first dimension."""
        return math.prod(self.shape[1:]) * self.dtype.itemsize


def header(entries: Iterable[Entry], metadata: Mapping[str, str]) -> tuple[bytes, tuple[Entry, ...]]:
    """The first bytes of a file (length and header), and its entries in the order of their data (clause 3).

    Raises:
        WeightError: a dtype that the format does not know.
        FileFormatError: a header that other readers would refuse.
    """
    placed, start = [], 0
    content: dict[str, Any] = {"__metadata__": dict(metadata)}
    for entry in sorted(entries, key=lambda e: -e.dtype.itemsize):
        if entry.dtype not in NAMES:
            raise WeightError(
                f"{entry.name!r} has dtype {entry.dtype}, which a safetensors file cannot hold.", node=entry.name, got=entry.dtype
            )
        placed.append(Entry(entry.name, entry.dtype, entry.shape, start))
        stop = start + entry.bytes
        content[entry.name] = {"dtype": NAMES[entry.dtype], "shape": list(entry.shape), "data_offsets": [start, stop]}
        start = stop
    text = json.dumps(content, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    if len(text) > LONGEST_HEADER:
        raise FileFormatError(
            f"the header would take {len(text):,} bytes; a safetensors file allows {LONGEST_HEADER:,}.",
            expected=LONGEST_HEADER,
            got=len(text),
        )
    return len(text).to_bytes(8, "little") + text, tuple(placed)


def parse(text: bytes, size: int, where: str) -> tuple[dict[str, Entry], dict[str, str]]:
    """Entries and metadata of a header, for a file whose data take ``size`` bytes.

    Raises:
        FileFormatError: clauses 1 and 2 do not hold.
    """
    try:
        content = json.loads(text.decode(), object_pairs_hook=_distinct)
        metadata = content.pop("__metadata__", {})
        if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
            raise damaged(where, "its metadata are no texts")
        entries = {name: _entry(name, data) for name, data in content.items()}
    except FileFormatError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError) as error:
        raise damaged(where, f"its header cannot be read ({type(error).__name__}: {error})") from error
    end = 0
    for entry in sorted(entries.values(), key=lambda e: (e.start, e.bytes)):
        if entry.start != end:
            raise damaged(where, f"{entry.name!r} begins at byte {entry.start} of the data, expected {end}")
        end += entry.bytes
    if size < end:
        raise FileFormatError(
            f"{where} is truncated: its header announces {end:,} bytes of data, {size:,} are there. Copy or save it again.",
            expected=end,
            got=size,
        )
    if size > end:
        raise damaged(where, f"{size - end:,} bytes follow the {end:,} that its header announces")
    return entries, metadata


def _distinct(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name stands in it twice")
    return found


def _entry(name: str, data: Any) -> Entry:
    shape, (start, stop) = data["shape"], data["data_offsets"]
    if not all(type(number) is int and 0 <= number < 2**62 for number in (*shape, start, stop)):
        raise ValueError(f"sizes of {name!r} are no whole numbers")
    entry = Entry(name, DTYPES[data["dtype"]], tuple(shape), start)
    if stop - start != entry.bytes:
        raise ValueError(f"{name!r} takes {stop - start} bytes, its shape {entry.bytes}")
    return entry


def damaged(where: str, why: str) -> FileFormatError:
    return FileFormatError(f"{where} is damaged: {why}. Copy or save it again.", got=why)
