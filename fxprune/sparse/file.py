"""The file: named tensors in sparse forms, with a header, a version and a digest. No pickle: reading runs no code of the file.

1. Layout, little-endian: ``FXSP``, version (u16), flags (u16: bit 0, the payload is compressed by zstd), length of the header (u64), length of
   the payload as written (u64); the header, JSON; the payload; the SHA-256 of all that (32 bytes).
2. The header lists the tensors in the order of the payload: name, dtype, shape, form, the number of values, and for each form what says how
   long its arrays are. ``dense``: the values. ``csr`` and ``csc``: values, indices, pointers, the latter two in the smallest unsigned
   integers that hold them. ``relative``: values, then packed codes (encode.py, clause 3). Arrays follow each other without gaps.
3. Tensors of rank 2 and more take the form asked for; others, and those of integers, are dense. Rank above 2 counts as convolution
   (8 bits by default), rank 2 as linear (5 bits). Form "auto" takes, per tensor, the form with the fewest bytes.
4. ``load(save(x)) == x`` bit for bit, order of names included. Whatever is wrong with a file is a ``SparseFileError``, before anything is built
   from it. ``limit`` bounds the bytes that a file may unfold to: a few bytes can claim any shape.
5. A file is written whole or not at all.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn

from fxprune.errors import BudgetError, FxpruneError, PlanMismatchError
from fxprune.sparse.encode import (
    BITS,
    DTYPES,
    Compressed,
    Relative,
    bits_of,
    compress,
    expand,
    matrix_shape,
    pack,
    relate,
    tensor_of,
    unpack,
    unrelate,
)
from fxprune.sparse.errors import SparseFileError
from fxprune.sparse.masks import permanent
from fxprune.sparse.sensitivity import write_whole

MAGIC, VERSION, ZSTD = b"FXSP", 1, 1
HEAD = struct.Struct("<4sHHQQ")
DIGEST = 32
FORMS = ("dense", "csr", "csc", "relative")
LIMIT = 2**34
CONV_BITS, LINEAR_BITS = 8, 5


@dataclass(frozen=True, slots=True)
class Entry:
    """One tensor of a file: what the header says of it (clause 2)."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    form: str
    count: int
    index: int = 0
    pointer: int = 0
    bits: int = 0

    def lengths(self) -> tuple[int, ...]:
        """Bytes of each of its arrays."""
        values = self.count * DTYPES[self.dtype].itemsize
        if self.form == "dense":
            return (values,)
        if self.form == "relative":
            return values, -(-self.count * self.bits // 8)
        rows, columns = matrix_shape(self.shape)
        return values, self.count * self.index, ((rows if self.form == "csr" else columns) + 1) * self.pointer


def state_of(source: nn.Module | Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state dict that is stored: that of the model without masks, zeros in its weights."""
    state = permanent(source).state_dict() if isinstance(source, nn.Module) else source
    return {name: value for name, value in state.items() if isinstance(value, Tensor)}


def encode(
    source: nn.Module | Mapping[str, Tensor],
    *,
    form: str = "auto",
    conv_bits: int = CONV_BITS,
    linear_bits: int = LINEAR_BITS,
    zstd: bool = False,
) -> bytes:
    """The content of a file (clauses 1 to 3).

    Raises:
        BudgetError: an unknown form, or index bits outside 1 to 8.
        WeightError: a tensor that is not stored.
        FxpruneError: ``zstd`` without the package zstandard.
    """
    if form not in ("auto", *FORMS):
        raise BudgetError(f"form must be 'auto' or one of {FORMS}, got {form!r}.", expected=FORMS, got=form)
    for bits in (conv_bits, linear_bits):
        if not 1 <= bits <= 8:
            raise BudgetError(f"relative indices take 1 to 8 bits, got {bits}.", expected="1 to 8", got=bits)
    entries, parts = [], []
    for name, tensor in state_of(source).items():
        bits = conv_bits if tensor.dim() > 2 else linear_bits
        sparse = tensor.dim() >= 2 and tensor.is_floating_point()
        wanted = FORMS if form == "auto" else (form,)
        best = min((_entry(name, tensor, f, bits) for f in (wanted if sparse else ("dense",))), key=lambda found: len(found[1]))
        entries.append(best[0])
        parts.append(best[1])
    payload = b"".join(parts)
    header: dict[str, Any] = {"tensors": [_described(entry) for entry in entries], "bytes": len(payload)}
    if zstd:
        payload = zstandard().ZstdCompressor(level=19).compress(payload)
    text = json.dumps(header, separators=(",", ":")).encode()
    content = HEAD.pack(MAGIC, VERSION, ZSTD if zstd else 0, len(text), len(payload)) + text + payload
    return content + hashlib.sha256(content).digest()


def save(source: nn.Module | Mapping[str, Tensor], path: str | Path, **options: Any) -> int:
    """Write a model or a state dict; options as in ``encode``. Returns the size of the file in bytes."""
    content = encode(source, **options)
    write_whole(Path(path), content)
    return len(content)


def load(path: str | Path, *, limit: int = LIMIT) -> dict[str, Tensor]:
    """The state dict of a file, dense (clause 4).

    Raises:
        SparseFileError: the file is missing, cut short, damaged, too large, or of another version.
    """
    file = Path(path)
    try:
        content = file.read_bytes()
    except OSError as error:
        raise SparseFileError(f"{file.name!r} cannot be read: {error.strerror}.", node=file.name) from error
    return decode(content, limit=limit)


def load_into(model: nn.Module, path: str | Path, *, limit: int = LIMIT) -> nn.Module:
    """Load a file into a dense model without masks, in place; returns it.

    Raises:
        SparseFileError: see ``load``.
        PlanMismatchError: names or shapes are not the model's; the model is unchanged.
    """
    state, own = load(path, limit=limit), model.state_dict()
    apart = sorted(set(state) ^ set(own)) or [name for name, value in state.items() if value.shape != own[name].shape]
    if apart:
        raise PlanMismatchError(
            f"{Path(path).name!r} does not fit {type(model).__name__}: {', '.join(apart[:4])} differ (of {len(apart)}). "
            "Load it into the architecture that was saved, without masks.",
            node=apart[0],
        )
    model.load_state_dict(state)
    return model


def decode(content: bytes, *, limit: int = LIMIT) -> dict[str, Tensor]:
    """The tensors in the content of a file (clause 4)."""
    entries, payload = read_header(content, limit=limit)
    state, at = {}, 0
    for entry in entries:
        arrays = []
        for length in entry.lengths():
            arrays.append(payload[at : at + length])
            at += length
        try:
            state[entry.name] = _tensor(entry, arrays)
        except SparseFileError as error:
            raise SparseFileError(
                f"tensor {entry.name!r}: {error}", node=entry.name, expected=error.expected, got=error.got
            ) from error
    return state


def read_header(content: bytes, *, limit: int = LIMIT) -> tuple[list[Entry], bytes]:
    """What is in a file, checked against its digest and lengths, and the payload as it was before compression."""
    if len(content) < HEAD.size + DIGEST:
        raise SparseFileError(f"{len(content)} bytes are too few for a file of sparse weights.", got=len(content))
    magic, version, flags, header_length, payload_length = HEAD.unpack_from(content)
    if magic != MAGIC:
        raise SparseFileError(f"this is no file of sparse weights: it begins with {magic!r}.", expected=MAGIC, got=magic)
    if version != VERSION or flags & ~ZSTD:
        raise SparseFileError(
            f"version {version} (flags {flags}) is not known here; this reads version {VERSION}.", expected=VERSION, got=version
        )
    whole = HEAD.size + header_length + payload_length + DIGEST
    if whole != len(content):
        raise SparseFileError(
            f"the file has {len(content)} bytes and says {whole}: it was cut short or added to.", expected=whole, got=len(content)
        )
    if hashlib.sha256(content[:-DIGEST]).digest() != content[-DIGEST:]:
        raise SparseFileError("the digest does not match: the file is damaged.")
    body = content[HEAD.size + header_length : -DIGEST]
    try:
        header = json.loads(content[HEAD.size : HEAD.size + header_length])
        entries = [_checked(item) for item in header["tensors"]]
        size = header["bytes"]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise SparseFileError(f"the header is damaged: {type(error).__name__}: {error}.") from error
    dense = sum(prod(entry.shape) * DTYPES[entry.dtype].itemsize for entry in entries)
    needed = sum(sum(entry.lengths()) for entry in entries)
    if len({entry.name for entry in entries}) != len(entries):
        raise SparseFileError("the header is damaged: a name stands in it twice.")
    if max(dense, needed) > limit:
        raise SparseFileError(
            f"the file unfolds to {max(dense, needed):,} bytes, more than limit={limit:,}.", expected=limit, got=dense
        )
    if size != needed:
        raise SparseFileError(
            f"the tensors of the header take {needed} bytes, the payload has {size!r}.", expected=needed, got=size
        )
    payload = _inflated(body, needed) if flags & ZSTD else body
    if len(payload) != needed:
        raise SparseFileError(f"the payload has {len(payload)} bytes, not {needed}.", expected=needed, got=len(payload))
    return entries, payload


def zstandard() -> Any:
    """The package zstandard.

    Raises:
        FxpruneError: it is not installed.
    """
    try:
        import zstandard as package
    except ImportError as error:
        raise FxpruneError(
            "zstd compression needs the package zstandard: pip install 'fxprune[sparse]'.", node="zstandard"
        ) from error
    return package


def _inflated(body: bytes, size: int) -> bytes:
    package = zstandard()
    try:
        # The frame may claim any size; what is taken from it is bounded by what the header adds up to.
        with package.ZstdDecompressor().stream_reader(body) as stream:
            inflated: bytes = stream.read(size + 1)
    except package.ZstdError as error:
        raise SparseFileError(f"the compressed payload is damaged: {error}.") from error
    return inflated


def _smallest(top: int) -> Any:
    return next(dtype for dtype in (np.uint8, np.uint16, np.uint32, np.uint64) if top <= np.iinfo(dtype).max)


def _entry(name: str, tensor: Tensor, form: str, bits: int) -> tuple[Entry, bytes]:
    raw, shape = bits_of(tensor), tuple(tensor.shape)
    dtype = str(tensor.dtype).removeprefix("torch.")
    if form == "dense":
        return Entry(name, dtype, shape, form, len(raw)), _bytes(raw)
    if form == "relative":
        related = relate(raw, shape, bits)
        return Entry(name, dtype, shape, form, len(related.values), bits=bits), _bytes(related.values) + pack(related.gaps, bits)
    found = compress(raw, shape, rows=form == "csr")
    index = _smallest(max(0, matrix_shape(shape)[found.rows] - 1))
    pointer = _smallest(len(found.values))
    entry = Entry(name, dtype, shape, form, len(found.values), np.dtype(index).itemsize, np.dtype(pointer).itemsize)
    return entry, _bytes(found.values) + _bytes(found.indices.astype(index)) + _bytes(found.pointers.astype(pointer))


def _bytes(numbers: Any) -> bytes:
    content: bytes = numbers.astype(numbers.dtype.newbyteorder("<")).tobytes()
    return content


def _array(data: bytes, size: int) -> Any:
    kind = np.dtype(BITS[size])
    return np.frombuffer(data, kind.newbyteorder("<")).astype(kind)


def _tensor(entry: Entry, arrays: list[bytes]) -> Tensor:
    dtype = DTYPES[entry.dtype]
    values = _array(arrays[0], dtype.itemsize)
    if entry.form == "relative":
        values = unrelate(Relative(entry.shape, entry.bits, values, unpack(arrays[1], entry.count, entry.bits)))
    elif entry.form != "dense":
        indices, pointers = _array(arrays[1], entry.index), _array(arrays[2], entry.pointer)
        if (pointers > entry.count).any():  # as unsigned numbers, before they are taken as signed ones
            raise SparseFileError("pointers must rise from 0 to the number of values.")
        values = expand(Compressed(entry.shape, entry.form == "csr", values, indices, pointers))
    return tensor_of(values, dtype, entry.shape)


def _described(entry: Entry) -> dict[str, Any]:
    fields = {"name": entry.name, "dtype": entry.dtype, "shape": list(entry.shape), "form": entry.form, "count": entry.count}
    more = {"index": entry.index, "pointer": entry.pointer, "bits": entry.bits}
    return fields | {key: value for key, value in more.items() if value}


def _checked(item: dict[str, Any]) -> Entry:
    """An entry of a header. Raises ValueError, TypeError or KeyError where it makes no sense."""
    entry = Entry(
        item["name"],
        item["dtype"],
        tuple(item["shape"]),
        item["form"],
        item["count"],
        item.get("index", 0),
        item.get("pointer", 0),
        item.get("bits", 0),
    )
    numbers = (*entry.shape, entry.count, entry.index, entry.pointer, entry.bits)
    if not all(type(number) is int and 0 <= number < 2**62 for number in numbers) or not isinstance(entry.name, str):
        raise ValueError(f"{item!r} has fields of a wrong kind")
    if entry.dtype not in DTYPES or entry.form not in FORMS:
        raise ValueError(f"unknown dtype or form in {item!r}")
    if entry.form == "dense" and entry.count != prod(entry.shape):
        raise ValueError(f"{entry.name!r} has {entry.count} values for shape {entry.shape}")
    if entry.form == "relative" and not 1 <= entry.bits <= 8:
        raise ValueError(f"{entry.name!r} has indices of {entry.bits} bits")
    if entry.form in ("csr", "csc") and not {entry.index, entry.pointer} <= set(BITS):
        raise ValueError(f"{entry.name!r} has indices of {entry.index} and {entry.pointer} bytes")
    return entry
