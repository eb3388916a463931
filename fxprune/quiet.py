"""Warnings of one kind, held back for a while."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def without(category: type[Warning]) -> Iterator[None]:
    """Inside the block, warnings of this category are not shown."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", category)
        yield
