"""What every test shares: hypothesis without a clock, so that a busy machine fails no test."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("here", deadline=None)
settings.load_profile("here")
