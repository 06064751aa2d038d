"""Work shared by its callers: joining, replacing, outliving them."""

from __future__ import annotations

import asyncio

import pytest

from cri_shim.errors import DeadlineError, UnavailableError, WrongStateError
from cri_shim.single_flight import SingleFlight, SupersededError
from tests.fakes.clock import turn_over


class Work:
    """Counts how often it was started; ends when told."""

    def __init__(self) -> None:
        self.started = 0
        self.cancelled = 0
        self.go = asyncio.Event()

    async def run(self) -> str:
        self.started += 1
        number = self.started
        try:
            await self.go.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        return f"result {number}"


@pytest.mark.asyncio
async def test_callers_with_the_same_digest_share_one_task() -> None:
    flights: SingleFlight[str] = SingleFlight()
    work = Work()
    async with asyncio.TaskGroup() as group:
        first = group.create_task(flights.run("pod", b"a", work.run))
        second = group.create_task(flights.run("pod", b"a", work.run))
        await asyncio.sleep(0)
        work.go.set()
    assert (first.result(), second.result()) == ("result 1", "result 1")
    assert len(flights) == 0


@pytest.mark.asyncio
async def test_a_cancelled_caller_leaves_the_work_to_the_next_one() -> None:
    flights: SingleFlight[str] = SingleFlight()
    work = Work()
    async with asyncio.TaskGroup() as group:
        impatient = group.create_task(flights.run("pod", b"a", work.run))
        await asyncio.sleep(0)
        impatient.cancel()
        await asyncio.sleep(0)
        assert work.cancelled == 0
        retry = group.create_task(flights.run("pod", b"a", work.run))
        await asyncio.sleep(0)
        work.go.set()
    assert impatient.cancelled()
    assert retry.result() == "result 1"


@pytest.mark.asyncio
async def test_a_different_request_replaces_the_one_in_flight() -> None:
    flights: SingleFlight[str] = SingleFlight()
    old, new = Work(), Work()
    async with asyncio.TaskGroup() as group:
        replaced = group.create_task(_error_of(flights.run("pod", b"a", old.run)))
        await asyncio.sleep(0)
        winner = group.create_task(flights.run("pod", b"b", new.run))
        await turn_over()
        new.go.set()
    assert isinstance(replaced.result(), SupersededError)
    assert old.cancelled == 1
    assert winner.result() == "result 1"


async def _error_of(call: object) -> BaseException | None:
    try:
        await call  # type: ignore[misc]
    except UnavailableError as error:
        return error
    return None


@pytest.mark.asyncio
async def test_a_failure_is_raised_to_all_and_forgotten() -> None:
    flights: SingleFlight[str] = SingleFlight()

    async def fail() -> str:
        await asyncio.sleep(0)
        raise ValueError("no")

    results = await asyncio.gather(
        flights.run("pod", b"a", fail), flights.run("pod", b"a", fail), return_exceptions=True
    )
    assert [str(r) for r in results] == ["no", "no"]
    work = Work()
    work.go.set()
    assert await flights.run("pod", b"a", work.run) == "result 1"


@pytest.mark.asyncio
async def test_close_waits_for_the_grace_period_and_then_cancels() -> None:
    flights: SingleFlight[str] = SingleFlight()
    work = Work()
    async with asyncio.TaskGroup() as group:
        caller = group.create_task(_error_of(flights.run("pod", b"a", work.run)))
        await asyncio.sleep(0)
        await flights.close(0.01)
    assert work.cancelled == 1
    # Nobody took its place: the caller is told what really happened.
    assert type(caller.result()) is UnavailableError
    assert "the server is stopping" in str(caller.result())


@pytest.mark.asyncio
async def test_what_was_replaced_before_the_closing_is_told_so() -> None:
    flights: SingleFlight[str] = SingleFlight()
    old, new = Work(), Work()
    async with asyncio.TaskGroup() as group:
        replaced = group.create_task(_error_of(flights.run("pod", b"a", old.run)))
        await asyncio.sleep(0)
        winner = group.create_task(_error_of(flights.run("pod", b"b", new.run)))
        await replaced
        await flights.close(0)
    assert isinstance(replaced.result(), SupersededError)
    assert type(winner.result()) is UnavailableError


@pytest.mark.asyncio
async def test_a_caller_that_goes_away_while_the_server_stops_is_just_cancelled() -> None:
    flights: SingleFlight[str] = SingleFlight()
    work = Work()
    async with asyncio.TaskGroup() as group:
        caller = group.create_task(flights.run("pod", b"a", work.run))
        await asyncio.sleep(0)
        closing = group.create_task(flights.close(0))
        await asyncio.sleep(0)
        caller.cancel()
    assert closing.done()
    assert caller.cancelled()
    assert work.cancelled == 1


@pytest.mark.asyncio
async def test_what_is_under_way_is_named() -> None:
    flights: SingleFlight[str] = SingleFlight()
    work = Work()
    async with asyncio.TaskGroup() as group:
        group.create_task(flights.run("pod", b"a", work.run))
        group.create_task(flights.run("other", b"a", work.run))
        await asyncio.sleep(0)
        assert flights.keys() == ["pod", "other"]
        work.go.set()
    assert flights.keys() == []


@pytest.mark.asyncio
async def test_a_failure_whose_callers_are_gone_is_known_to_no_retry() -> None:
    flights: SingleFlight[str] = SingleFlight()
    go = asyncio.Event()

    async def fail() -> str:
        await go.wait()
        raise ValueError("nobody hears it")

    caller = asyncio.ensure_future(flights.run("pod", b"a", fail))
    await asyncio.sleep(0)
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller
    go.set()
    await turn_over()
    assert len(flights) == 0
    work = Work()
    work.go.set()
    assert await flights.run("pod", b"a", work.run) == "result 1"


@pytest.mark.asyncio
async def test_closing_waits_for_what_ends_in_time_and_for_nothing_when_idle() -> None:
    flights: SingleFlight[str] = SingleFlight()
    await flights.close(0)
    work = Work()
    async with asyncio.TaskGroup() as group:
        caller = group.create_task(flights.run("pod", b"a", work.run))
        await asyncio.sleep(0)
        closing = group.create_task(flights.close(10))
        await asyncio.sleep(0)
        work.go.set()
    assert closing.done()
    assert caller.result() == "result 1"
    assert work.cancelled == 0


@pytest.mark.asyncio
async def test_of_several_different_requests_the_last_one_stands() -> None:
    flights: SingleFlight[str] = SingleFlight()
    works = [Work() for _ in range(3)]
    async with asyncio.TaskGroup() as group:
        calls = []
        for number, work in enumerate(works):
            calls.append(group.create_task(_error_of(flights.run("pod", b"%d" % number, work.run))))
            await asyncio.sleep(0)
        await turn_over()
        assert len(flights) == 1
        works[-1].go.set()
    assert [work.cancelled for work in works[:2]] == [work.started for work in works[:2]]
    assert works[-1].started == 1
    assert works[-1].cancelled == 0
    assert isinstance(calls[0].result(), SupersededError)


@pytest.mark.asyncio
async def test_work_that_nobody_keeps_ends_with_its_last_caller() -> None:
    flights: SingleFlight[str] = SingleFlight()
    work, anew = Work(), Work()
    callers = [
        asyncio.create_task(flights.run("pull", b"", work.run, abandon=True)) for _ in range(2)
    ]
    await asyncio.sleep(0)
    callers[0].cancel()
    await asyncio.wait(callers[:1])
    assert work.cancelled == 0
    callers[1].cancel()
    await asyncio.wait(callers)
    # Whoever comes while it is being undone gets work of its own, not the undoing of another's.
    anew.go.set()
    assert await flights.run("pull", b"", anew.run, abandon=True) == "result 1"
    assert work.cancelled == 1


@pytest.mark.asyncio
async def test_work_that_one_caller_keeps_outlives_those_who_abandon_it() -> None:
    flights: SingleFlight[str] = SingleFlight()
    work = Work()
    keeper = asyncio.create_task(flights.run("pull", b"", work.run))
    await asyncio.sleep(0)
    keeper.cancel()
    other = asyncio.create_task(flights.run("pull", b"", work.run, abandon=True))
    await asyncio.sleep(0)
    other.cancel()
    await asyncio.wait([keeper, other])
    work.go.set()
    assert await flights.run("pull", b"", work.run) == "result 1"
    assert (work.started, work.cancelled) == (1, 0)


@pytest.mark.asyncio
async def test_work_that_somebody_else_ends_is_undone_and_its_callers_are_told_why() -> None:
    flights: SingleFlight[str] = SingleFlight()
    work = Work()
    why = WrongStateError("the pod was stopped")
    callers = [asyncio.create_task(flights.run("pod", b"a", work.run)) for _ in range(2)]
    await asyncio.sleep(0)
    await asyncio.gather(*(flights.end("pod", why, timeout_s=9) for _ in range(2)))
    assert work.cancelled == 1
    assert await asyncio.gather(*callers, return_exceptions=True) == [why, why]
    await flights.end("pod", why, timeout_s=9)  # nothing is there any more


@pytest.mark.asyncio
async def test_an_undoing_that_takes_too_long_goes_on_and_is_told_of() -> None:
    flights: SingleFlight[str] = SingleFlight("CreateContainer")
    begun, undone = asyncio.Event(), asyncio.Event()

    async def run() -> str:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            await undone.wait()
        return ""

    caller = asyncio.create_task(flights.run("pod", b"a", run))
    await begun.wait()
    with pytest.raises(
        DeadlineError, match=r"pod: the undo of a cancelled CreateContainer .* after 0\.01 s"
    ):
        await flights.end("pod", WrongStateError("stopped"), timeout_s=0.01)
    undone.set()
    with pytest.raises(WrongStateError, match="stopped"):
        await caller
