"""fxprune: a channel-pruning compiler for PyTorch."""

import gc as _gc
from importlib import import_module as _import_module
from typing import Any as _Any

_collecting = _gc.isenabled()
_gc.disable()  # what importing makes stays; the collector would go through all that torch has made, to no avail

from fxprune.api import absorption_of as absorption_of
from fxprune.api import analyze as analyze
from fxprune.api import apply as apply
from fxprune.api import plan as plan
from fxprune.api import plan_of as plan_of
from fxprune.api import slim as slim
from fxprune.api import verify as verify
from fxprune.compare import compare_scores as compare_scores
from fxprune.eliminate import eliminate_dead_channels as eliminate_dead_channels
from fxprune.errors import BudgetError as BudgetError
from fxprune.errors import CaptureError as CaptureError
from fxprune.errors import FileFormatError as FileFormatError
from fxprune.errors import FxpruneError as FxpruneError
from fxprune.errors import FxpruneWarning as FxpruneWarning
from fxprune.errors import InputError as InputError
from fxprune.errors import KeepError as KeepError
from fxprune.errors import NothingToPruneError as NothingToPruneError
from fxprune.errors import PlanMismatchError as PlanMismatchError
from fxprune.errors import RewriteError as RewriteError
from fxprune.errors import VerificationError as VerificationError
from fxprune.errors import WeightError as WeightError
from fxprune.folds import Absorption as Absorption
from fxprune.graph.channels import ChannelGraph as ChannelGraph
from fxprune.graph.channels import ChannelGroup as ChannelGroup
from fxprune.inference.deploy import deploy as deploy
from fxprune.io.diff import diff as diff
from fxprune.io.model import load as load
from fxprune.io.model import save as save
from fxprune.plan import Plan as Plan
from fxprune.quickest import quickest as quickest
from fxprune.reporting.html import report as report
from fxprune.reporting.story import story as story
from fxprune.reporting.summary import summary as summary
from fxprune.sensitivity import sensitivity as sensitivity
from fxprune.solve.budget import Budget as Budget

if _collecting:
    _gc.enable()

__version__ = "0.1.0"
__all__ = [
    "Absorption",
    "Budget",
    "BudgetError",
    "CaptureError",
    "ChannelGraph",
    "ChannelGroup",
    "FileFormatError",
    "FxpruneError",
    "FxpruneWarning",
    "InputError",
    "KeepError",
    "NothingToPruneError",
    "Plan",
    "PlanMismatchError",
    "RewriteError",
    "VerificationError",
    "WeightError",
    "absorption_of",
    "analyze",
    "apply",
    "compare_scores",
    "deploy",
    "diff",
    "eliminate_dead_channels",
    "load",
    "plan",
    "plan_of",
    "quickest",
    "report",
    "save",
    "sensitivity",
    "slim",
    "story",
    "summary",
    "verify",
]


def __getattr__(name: str) -> _Any:
    """The rooms that are imported when they are asked for: ``fxprune.zoo`` and its like."""
    if name in ("data", "latency", "reconstruct", "score", "sparse", "train", "zoo"):
        return _import_module(f"fxprune.{name}")
    raise AttributeError(f"module 'fxprune' has no attribute {name!r}")
