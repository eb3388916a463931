"""Scores: one importance per coupled channel of a group. ``fxprune.slim(model, 0.5, score="l1:mean")``, ``score=fxprune.score.taylor(loader)``."""

from fxprune.score.data import activation as activation
from fxprune.score.data import apoz as apoz
from fxprune.score.data import fisher as fisher
from fxprune.score.data import obd as obd
from fxprune.score.data import taylor as taylor
from fxprune.score.data import taylor_gates as taylor_gates
from fxprune.score.normalise import normalised as normalised
from fxprune.score.scores import NAMED as NAMED
from fxprune.score.scores import gamma as gamma
from fxprune.score.scores import gamma_max as gamma_max
from fxprune.score.scores import gamma_sum as gamma_sum
from fxprune.score.scores import magnitude as magnitude
from fxprune.score.scores import random as random
from fxprune.score.weights import fpgm as fpgm
from fxprune.score.weights import gamma_norm as gamma_norm
from fxprune.score.weights import l1 as l1
from fxprune.score.weights import l2 as l2
from fxprune.score.weights import lamp as lamp

NAMED.update({"l1": l1, "l2": l2, "fpgm": fpgm, "lamp": lamp, "gamma_norm": gamma_norm})
