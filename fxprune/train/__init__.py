"""Training that makes networks easy to slim, and training of what is left."""

from fxprune.train.averaged import remap_averaged as remap_averaged
from fxprune.train.distill import distillation as distillation
from fxprune.train.gamma_l1 import GammaL1 as GammaL1
from fxprune.train.gamma_l1 import GroupL1 as GroupL1
from fxprune.train.gamma_l1 import WeightL1 as WeightL1
from fxprune.train.gamma_l1 import WeightL2 as WeightL2
from fxprune.train.gamma_l1 import gammas as gammas
from fxprune.train.readiness import Readiness as Readiness
from fxprune.train.readiness import readiness as readiness
from fxprune.train.recalibrate import recalibrate as recalibrate
from fxprune.train.remap import Remap as Remap
from fxprune.train.remap import remap_optimizer as remap_optimizer
from fxprune.train.remap import remap_scheduler as remap_scheduler
from fxprune.train.remap import remap_state as remap_state
from fxprune.train.schedule import anneal as anneal
from fxprune.train.schedule import ramp as ramp
