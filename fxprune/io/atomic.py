"""Writing a file so that its name stands for the old content or the new one, never for a part.

1. The new content goes into a temporary file beside it, which is flushed to the disk and then takes over the name in one step; then the
   directory is flushed. A process that is killed leaves the old file, and at worst the temporary one.
2. If writing fails, the temporary file is removed and the old file stays.
3. A symbolic link stays one: what it leads to is replaced. A folder is not.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """A binary file to write; when the block ends, it is ``path`` (clauses 1 to 3).

    Raises:
        OSError: there is no such folder, or ``path`` is one; or what the system says when it cannot write.
    """
    final = Path(os.path.realpath(path))
    if final.is_dir():
        raise IsADirectoryError(errno.EISDIR, "this is a folder; name a file in it", str(final))
    if not final.parent.is_dir():
        raise FileNotFoundError(errno.ENOENT, f"there is no folder to write {final.name!r} into", str(final.parent))
    temporary = final.with_name(f".{final.name}.{os.getpid()}-{os.urandom(4).hex()}.part")
    try:
        with temporary.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(final)
    except BaseException:
        with suppress(FileNotFoundError):
            temporary.unlink()
        raise
    flush_directory(final.parent)


def flush_directory(folder: Path) -> None:
    """Make the names in a directory last, where the system can do that."""
    with suppress(OSError):  # not every file system opens directories
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
