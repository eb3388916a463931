"""What can be wrong with a file of this room."""

from __future__ import annotations

from fxprune.errors import FxpruneError


class SparseFileError(FxpruneError, ValueError):
    """A file of sparse weights or of measured points that is damaged, cut short, of another version or of another model."""
