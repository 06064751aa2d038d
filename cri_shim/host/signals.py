"""Resets ignored and blocked signals that a process inherited.

Ignored and blocked signals pass to children and through execve(2): from `nohup`, a background job of a shell or a
service manager, through the daemon and the runtime into containers, where the stop signal would then have no effect.
"""

from __future__ import annotations

import signal

_IGNORED_BY_PYTHON = {signal.SIGPIPE, signal.SIGXFSZ}
"""`subprocess` restores these in children."""


def reset_signals() -> None:
    """Set every ignored signal, except those that Python itself ignores, to its default, and unblock all signals.

    Call it on the main thread.
    """
    for number in signal.valid_signals():
        if number not in _IGNORED_BY_PYTHON and signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
