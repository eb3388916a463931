"""What every test stands on: one thread, hypothesis profiles, the data folder."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, settings

ROOT = Path(__file__).resolve().parent.parent

torch.set_num_threads(1)

# max_examples is what one property gets; test modules take shares of it (tests.property.profile.share).
COMMON = {"deadline": None, "print_blob": True, "suppress_health_check": [HealthCheck.too_slow, HealthCheck.data_too_large]}
settings.register_profile("default", max_examples=100, derandomize=True, database=None, **COMMON)  # type: ignore[arg-type]
settings.register_profile("thorough", max_examples=500, **COMMON)  # type: ignore[arg-type]
settings.load_profile("thorough" if os.environ.get("FXPRUNE_THOROUGH") == "1" else "default")


@pytest.fixture(scope="session")
def data() -> Path:
    """The data folder: $FXPRUNE_DATA, or ../shared/data beside the checkout."""
    folder = Path(os.environ.get("FXPRUNE_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no data folder at {folder}; set FXPRUNE_DATA")
    return folder
