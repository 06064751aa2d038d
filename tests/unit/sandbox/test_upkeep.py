"""What is owed to plugins is paid, garbage is collected, attachments are checked: while no pod asks."""

from __future__ import annotations

import asyncio
import errno
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, cast

import pytest
from structlog.testing import capture_logs

from cri_shim.errors import CniPluginError, DeadlineError, WrongStateError
from cri_shim.sandbox import upkeep as module
from cri_shim.sandbox.network import FORMER_PLUGIN
from cri_shim.sandbox.upkeep import NetworkUpkeep
from tests.fakes.house import House, pod_config, until
from tests.fakes.networks import FakeCni

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from cri_shim.cni.attachment import Attachment
    from cri_shim.cni.network import Cni

pytestmark = pytest.mark.asyncio

BUSY = CniPluginError("bridge", "DEL", "busy")


async def removed_in_debt(house: House, *names: str) -> list[str]:
    """IDs of pods that are gone but for what their plugins hold."""
    house.points.fail("cni.del", BUSY)
    ids = []
    for name in names:
        sandbox = await house.run_pod(name)
        await house.pods.remove_pod_sandbox(sandbox.id)
        ids.append(sandbox.id)
    return ids


@asynccontextmanager
async def running(house: House) -> AsyncIterator[None]:
    task = asyncio.ensure_future(house.upkeep.run())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait([task])


def tries(house: House) -> int:
    return house.points.passed.count("cni.del")


async def test_a_debt_is_tried_with_growing_pauses_until_it_is_paid(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "FIRST_RETRY_S", 0.05)
    async with running(house):
        await removed_in_debt(house, "web")
        began, first = time.monotonic(), tries(house)
        await until(lambda: tries(house) == first + 3)
        assert time.monotonic() - began >= 0.05 + 0.1 + 0.2 - 0.05
        house.points.heal()
        await until(lambda: not len(house.debts))
        await until(lambda: not house.kernel.namespaces)
    assert house.leftovers() == {}


async def test_what_changed_is_a_reason_to_try_at_once(house: House) -> None:
    async with running(house):
        await removed_in_debt(house, "web")
        house.points.heal()
        house.upkeep.wake()
        await until(lambda: not len(house.debts))
    assert house.leftovers() == {}


async def test_what_a_predecessor_owed_is_tried_at_the_start(house: House) -> None:
    await removed_in_debt(house, "web")
    house.points.heal()
    again = house.restarted()
    async with running(again):
        await until(lambda: not len(again.debts))
    assert again.leftovers() == {}
    await again.close()


async def test_a_network_that_fails_keeps_no_other_waiting_and_is_not_hammered(
    house: House,
) -> None:
    ids = await removed_in_debt(house, *"abcdefgh")
    before = tries(house)
    house.upkeep.wake()
    await house.upkeep.pay_debts()
    assert tries(house) == before + module.FAILURES_PER_PASS
    house.points.heal()
    house.upkeep.wake()
    await house.upkeep.pay_debts()
    assert [a.container_id for a in house.cni.deleted] == ids
    assert house.leftovers() == {}


async def test_those_that_never_succeed_do_not_keep_the_rest_waiting(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PASS_PAUSE_S", 0.05)
    monkeypatch.setattr(module, "FIRST_RETRY_S", 0.1)
    ids = await removed_in_debt(house, *"abcd")
    tried: list[str] = []

    async def delete(attachment: Attachment) -> None:
        tried.append(attachment.container_id)
        raise BUSY

    monkeypatch.setattr(house.cni, "delete", delete)
    async with running(house):
        await until(lambda: set(tried) == set(ids))


async def test_two_debts_of_one_pod_share_its_namespace_until_the_last_is_paid(
    house: House,
) -> None:
    house.cni = FakeCni(house.points, "pods", "storage")
    house._wire()
    config = pod_config()
    config.annotations["network.alpha.kubernetes.io/network"] = '{"name": "storage"}'
    house.points.fail("cni.del", BUSY)
    sandbox_id = await house.pods.run_pod_sandbox(config, "")
    await house.pods.remove_pod_sandbox(sandbox_id)
    assert len(house.debts) == 2
    house.points.heal()
    house.points.fail("cni.del storage", BUSY)
    house.upkeep.wake()
    await house.upkeep.pay_debts()
    assert [debt.network for debt in house.debts] == ["storage"]
    assert house.kernel.namespaces
    house.points.heal()
    house.upkeep.wake()
    await house.upkeep.pay_debts()
    assert house.leftovers() == {}


async def test_a_stop_that_is_under_way_keeps_its_namespace(house: House) -> None:
    house.cni = FakeCni(house.points, "pods", "storage")
    house._wire()
    config = pod_config()
    config.annotations["network.alpha.kubernetes.io/network"] = '{"name": "storage"}'
    sandbox_id = await house.pods.run_pod_sandbox(config, "")
    house.points.fail("cni.del storage", BUSY)
    hold = house.points.hold("cni.del pods")
    stopping = asyncio.ensure_future(house.pods.stop_pod_sandbox(sandbox_id))
    await hold.reached.wait()
    house.points.heal()
    house.upkeep.wake()
    await house.upkeep.pay_debts()
    assert (len(house.debts), len(house.kernel.namespaces)) == (0, 1)
    hold.release()
    await stopping
    assert house.kernel.namespaces == {}


async def test_a_namespace_that_cannot_be_unpinned_is_not_forgotten(house: House) -> None:
    await removed_in_debt(house, "web")
    house.points.heal()
    house.points.fail("netns.remove", OSError(errno.EBUSY, "busy"))
    house.upkeep.wake()
    await house.upkeep.pay_debts()
    assert len(house.debts) == 1
    house.points.heal()
    house.upkeep.wake()
    await house.upkeep.pay_debts()
    assert house.leftovers() == {}


async def test_an_old_debt_keeps_no_namespace(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    await removed_in_debt(house, "web")
    monkeypatch.setattr(module, "NAMESPACE_KEPT_S", 0)
    house.upkeep.wake()
    await house.upkeep.pay_debts()
    assert (house.kernel.namespaces, len(house.debts)) == ({}, 1)
    house.points.heal()
    house.upkeep.wake()
    await house.upkeep.pay_debts()
    assert house.leftovers() == {}


async def test_valid_is_what_pods_have_or_are_being_given_less_what_is_owed(house: House) -> None:
    await removed_in_debt(house, "gone")
    house.points.heal()
    there = await house.run_pod("there")
    hold = house.points.hold("cni.add")
    making = asyncio.ensure_future(house.pods.run_pod_sandbox(pod_config("new"), ""))
    await hold.reached.wait()
    await house.upkeep.collect_garbage()
    [(network, valid)] = house.cni.collected
    [new] = [s for s in house.sandboxes if s.id != there.id]
    assert (network, valid) == ("pods", {(there.id, "eth0"), (new.id, "eth0")})
    hold.release()
    await making


async def test_only_networks_that_are_ours_are_collected(house: House) -> None:
    house.cni = FakeCni(house.points, "pods", "somebody-elses")
    house._wire()
    await house.upkeep.collect_garbage()
    assert [network for network, _ in house.cni.collected] == ["pods"]
    house.cni.ready = False
    await house.upkeep.collect_garbage()
    assert len(house.cni.collected) == 1


async def test_after_a_collection_what_is_owed_is_tried_again_but_not_forgotten(
    house: House,
) -> None:
    await removed_in_debt(house, "web")
    async with running(house):
        await until(lambda: house.cni.collected)
        assert len(house.debts) == 1
    before = tries(house)
    await house.upkeep.pay_debts()
    assert tries(house) == before + 1
    assert len(house.debts) == 1


@pytest.mark.parametrize(
    "error", [CniPluginError("bridge", "GC", "locked"), WrongStateError("theirs"), TimeoutError()]
)
async def test_garbage_that_cannot_be_collected_is_told_once_and_hurts_nobody(
    house: House, error: Exception
) -> None:
    house.points.fail("cni.gc", error)
    with capture_logs() as logs:
        await house.upkeep.collect_garbage()
        await house.upkeep.collect_garbage()
    assert [line["event"] for line in logs] == ["cni garbage not collected"]
    await house.run_pod()


async def test_garbage_is_collected_at_the_start_and_again_where_that_is_wanted(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "GC_INTERVAL_S", 0.15)
    async with running(house):
        await until(lambda: len(house.cni.collected) == 2)
    house.cni.collected.clear()
    house.upkeep = NetworkUpkeep(
        cni=cast("Cni", house.cni),
        network=house.network,
        sandboxes=house.sandboxes,
        debts=house.debts,
        operations=house.operations,
        background=house.background,
        collects_garbage=False,
    )
    async with running(house):
        await asyncio.sleep(0.01)
    assert house.cni.collected == []


async def test_running_pods_are_checked_after_a_start_and_complaints_are_logged(
    house: House,
) -> None:
    there, stopped = await house.run_pod("there"), await house.run_pod("stopped")
    await house.pods.stop_pod_sandbox(stopped.id)
    await house.upkeep.check_attachments()
    assert [a.container_id for a in house.cni.checked] == [there.id]
    house.points.fail("cni.check", CniPluginError("bridge", "CHECK", "its veth is gone"))
    with capture_logs() as logs:
        await house.upkeep.check_attachments()
    line, _ = logs
    assert (line["sandbox_id"], "its veth is gone" in line["problem"]) == (there.id, True)


async def test_a_mistake_in_the_program_does_not_end_the_upkeep(house: House) -> None:
    house.points.fail("cni.gc", KeyError("typo"))
    async with running(house):
        await until(lambda: "cni.gc" in house.points.passed)
        await removed_in_debt(house, "web")
        house.points.heal()
        house.upkeep.wake()
        await until(lambda: not len(house.debts))


async def test_all_debts_are_tried_when_that_is_wanted_due_or_not(house: House) -> None:
    house.points.fail("cni.del", CniPluginError("bridge", "DEL", "no way"))
    for number in range(12):
        sandbox_id = await house.pods.run_pod_sandbox(pod_config(f"web-{number}"), "")
        await house.pods.remove_pod_sandbox(sandbox_id)
    assert len(house.debts) == 12
    house.points.passed.clear()
    await house.upkeep.pay_all()
    assert house.points.passed.count("cni.del") == len(house.debts) == 12
    house.points.heal()
    await house.upkeep.pay_all()
    assert len(house.debts) == 0


# --- plugins of a former daemon ----------------------------------------------------------------------------------


async def test_a_del_that_has_to_follow_a_former_daemons_plugin_follows_it_and_holds_up_no_other(
    house: House,
) -> None:
    behind, other = await house.run_pod("behind"), await house.run_pod("other")
    house.cni.leftovers.found.add(behind.id)
    hold = house.points.hold("leftover.wait")
    async with running(house):
        await hold.reached.wait()
        await house.pods.stop_pod_sandbox(behind.id)
        await house.pods.remove_pod_sandbox(behind.id)
        assert [debt.error for debt in house.debts] == [FORMER_PLUGIN]
        house.points.fail("cni.del", BUSY)
        await house.pods.remove_pod_sandbox(other.id)
        house.points.heal()
        house.upkeep.wake()
        await until(lambda: [debt.container_id for debt in house.debts] == [behind.id])
        assert [a.container_id for a in house.cni.deleted] == [other.id]
        hold.release()
        await until(lambda: not len(house.debts))
    assert [a.container_id for a in house.cni.deleted] == [other.id, behind.id]
    assert house.leftovers() == {}


async def test_a_plugin_that_outlives_being_killed_is_waited_for_again(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_RETRY_S", 0.01)
    pod = await house.run_pod()
    house.cni.leftovers.found.add(pod.id)
    house.points.fail("leftover.wait", DeadlineError("it hangs in the kernel"))
    async with running(house):
        await house.pods.remove_pod_sandbox(pod.id)
        await until(lambda: house.points.passed.count("leftover.wait") > 2)
        assert len(house.debts) == 1
        house.points.heal()
        await until(lambda: not len(house.debts))
    assert house.leftovers() == {}


async def test_whoever_wants_all_paid_now_gives_a_former_daemons_plugins_no_more_time(
    house: House,
) -> None:
    pod = await house.run_pod()
    house.cni.leftovers.found.add(pod.id)
    await house.pods.remove_pod_sandbox(pod.id)
    await house.upkeep.pay_debts()
    assert (tries(house), len(house.debts)) == (0, 1)
    await house.upkeep.pay_all()
    assert house.points.passed.count("leftover.end") == 1
    assert house.leftovers() == {}


async def test_a_pod_that_a_former_daemons_plugin_works_on_is_not_checked(house: House) -> None:
    pod, other = await house.run_pod("pod"), await house.run_pod("other")
    house.cni.leftovers.found.add(pod.id)
    await house.upkeep.check_attachments()
    assert {attachment.container_id for attachment in house.cni.checked} == {other.id}
