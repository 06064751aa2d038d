from __future__ import annotations

import asyncio

import pytest

from cri_shim.rpc.relay import Relay
from tests.fakes.clock import turn_over

pytestmark = pytest.mark.asyncio


class Client:
    """Takes messages, from when it may."""

    def __init__(self) -> None:
        self.got: list[str] = []
        self.offered, self.may_take = asyncio.Event(), asyncio.Event()
        self.may_take.set()
        self.failure: Exception | None = None

    async def send(self, message: str) -> None:
        if self.failure is not None:
            raise self.failure
        self.offered.set()
        await self.may_take.wait()
        self.got.append(message)


async def test_the_last_word_on_each_thing_is_sent_and_what_came_too_fast_is_skipped() -> None:
    relay: Relay[str] = Relay()
    client = Client()
    client.may_take.clear()

    async def work() -> int:
        relay.tell("a", "a0")
        await client.offered.wait()
        for number in range(1, 1000):
            relay.tell("a", f"a{number}")
            relay.tell("b", f"b{number}")
            await turn_over(1)
        client.may_take.set()
        return 7

    assert await relay.run(work, client.send) == 7
    assert client.got == ["a0", "a999", "b999"]


async def test_what_is_told_last_is_sent_before_the_result_is_given() -> None:
    relay: Relay[str] = Relay()
    client = Client()
    client.may_take.clear()

    async def work() -> None:
        relay.tell("a", "begun")
        await client.offered.wait()
        relay.tell("a", "ended")

    running = asyncio.ensure_future(relay.run(work, client.send))
    await turn_over()
    assert not running.done()
    client.may_take.set()
    await running
    assert client.got == ["begun", "ended"]


async def test_work_that_says_nothing_is_waited_for() -> None:
    client = Client()
    assert await Relay[str]().run(lambda: asyncio.sleep(0, "done"), client.send) == "done"
    assert not client.got


async def test_a_failure_of_the_work_is_raised_once_the_running_send_has_ended() -> None:
    relay: Relay[str] = Relay()
    client = Client()
    client.may_take.clear()

    async def work() -> None:
        relay.tell("a", "begun")
        await client.offered.wait()
        raise ValueError("broken")

    running = asyncio.ensure_future(relay.run(work, client.send))
    await turn_over()
    assert not running.done()
    client.may_take.set()
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
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.set()
            raise

    call = asyncio.create_task(Relay[str]().run(work, Client().send))
    await turn_over()
    call.cancel()
    await asyncio.wait([call])
    assert call.cancelled()
    assert cancelled.is_set()
