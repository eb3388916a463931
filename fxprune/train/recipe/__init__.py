"""The recipe of Network Slimming, from images to a slim network: ``python -m fxprune.train``. Needs Lightning Fabric (``fxprune[train]``)."""

from fxprune.train.recipe.networks import network_of as network_of
from fxprune.train.recipe.run import run as run
from fxprune.train.recipe.settings import Settings as Settings
