"""Sandboxes: made whole or not at all, whatever fails or is interrupted; stopped, removed, found."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import stat
from typing import TYPE_CHECKING

import msgspec
import pytest
from structlog.testing import capture_logs

from cri_shim._pb.cri.v1 import api_pb2 as api
from cri_shim.errors import (
    AlreadyExistsError,
    CniPluginError,
    CriShimError,
    DeadlineError,
    InvalidArgumentError,
    NotFoundError,
    NotReadyError,
    ResourceExhaustedError,
    RuntimeCommandError,
    UnavailableError,
    UnknownRuntimeHandlerError,
    UnsupportedError,
    WrongStateError,
)
from cri_shim.host.userns import fd_path
from cri_shim.image.builtin import PAUSE_REFERENCE
from cri_shim.paths import netns_file
from cri_shim.rollback import Rollback
from cri_shim.sandbox.exits import Exit
from cri_shim.sandbox.model import ContainerState, SandboxState
from cri_shim.sandbox.pod_images import PauseImage
from cri_shim.sandbox.store import as_json
from cri_shim.single_flight import SupersededError
from tests.fakes.house import container_config, pod_config, turn_over, until
from tests.fakes.kernel import NETNS_FD, USERNS_FD
from tests.fakes.networks import FakeImages
from tests.unit.sandbox.interruptions import (
    UNDO_EFFECTS,
    fill_disk,
    let_an_undo_run,
    outcome_of,
    record_steps,
    stop_at,
)

if TYPE_CHECKING:
    from typing import Any

    from tests.fakes.house import House

pytestmark = pytest.mark.asyncio

STEPS = ("record", "netns", "network", "bundle", "rootfs", "process", "commit")
POINTS = (
    *("netns.create", "netns.created", "cni.add", "cni.added"),
    *("overlay.mount", "overlay.mounted", "tmpfs.mount", "tmpfs.mounted"),
    *("monitor.spawn", "monitor.create", "monitor.created", "runtime.start", "runtime.started"),
)


# --- RunPodSandbox: complete -------------------------------------------------------------------------------------


async def test_a_sandbox_is_ready_once_its_network_and_its_pause_process_are(house: House) -> None:
    sandbox = await house.run_pod()
    status = sandbox.status
    assert sandbox.state is SandboxState.READY
    assert status.ips == ("10.0.0.2",)
    assert status.process is not None
    assert house.kernel.processes[status.process.pid].argv == ("/pause",)
    assert house.runtime.containers[sandbox.id].status == "running"
    assert len(house.cni.attached) == 1
    assert len(house.kernel.mounts) == 2
    assert house.pods.list_pod_sandbox() == [sandbox]


async def test_its_record_survives_the_daemon(house: House) -> None:
    sandbox = await house.run_pod()
    [(_, again)] = house.sandboxes.load()
    assert not isinstance(again, CriShimError)
    assert again.record == sandbox.record
    assert again.status == sandbox.status
    assert again.config == sandbox.config


async def test_a_pod_on_the_hosts_network_has_no_namespace_and_no_attachment(house: House) -> None:
    sandbox_id = await house.pods.run_pod_sandbox(pod_config(host_network=True), "")
    sandbox = house.pods.find(sandbox_id)
    assert sandbox.record.netns == ""
    assert sandbox.status.ips == ()
    assert house.kernel.namespaces == {}
    assert house.cni.attached == {}
    await house.pods.remove_pod_sandbox(sandbox_id)
    assert house.leftovers() == {}


@pytest.mark.parametrize("call", ["stop_pod_sandbox", "remove_pod_sandbox"])
async def test_a_file_of_the_namespaces_name_goes_whenever_it_came(house: House, call: str) -> None:
    sandbox = await house.run_pod()
    await house.pods.stop_pod_sandbox(sandbox.id)
    netns_file(sandbox.id).touch()
    await getattr(house.pods, call)(sandbox.id)
    assert not netns_file(sandbox.id).exists()


async def test_network_sysctls_are_written_before_the_plugins_run(house: House) -> None:
    config = pod_config()
    config.linux.sysctls["net.ipv4.ip_unprivileged_port_start"] = "0"
    sandbox = house.pods.find(await house.pods.run_pod_sandbox(config, ""))
    [sysctls] = house.kernel.namespaces.values()
    assert sysctls["net.ipv4.ip_unprivileged_port_start"] == "0"
    assert house.points.passed.index("netns.created") < house.points.passed.index("cni.add")
    assert sandbox.record.netns


async def test_sysctls_of_interfaces_are_written_after_the_plugins_ran(house: House) -> None:
    config = pod_config()
    config.linux.sysctls["net/ipv4/conf/eth0/forwarding"] = "1"
    add = house.points.hold("cni.add")
    call = asyncio.ensure_future(house.pods.run_pod_sandbox(config, ""))
    await add.reached.wait()
    await until(lambda: "runtime.started" in house.points.passed)
    [sysctls] = house.kernel.namespaces.values()
    assert "net.ipv4.conf.eth0.forwarding" not in sysctls
    add.release()
    await call
    [sysctls] = house.kernel.namespaces.values()
    assert sysctls["net.ipv4.conf.eth0.forwarding"] == "1"


async def test_sysctl_of_an_interface_that_is_refused_undoes_the_pod(house: House) -> None:
    config = pod_config()
    config.linux.sysctls["net.ipv4.conf.eth0.forwarding"] = "1"
    house.points.fail("netns.sysctls", InvalidArgumentError("no interface"))
    with pytest.raises(InvalidArgumentError, match="no interface"):
        await house.pods.run_pod_sandbox(config, "")
    assert house.leftovers() == {}
    assert "cni.del" in house.points.passed


async def test_the_pause_container_does_not_wait_for_the_network(house: House) -> None:
    add = house.points.hold("cni.add")
    call = asyncio.ensure_future(house.pods.run_pod_sandbox(pod_config(), ""))
    await add.reached.wait()
    await until(lambda: "runtime.started" in house.points.passed)
    assert house.pods.list_pod_sandbox() == []
    add.release()
    await call


# --- RunPodSandbox: refused --------------------------------------------------------------------------------------


async def test_an_unknown_handler_is_refused_before_anything_is_made(house: House) -> None:
    with pytest.raises(UnknownRuntimeHandlerError):
        await house.pods.run_pod_sandbox(pod_config(), "gvisor")
    assert house.leftovers() == {}


async def test_a_handler_of_another_kind_is_not_served(house: House) -> None:
    with pytest.raises(UnsupportedError, match="kata"):
        await house.pods.run_pod_sandbox(pod_config(), "kata")
    assert house.leftovers() == {}


async def test_a_node_without_a_network_refuses_pods_but_those_on_its_own(house: House) -> None:
    house.cni.ready = False
    with pytest.raises(NotReadyError):
        await house.pods.run_pod_sandbox(pod_config(), "")
    assert house.leftovers() == {}
    await house.pods.run_pod_sandbox(pod_config(host_network=True), "")


@pytest.mark.parametrize(
    "change",
    [
        {"hostname": "a\nb"},
        {"log_directory": "relative"},
        {"linux": api.LinuxPodSandboxConfig(cgroup_parent="/a/../b")},
        {"port_mappings": [api.PortMapping(host_port=70000, container_port=1)]},
        {"windows": api.WindowsPodSandboxConfig()},
    ],
    ids=lambda change: next(iter(change)),
)
async def test_what_no_pod_can_be_is_refused_before_anything_is_made(
    house: House, change: dict[str, Any]
) -> None:
    config = pod_config()
    config.MergeFrom(api.PodSandboxConfig(**change))
    with pytest.raises(InvalidArgumentError):
        await house.pods.run_pod_sandbox(config, "")
    assert house.leftovers() == {}
    assert house.points.passed == []


@pytest.mark.parametrize("full_at", ["status.json", "record.json", "hosts", "config.json"])
async def test_a_full_disk_is_said_and_nothing_stays(
    house: House, monkeypatch: pytest.MonkeyPatch, full_at: str
) -> None:
    fill_disk(monkeypatch, full_at)
    with pytest.raises(ResourceExhaustedError, match="No space left"):
        await house.pods.run_pod_sandbox(pod_config(), "")
    await house.settle()
    assert house.leftovers() == {}


async def test_a_sandbox_whose_completion_cannot_be_written_is_undone(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    hold = house.points.hold("runtime.started")
    call = asyncio.ensure_future(outcome_of(house.pods.run_pod_sandbox(pod_config(), "")))
    await hold.reached.wait()
    fill_disk(monkeypatch, "status.json")
    hold.release()
    assert isinstance(await call, ResourceExhaustedError)
    await house.settle()
    assert house.leftovers() == {}


# --- RunPodSandbox: interrupted ----------------------------------------------------------------------------------


async def test_the_steps_and_the_points_below_are_all_there_are(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = record_steps(monkeypatch)
    await house.run_pod()
    assert sorted(seen) == sorted(STEPS)
    assert sorted(house.points.passed) == sorted(POINTS)


@pytest.mark.parametrize("step", STEPS)
async def test_a_creation_stopped_at_any_step_leaves_nothing_and_frees_the_name(
    house: House, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    stop_at(monkeypatch, step)
    with pytest.raises(RuntimeError, match=f"stopped at {step}"):
        await house.pods.run_pod_sandbox(pod_config(), "")
    await house.settle()
    assert house.leftovers() == {}
    monkeypatch.setattr(Rollback, "observer", None)
    await house.run_pod()


@pytest.mark.parametrize("point", POINTS)
async def test_a_failing_effect_is_reported_as_it_is_and_leaves_nothing(
    house: House, point: str
) -> None:
    house.points.fail(point, CniPluginError("bridge", "ADD", "no more addresses"))
    with pytest.raises(CniPluginError, match="no more addresses"):
        await house.pods.run_pod_sandbox(pod_config(), "")
    await house.settle()
    assert house.leftovers() == {}
    house.points.heal()
    await house.run_pod()


@pytest.mark.parametrize("step", sorted(UNDO_EFFECTS))
async def test_what_could_not_be_undone_is_listed_not_ready_and_removed_later(
    house: House, step: str
) -> None:
    house.points.fail(
        "runtime.started", RuntimeCommandError("starting", ["runc"], "failed", "no such file")
    )
    house.points.fail(UNDO_EFFECTS[step], OSError(errno.EBUSY, "not now"))
    with pytest.raises(RuntimeCommandError, match="no such file"):
        await house.pods.run_pod_sandbox(pod_config(), "")
    [sandbox] = house.pods.list_pod_sandbox()
    assert sandbox.state is SandboxState.NOT_READY
    assert step in sandbox.status.reason
    [(_, stored)] = house.sandboxes.load()
    assert not isinstance(stored, CriShimError)
    assert stored.state is SandboxState.NOT_READY

    house.points.heal()
    await house.pods.stop_pod_sandbox(sandbox.id)
    await house.pods.remove_pod_sandbox(sandbox.id)
    await house.settle()
    assert house.leftovers() == {}
    await house.run_pod()


async def test_a_record_that_could_not_be_removed_is_listed_not_ready_and_removed_later(
    house: House,
) -> None:
    house.points.fail("runtime.start", RuntimeCommandError("starting", ["runc"], "failed", "no"))
    house.points.fail("remove_tree root", OSError(errno.EIO, "disk"))
    with pytest.raises(RuntimeCommandError):
        await house.pods.run_pod_sandbox(pod_config(), "")
    [sandbox] = house.pods.list_pod_sandbox()
    assert sandbox.state is SandboxState.NOT_READY
    assert "record" in sandbox.status.reason

    house.points.heal()
    await house.pods.remove_pod_sandbox(sandbox.id)
    assert house.leftovers() == {}
    await house.run_pod()


async def test_what_is_undone_at_its_very_end_reports_no_exit(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop_at(monkeypatch, "commit")
    with pytest.raises(RuntimeError):
        await house.pods.run_pod_sandbox(pod_config(), "")
    await house.settle()
    assert house.reported == []


async def test_a_failed_creation_whose_network_stays_is_forgotten_and_its_detachment_owed(
    house: House,
) -> None:
    house.points.fail("runtime.start", RuntimeCommandError("starting", ["runc"], "failed", "no"))
    house.points.fail("cni.del", CniPluginError("bridge", "DEL", "busy"))
    with pytest.raises(RuntimeCommandError):
        await house.pods.run_pod_sandbox(pod_config(), "")
    assert house.pods.list_pod_sandbox() == []
    # The namespace stays, for the DEL that is still to come.
    assert sorted(house.leftovers()) == ["attachments", "debts", "files", "namespaces"]

    house.points.heal()
    house.upkeep.wake()
    await house.upkeep.pay_debts()
    assert house.cni.deleted[-1].netns != ""
    assert house.leftovers() == {}


async def test_a_detachment_that_cannot_even_be_noted_keeps_the_sandbox_and_its_namespace(
    house: House,
) -> None:
    house.paths.debts_dir.write_text("in the way")
    house.points.fail("runtime.start", RuntimeCommandError("starting", ["runc"], "failed", "no"))
    house.points.fail("cni.del", CniPluginError("bridge", "DEL", "busy"))
    with pytest.raises(RuntimeCommandError):
        await house.pods.run_pod_sandbox(pod_config(), "")
    [sandbox] = house.pods.list_pod_sandbox()
    assert list(house.kernel.namespaces)
    assert sandbox.status.attachments
    with pytest.raises(CriShimError, match="is owed"):
        await house.pods.stop_pod_sandbox(sandbox.id)
    assert sandbox.status.attachments

    house.points.heal()
    house.paths.debts_dir.unlink()
    await house.pods.remove_pod_sandbox(sandbox.id)
    assert house.cni.deleted[-1].netns != ""
    assert house.leftovers() == {}


@pytest.mark.parametrize("point", POINTS)
async def test_a_caller_that_goes_away_leaves_the_work_to_its_retry(
    house: House, point: str
) -> None:
    hold = house.points.hold(point)
    first = asyncio.ensure_future(house.pods.run_pod_sandbox(pod_config(), ""))
    await hold.reached.wait()
    first.cancel()
    assert isinstance(await outcome_of(first), asyncio.CancelledError)
    retry = asyncio.ensure_future(house.pods.run_pod_sandbox(pod_config(), ""))
    await turn_over()
    hold.release()
    sandbox_id = await retry
    assert [s.id for s in house.sandboxes] == [sandbox_id]
    assert house.points.passed.count("monitor.spawn") == 1
    assert house.pods.find(sandbox_id).state is SandboxState.READY
    await house.pods.remove_pod_sandbox(sandbox_id)
    assert house.leftovers() == {}


@pytest.mark.parametrize("point", POINTS)
async def test_a_different_request_undoes_the_one_under_way_and_takes_its_place(
    house: House, point: str
) -> None:
    hold = house.points.hold(point)
    first = asyncio.ensure_future(house.pods.run_pod_sandbox(pod_config(), ""))
    await hold.reached.wait()
    other = pod_config()
    other.labels["version"] = "2"
    second = asyncio.ensure_future(house.pods.run_pod_sandbox(other, ""))
    await let_an_undo_run(point)
    hold.release()
    assert isinstance(await outcome_of(first), SupersededError)
    sandbox = house.pods.find(await second)
    assert sandbox.config.labels["version"] == "2"
    assert [s.id for s in house.sandboxes] == [sandbox.id]
    await house.pods.remove_pod_sandbox(sandbox.id)
    await house.settle()
    assert house.leftovers() == {}


@pytest.mark.parametrize("point", POINTS)
async def test_a_daemon_that_stops_undoes_what_does_not_end_in_time(
    house: House, point: str
) -> None:
    hold = house.points.hold(point)
    call = asyncio.ensure_future(outcome_of(house.pods.run_pod_sandbox(pod_config(), "")))
    await hold.reached.wait()
    closing = asyncio.ensure_future(house.pods.close(0))
    await let_an_undo_run(point)
    hold.release()
    await closing
    outcome = await call
    assert type(outcome) is UnavailableError
    assert "the server stops" in str(outcome)
    await house.settle()
    assert house.leftovers() == {}


async def test_no_network_is_joined_before_the_mounts_are_there_and_its_failure_undoes_them(
    house: House,
) -> None:
    mount = house.points.hold("overlay.mount")
    house.points.fail("cni.added", CniPluginError("bridge", "ADD", "no more addresses"))
    call = asyncio.ensure_future(house.pods.run_pod_sandbox(pod_config(), ""))
    await mount.reached.wait()
    assert "netns.created" in house.points.passed
    await turn_over()
    assert "cni.add" not in house.points.passed
    mount.release()
    with pytest.raises(CniPluginError):
        await call
    await asyncio.sleep(0.01)
    assert house.leftovers() == {}


# --- RunPodSandbox: again ----------------------------------------------------------------------------------------


async def test_concurrent_calls_of_one_request_make_one_sandbox(house: House) -> None:
    ids = await asyncio.gather(*(house.pods.run_pod_sandbox(pod_config(), "") for _ in range(5)))
    assert len(set(ids)) == 1
    assert len(house.sandboxes) == 1


async def test_a_late_retry_gets_the_sandbox_that_is_there(house: House) -> None:
    first = await house.pods.run_pod_sandbox(pod_config(), "")
    # The default handler by its name is the same request.
    assert await house.pods.run_pod_sandbox(pod_config(), "runc") == first


async def test_a_different_request_for_a_held_name_is_told_who_holds_it(house: House) -> None:
    first = await house.run_pod()
    other = pod_config()
    other.labels["version"] = "2"
    with pytest.raises(AlreadyExistsError, match=first.id):
        await house.pods.run_pod_sandbox(other, "")


async def test_a_stopped_sandbox_is_no_answer_to_a_retry(house: House) -> None:
    sandbox = await house.run_pod()
    await house.pods.stop_pod_sandbox(sandbox.id)
    with pytest.raises(AlreadyExistsError, match="notready"):
        await house.pods.run_pod_sandbox(pod_config(), "")
    await house.pods.run_pod_sandbox(pod_config(attempt=1), "")


async def test_many_pods_at_once_are_all_made(house: House) -> None:
    names = [f"pod-{number}" for number in range(12)]
    ids = await asyncio.gather(
        *(house.pods.run_pod_sandbox(pod_config(name), "") for name in names)
    )
    assert len(set(ids)) == 12
    assert [s.record.metadata.name for s in house.pods.list_pod_sandbox()] == names


# --- user namespaces ---------------------------------------------------------------------------------------------


def with_users(config: api.PodSandboxConfig) -> api.PodSandboxConfig:
    """The pod, with a user namespace whose root is who runs the tests: anyone may give files to themselves."""
    users = config.linux.security_context.namespace_options.userns_options
    users.mode = api.POD
    users.uids.add(host_id=os.getuid(), length=100)
    users.gids.add(host_id=os.getgid(), length=200)
    return config


async def test_everything_of_a_pod_with_users_of_its_own_is_made_in_terms_of_them(
    house: House,
) -> None:
    made = house.points.hold("monitor.create")
    call = asyncio.ensure_future(house.pods.run_pod_sandbox(with_users(pod_config()), ""))
    await made.reached.wait()
    # It is held until the pause container, which joins it, is there.
    root = (os.getuid(), os.getgid())
    assert house.kernel.user_namespaces == [(f"0 {root[0]} 100", f"0 {root[1]} 200")]
    made.release()
    sandbox = house.pods.find(await call)
    paths = house.paths.sandbox(sandbox.id)
    spec = json.loads(paths.spec_file.read_bytes())
    assert {"type": "user", "path": fd_path(USERNS_FD)} in spec["linux"]["namespaces"]
    assert house.kernel.user_namespaces == []
    assert list(house.kernel.netns_fds.values()) == [NETNS_FD]
    assert house.kernel.mapped == {paths.rootfs_dir}
    assert house.kernel.owners[paths.memory_dir] == root
    assert stat.S_IMODE(paths.state_dir.stat().st_mode) == 0o710
    assert house.points.passed.index("userns.made") < house.points.passed.index("netns.create")
    container = await house.start(sandbox)
    assert house.paths.container(container.id).rootfs_dir in house.kernel.mapped
    await house.pods.remove_pod_sandbox(sandbox.id)
    assert house.leftovers() == {}


async def test_a_pod_with_users_of_its_own_may_be_on_the_nodes_network(house: House) -> None:
    config = with_users(pod_config(host_network=True))
    await house.pods.run_pod_sandbox(config, "")
    assert house.kernel.netns_fds == {}
    assert house.cni.attached == {}


@pytest.mark.parametrize("point", ["userns.make", "userns.made", "netns.created", "monitor.create"])
async def test_a_creation_with_users_that_fails_leaves_nothing(house: House, point: str) -> None:
    house.points.fail(point, ResourceExhaustedError("user.max_user_namespaces"))
    with pytest.raises(ResourceExhaustedError):
        await house.pods.run_pod_sandbox(with_users(pod_config()), "")
    await house.settle()
    assert house.leftovers() == {}
    assert house.kernel.user_namespaces == []


async def test_no_container_is_made_where_the_users_are_gone(house: House) -> None:
    sandbox = house.pods.find(await house.pods.run_pod_sandbox(with_users(pod_config()), ""))
    assert sandbox.status.process
    del house.kernel.processes[sandbox.status.process.pid]  # nobody has noticed yet
    with pytest.raises(WrongStateError, match="pause process is gone"):
        await house.create(sandbox)
    await house.pods.remove_pod_sandbox(sandbox.id)
    assert house.leftovers() == {}


# --- UpdatePodSandboxResources -----------------------------------------------------------------------------------


async def test_a_pods_new_size_is_kept_and_shown_also_by_the_next_daemon(house: House) -> None:
    sandbox = await house.run_pod()
    resources = api.LinuxContainerResources(cpu_quota=150_000, memory_limit_in_bytes=1 << 30)
    overhead = api.LinuxContainerResources(cpu_shares=10)
    await house.pods.update_pod_sandbox_resources(sandbox.id, overhead, resources)
    expected = {
        "overhead": {"cpu_shares": "10"},
        "resources": {"cpu_quota": "150000", "memory_limit_in_bytes": str(1 << 30)},
    }
    assert (
        json.loads(msgspec.json.encode((await house.pods.verbose_info(sandbox))["resourcesUpdate"]))
        == expected
    )
    [(_, again)] = house.sandboxes.load()
    assert not isinstance(again, CriShimError)
    assert (
        json.loads(msgspec.json.encode((await house.pods.verbose_info(again))["resourcesUpdate"]))
        == expected
    )


async def test_a_size_that_no_pod_can_have_or_for_no_ready_pod_is_refused(house: House) -> None:
    sandbox = await house.run_pod()
    nothing = api.LinuxContainerResources()
    impossible = api.LinuxContainerResources(cpu_period=1)
    with pytest.raises(InvalidArgumentError, match=r"linux\.resources\.cpu_period"):
        await house.pods.update_pod_sandbox_resources(sandbox.id, nothing, impossible)
    await house.pods.stop_pod_sandbox(sandbox.id)
    with pytest.raises(WrongStateError, match="stopped"):
        await house.pods.update_pod_sandbox_resources(sandbox.id, nothing, nothing)
    with pytest.raises(NotFoundError):
        await house.pods.update_pod_sandbox_resources("0" * 64, nothing, nothing)


# --- StopPodSandbox ----------------------------------------------------------------------------------------------


async def test_a_stop_takes_everything_but_the_files(house: House) -> None:
    sandbox = await house.run_pod()
    container = await house.start(sandbox)
    await house.pods.stop_pod_sandbox(sandbox.id)
    await house.settle()
    assert sandbox.state is SandboxState.NOT_READY
    assert container.status.exit_code == 137
    left = house.leftovers()
    assert sorted(left) == ["containers", "files", "mounts", "sandboxes"]
    assert [m for m in house.kernel.mounts if sandbox.id in str(m)] == []


async def test_stopping_again_does_nothing(house: House) -> None:
    sandbox = await house.run_pod()
    await house.pods.stop_pod_sandbox(sandbox.id)
    passed = len(house.points.passed)
    stopped = sandbox.status
    await house.pods.stop_pod_sandbox(sandbox.id)
    assert house.points.passed[passed:] == ["netns.remove"]  # a file of its name may have come
    assert sandbox.status is stopped


async def test_stopping_and_removing_what_is_gone_succeed(house: House) -> None:
    await house.pods.stop_pod_sandbox("0" * 64)
    await house.pods.remove_pod_sandbox("0" * 64)


async def test_concurrent_stops_share_one(house: House) -> None:
    sandbox = await house.run_pod()
    await asyncio.gather(*(house.pods.stop_pod_sandbox(sandbox.id) for _ in range(5)))
    assert house.points.passed.count("cni.del") == 1


async def test_a_stop_whose_caller_goes_away_goes_on(house: House) -> None:
    sandbox = await house.run_pod()
    hold = house.points.hold("cni.del")
    call = asyncio.ensure_future(house.pods.stop_pod_sandbox(sandbox.id))
    await hold.reached.wait()
    call.cancel()
    await outcome_of(call)
    hold.release()
    await until(lambda: sandbox.status.torn_down)


async def test_a_failing_detachment_holds_no_pod_up_and_is_made_good_later(house: House) -> None:
    sandbox = await house.run_pod()
    house.points.fail("cni.del", CniPluginError("bridge", "DEL", "iptables is locked"))
    await house.pods.stop_pod_sandbox(sandbox.id)
    assert sandbox.state is SandboxState.NOT_READY
    assert (sandbox.status.torn_down, len(sandbox.status.attachments)) == (True, 0)
    await house.pods.remove_pod_sandbox(sandbox.id)
    # Everything else is gone: the namespace alone stays, for the DEL that is still to come.
    assert sorted(house.leftovers()) == ["attachments", "debts", "files", "namespaces"]
    [debt] = house.debts
    assert (debt.pod, debt.container_id) == ("default/web", sandbox.id)
    assert "iptables is locked" in debt.error

    house.points.heal()
    house.upkeep.wake()
    await house.upkeep.pay_debts()
    assert house.leftovers() == {}


async def test_a_pause_process_that_cannot_be_killed_keeps_no_address(house: House) -> None:
    sandbox = await house.run_pod()
    house.points.fail("cgroup.kill", DeadlineError("it hangs in the kernel"))
    with pytest.raises(DeadlineError, match="hangs in the kernel"):
        await house.pods.stop_pod_sandbox(sandbox.id)
    assert (house.cni.attached, house.kernel.namespaces, house.kernel.mounts) == ({}, {}, set())
    assert (sandbox.state, sandbox.status.torn_down) == (SandboxState.NOT_READY, False)
    # The note of its monitor is what the next stop needs.
    assert house.paths.sandbox(sandbox.id).monitor_file.exists()

    house.points.heal()
    await house.pods.stop_pod_sandbox(sandbox.id)
    assert sandbox.status.torn_down
    assert sorted(house.leftovers()) == ["files", "sandboxes"]


@pytest.mark.parametrize("slow", ["cni.del", "kill_family", "runtime.delete", "unmount"])
async def test_a_stop_leaves_the_network_beside_ending_the_pause_process(
    house: House, slow: str
) -> None:
    sandbox = await house.run_pod()
    house.points.passed.clear()
    hold = house.points.hold(slow)
    stopping = asyncio.ensure_future(house.pods.stop_pod_sandbox(sandbox.id))
    await hold.reached.wait()
    others = {"cni.del"} if slow != "cni.del" else {"kill_family", "runtime.delete", "unmount"}
    await until(lambda: others <= set(house.points.passed))
    await asyncio.sleep(0.02)
    assert "netns.remove" not in house.points.passed, "it waits for both"
    hold.release()
    await stopping
    assert house.points.passed.index("netns.remove") > house.points.passed.index("unmount")


async def test_a_namespace_whose_network_could_not_be_left_stays_for_the_next_call(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    sandbox = await house.run_pod()

    def full(*_: object, **__: object) -> None:
        raise CriShimError("the debt can't be written down")

    house.points.fail("cni.del", CniPluginError("bridge", "DEL", "busy"))
    with monkeypatch.context() as patch:
        patch.setattr(house.debts, "owe", full)
        with pytest.raises(CriShimError, match="written down"):
            await house.pods.stop_pod_sandbox(sandbox.id)
    assert list(house.kernel.namespaces)
    house.points.heal()
    await house.pods.remove_pod_sandbox(sandbox.id)
    assert house.leftovers() == {}


async def test_of_several_failures_of_a_stop_the_first_is_reported_and_the_rest_logged(
    house: House,
) -> None:
    sandbox = await house.run_pod()
    house.points.fail("cgroup.kill", DeadlineError("it hangs in the kernel"))
    house.points.fail("netns.remove", OSError(errno.EBUSY, "its namespace is busy"))
    house.points.fail("unmount", OSError(errno.EBUSY, "busy"))
    with capture_logs() as logs, pytest.raises(DeadlineError, match="hangs in the kernel"):
        await house.pods.stop_pod_sandbox(sandbox.id)
    told = [line["error"] for line in logs if line["event"] == "failed as well"]
    assert len(told) == 2
    assert any("its namespace is busy" in line for line in told)
    assert any(line.endswith("] busy") for line in told)

    house.points.heal()
    await house.pods.remove_pod_sandbox(sandbox.id)
    assert house.leftovers() == {}


async def test_a_mistake_in_the_program_is_no_failed_step(house: House) -> None:
    sandbox = await house.run_pod()
    house.points.fail("cni.del", KeyError("typo"))
    with pytest.raises(KeyError):
        await house.pods.stop_pod_sandbox(sandbox.id)


async def test_a_sandbox_stopped_while_it_is_made_undoes_itself(house: House) -> None:
    hold = house.points.hold("runtime.start")
    call = asyncio.ensure_future(outcome_of(house.pods.run_pod_sandbox(pod_config(), "")))
    await hold.reached.wait()
    [sandbox] = house.sandboxes
    with pytest.raises(NotFoundError, match="still being created"):
        house.pods.find(sandbox.id)
    stop = asyncio.ensure_future(house.pods.stop_pod_sandbox(sandbox.id))
    await asyncio.sleep(0.01)
    hold.release()
    await stop
    assert isinstance(await call, CriShimError)
    await house.settle()
    assert house.leftovers() == {}


# --- RemovePodSandbox --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stopped_before", [True, False])
async def test_a_removal_leaves_nothing(house: House, *, stopped_before: bool) -> None:
    sandbox = await house.run_pod()
    await house.start(sandbox, "one")
    await house.create(sandbox, "two")
    if stopped_before:
        await house.pods.stop_pod_sandbox(sandbox.id)
    await house.pods.remove_pod_sandbox(sandbox.id)
    await house.settle()
    assert house.leftovers() == {}
    await house.run_pod()


async def test_stops_and_removals_may_run_at_once(house: House) -> None:
    sandbox = await house.run_pod()
    await house.start(sandbox)
    await asyncio.gather(
        house.pods.remove_pod_sandbox(sandbox.id),
        house.pods.stop_pod_sandbox(sandbox.id),
        house.pods.remove_pod_sandbox(sandbox.id),
    )
    await house.settle()
    assert house.leftovers() == {}


async def test_ten_callers_at_once_stop_and_remove_a_pod_that_is_being_made(house: House) -> None:
    hold = house.points.hold("runtime.start")
    call = asyncio.ensure_future(outcome_of(house.pods.run_pod_sandbox(pod_config(), "")))
    await hold.reached.wait()
    [sandbox] = house.sandboxes
    callers = [
        asyncio.ensure_future(
            house.pods.remove_pod_sandbox(sandbox.id)
            if number % 2
            else house.pods.stop_pod_sandbox(sandbox.id)
        )
        for number in range(10)
    ]
    await turn_over()
    hold.release()
    await asyncio.gather(*callers)
    assert isinstance(await call, CriShimError)
    await house.settle()
    assert house.leftovers() == {}
    await house.run_pod()


async def test_ten_callers_at_once_remove_a_pod_with_its_containers(house: House) -> None:
    sandbox = await house.run_pod()
    await asyncio.gather(*(house.start(sandbox, name) for name in ("one", "two")))
    await asyncio.gather(*(house.pods.remove_pod_sandbox(sandbox.id) for _ in range(10)))
    assert house.leftovers() == {}
    assert house.points.passed.count("cni.del") == 1


async def test_a_removal_that_failed_is_finished_by_the_next(house: House) -> None:
    sandbox = await house.run_pod()
    house.points.fail("remove_tree root", OSError(errno.EIO, "disk"))
    with pytest.raises(OSError, match="disk"):
        await house.pods.remove_pod_sandbox(sandbox.id)
    assert house.pods.list_pod_sandbox() == [sandbox]
    house.points.heal()
    await house.pods.remove_pod_sandbox(sandbox.id)
    assert house.leftovers() == {}


async def test_a_pod_removed_while_a_container_is_made_keeps_neither(house: House) -> None:
    sandbox = await house.run_pod()
    hold = house.points.hold("monitor.created")
    creation = asyncio.ensure_future(
        outcome_of(
            house.containers.create_container(sandbox.id, container_config(), sandbox.config)
        )
    )
    await hold.reached.wait()
    await house.pods.remove_pod_sandbox(sandbox.id)
    # Not only in the end: the runtime still hangs.
    assert house.leftovers() == {}
    assert "not ready: it was stopped" in str(await creation)


async def test_a_container_that_is_nothing_yet_is_not_made_after_its_pods_removal(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    sandbox = await house.run_pod()
    reached, go = asyncio.Event(), asyncio.Event()

    async def as_json_aside(message: api.ContainerConfig) -> msgspec.Raw:
        reached.set()
        await go.wait()
        return as_json(message)

    monkeypatch.setattr("cri_shim.sandbox.creation.as_json_aside", as_json_aside)
    call = house.containers.create_container(sandbox.id, container_config(), sandbox.config)
    creation = asyncio.ensure_future(outcome_of(call))
    await reached.wait()
    await house.pods.remove_pod_sandbox(sandbox.id)
    go.set()
    assert "not ready: stopped" in str(await creation)
    assert house.leftovers() == {}


@pytest.mark.parametrize("point", ["cni.add", "monitor.created"])
async def test_a_pod_removed_while_it_is_made_is_undone(house: House, point: str) -> None:
    hold = house.points.hold(point)
    creation = asyncio.ensure_future(outcome_of(house.pods.run_pod_sandbox(pod_config(), "")))
    await hold.reached.wait()
    [sandbox] = house.sandboxes
    await house.pods.remove_pod_sandbox(sandbox.id)
    assert house.leftovers() == {}
    assert "stopped while it was created" in str(await creation)


async def test_a_pod_is_removed_with_a_container_whose_creation_could_not_be_undone(
    house: House,
) -> None:
    sandbox = await house.run_pod()
    house.points.fail("monitor.created", RuntimeCommandError("x", ["runc"], "failed", "no"))
    house.points.fail("cgroup.kill", CriShimError("busy"))
    with pytest.raises(RuntimeCommandError):
        await house.create(sandbox)
    house.points.heal()
    await house.pods.remove_pod_sandbox(sandbox.id)
    await house.settle()
    assert house.leftovers() == {}


async def test_a_container_that_is_being_started_ends_with_its_pod(house: House) -> None:
    sandbox = await house.run_pod()
    container = await house.create(sandbox)
    hold = house.points.hold("runtime.start")
    start = asyncio.ensure_future(outcome_of(house.containers.start_container(container.id)))
    await hold.reached.wait()
    stop = asyncio.ensure_future(house.pods.stop_pod_sandbox(sandbox.id))
    await turn_over()
    hold.release()
    await start
    await stop
    await house.settle()
    assert container.state is ContainerState.EXITED
    await house.pods.remove_pod_sandbox(sandbox.id)
    assert house.leftovers() == {}


# --- on its own --------------------------------------------------------------------------------------------------


async def test_a_pod_whose_pause_process_ends_is_not_ready_and_says_why(house: House) -> None:
    sandbox = await house.run_pod()
    assert sandbox.status.process
    house.kernel.end(sandbox.status.process.pid, 137)
    await until(lambda: sandbox.state is SandboxState.NOT_READY)
    assert "137" in sandbox.status.reason
    assert not sandbox.status.torn_down
    await house.pods.remove_pod_sandbox(sandbox.id)
    assert house.leftovers() == {}


async def test_a_pod_whose_monitor_dies_says_so_and_the_first_reason_stays(house: House) -> None:
    sandbox = await house.run_pod()
    house.pods.on_exit(sandbox, Exit(None, 0))
    assert "monitor died" in sandbox.status.reason
    reason = sandbox.status.reason
    house.pods.on_exit(sandbox, Exit(1, 0))
    await house.pods.stop_pod_sandbox(sandbox.id)
    assert sandbox.status.reason == reason


# --- looking -----------------------------------------------------------------------------------------------------


async def test_a_sandbox_is_found_by_its_id_or_a_prefix_of_it(house: House) -> None:
    sandbox = await house.run_pod()
    assert house.pods.find(sandbox.id) is sandbox
    assert house.pods.find(sandbox.id[:12]) is sandbox
    with pytest.raises(NotFoundError):
        house.pods.find("nothing")


# --- the pause image ---------------------------------------------------------------------------------------------


async def test_the_built_in_pause_image_is_imported_once_at_its_first_use() -> None:
    images = FakeImages()
    images.forget(PAUSE_REFERENCE)
    pause = PauseImage(images, None, images.pull)  # type: ignore[arg-type]
    first, second = await asyncio.gather(pause.get(), pause.get())
    assert first is second
    assert images.imports == [PAUSE_REFERENCE]
    assert pause.layers(first)


async def test_the_last_pod_of_a_removed_pause_image_gives_its_layers_back(house: House) -> None:
    one, two = await house.run_pod("one"), await house.run_pod("two")
    await house.pods.remove_pod_sandbox(one.id)
    assert house.images.sweeps == 0
    house.images.forget(PAUSE_REFERENCE)
    await house.pods.remove_pod_sandbox(two.id)
    assert house.images.sweeps == 1
    assert house.leftovers() == {}


async def test_a_configured_pause_image_is_pulled_when_it_is_not_there() -> None:
    images = FakeImages()
    pause = PauseImage(images, "registry.example/pause:3", images.pull)  # type: ignore[arg-type]
    assert "registry.example/pause:3" in (await pause.get()).repo_tags
    assert images.pulls == ["registry.example/pause:3"]
    await pause.get()
    assert images.pulls == ["registry.example/pause:3"]
