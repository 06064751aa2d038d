"""Who waits for a prompt future runs in the turn after it is done; nobody else notices a difference."""

from __future__ import annotations

import asyncio
import gc
from typing import TYPE_CHECKING

import pytest

from cri_shim.background import end_of, settled
from cri_shim.prompt import Prompt

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

pytestmark = pytest.mark.asyncio


def a_prompt() -> Prompt[int]:
    return Prompt(loop=asyncio.get_running_loop())


async def turns_until_it_goes_on(
    future: asyncio.Future[int], wait: Callable[[asyncio.Future[int]], Awaitable[object]]
) -> int:
    """How many turns of the loop pass between the result and whoever waits for it."""
    went_on: list[bool] = []

    async def waiting() -> None:
        await wait(future)
        went_on.append(True)

    task = asyncio.create_task(waiting())
    await asyncio.sleep(0)
    asyncio.get_running_loop().call_soon(future.set_result, 1)
    turns = 0
    while not went_on:
        await asyncio.sleep(0)
        turns += 1
    await task
    return turns


@pytest.mark.parametrize("wait", [settled, end_of])
async def test_who_waits_goes_on_a_turn_earlier(
    wait: Callable[[asyncio.Future[int]], Awaitable[object]],
) -> None:
    ordinary: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    assert (
        await turns_until_it_goes_on(a_prompt(), wait)
        == await turns_until_it_goes_on(ordinary, wait) - 1
    )


async def test_it_is_a_future_like_others() -> None:
    future = a_prompt()
    asyncio.get_running_loop().call_soon(future.set_result, 7)
    assert await asyncio.shield(future) == 7
    failed = a_prompt()
    failed.set_exception(ValueError("no"))
    with pytest.raises(ValueError, match="no"):
        await failed


async def test_an_error_and_a_cancellation_are_told_as_well() -> None:
    failed, cancelled = a_prompt(), a_prompt()
    waiting = [asyncio.create_task(settled(each)) for each in (failed, cancelled)]
    await asyncio.sleep(0)
    failed.set_exception(ValueError("no"))
    assert cancelled.cancel()
    assert await asyncio.gather(*waiting) == [True, True]
    assert isinstance(failed.exception(), ValueError)


async def test_who_gives_up_is_not_told_and_disturbs_nobody() -> None:
    future = a_prompt()
    patient = asyncio.create_task(settled(future))
    hasty = asyncio.create_task(settled(future))
    assert await settled(future, 0.001) is False
    hasty.cancel()
    await asyncio.wait([hasty])
    future.set_result(1)
    assert await patient is True
    assert hasty.cancelled()


async def test_one_that_nobody_looks_at_is_told_of_as_any_other() -> None:
    told: list[dict[str, object]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context))
    a_prompt().set_exception(ValueError("nobody looks"))
    gc.collect()
    assert [type(context["exception"]) for context in told] == [ValueError]
