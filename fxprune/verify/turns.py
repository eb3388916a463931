"""Two programs that take turns: one runs here, the other in a thread of its own that only moves when it is asked to.

1. The program is a function that is handed ``step``; every ``step(stepped)`` is a turn's end. It waits there until ``next`` is called, and
   is then given ``instead`` (None: nothing in particular).
2. ``next`` lets it run to its next step and returns what it stepped with, or None where it has returned; ``result`` is then what it gave.
3. ``abandon`` ends it at the step where it waits.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from fxprune.errors import VerificationError


@dataclass(frozen=True, slots=True)
class Stepped:
    """What a program stepped with: a call, its tensor arguments, the tensors it gave, and the call with other tensors."""

    name: str
    operands: list[Tensor]
    values: list[Tensor]
    again: Callable[[list[Tensor]], Any]


Step = Callable[[Stepped], Any]


class _AbandonedError(BaseException):
    """Nobody waits for the program any more; not an ``Exception``, for the program's own code not to catch it."""


class Turns:
    """A program that runs step by step (clauses 1 to 3)."""

    def __init__(self, program: Callable[[Step], list[Tensor]]) -> None:
        self.result: list[Tensor] = []
        self.instead: Any = None
        self._program = program
        self._stepped: Stepped | None = None
        self._error: BaseException | None = None
        self._go, self._there = threading.Semaphore(0), threading.Semaphore(0)
        self._abandoned = self._done = False
        self._last = "the beginning"
        self._thread = threading.Thread(target=self._main, daemon=True)
        self._thread.start()

    def next(self) -> Stepped | None:
        """Clause 2.

        Raises:
            VerificationError: the program failed.
        """
        if self._done:
            return None
        self._stepped = None
        self._go.release()
        self._there.acquire()
        if self._error is not None:
            if isinstance(self._error, VerificationError):
                raise self._error
            what = f"{type(self._error).__name__}: {str(self._error).partition(chr(10))[0]}"
            raise VerificationError(
                f"the slim module cannot run after call {self._last!r}: {what}",
                node=self._last,
                expected="a module that runs",
                got=what,
            ) from self._error
        return self._stepped

    def abandon(self) -> None:
        """Clause 3."""
        self._abandoned = True
        self._stepped = None
        self._go.release()
        self._thread.join()

    def _main(self) -> None:
        self._go.acquire()
        try:
            if not self._abandoned:
                self.result = self._program(self._step)
        except _AbandonedError:
            pass
        except BaseException as error:  # noqa: BLE001 - handed to the one who waits
            self._error = error
        self._done = True
        self._there.release()

    def _step(self, stepped: Stepped) -> Any:
        self._last = stepped.name
        self._stepped = stepped
        self._there.release()
        self._go.acquire()
        if self._abandoned:
            raise _AbandonedError
        instead, self.instead = self.instead, None
        return instead
