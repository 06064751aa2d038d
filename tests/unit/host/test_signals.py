from __future__ import annotations

import signal
import subprocess
import sys

from cri_shim.host.signals import reset_signals

SCRIPT = """
import signal, subprocess
from cri_shim.host.signals import reset_signals
{before}
subprocess.run(["grep", "-E", "^Sig(Ign|Blk)", "/proc/self/status"], check=True)
"""
STARTER = ["env", "--ignore-signal", "--block-signal"]


def signals_of_a_child(before: str) -> dict[str, int]:
    """The masks of signals that a child of a process has whose own starter ignored and held back all of them."""
    done = subprocess.run(
        [*STARTER, sys.executable, "-c", SCRIPT.format(before=before)],
        capture_output=True,
        check=True,
        text=True,
    )
    return {name: int(mask, 16) for name, mask in map(str.split, done.stdout.splitlines())}


def test_nothing_that_a_starter_ignores_or_holds_back_reaches_a_child() -> None:
    inherited = signals_of_a_child("")
    assert inherited["SigIgn:"] & 1 << signal.SIGHUP - 1
    assert inherited["SigBlk:"] & 1 << signal.SIGHUP - 1
    assert signals_of_a_child("reset_signals()") == {"SigIgn:": 0, "SigBlk:": 0}


def test_handlers_and_what_python_ignores_stay() -> None:
    def handler(*_: object) -> None: ...

    before = signal.signal(signal.SIGUSR1, handler)
    try:
        reset_signals()
        assert signal.getsignal(signal.SIGUSR1) is handler
        assert signal.getsignal(signal.SIGPIPE) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGUSR1, before)
