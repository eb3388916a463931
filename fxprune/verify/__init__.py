"""Translation validation: the slim program computes what the masked original computes."""

from fxprune.verify.eager import verify_eager as verify_eager
from fxprune.verify.validate import Evidence as Evidence
from fxprune.verify.validate import run_masked as run_masked
from fxprune.verify.validate import verify_slim as verify_slim

__all__ = ["Evidence", "run_masked", "verify_eager", "verify_slim"]
