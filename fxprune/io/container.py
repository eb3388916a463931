"""Safetensors files that are written and read in pieces.

1. ``write`` puts tensors chunk by chunk into a new file, which takes over its name at the end (atomic.py).
2. The metadata hold a *digest*, the SHA-256 of the whole file as it reads with zeros in the place of the digest. It tells damage and
   changes. It is no signature: whoever changes a file on purpose can compute a new one.
3. ``Container`` reads a header and, on demand, rows of tensors: nothing stays in memory, and nothing is mapped into it.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fxprune.errors import FileFormatError
from fxprune.io.atomic import replacing
from fxprune.io.layout import LONGEST_HEADER, Entry, damaged, header, parse

if TYPE_CHECKING:
    from typing_extensions import Self

DIGEST = "fxprune.digest"
NONE = "0" * 64
PIECE = 1 << 24

Chunks = Callable[[Entry], Iterable[Tensor]]


def write(path: str | os.PathLike[str], entries: Sequence[Entry], metadata: Mapping[str, str], chunks: Chunks) -> str:
    """Write a file of these tensors; ``chunks`` gives each one's numbers, in order, in pieces of any shape. Returns the digest.

    Raises:
        OSError: the file cannot be written; what was there before is still there.
    """
    head, placed = header(entries, {**metadata, DIGEST: NONE})
    with replacing(path) as file:
        digest = hashlib.sha256(head)
        file.write(head)
        for entry in placed:
            count = 0
            for chunk in chunks(entry):
                data = as_bytes(chunk).numpy().data
                digest.update(data)
                file.write(data)
                count += len(data)
            assert count == entry.bytes, f"{entry.name}: {count} bytes for {entry}"
        file.seek(head.index(_field(NONE)) + len(_field(NONE)) - 65)
        file.write(digest.hexdigest().encode())
    return digest.hexdigest()


def as_bytes(tensor: Tensor) -> Tensor:
    """The numbers of a tensor, as bytes on the CPU."""
    return tensor.detach().to("cpu").contiguous().reshape(-1).view(torch.uint8)


def _field(digest: str) -> bytes:
    return f'"{DIGEST}":"{digest}"'.encode()


class Scratch:
    """Memory for one piece, used again for the next. Fresh memory for each would pile up between what stays."""

    def __init__(self) -> None:
        self._bytes = torch.empty(0, dtype=torch.uint8, device="cpu")

    def take(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """A tensor of any numbers; it holds until the next call."""
        size = math.prod(shape) * dtype.itemsize
        if size > len(self._bytes):
            self._bytes = torch.empty(size, dtype=torch.uint8, device="cpu")
        return self._bytes[:size].view(dtype).reshape(shape)


class Container:
    """A safetensors file to read (clause 3).

    Attributes:
        path: where it is.
        entries: its tensors by name.
        metadata: texts by name.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Read the header.

        Raises:
            FileFormatError: this is no safetensors file, or not a whole one.
        """
        self.path = Path(path)
        self._file = self.path.open("rb")
        try:
            self._size = os.fstat(self._file.fileno()).st_size
            self._head = self._header()
            self.entries, self.metadata = parse(self._head[8:], self._size - len(self._head), str(self.path))
        except BaseException:
            self._file.close()
            raise

    def _header(self) -> bytes:
        first = self._file.read(8)
        length = int.from_bytes(first, "little")
        if len(first) == 8 and length <= LONGEST_HEADER and 8 + length > self._size and self._file.read(2) == b'{"':
            raise FileFormatError(
                f"{self.path} is truncated: its header takes {length:,} bytes, {self._size - 8:,} are there. Copy or save it again.",
                expected=8 + length,
                got=self._size,
            )
        if len(first) < 8 or not 2 <= length <= min(LONGEST_HEADER, self._size - 8):
            raise FileFormatError(
                f"{self.path} is no safetensors file, or its first bytes are damaged ({self._size:,} bytes).", got=self._size
            )
        self._file.seek(8)
        return first + self._file.read(length)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._file.close()

    def check(self) -> str:
        """Compare the digest (clause 2) and return it. Reads the whole file.

        Raises:
            FileFormatError: the file is not what was written.
        """
        told = self.metadata.get(DIGEST, "")
        if self._head.count(_field(told)) != 1:
            raise damaged(str(self.path), "it has no digest")
        digest = hashlib.sha256(self._head.replace(_field(told), _field(NONE)))
        self._file.seek(len(self._head))
        while piece := self._file.read(PIECE):
            digest.update(piece)
        if digest.hexdigest() != told:
            raise FileFormatError(
                f"{self.path} was damaged or changed after it was written: its content has another digest than it says. "
                "Copy or save it again.",
                expected=told,
                got=digest.hexdigest(),
            )
        return told

    def rows(self, entry: Entry, start: int, stop: int, scratch: Scratch | None = None) -> Tensor:
        """Rows ``start`` to ``stop - 1`` of a tensor, on the CPU."""
        shape = (stop - start, *entry.shape[1:])
        result = torch.empty(shape, dtype=entry.dtype, device="cpu") if scratch is None else scratch.take(shape, entry.dtype)
        return self._read(entry, entry.start + start * entry.row_bytes, result)

    def tensor(self, entry: Entry) -> Tensor:
        """A whole tensor, on the CPU."""
        return self._read(entry, entry.start, torch.empty(entry.shape, dtype=entry.dtype, device="cpu"))

    def _read(self, entry: Entry, place: int, result: Tensor) -> Tensor:
        if result.numel():
            target = result.reshape(-1).view(torch.uint8).numpy().data
            self._file.seek(len(self._head) + place)
            done = 0
            while done < len(target):  # one read gives two gigabytes at most
                count = self._file.readinto(target[done:])
                if not count:
                    raise damaged(str(self.path), f"it became shorter while {entry.name!r} was read")
                done += count
        return result
