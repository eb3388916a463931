"""Training that makes networks easy to slim."""

from fxprune.train.gamma_l1 import GammaL1 as GammaL1
from fxprune.train.gamma_l1 import gammas as gammas
