"""fxprune: a channel-pruning compiler for PyTorch."""

from fxprune.api import analyze as analyze
from fxprune.api import apply as apply
from fxprune.api import plan as plan
from fxprune.api import plan_of as plan_of
from fxprune.api import slim as slim
from fxprune.api import verify as verify
from fxprune.errors import FxpruneError as FxpruneError
from fxprune.graph.channels import ChannelGraph as ChannelGraph
from fxprune.graph.channels import ChannelGroup as ChannelGroup
from fxprune.plan import Plan as Plan

__version__ = "0.1.0"
__all__ = ["ChannelGraph", "ChannelGroup", "FxpruneError", "Plan", "analyze", "apply", "plan", "plan_of", "slim", "verify"]
