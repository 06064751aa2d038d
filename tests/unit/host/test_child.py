from __future__ import annotations

import pytest

from cri_shim.host.child import Completed, Ending


@pytest.mark.parametrize(
    ("wait_status", "exit_code", "signal", "words"),
    [
        (0, 0, None, "exited with status 0"),
        (1 << 8, 1, None, "exited with status 1"),
        (255 << 8, 255, None, "exited with status 255"),
        (9, 137, 9, "was killed by SIGKILL"),
        (11 | 0x80, 139, 11, "was killed by SIGSEGV"),
        (40, 168, 40, "was killed by signal 40"),
    ],
)
def test_ending_reads_the_wait_status(
    wait_status: int, exit_code: int, signal: int | None, words: str
) -> None:
    ending = Ending(wait_status)
    assert ending.exit_code == exit_code
    assert ending.signal == signal
    assert ending.describe() == words


def test_command_is_ok_only_with_status_0() -> None:
    assert Completed(("true",), Ending(0), b"", "", 0.1).ok
    assert not Completed(("false",), Ending(1 << 8), b"", "", 0.1).ok
    assert not Completed(("true",), Ending(9), b"", "", 0.1).ok
