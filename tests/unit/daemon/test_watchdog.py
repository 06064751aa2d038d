"""What a service manager with a watchdog hears, over a socket of this test, of a server that answers or does not."""

from __future__ import annotations

import asyncio
import socket
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest
from structlog.testing import capture_logs

from cri_shim.daemon import watchdog
from cri_shim.daemon.watchdog import ask_for_patience, feed_watchdog
from tests.fakes.clock import until
from tests.unit.rpc.fakes import serving

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.fakes.clock import MovableClock

pytestmark = pytest.mark.asyncio


class Manager:
    def __init__(self, channel: socket.socket) -> None:
        self._channel = channel
        self.told: list[str] = []

    def heard(self) -> list[str]:
        with suppress(BlockingIOError):
            while True:
                self.told.append(self._channel.recv(200).decode())
        return self.told


@pytest.fixture
def manager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Manager]:
    """Wants to hear from the daemon ten times a second."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
        channel.bind(str(tmp_path / "notify"))
        channel.setblocking(False)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        monkeypatch.setenv("WATCHDOG_USEC", "100000")
        monkeypatch.delenv("WATCHDOG_PID", raising=False)
        yield Manager(channel)


async def end(task: asyncio.Task[None]) -> None:
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task


async def test_it_is_fed_as_long_as_our_own_cri_answers(tmp_path: Path, manager: Manager) -> None:
    async with serving(tmp_path) as (daemon, _):
        feeding = asyncio.ensure_future(feed_watchdog(daemon.socket_path))
        await until(lambda: manager.heard().count("WATCHDOG=1") >= 3)
        with capture_logs() as logs:
            await daemon.listeners.stop(0.1)
            await until(lambda: logs)
            manager.heard()
            manager.told.clear()
            before = len(logs)
            await until(lambda: len(logs) >= before + 3)
        assert {line["event"] for line in logs} == {logs[0]["event"]}
        assert "not fed" in logs[0]["event"]
        assert manager.heard() == []
    assert not feeding.done()
    await end(feeding)


async def test_a_loop_that_does_not_turn_feeds_nobody(manager: Manager) -> None:
    feeding = asyncio.ensure_future(feed_watchdog(None))
    await until(lambda: manager.heard().count("WATCHDOG=1") >= 2)
    await end(feeding)


async def test_without_a_watchdog_nothing_is_done(
    manager: Manager, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WATCHDOG_USEC")
    await feed_watchdog(None)
    assert manager.heard() == []


async def test_a_long_start_asks_for_patience_until_it_is_over(
    manager: Manager, clock: MovableClock
) -> None:
    ready = asyncio.Event()
    asking = asyncio.ensure_future(ask_for_patience(ready))
    await clock.sleep(2.5 * watchdog.PATIENCE_INTERVAL_S)
    assert len(manager.heard()) == 3
    assert manager.told[0].startswith("EXTEND_TIMEOUT_USEC=60000000\nSTATUS=recovering pods")
    ready.set()
    await asking
