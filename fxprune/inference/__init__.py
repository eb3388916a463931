"""Networks as they run in production: folded, cleaned, laid out for the device at hand, and never slower than what was given."""

from fxprune.inference.deploy import Candidate as Candidate
from fxprune.inference.deploy import Deployment as Deployment
from fxprune.inference.deploy import deploy as deploy
from fxprune.inference.deploy import deployment_of as deployment_of
