from __future__ import annotations

import os
import signal

import pytest

from cri_shim.cli.interrupts import SIGNALS, InterruptedCommandError, Interrupts


@pytest.mark.parametrize("number", SIGNALS)
def test_the_first_signal_is_noted_and_told(
    number: signal.Signals, capfd: pytest.CaptureFixture[str]
) -> None:
    with Interrupts.handled("wait") as interrupts:
        interrupts.check()
        os.kill(os.getpid(), number)
        assert capfd.readouterr().err == "\nwait\n"
        assert interrupts.received == number
        with pytest.raises(InterruptedCommandError):
            interrupts.check()


def test_the_second_signal_interrupts() -> None:
    with Interrupts.handled(""):
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_the_callers_handlers_come_back() -> None:
    before = [signal.getsignal(number) for number in SIGNALS]
    with Interrupts.handled(""):
        assert [signal.getsignal(number) for number in SIGNALS] != before
    assert [signal.getsignal(number) for number in SIGNALS] == before


def test_a_signal_that_the_caller_ignores_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Interrupts.handled("") as interrupts:
            os.kill(os.getpid(), signal.SIGHUP)
            assert interrupts.received == 0
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)
