"""Whoever has too much to do for one turn of the loop leaves everybody else theirs."""

from __future__ import annotations

import asyncio

import pytest

from cri_shim.streaming.turns import Turns
from tests.fakes.clock import turn_over

pytestmark = pytest.mark.asyncio


async def test_one_has_its_turn_in_each_round_of_the_loop_in_their_order() -> None:
    turns, done = Turns(), []
    for name in "abc":
        turns.later(lambda name=name: done.append(name))  # type: ignore[misc]
    for so_far in ("a", "ab", "abc", "abc"):
        await asyncio.sleep(0)
        assert "".join(done) == so_far


async def test_who_asks_again_stands_behind_all_others() -> None:
    turns, done = Turns(), []

    def greedy() -> None:
        done.append("greedy")
        if len(done) < 5:
            turns.later(greedy)

    turns.later(greedy)
    turns.later(lambda: done.append("modest"))
    await turn_over(8)
    assert done == ["greedy", "modest", "greedy", "greedy", "greedy"]


async def test_an_error_in_a_turn_takes_no_other_away() -> None:
    turns, done = Turns(), []
    errors: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, told: errors.append(told))

    def fail() -> None:
        raise ValueError("broken")

    turns.later(fail)
    turns.later(lambda: done.append("next"))
    await turn_over(3)
    assert done == ["next"]
    assert len(errors) == 1


async def test_a_turn_of_ones_own_comes_and_one_that_is_given_up_holds_up_nobody() -> None:
    turns = Turns()
    given_up = asyncio.create_task(turns.own())
    await asyncio.sleep(0)
    given_up.cancel()
    async with asyncio.timeout(5):
        await turns.own()
