"""What all tests share: hypothesis without a clock, so that a busy machine fails no test; and signals that work."""

from __future__ import annotations

import signal

from hypothesis import settings

from cri_shim.host.signals import reset_signals

settings.register_profile("here", deadline=None)
settings.load_profile("here")

# Started by nohup, or in the background by a shell, the tests and all they start would ignore some.
reset_signals()
signal.signal(signal.SIGINT, signal.default_int_handler)
