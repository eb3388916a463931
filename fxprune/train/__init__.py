"""Training that makes networks easy to slim."""

from fxprune.train.gamma_l1 import GammaL1 as GammaL1
from fxprune.train.gamma_l1 import GroupL1 as GroupL1
from fxprune.train.gamma_l1 import WeightL1 as WeightL1
from fxprune.train.gamma_l1 import WeightL2 as WeightL2
from fxprune.train.gamma_l1 import gammas as gammas
from fxprune.train.readiness import Readiness as Readiness
from fxprune.train.readiness import readiness as readiness
from fxprune.train.schedule import anneal as anneal
from fxprune.train.schedule import ramp as ramp
