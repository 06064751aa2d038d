"""What a client writes to a shim's exec arrives whole, and its end is told; nothing stays open."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
from typing import TYPE_CHECKING, cast

import pytest

from cri_shim.sandbox.exec.input_relay import InputRelay
from tests.fakes.clock import turn_over, until

if TYPE_CHECKING:
    from collections.abc import Callable

    from cri_shim.oci.shim.exec import ShimExec

pytestmark = pytest.mark.asyncio


class Child:
    """An exec, as far as its input goes."""

    def __init__(self) -> None:
        self.input_ends = 0
        self.end: Callable[[], None] = lambda: None

    def on_end(self, callback: Callable[[], None]) -> None:
        self.end = callback

    def end_input(self) -> None:
        self.input_ends += 1


def is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


async def test_more_than_the_pipes_hold_arrives_and_then_its_end() -> None:
    theirs, ours = os.pipe()
    relay, child = InputRelay(theirs), Child()
    os.close(theirs)
    shim = os.open(f"/proc/self/fd/{relay.read_fd}", os.O_RDONLY | os.O_NONBLOCK)
    relay.start(cast("ShimExec", child))
    data = os.urandom(1 << 20)
    sending = asyncio.get_running_loop().run_in_executor(None, _send, ours, data)
    found = bytearray()
    while len(found) < len(data):
        try:
            found += os.read(shim, 1 << 16)
        except BlockingIOError:
            await asyncio.sleep(0)
    await sending
    assert found == data
    await until(lambda: child.input_ends == 1)
    descriptor = relay.read_fd
    child.end()
    assert not is_open(descriptor)
    assert os.read(shim, 10) == b""
    os.close(shim)


def _send(fd: int, data: bytes) -> None:
    with os.fdopen(fd, "wb") as file:
        file.write(data)


async def test_a_shim_that_does_not_read_holds_its_client_up_and_loses_nothing() -> None:
    theirs, ours = os.pipe()
    relay, child = InputRelay(theirs), Child()
    os.close(theirs)
    shim = os.open(f"/proc/self/fd/{relay.read_fd}", os.O_RDONLY | os.O_NONBLOCK)
    relay.start(cast("ShimExec", child))
    os.set_blocking(ours, False)
    sent = refused = 0
    while refused < 20:
        try:
            sent += os.write(ours, b"x" * 4096)
            refused = 0
        except BlockingIOError:
            refused += 1
            await turn_over()
    assert sent <= 1 << 18  # what two pipes hold
    found = 0

    def all_read() -> bool:
        nonlocal found
        with contextlib.suppress(BlockingIOError):
            found += len(os.read(shim, 1 << 16))
        return found == sent

    await until(all_read)
    os.close(ours)
    await until(lambda: child.input_ends == 1)
    child.end()
    os.close(shim)


async def test_without_a_descriptor_for_its_pipe_nothing_stays_open(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full(_flags: int) -> tuple[int, int]:
        raise OSError(errno.EMFILE, "too many open files")

    theirs, ours = os.pipe()
    before = sorted(os.listdir("/proc/self/fd"))
    monkeypatch.setattr("os.pipe2", full)
    with pytest.raises(OSError, match="too many"):
        InputRelay(theirs)
    assert sorted(os.listdir("/proc/self/fd")) == before
    os.close(theirs)
    os.close(ours)


async def test_one_that_was_never_started_closes_what_it_has() -> None:
    theirs, ours = os.pipe()
    with InputRelay(theirs) as relay:
        descriptor = relay.read_fd
    assert not is_open(descriptor)
    os.close(theirs)
    os.close(ours)
