"""What all tests share: hypothesis without a clock, so that a busy machine fails no test; and a Ctrl-C that works."""

from __future__ import annotations

import signal

from hypothesis import settings

settings.register_profile("here", deadline=None)
settings.load_profile("here")

# Started in the background by a shell, the tests and all they start would ignore it.
signal.signal(signal.SIGINT, signal.default_int_handler)
