"""Slim models, plans and checkpoints on disk."""

from fxprune.io.checkpoint import Streamed as Streamed
from fxprune.io.checkpoint import slim_checkpoint as slim_checkpoint
from fxprune.io.diff import PlanDiff as PlanDiff
from fxprune.io.diff import diff as diff
from fxprune.io.export import Exported as Exported
from fxprune.io.export import export as export
from fxprune.io.model import Saved as Saved
from fxprune.io.model import describe as describe
from fxprune.io.model import load as load
from fxprune.io.model import save as save
