"""Pending deletes are tried again, garbage is collected, attachments are checked: while no pod asks."""

from __future__ import annotations

import asyncio
import errno
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, cast

import pytest
from structlog.testing import capture_logs

from cri_shim.errors import CniPluginError, DeadlineError, WrongStateError
from cri_shim.sandbox.network import reconciler as module
from cri_shim.sandbox.network.pod_network import FORMER_PLUGIN
from cri_shim.sandbox.network.reconciler import NetworkReconciler
from tests.fakes.clock import until
from tests.fakes.networks import FakeCni
from tests.fakes.node_harness import NodeHarness, pod_config

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from cri_shim.cni.attachment import Attachment
    from cri_shim.cni.leftover import LeftoverPlugins
    from cri_shim.cni.network import Cni
    from tests.fakes.clock import MovableClock

pytestmark = pytest.mark.asyncio

BUSY = CniPluginError("bridge", "DEL", "busy")


async def removed_with_pending_deletes(harness: NodeHarness, *names: str) -> list[str]:
    """IDs of pods that are gone but for what their plugins hold."""
    harness.points.fail("cni.del", BUSY)
    ids = []
    for name in names:
        sandbox = await harness.run_pod(name)
        await harness.pods.remove_pod_sandbox(sandbox.id)
        ids.append(sandbox.id)
    return ids


@asynccontextmanager
async def running(harness: NodeHarness) -> AsyncIterator[None]:
    task = asyncio.ensure_future(harness.reconciler.run())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait([task])


def tries(harness: NodeHarness) -> int:
    return harness.points.passed.count("cni.del")


async def test_a_pending_delete_is_tried_with_growing_pauses_until_it_succeeds(
    harness: NodeHarness, clock: MovableClock
) -> None:
    async with running(harness):
        await removed_with_pending_deletes(harness, "web")
        first, pause_s = tries(harness), module.FIRST_RETRY_S
        for again in range(1, 4):
            await clock.sleep(0.9 * pause_s)
            assert tries(harness) == first + again - 1
            await clock.sleep(0.2 * pause_s)
            await until(lambda again=again: tries(harness) == first + again)  # type: ignore[misc]
            pause_s *= 2
        harness.points.heal()
        await clock.sleep(pause_s)
        await until(lambda: not len(harness.pending_deletes))
        await until(lambda: not harness.kernel.namespaces)
    assert harness.leftovers() == {}


async def test_what_changed_is_a_reason_to_try_at_once(harness: NodeHarness) -> None:
    async with running(harness):
        await removed_with_pending_deletes(harness, "web")
        harness.points.heal()
        harness.reconciler.wake()
        await until(lambda: not len(harness.pending_deletes))
    assert harness.leftovers() == {}


async def test_what_a_predecessor_left_pending_is_tried_at_the_start(harness: NodeHarness) -> None:
    await removed_with_pending_deletes(harness, "web")
    harness.points.heal()
    again = harness.restarted()
    async with running(again):
        await until(lambda: not len(again.pending_deletes))
    assert again.leftovers() == {}
    await again.close()


async def test_a_network_that_fails_keeps_no_other_waiting_and_is_not_hammered(
    harness: NodeHarness,
) -> None:
    ids = await removed_with_pending_deletes(harness, *"abcdefgh")
    before = tries(harness)
    harness.reconciler.wake()
    await harness.reconciler.retry_due()
    assert tries(harness) == before + module.FAILURES_PER_PASS
    harness.points.heal()
    harness.reconciler.wake()
    await harness.reconciler.retry_due()
    assert [a.container_id for a in harness.cni.deleted] == ids
    assert harness.leftovers() == {}


async def test_those_that_never_succeed_do_not_keep_the_rest_waiting(
    harness: NodeHarness, monkeypatch: pytest.MonkeyPatch, clock: MovableClock
) -> None:
    ids = await removed_with_pending_deletes(harness, *"abcd")
    tried: list[str] = []

    async def delete(attachment: Attachment) -> None:
        tried.append(attachment.container_id)
        raise BUSY

    monkeypatch.setattr(harness.cni, "delete", delete)
    async with running(harness):
        await clock.until(lambda: set(tried) == set(ids), within_s=module.MAX_RETRY_S)


async def test_two_pending_deletes_of_one_pod_share_its_namespace_until_the_last_is_done(
    harness: NodeHarness,
) -> None:
    harness.cni = FakeCni(harness.points, "pods", "storage")
    harness.rebuild()
    config = pod_config()
    config.annotations["network.alpha.kubernetes.io/network"] = '{"name": "storage"}'
    harness.points.fail("cni.del", BUSY)
    sandbox_id = await harness.pods.run_pod_sandbox(config, "")
    await harness.pods.remove_pod_sandbox(sandbox_id)
    assert len(harness.pending_deletes) == 2
    harness.points.heal()
    harness.points.fail("cni.del storage", BUSY)
    harness.reconciler.wake()
    await harness.reconciler.retry_due()
    assert [pending.network for pending in harness.pending_deletes] == ["storage"]
    assert harness.kernel.namespaces
    harness.points.heal()
    harness.reconciler.wake()
    await harness.reconciler.retry_due()
    assert harness.leftovers() == {}


async def test_a_stop_that_is_under_way_keeps_its_namespace(harness: NodeHarness) -> None:
    harness.cni = FakeCni(harness.points, "pods", "storage")
    harness.rebuild()
    config = pod_config()
    config.annotations["network.alpha.kubernetes.io/network"] = '{"name": "storage"}'
    sandbox_id = await harness.pods.run_pod_sandbox(config, "")
    harness.points.fail("cni.del storage", BUSY)
    hold = harness.points.hold("cni.del pods")
    stopping = asyncio.ensure_future(harness.pods.stop_pod_sandbox(sandbox_id))
    await hold.reached.wait()
    harness.points.heal()
    harness.reconciler.wake()
    await harness.reconciler.retry_due()
    assert (len(harness.pending_deletes), len(harness.kernel.namespaces)) == (0, 1)
    hold.release()
    await stopping
    assert harness.kernel.namespaces == {}


async def test_a_namespace_that_cannot_be_unpinned_is_not_forgotten(harness: NodeHarness) -> None:
    await removed_with_pending_deletes(harness, "web")
    harness.points.heal()
    harness.points.fail("netns.remove", OSError(errno.EBUSY, "busy"))
    harness.reconciler.wake()
    await harness.reconciler.retry_due()
    assert len(harness.pending_deletes) == 1
    harness.points.heal()
    harness.reconciler.wake()
    await harness.reconciler.retry_due()
    assert harness.leftovers() == {}


async def test_an_old_pending_delete_keeps_no_namespace(
    harness: NodeHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    await removed_with_pending_deletes(harness, "web")
    monkeypatch.setattr(module, "NAMESPACE_KEPT_S", 0)
    harness.reconciler.wake()
    await harness.reconciler.retry_due()
    assert (harness.kernel.namespaces, len(harness.pending_deletes)) == ({}, 1)
    harness.points.heal()
    harness.reconciler.wake()
    await harness.reconciler.retry_due()
    assert harness.leftovers() == {}


async def test_valid_is_what_pods_have_or_are_being_given_less_what_is_pending(
    harness: NodeHarness,
) -> None:
    await removed_with_pending_deletes(harness, "gone")
    harness.points.heal()
    there = await harness.run_pod("there")
    hold = harness.points.hold("cni.add")
    making = asyncio.ensure_future(harness.pods.run_pod_sandbox(pod_config("new"), ""))
    await hold.reached.wait()
    await harness.reconciler.collect_garbage()
    [(network, valid)] = harness.cni.collected
    [new] = [s for s in harness.sandboxes if s.id != there.id]
    assert (network, valid) == ("pods", {(there.id, "eth0"), (new.id, "eth0")})
    hold.release()
    await making


async def test_only_networks_that_are_ours_are_collected(harness: NodeHarness) -> None:
    harness.cni = FakeCni(harness.points, "pods", "somebody-elses")
    harness.rebuild()
    await harness.reconciler.collect_garbage()
    assert [network for network, _ in harness.cni.collected] == ["pods"]
    harness.cni.ready = False
    await harness.reconciler.collect_garbage()
    assert len(harness.cni.collected) == 1


async def test_after_a_collection_what_is_pending_is_tried_again_but_not_forgotten(
    harness: NodeHarness,
) -> None:
    await removed_with_pending_deletes(harness, "web")
    async with running(harness):
        await until(lambda: harness.cni.collected)
        assert len(harness.pending_deletes) == 1
    before = tries(harness)
    await harness.reconciler.retry_due()
    assert tries(harness) == before + 1
    assert len(harness.pending_deletes) == 1


@pytest.mark.parametrize(
    "error", [CniPluginError("bridge", "GC", "locked"), WrongStateError("theirs"), TimeoutError()]
)
async def test_garbage_that_cannot_be_collected_is_told_once_and_hurts_nobody(
    harness: NodeHarness, error: Exception
) -> None:
    harness.points.fail("cni.gc", error)
    with capture_logs() as logs:
        await harness.reconciler.collect_garbage()
        await harness.reconciler.collect_garbage()
    assert [line["event"] for line in logs] == ["cni GC failed"]
    await harness.run_pod()


async def test_garbage_is_collected_at_the_start_and_again_where_that_is_wanted(
    harness: NodeHarness, clock: MovableClock
) -> None:
    async with running(harness):
        await until(lambda: len(harness.cni.collected) == 1)
        await clock.sleep(0.9 * module.GC_INTERVAL_S)
        assert len(harness.cni.collected) == 1
        await clock.sleep(0.2 * module.GC_INTERVAL_S)
        await until(lambda: len(harness.cni.collected) == 2)
    harness.cni.collected.clear()
    harness.reconciler = NetworkReconciler(
        cni=cast("Cni", harness.cni),
        leftovers=cast("LeftoverPlugins", harness.cni.leftovers),
        network=harness.network,
        sandboxes=harness.sandboxes,
        pending_deletes=harness.pending_deletes,
        operations=harness.operations,
        background=harness.background,
        collects_garbage=False,
    )
    async with running(harness):
        await clock.sleep(3 * module.GC_INTERVAL_S)
    assert harness.cni.collected == []


async def test_running_pods_are_checked_after_a_start_and_complaints_are_logged(
    harness: NodeHarness,
) -> None:
    there, stopped = await harness.run_pod("there"), await harness.run_pod("stopped")
    await harness.pods.stop_pod_sandbox(stopped.id)
    await harness.reconciler.check_attachments()
    assert [a.container_id for a in harness.cni.checked] == [there.id]
    harness.points.fail("cni.check", CniPluginError("bridge", "CHECK", "its veth is gone"))
    with capture_logs() as logs:
        await harness.reconciler.check_attachments()
    line, _ = logs
    assert (line["sandbox_id"], "its veth is gone" in line["problem"]) == (there.id, True)


async def test_a_mistake_in_the_program_does_not_end_the_reconciler(harness: NodeHarness) -> None:
    harness.points.fail("cni.gc", KeyError("typo"))
    async with running(harness):
        await until(lambda: "cni.gc" in harness.points.passed)
        await removed_with_pending_deletes(harness, "web")
        harness.points.heal()
        harness.reconciler.wake()
        await until(lambda: not len(harness.pending_deletes))


async def test_all_pending_deletes_are_tried_when_that_is_wanted_due_or_not(
    harness: NodeHarness,
) -> None:
    harness.points.fail("cni.del", CniPluginError("bridge", "DEL", "no way"))
    for number in range(12):
        sandbox_id = await harness.pods.run_pod_sandbox(pod_config(f"web-{number}"), "")
        await harness.pods.remove_pod_sandbox(sandbox_id)
    assert len(harness.pending_deletes) == 12
    harness.points.passed.clear()
    await harness.reconciler.retry_all()
    assert harness.points.passed.count("cni.del") == len(harness.pending_deletes) == 12
    harness.points.heal()
    await harness.reconciler.retry_all()
    assert len(harness.pending_deletes) == 0


# --- plugins of a former daemon ----------------------------------------------------------------------------------


async def test_a_del_that_has_to_follow_a_former_daemons_plugin_follows_it_and_holds_up_no_other(
    harness: NodeHarness,
) -> None:
    behind, other = await harness.run_pod("behind"), await harness.run_pod("other")
    harness.cni.leftovers.found.add(behind.id)
    hold = harness.points.hold("leftover.wait")
    async with running(harness):
        await hold.reached.wait()
        await harness.pods.stop_pod_sandbox(behind.id)
        await harness.pods.remove_pod_sandbox(behind.id)
        assert [pending.error for pending in harness.pending_deletes] == [FORMER_PLUGIN]
        harness.points.fail("cni.del", BUSY)
        await harness.pods.remove_pod_sandbox(other.id)
        harness.points.heal()
        harness.reconciler.wake()
        await until(
            lambda: [pending.container_id for pending in harness.pending_deletes] == [behind.id]
        )
        assert [a.container_id for a in harness.cni.deleted] == [other.id]
        hold.release()
        await until(lambda: not len(harness.pending_deletes))
    assert [a.container_id for a in harness.cni.deleted] == [other.id, behind.id]
    assert harness.leftovers() == {}


async def test_a_plugin_that_outlives_being_killed_is_waited_for_again(
    harness: NodeHarness, clock: MovableClock
) -> None:
    pod = await harness.run_pod()
    harness.cni.leftovers.found.add(pod.id)
    harness.points.fail("leftover.wait", DeadlineError("it hangs in the kernel"))
    async with running(harness):
        await harness.pods.remove_pod_sandbox(pod.id)
        await clock.until(
            lambda: harness.points.passed.count("leftover.wait") > 2,
            within_s=4 * module.MAX_RETRY_S,
        )
        assert len(harness.pending_deletes) == 1
        harness.points.heal()
        await clock.sleep(module.MAX_RETRY_S)
        await until(lambda: not len(harness.pending_deletes))
    assert harness.leftovers() == {}


async def test_whoever_wants_all_retried_now_gives_a_former_daemons_plugins_no_more_time(
    harness: NodeHarness,
) -> None:
    pod = await harness.run_pod()
    harness.cni.leftovers.found.add(pod.id)
    await harness.pods.remove_pod_sandbox(pod.id)
    await harness.reconciler.retry_due()
    assert (tries(harness), len(harness.pending_deletes)) == (0, 1)
    await harness.reconciler.retry_all()
    assert harness.points.passed.count("leftover.end") == 1
    assert harness.leftovers() == {}


async def test_a_pod_that_a_former_daemons_plugin_works_on_is_not_checked(
    harness: NodeHarness,
) -> None:
    pod, other = await harness.run_pod("pod"), await harness.run_pod("other")
    harness.cni.leftovers.found.add(pod.id)
    await harness.reconciler.check_attachments()
    assert {attachment.container_id for attachment in harness.cni.checked} == {other.id}
