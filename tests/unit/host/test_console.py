"""The console socket, with this process in the runtime's place."""

from __future__ import annotations

import os
import pty
import socket
from typing import TYPE_CHECKING

import pytest

from cri_shim.host.console import ConsoleSocket

if TYPE_CHECKING:
    from pathlib import Path


def hand_over(path: Path, fds: list[int]) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as runtime:
        runtime.connect(str(path))
        if fds:
            socket.send_fds(runtime, [b"/dev/ptmx"], fds)


def test_the_terminal_that_was_handed_over_is_found_afterwards(tmp_path: Path) -> None:
    master, slave = pty.openpty()
    with ConsoleSocket(tmp_path / "c") as console:
        hand_over(console.path, [master])
        os.close(master)
        received = console.receive()
    assert received is not None
    assert not os.get_inheritable(received)
    assert not os.get_blocking(received)
    os.write(slave, b"hello")
    assert os.read(received, 100) == b"hello"
    os.close(received)
    os.close(slave)


def test_a_runtime_that_hands_over_nothing_is_told_apart(tmp_path: Path) -> None:
    with ConsoleSocket(tmp_path / "c") as console:
        assert console.receive() is None
        hand_over(console.path, [])
        assert console.receive() is None
    assert list(tmp_path.iterdir()) == []


def test_the_socket_goes_with_the_context(tmp_path: Path) -> None:
    with ConsoleSocket(tmp_path / "c"):
        assert (tmp_path / "c").is_socket()
    assert list(tmp_path.iterdir()) == []


def test_a_path_that_cannot_be_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="long"), ConsoleSocket(tmp_path / ("c" * 200)):
        pass
