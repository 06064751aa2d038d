"""What a process does with signals that its starter had it ignore or hold back.

Both pass to every child and through every exec: from `nohup`, a shell's background or a service manager, through the
daemon to runtimes and into containers, where a stop signal would end nothing.
"""

from __future__ import annotations

import signal

_IGNORED_BY_PYTHON = {signal.SIGPIPE, signal.SIGXFSZ}
"""Its children get back what these do."""


def reset_signals() -> None:
    """Ignore and hold back no signal any more but those that Python ignores by itself; on the main thread."""
    for number in signal.valid_signals():
        if number not in _IGNORED_BY_PYTHON and signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
