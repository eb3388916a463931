"""The one error family of fxprune.

Every message says WHAT happened at WHICH node, what was expected, what was found, why, and what to DO.
The same facts are fields of the exception, for programs that read them.
"""

from __future__ import annotations

from typing import Any


class FxpruneError(Exception):
    """Base of every error that fxprune raises on purpose.

    Attributes:
        node: name of the graph node, parameter or argument the error is about ("" where there is none).
        target: what the node calls ("" where there is none).
        expected: what was expected there.
        got: what was found.
    """

    def __init__(self, message: str, *, node: str = "", target: str = "", expected: object = "", got: object = "") -> None:
        super().__init__(message)
        self.node = node
        self.target = target
        self.expected = expected
        self.got = got


class CaptureError(FxpruneError):
    """The model could not be turned into a graph."""


class InputError(CaptureError, ValueError):
    """Example inputs are missing, cannot be inferred, or do not fit the model."""


class WeightError(FxpruneError, ValueError):
    """Weights that cannot be pruned as they are: NaN or infinite, integer, quantised, or on the meta device."""


class BudgetError(FxpruneError, ValueError):
    """A ratio or budget that makes no sense or cannot be reached.

    Attributes:
        nearest: the plan that comes nearest to a budget that cannot be reached; None for other errors.
    """

    nearest: Any = None


class NothingToPruneError(BudgetError):
    """No channel of the model can be removed; an unchanged model is never returned silently."""


class KeepError(FxpruneError, ValueError):
    """A name in ``keep`` that matches nothing."""


class PlanMismatchError(FxpruneError, ValueError):
    """A plan that does not belong to the model it is applied to."""


class FileFormatError(FxpruneError, ValueError):
    """A file that cannot be read: truncated, damaged, changed after it was written, of an unknown format, or of another kind."""


class RewriteError(FxpruneError):
    """The smaller graph could not be emitted as the plan demands."""


class VerificationError(FxpruneError):
    """The slim model does not compute what the masked original computes."""


class UnfaithfulCaptureError(VerificationError):
    """The captured program does not compute what the model computes: no choice of channels mends that."""


class FxpruneWarning(UserWarning):
    """Something that works and is probably not what was wanted."""
