"""LASSO channel pruning with reconstruction (He, Zhang, Sun 2017, arXiv:1707.06168): channels chosen and weights refitted on a few images."""

from fxprune.reconstruct.prune import channel_prune as channel_prune
from fxprune.reconstruct.repair import repair as repair
from fxprune.reconstruct.report import Layer as Layer
from fxprune.reconstruct.report import Report as Report
from fxprune.reconstruct.report import report_of as report_of
