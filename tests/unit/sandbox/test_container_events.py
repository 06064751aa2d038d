"""Who is told of which step, in which order, and what happens to who does not listen."""

from __future__ import annotations

import asyncio
import errno
from typing import TYPE_CHECKING

import pytest

from cri_shim.errors import (
    CniPluginError,
    CriShimError,
    NotReadyError,
    ResourceExhaustedError,
    RuntimeCommandError,
    UnavailableError,
    UnsupportedError,
)
from cri_shim.sandbox.container_events import (
    MAX_WAITING,
    ContainerEvent,
    ContainerEvents,
    EventType,
    Subscription,
)
from tests.fakes.clock import turn_over
from tests.fakes.metrics import sample
from tests.fakes.node_harness import NodeHarness, pod_config
from tests.unit.sandbox.looking import exited, process_of

if TYPE_CHECKING:
    from cri_shim.sandbox.store.store import Sandbox

pytestmark = pytest.mark.asyncio
CREATED, STARTED, STOPPED, DELETED = EventType


async def taken(subscription: Subscription) -> list[ContainerEvent]:
    """All events that wait."""
    return [await subscription.next() for _ in range(subscription.waiting)]


def types_of(events: list[ContainerEvent], object_id: str) -> list[EventType]:
    return [event.type for event in events if event.object_id == object_id]


async def whole_life(harness: NodeHarness) -> tuple[Sandbox, str, str]:
    """A pod with a container that ends by itself and one that is stopped with the pod."""
    sandbox = await harness.run_pod()
    ending = await harness.start(sandbox, "ending")
    stopped = await harness.start(sandbox, "stopped")
    harness.kernel.end(process_of(harness, ending).pid, 3)
    await exited(ending)
    await harness.pods.stop_pod_sandbox(sandbox.id)
    await harness.pods.remove_pod_sandbox(sandbox.id)
    return sandbox, ending.id, stopped.id


async def test_each_step_of_a_life_is_told_once_and_in_order(harness: NodeHarness) -> None:
    with harness.events.subscribed() as subscription:
        sandbox, *containers = await whole_life(harness)
        events = await taken(subscription)
    for object_id in (sandbox.id, *containers):
        assert types_of(events, object_id) == [CREATED, STARTED, STOPPED, DELETED]
    assert len(events) == 12
    assert {event.sandbox_id for event in events} == {sandbox.id}
    assert {event.pod for event in events} == {sandbox.record.metadata}
    assert events[-1].object_id == sandbox.id, "the pod's own end is the last"
    assert [event.at_ns for event in events] == sorted(event.at_ns for event in events)


async def test_every_subscriber_gets_all_from_its_subscription_on(harness: NodeHarness) -> None:
    with harness.events.subscribed() as early:
        sandbox = await harness.run_pod()
        with harness.events.subscribed() as late:
            container = await harness.create(sandbox)
            assert [e.object_id for e in await taken(late)] == [container.id]
        await harness.containers.start_container(container.id)
        assert late.waiting == 0, "who has left is told of nothing more"
        events = await taken(early)
    assert types_of(events, sandbox.id) == [CREATED, STARTED]
    assert types_of(events, container.id) == [CREATED, STARTED]


async def test_the_statuses_of_an_event_are_those_of_when_it_is_sent(harness: NodeHarness) -> None:
    with harness.events.subscribed() as subscription:
        sandbox = await harness.run_pod()
        container = await harness.start(sandbox)
        made = (await taken(subscription))[0]
        assert harness.events.sandbox(made) is sandbox
        assert harness.events.containers(made) == [container]
        await harness.pods.remove_pod_sandbox(sandbox.id)
        assert harness.events.sandbox(made) is None
        assert harness.events.containers(made) == []
        assert made.pod == sandbox.record.metadata, "kubelet needs the UID all the same"


async def test_a_pause_process_that_ends_stops_the_pod(harness: NodeHarness) -> None:
    sandbox = await harness.run_pod()
    assert sandbox.status.process is not None
    with harness.events.subscribed() as subscription:
        harness.kernel.end(sandbox.status.process.pid, 9)
        await harness.settle()
        await harness.pods.stop_pod_sandbox(sandbox.id)
        assert types_of(await taken(subscription), sandbox.id) == [STOPPED]


async def test_a_start_that_fails_is_an_end(harness: NodeHarness) -> None:
    sandbox = await harness.run_pod()
    container = await harness.create(sandbox)
    refusal = RuntimeCommandError("starting", ["runc"], "failed", "no")
    harness.points.fail("runtime.start", refusal)
    with harness.events.subscribed() as subscription:
        with pytest.raises(CriShimError):
            await harness.containers.start_container(container.id)
        assert types_of(await taken(subscription), container.id) == [STOPPED]


async def test_a_creation_that_is_undone_is_told_to_nobody(harness: NodeHarness) -> None:
    harness.points.fail("cni.add", CniPluginError("bridge", "ADD", "no"))
    with harness.events.subscribed() as subscription:
        with pytest.raises(CriShimError):
            await harness.pods.run_pod_sandbox(pod_config(), "")
        harness.points.heal()
        sandbox = await harness.run_pod()
        harness.points.fail(
            "monitor.create", RuntimeCommandError("creating", ["runc"], "failed", "no")
        )
        with pytest.raises(CriShimError):
            await harness.create(sandbox)
        assert {event.object_id for event in await taken(subscription)} == {sandbox.id}


async def test_what_could_not_be_undone_comes_and_has_ended(harness: NodeHarness) -> None:
    sandbox = await harness.run_pod()
    harness.points.fail("monitor.create", RuntimeCommandError("creating", ["runc"], "failed", "no"))
    harness.points.fail("unmount", OSError(errno.EBUSY, "busy"))
    with harness.events.subscribed() as subscription:
        with pytest.raises(CriShimError):
            await harness.create(sandbox)
        (container,) = harness.stored
        assert types_of(await taken(subscription), container.id) == [CREATED, STOPPED]
        harness.points.heal()
        await harness.containers.remove_container(container.id)
        assert types_of(await taken(subscription), container.id) == [DELETED]


async def test_a_queue_that_is_full_ends_its_subscription_and_no_other(
    harness: NodeHarness,
) -> None:
    overflows = sample("cri_shim_container_event_overflows_total")
    sandbox = await harness.run_pod()
    container = await harness.start(sandbox)
    with harness.events.subscribed() as idle, harness.events.subscribed() as reading:
        for _ in range(MAX_WAITING + 1):
            harness.stored.note(container, container.status)  # no step: no event
        assert idle.waiting == 0
        created = harness.stored.get(container.id)
        assert created is container
        running = container.status
        committed = type(running)(committed_at_ns=1)
        for _ in range(MAX_WAITING + 1):
            harness.stored.note(container, committed)
            harness.stored.note(container, running)
            await reading.next()
        assert len(harness.events.subscriptions) == 1
        assert idle.waiting == 0, "its memory is free at once"
        with pytest.raises(ResourceExhaustedError, match="subscribe again"):
            await idle.next()
        assert reading.waiting == 0
    assert sample("cri_shim_container_event_overflows_total") == overflows + 1
    assert not harness.events.subscriptions


async def test_a_subscriber_sleeps_until_something_happens(harness: NodeHarness) -> None:
    sandbox = await harness.run_pod()
    with harness.events.subscribed() as subscription:
        waiting = asyncio.ensure_future(subscription.next())
        await turn_over()
        assert not waiting.done()
        container = await harness.create(sandbox)
        assert (await waiting).object_id == container.id


async def test_closing_ends_subscriptions_after_what_they_have_still_to_take(
    harness: NodeHarness,
) -> None:
    harness.events.open()
    await harness.events.wait_until_open()
    with harness.events.subscribed() as subscription:
        await harness.run_pod()
        harness.events.close()
        assert [(await subscription.next()).type for _ in range(2)] == [CREATED, STARTED]
        with pytest.raises(UnavailableError, match="stopping"):
            await subscription.next()
    with pytest.raises(UnavailableError, match="stopping"):
        await harness.events.wait_until_open()


@pytest.mark.parametrize(("end", "error"), [("open", NotReadyError), ("close", UnavailableError)])
async def test_who_comes_during_recovery_is_told_once_it_is_over(
    harness: NodeHarness, end: str, error: type[CriShimError]
) -> None:
    waiting = asyncio.ensure_future(harness.events.wait_until_open())
    await turn_over()
    assert not waiting.done()
    getattr(harness.events, end)()
    with pytest.raises(error):
        await waiting


async def test_events_may_be_off(harness: NodeHarness) -> None:
    off = ContainerEvents(sandboxes=harness.sandboxes, containers=harness.stored, enabled=False)
    off.open()
    with pytest.raises(UnsupportedError, match=r"events\.enabled"):
        await off.wait_until_open()
