"""How many examples a property gets: a share of the profile's, so that one switch makes the whole suite thorough."""

from __future__ import annotations

from hypothesis import settings


def share(times: float) -> settings:
    """Settings for ``times`` as many examples as the loaded profile says (tests/conftest.py)."""
    return settings(max_examples=max(5, round(settings.default.max_examples * times)))
