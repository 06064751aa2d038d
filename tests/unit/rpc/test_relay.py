from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from cri_shim.rpc.relay import Relay
from tests.fakes.clock import turn_over

if TYPE_CHECKING:
    from tests.fakes.clock import MovableClock

pytestmark = pytest.mark.asyncio


class Client:
    """Takes messages as slowly as it is told to."""

    def __init__(self, *, delay_s: float = 0.0) -> None:
        self.got: list[str] = []
        self._delay_s = delay_s
        self.failure: Exception | None = None

    async def send(self, message: str) -> None:
        if self.failure is not None:
            raise self.failure
        await asyncio.sleep(self._delay_s)
        self.got.append(message)


async def test_the_last_word_on_each_thing_is_sent_and_what_came_too_fast_is_skipped() -> None:
    relay: Relay[str] = Relay()
    client = Client(delay_s=0.01)

    async def work() -> int:
        for number in range(1000):
            relay.tell("a", f"a{number}")
            relay.tell("b", f"b{number}")
            await asyncio.sleep(0)
        return 7

    assert await relay.run(work, client.send) == 7
    assert {"a999", "b999"} <= set(client.got)
    assert len(client.got) < 20


async def test_what_is_told_last_is_sent_before_the_result_is_given(clock: MovableClock) -> None:
    relay: Relay[str] = Relay()
    client = Client(delay_s=20)

    async def work() -> None:
        relay.tell("a", "begun")
        await asyncio.sleep(10)
        relay.tell("a", "ended")

    running = asyncio.ensure_future(relay.run(work, client.send))
    await clock.until(running.done, within_s=60)
    assert client.got == ["begun", "ended"]


async def test_work_that_says_nothing_is_waited_for() -> None:
    client = Client()
    assert await Relay[str]().run(lambda: asyncio.sleep(0, "done"), client.send) == "done"
    assert not client.got


async def test_a_failure_of_the_work_is_raised_once_the_running_send_has_ended(
    clock: MovableClock,
) -> None:
    relay: Relay[str] = Relay()
    client = Client(delay_s=20)

    async def work() -> None:
        relay.tell("a", "begun")
        await asyncio.sleep(5)
        raise ValueError("broken")

    running = asyncio.ensure_future(relay.run(work, client.send))
    await clock.sleep(19)
    assert not running.done()
    await clock.sleep(2)
    with pytest.raises(ValueError, match="broken"):
        await running
    assert client.got == ["begun"]


async def test_a_client_that_can_not_be_told_is_an_error_after_the_work() -> None:
    relay: Relay[str] = Relay()
    client = Client()
    client.failure = OSError("gone")
    ended = False

    async def work() -> None:
        nonlocal ended
        relay.tell("a", "begun")
        await turn_over()
        ended = True

    with pytest.raises(OSError, match="gone"):
        await relay.run(work, client.send)
    assert ended


async def test_a_cancelled_caller_ends_the_work() -> None:
    cancelled = asyncio.Event()

    async def work() -> None:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            cancelled.set()
            raise

    call = asyncio.create_task(Relay[str]().run(work, Client().send))
    await turn_over()
    call.cancel()
    await asyncio.wait([call])
    assert call.cancelled()
    assert cancelled.is_set()
