"""Slots: bounded altogether and for each owner, given back by slow starts, and fair to whoever has least."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from typing import TYPE_CHECKING

import pytest

from cri_shim.errors import DeadlineError
from cri_shim.slots import PATIENCE_S, REMEMBERED_S, SLOW_AFTER_S, Share, Slot, Slots, Usage
from tests.fakes.clock import turn_over

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from tests.fakes.clock import MovableClock

pytestmark = pytest.mark.asyncio
NEVER_S = 1000.0
NOTHING = Usage(0, 0, 0, 0)


class Starts:
    """Starts that go on until they are told to end."""

    def __init__(self, slots: Slots) -> None:
        self.slots = slots
        self.begun: list[str] = []
        self.slot_of: dict[str, Slot] = {}
        self.tasks: dict[str, asyncio.Task[None]] = {}
        self._may_end: dict[str, asyncio.Event] = {}

    async def begin(self, name: str, *shares: Share, tenant: str = "") -> None:
        may_end = self._may_end[name] = asyncio.Event()

        async def start() -> None:
            async with self.slots.slot(name, *shares, tenant=tenant) as slot:
                self.slot_of[name] = slot
                self.begun.append(name)
                await may_end.wait()

        self.tasks[name] = asyncio.create_task(start(), name=name)
        await turn_over()

    def may_end(self, name: str) -> asyncio.Task[None]:
        """It ends as soon as its task has its turn."""
        self._may_end[name].set()
        return self.tasks[name]

    def ended(self) -> list[asyncio.Task[None]]:
        return [task for task in self.tasks.values() if task.done()]

    async def end(self, name: str) -> None:
        await self.may_end(name)
        await turn_over()

    async def cancel(self, name: str) -> None:
        self.tasks[name].cancel()
        await asyncio.wait([self.tasks[name]])
        await turn_over()

    @contextlib.asynccontextmanager
    async def all_ended(self) -> AsyncIterator[Starts]:
        try:
            yield self
        finally:
            for may_end in self._may_end.values():
                may_end.set()
            await asyncio.gather(*self.tasks.values(), return_exceptions=True)


async def all_slow(clock: MovableClock) -> None:
    """What has begun is slow now; what begins from now on is not."""
    clock.move(SLOW_AFTER_S)
    await turn_over()


def pod(name: str, most: int = 2) -> Share:
    return Share(f"pod {name}", most)


async def test_so_many_at_a_time_and_the_next_when_one_ends() -> None:
    async with Starts(Slots(2, slow_after_s=NEVER_S)).all_ended() as starts:
        for name in ("a", "b", "c", "d"):
            await starts.begin(name, pod(name))
        assert starts.begun == ["a", "b"]
        await starts.end("b")
        assert starts.begun == ["a", "b", "c"]


async def test_an_owner_has_no_more_than_its_share() -> None:
    async with Starts(Slots(4, slow_after_s=NEVER_S)).all_ended() as starts:
        for n in range(4):
            await starts.begin(f"mine {n}", pod("mine"))
        await starts.begin("other", pod("other"))
        assert starts.begun == ["mine 0", "mine 1", "other"]
        await starts.end("mine 0")
        assert starts.begun[-1] == "mine 2"


async def test_a_container_has_a_share_of_its_pods() -> None:
    one, two = Share("container 1", 1), Share("container 2", 1)
    async with Starts(Slots(4, slow_after_s=NEVER_S)).all_ended() as starts:
        await starts.begin("1", one, pod("p"))
        await starts.begin("1 again", one, pod("p"))
        await starts.begin("2", two, pod("p"))
        await starts.begin("3", Share("container 3", 1), pod("p"))
        assert starts.begun == ["1", "2"]
        await starts.end("2")
        assert starts.begun == ["1", "2", "3"]


async def test_who_has_least_comes_first_and_of_those_who_waits_longest() -> None:
    async with Starts(Slots(2, slow_after_s=NEVER_S)).all_ended() as starts:
        await starts.begin("crowd 0", pod("crowd", 9))
        await starts.begin("crowd 1", pod("crowd", 9))
        for n in range(2, 6):
            await starts.begin(f"crowd {n}", pod("crowd", 9))
        await starts.begin("late", pod("late", 9))
        await starts.begin("later", pod("later", 9))
        await starts.end("crowd 0")
        assert starts.begun[2:] == ["late"]
        await starts.end("late")
        assert starts.begun[3:] == ["later"]
        await starts.end("crowd 1")
        assert starts.begun[4:] == ["crowd 2"]


async def test_those_of_several_owners_take_turns() -> None:
    async with Starts(Slots(1, slow_after_s=NEVER_S)).all_ended() as starts:
        await starts.begin("first", pod("first"))
        for name in ("a 0", "a 1", "b 0", "b 1"):
            await starts.begin(name, pod(name[0]))
        for name in ("first", "a 0", "b 0", "a 1"):
            await starts.end(name)
        assert starts.begun == ["first", "a 0", "b 0", "a 1", "b 1"]


async def test_a_slow_one_gives_its_slot_back_and_still_counts_against_its_owner(
    clock: MovableClock,
) -> None:
    slots = Slots(2)
    async with Starts(slots).all_ended() as starts:
        for n in range(4):
            await starts.begin(f"hangs {n}", pod("attacker"))
        await all_slow(clock)
        assert starts.begun == ["hangs 0", "hangs 1"]
        # As many as there are at all, at the same time.
        await starts.begin("a", pod("a"))
        await starts.begin("b", pod("b"))
        assert starts.begun == ["hangs 0", "hangs 1", "a", "b"]
        await starts.end("hangs 0")
        await starts.end("a")
        assert starts.begun[4:] == ["hangs 2"]


async def test_slow_ones_are_bounded_and_leave_half_to_those_that_are_not(
    clock: MovableClock,
) -> None:
    slots = Slots(4, slow_total=2)
    async with Starts(slots).all_ended() as starts:
        for n in range(4):
            await starts.begin(f"hangs {n}", pod(f"attacker {n}", 1))
        await all_slow(clock)
        # Two are slow; the others keep their slots, which are the half that such may have.
        for n in range(4):
            await starts.begin(f"hangs again {n}", pod(f"attacker {n}", 2))
        assert starts.begun == [f"hangs {n}" for n in range(4)]
        for n in range(3):
            await starts.begin(f"honest {n}", pod(f"honest {n}"))
        assert starts.begun[4:] == ["honest 0", "honest 1"]
        # When a slow one ends the next gives its slot back.
        await starts.end("hangs 0")
        await starts.end("honest 0")
        assert sorted(starts.begun[6:]) == ["hangs again 0", "honest 2"]


@pytest.mark.parametrize(("later_s", "of_four"), [(REMEMBERED_S / 2, 2), (REMEMBERED_S, 4)])
async def test_owners_that_were_slow_have_half_of_the_slots_for_a_while(
    later_s: float, of_four: int, clock: MovableClock
) -> None:
    slots = Slots(4)
    async with Starts(slots).all_ended() as starts:
        for n in range(4):
            await starts.begin(f"hangs {n}", pod(f"attacker {n}"))
        await all_slow(clock)
        for n in range(4):
            await starts.end(f"hangs {n}")
        clock.move(later_s)
        starts.begun.clear()
        for n in range(4):
            await starts.begin(f"hangs again {n}", pod(f"attacker {n}"))
        assert starts.begun == [f"hangs again {n}" for n in range(of_four)]
        await starts.begin("honest", pod("honest"))
        assert ("honest" in starts.begun) == (of_four < 4)


async def test_one_that_goes_away_while_it_waits_holds_nobody_up() -> None:
    async with Starts(Slots(1, slow_after_s=NEVER_S)).all_ended() as starts:
        await starts.begin("first", pod("first"))
        await starts.begin("goes", pod("goes"))
        await starts.begin("stays", pod("stays"))
        await starts.cancel("goes")
        await starts.end("first")
        assert starts.begun == ["first", "stays"]


async def test_one_that_has_just_gone_away_is_passed_over() -> None:
    async with Starts(Slots(1, slow_after_s=NEVER_S)).all_ended() as starts:
        await starts.begin("first", pod("first"))
        await starts.begin("goes", pod("goes"))
        await starts.begin("next", pod("next"))
        first, goes = starts.may_end("first"), starts.tasks["goes"]
        goes.cancel()
        await asyncio.wait([first, goes])
        await turn_over()
        assert goes.cancelled()
        assert first.exception() is None
        assert starts.begun == ["first", "next"]


async def test_one_that_goes_away_as_it_gets_its_slot_gives_it_back() -> None:
    slots = Slots(1, slow_after_s=NEVER_S)
    async with Starts(slots).all_ended() as starts:
        await starts.begin("first", pod("first"))
        await starts.begin("goes", pod("goes"))
        starts.may_end("first")
        while slots.usage.waiting:  # noqa: ASYNC110 - granted, and its task has not run yet
            await asyncio.sleep(0)
        await starts.cancel("goes")
        await starts.begin("next", pod("next"))
        assert starts.begun[-1] == "next"


async def test_one_that_is_cancelled_under_way_gives_everything_back(clock: MovableClock) -> None:
    slots = Slots(1, slow_total=1)
    async with Starts(slots).all_ended() as starts:
        for n in range(3):
            await starts.begin(f"hangs {n}", pod("mine", 3))
            await all_slow(clock)
        assert slots.usage[:3] == (1, 1, 1)
        await starts.cancel("hangs 0")
        await starts.cancel("hangs 1")
        await starts.cancel("hangs 2")
        assert slots.usage == NOTHING


async def test_who_waits_too_long_is_told_for_whom() -> None:
    async with Starts(Slots(2, slow_after_s=NEVER_S)).all_ended() as starts:
        await starts.begin("a", pod("a", 1))
        with pytest.raises(
            DeadlineError, match=r"^exec x did not begin within 0\.01 s: 1 others of pod a are"
        ):
            async with starts.slots.slot("exec x", pod("a", 1), timeout_s=0.01):
                pass
        await starts.begin("b", pod("b"))
        with pytest.raises(DeadlineError, match="2 others are under way"):
            async with starts.slots.slot("exec y", pod("c"), timeout_s=0.01):
                pass
        assert starts.slots.usage.waiting == 0


async def test_with_too_many_slow_ones_the_pod_that_has_most_loses_its_oldest(
    clock: MovableClock,
) -> None:
    slots = Slots(1, slow_total=3)
    async with Starts(slots).all_ended() as starts:
        for name in ("slow 0", "greedy 0", "greedy 1", "fresh 0"):
            await starts.begin(name, pod(name.split()[0]))
            await all_slow(clock)
        clock.move(PATIENCE_S)
        await turn_over()
        with pytest.raises(
            DeadlineError, match=r"^greedy 0 was given up .* pod greedy has the most"
        ):
            await starts.end("greedy 0")
        await starts.begin("honest", pod("honest"))
        assert starts.begun[-1] == "honest"
        await starts.end("slow 0")
        await starts.end("greedy 1")


async def test_a_timeout_of_the_work_itself_stays_what_it_is() -> None:
    with pytest.raises(TimeoutError, match="mine"):
        async with Slots(1).slot("x", pod("p")):
            raise TimeoutError("mine")


async def test_a_tenant_leaves_a_slot_to_others_however_many_pods_it_has() -> None:
    async with Starts(Slots(8, slow_after_s=NEVER_S)).all_ended() as starts:
        for n in range(9):
            await starts.begin(f"crowd {n}", pod(f"crowd {n}"), tenant="crowd")
        assert starts.begun == [f"crowd {n}" for n in range(7)]
        await starts.begin("other", pod("other"), tenant="other")
        assert starts.begun[7:] == ["other"]


async def test_a_tenant_is_suspected_as_a_whole(clock: MovableClock) -> None:
    slots = Slots(4)
    async with Starts(slots).all_ended() as starts:
        await starts.begin("hangs", pod("a"), tenant="attacker")
        await all_slow(clock)
        for n in range(4):
            await starts.begin(f"new {n}", pod(f"new {n}"), tenant="attacker")
        for n in range(3):
            await starts.begin(f"honest {n}", pod(f"honest {n}"), tenant=f"honest {n}")
        assert starts.begun[1:] == ["new 0", "new 1", "honest 0", "honest 1"]


async def test_a_tenant_with_many_pods_does_not_come_before_one_with_one() -> None:
    async with Starts(Slots(4, slow_after_s=NEVER_S)).all_ended() as starts:
        for n in range(6):
            await starts.begin(f"crowd {n}", pod(f"crowd {n}"), tenant="crowd")
        await starts.begin("other 0", pod("other"), tenant="other")
        await starts.begin("other 1", pod("other"), tenant="other")
        await starts.end("crowd 0")
        assert starts.begun[3:] == ["other 0", "other 1"]


async def test_of_the_tenant_that_has_most_slow_ones_one_is_given_up(clock: MovableClock) -> None:
    slots = Slots(8, slow_total=3, patience_s=0.0)
    async with Starts(slots).all_ended() as starts:
        await starts.begin("honest", pod("honest"), tenant="honest")
        for n in range(3):
            await starts.begin(f"hangs {n}", pod(f"p{n}"), tenant="namespace attacker")
        await all_slow(clock)
        await turn_over()
        given_up = starts.ended()
        assert [task.get_name() for task in given_up] == ["hangs 0"]
        with pytest.raises(DeadlineError, match="and namespace attacker has the most"):
            await given_up[0]


async def test_what_is_slow_only_when_that_is_said_is_so_once() -> None:
    slots = Slots(1, slow_total=1, slow_after_s=None, patience_s=NEVER_S)
    async with Starts(slots).all_ended() as starts:
        for name in ("first", "next", "last"):
            await starts.begin(name, pod(name))
        starts.slot_of["first"].now_slow()
        starts.slot_of["first"].now_slow()
        await turn_over()
        assert starts.begun == ["first", "next"]
        starts.slot_of["next"].now_slow()  # no room: it keeps its slot
        await turn_over()
        assert starts.begun == ["first", "next"]
        await starts.end("first")
        assert starts.begun == ["first", "next", "last"]


async def test_what_has_ended_before_its_block_shares_nothing_any_more() -> None:
    slots = Slots(1, slow_total=1, slow_after_s=None, patience_s=0.0)
    async with Starts(slots).all_ended() as starts:
        await starts.begin("first", pod("p", 1))
        await starts.begin("next", pod("p", 1))
        starts.slot_of["first"].now_slow()
        starts.slot_of["first"].end()
        starts.slot_of["first"].now_slow()
        await turn_over()
        assert starts.begun == ["first", "next"]
        await starts.end("first")
        await starts.begin("last", pod("other", 1))
        assert starts.begun == ["first", "next"]
        starts.slot_of["next"].end()
        await turn_over()
        assert starts.begun == ["first", "next", "last"]


@pytest.mark.parametrize("of_one_tenant", [True, False])
async def test_handing_a_slot_on_costs_the_same_however_many_wait(of_one_tenant: bool) -> None:
    async def calls(waiting: int) -> int:
        async with Starts(Slots(4, slow_after_s=None)).all_ended() as starts:
            for n in range(4 + waiting):
                await starts.begin(
                    f"{n}", pod(f"{n}", 1), tenant="namespace a" if of_one_tenant else ""
                )
            before = len(starts.begun)
            found = calls_during(starts.slot_of["0"].end)
            await turn_over()
            assert len(starts.begun) == before + 1
            return found

    assert await calls(10) == await calls(300)


def calls_during(work: Callable[[], object]) -> int:
    """Of functions, ours and built in."""
    found = 0

    def count(_frame: object, event: str, _argument: object) -> None:
        nonlocal found
        found += event in ("call", "c_call")

    sys.setprofile(count)
    try:
        work()
    finally:
        sys.setprofile(None)
    return found
