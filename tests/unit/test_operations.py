"""What is under way, as it is found by the context of tasks; durations by a clock of this test."""

from __future__ import annotations

import asyncio

import pytest

from cri_shim import operations as module
from cri_shim.ids import new_id
from cri_shim.operations import (
    Operations,
    OperationView,
    concerns,
    documents,
    duration_text,
    reached,
    step,
)
from tests.fakes.clock import turn_over

ID = new_id()


class Clock:
    now_s = 1000.0

    def monotonic(self) -> float:
        return self.now_s


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(module, "time", made)
    return made


def only(operations: Operations) -> OperationView:
    [view] = operations.under_way()
    return view


def steps(operations: Operations) -> list[tuple[str, float]]:
    return [(each.name, each.seconds) for each in only(operations).steps]


def test_an_operation_is_there_for_as_long_as_its_block(clock: Clock) -> None:
    operations = Operations()
    with operations.begin("StopPodSandbox", ID):
        clock.now_s += 3
        view = only(operations)
        assert (view.name, view.object_id, view.subject) == ("StopPodSandbox", ID, ID)
        assert view.seconds == 3
    assert len(operations) == 0


def test_an_operation_that_fails_is_over_as_well() -> None:
    operations = Operations()
    with pytest.raises(RuntimeError), operations.begin("StopPodSandbox", ID), step("unmounting"):
        raise RuntimeError
    assert len(operations) == 0


def test_what_is_asked_for_by_name_has_an_id_once_that_is_known() -> None:
    operations = Operations()
    with operations.begin("RunPodSandbox", '["web"]'):
        assert only(operations).object_id == ""
        concerns(ID)
        assert (only(operations).object_id, only(operations).subject) == (ID, '["web"]')
    assert operations.under_way(ID) == []


def test_the_innermost_step_is_where_it_stands(clock: Clock) -> None:
    operations = Operations()
    with operations.begin("RunPodSandbox", "web"):
        with step("waiting for the network"):
            clock.now_s += 1
            with step("cni ADD bridge"):
                clock.now_s += 2
                assert steps(operations) == [("cni ADD bridge", 2)]
            assert steps(operations) == [("waiting for the network", 3)]
        assert steps(operations) == [("beginning", 3)]


def test_between_two_steps_it_is_the_effect_that_was_begun_last(clock: Clock) -> None:
    operations = Operations()
    with operations.begin("RunPodSandbox", "web"):
        reached("netns")
        clock.now_s += 4
        assert steps(operations) == [("netns", 4)]
        with step("runc create"):
            assert steps(operations) == [("runc create", 0)]


def test_a_step_inside_of_one_of_the_same_name_is_that_one(clock: Clock) -> None:
    operations = Operations()
    with operations.begin("recovery", ID), step("waiting"):
        clock.now_s += 5
        with step("waiting"):
            assert steps(operations) == [("waiting", 5)]
        assert steps(operations) == [("waiting", 5)]


@pytest.mark.asyncio
async def test_tasks_take_part_in_the_operation_that_they_are_started_in() -> None:
    operations = Operations()
    may_end = asyncio.Event()

    async def branch(name: str) -> None:
        with step(name):
            await may_end.wait()

    async def work() -> None:
        with operations.begin("RunPodSandbox", "web"):
            async with asyncio.TaskGroup() as group:
                group.create_task(branch("cni ADD bridge"))
                group.create_task(branch("runc create"))

    async with asyncio.TaskGroup() as group:
        group.create_task(work())
        other = group.create_task(branch("nobody's step"))
        await turn_over()
        assert {each.name for each in only(operations).steps} == {"cni ADD bridge", "runc create"}
        may_end.set()
    await other
    assert len(operations) == 0


def test_an_operation_inside_another_is_one_of_its_own() -> None:
    operations = Operations()
    with operations.begin("RemovePodSandbox", ID), step("waiting for StopPodSandbox"):
        with operations.begin("StopPodSandbox", ID):
            with step("cni DEL bridge"):
                shown = {each.name: each.steps[0].name for each in operations.under_way(ID)}
        assert shown == {
            "RemovePodSandbox": "waiting for StopPodSandbox",
            "StopPodSandbox": "cni DEL bridge",
        }
        assert [each.name for each in operations.under_way()] == ["RemovePodSandbox"]


def test_outside_of_an_operation_nothing_is_noted() -> None:
    with step("runc create"):
        concerns(ID)
        reached("netns")
    operations = Operations()
    with operations.begin("RunPodSandbox", "web"):
        assert [name for name, _ in steps(operations)] == ["beginning"]
        assert only(operations).object_id == ""


def test_slow_ones_are_counted_by_step(clock: Clock) -> None:
    operations = Operations()
    with operations.begin("StopPodSandbox", ID), step("cni DEL bridge"):
        clock.now_s += 30
        assert operations.slow_by_step() == {}
        with operations.begin("StopPodSandbox", new_id()), step("cni DEL bridge"):
            clock.now_s += 31
            assert operations.slow_by_step() == {"cni DEL bridge": 1}
            assert [each.object_id for each in operations.slow()] == [ID]
            clock.now_s += 30
            assert operations.slow_by_step() == {"cni DEL bridge": 2}


def test_they_can_be_shown_as_documents(clock: Clock) -> None:
    operations = Operations()
    with operations.begin("StartContainer", ID), step("runc start"):
        clock.now_s += 1.23456
        assert documents(operations.under_way()) == [
            {
                "operation": "StartContainer",
                "forSeconds": 1.235,
                "steps": [{"step": "runc start", "forSeconds": 1.235}],
            }
        ]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        *((0.04, "0.0 s"), (9.94, "9.9 s"), (10, "10 s"), (119, "119 s")),
        *((120, "2 min"), (7100, "118 min"), (7200, "2 h"), (90000, "25 h")),
    ],
)
def test_a_duration_is_said_as_exactly_as_anybody_cares(seconds: float, text: str) -> None:
    assert duration_text(seconds) == text
