"""The files that hold a slim model: one, or a folder of shards with one more that describes them.

1. A single file holds document and tensors (model.py, clause 1).
2. A folder holds ``fxprune.safetensors``, a file without tensors whose document names the shards with their digests, the shards, and
   ``model.safetensors.index.json``, as other libraries write it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from torch import Tensor

from fxprune.errors import FileFormatError
from fxprune.io.container import Container
from fxprune.io.layout import damaged

if TYPE_CHECKING:
    from typing_extensions import Self

DESCRIPTION = "fxprune.safetensors"
INDEX = "model.safetensors.index.json"


class Shards:
    """The tensors of all files by name."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._stack = ExitStack()
        folder = Path(path)
        self._folder = folder if folder.is_dir() else folder.parent
        if folder.is_dir() and not (folder / DESCRIPTION).exists():
            raise FileFormatError(
                f"{folder} holds no {DESCRIPTION}: it was not written by fxprune.io.slim_checkpoint.", expected=DESCRIPTION
            )
        self._main = self._stack.enter_context(Container(folder / DESCRIPTION if folder.is_dir() else folder))
        self._files = dict.fromkeys(self._main.entries, self._main)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stack.close()

    def __contains__(self, name: str) -> bool:
        return name in self._files

    @property
    def metadata(self) -> Mapping[str, str]:
        return self._main.metadata

    @property
    def names(self) -> frozenset[str]:
        return frozenset(self._files)

    def check(self) -> None:
        """Compare the first file's digest.

        Raises:
            FileFormatError: it is not what was written.
        """
        self._main.check()

    def open(self, shards: Mapping[str, str]) -> None:
        """Open the files that the document names, and compare their digests.

        Raises:
            FileFormatError: one is missing, or not what was written.
        """
        for name, digest in shards.items():
            path = self._folder / name
            if Path(name).name != name or not path.is_file():
                raise FileFormatError(f"{self._folder} has no file {name!r}, which holds a part of the model.", expected=name)
            shard = self._stack.enter_context(Container(path))
            if shard.check() != digest:
                raise FileFormatError(
                    f"{path} belongs to another checkpoint: its digest is not the one that is written down.", got=name
                )
            self._files.update(dict.fromkeys(shard.entries, shard))

    def tensor(self, name: str) -> Tensor:
        file = self._files[name]
        return file.tensor(file.entries[name])


def sources(path: str | os.PathLike[str]) -> dict[str, Path]:
    """The files of a checkpoint that other libraries wrote: a file, or a folder with an index or one ``model.safetensors``.

    Raises:
        FileFormatError: a folder without either, an index that cannot be read, or a file that it names and that is not there.
    """
    place = Path(path)
    if not place.is_dir():
        return {place.name: place}
    index = place / INDEX
    if not index.exists():
        single = place / "model.safetensors"
        if not single.exists():
            raise FileFormatError(f"{place} holds neither {INDEX} nor model.safetensors.", expected=INDEX)
        return {single.name: single}
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        files = {str(name): place / str(name) for name in names}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise damaged(str(index), f"it cannot be read ({type(error).__name__}: {error})") from error
    for name, file in files.items():
        if Path(name).name != name or not file.is_file():
            raise FileFormatError(f"{index} names a file {name!r}, which is not there.", expected=name)
    if not files:
        raise damaged(str(index), "it names no files")
    return files


def index_text(place: Mapping[str, str], total: int) -> str:
    """The index of a sharded checkpoint: the file of every tensor, and the bytes of all of them."""
    return json.dumps({"metadata": {"total_size": total}, "weight_map": dict(sorted(place.items()))}, indent=2) + "\n"
