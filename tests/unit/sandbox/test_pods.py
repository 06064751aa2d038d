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
    WrongStateError,
)
from cri_shim.host.files import fd_path
from cri_shim.image.builtin import PAUSE_REFERENCE
from cri_shim.paths import netns_file
from cri_shim.sandbox.pod_images import PauseImage
from cri_shim.sandbox.store.model import ContainerState, SandboxState
from cri_shim.sandbox.store.store import as_json
from cri_shim.single_flight import SupersededError
from tests.fakes.clock import turn_over, until
from tests.fakes.kernel import NETNS_FD, USERNS_FD
from tests.fakes.networks import FakeImages, FakePuller
from tests.fakes.node_harness import container_config, pod_config
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

    from cri_shim.sandbox.store.store import Sandbox
    from tests.fakes.node_harness import NodeHarness
    from tests.unit.conftest import Observe

pytestmark = pytest.mark.asyncio

STEPS = ("record", "netns", "network", "bundle", "rootfs", "process", "commit")
POINTS = (
    *("netns.create", "netns.created", "cni.add", "cni.added"),
    *("overlay.mount", "overlay.mounted", "tmpfs.mount", "tmpfs.mounted"),
    *("runtime.run", "runtime.ran"),
)


# --- RunPodSandbox: complete -------------------------------------------------------------------------------------


async def test_a_sandbox_is_ready_once_its_network_and_its_pause_process_are(
    harness: NodeHarness,
) -> None:
    sandbox = await harness.run_pod()
    status = sandbox.status
    assert sandbox.state is SandboxState.READY
    assert status.ips == ("10.0.0.2",)
    assert status.process is not None
    assert harness.kernel.processes[status.process.pid].argv == ("/pause",)
    assert harness.runtime.containers[sandbox.id].status == "running"
    assert len(harness.cni.attached) == 1
    assert len(harness.kernel.mounts) == 2
    assert harness.pods.list_pod_sandbox() == [sandbox]


async def test_its_record_survives_the_daemon(harness: NodeHarness) -> None:
    sandbox = await harness.run_pod()
    [(_, again)] = harness.sandboxes.load()
    assert not isinstance(again, CriShimError)
    assert again.record == sandbox.record
    assert again.status == sandbox.status
    assert again.config == sandbox.config


async def test_a_pod_on_the_hosts_network_has_no_namespace_and_no_attachment(
    harness: NodeHarness,
) -> None:
    sandbox_id = await harness.pods.run_pod_sandbox(pod_config(host_network=True), "")
    sandbox = harness.pods.find(sandbox_id)
    assert sandbox.record.netns == ""
    assert sandbox.status.ips == ()
    assert harness.kernel.namespaces == {}
    assert harness.cni.attached == {}
    await harness.pods.remove_pod_sandbox(sandbox_id)
    assert harness.leftovers() == {}


@pytest.mark.parametrize("call", ["stop_pod_sandbox", "remove_pod_sandbox"])
async def test_a_file_of_the_namespaces_name_goes_whenever_it_came(
    harness: NodeHarness, call: str
) -> None:
    sandbox = await harness.run_pod()
    await harness.pods.stop_pod_sandbox(sandbox.id)
    netns_file(sandbox.id).touch()
    await getattr(harness.pods, call)(sandbox.id)
    assert not netns_file(sandbox.id).exists()


async def test_network_sysctls_are_written_before_the_plugins_run(harness: NodeHarness) -> None:
    config = pod_config()
    config.linux.sysctls["net.ipv4.ip_unprivileged_port_start"] = "0"
    sandbox = harness.pods.find(await harness.pods.run_pod_sandbox(config, ""))
    [sysctls] = harness.kernel.namespaces.values()
    assert sysctls["net.ipv4.ip_unprivileged_port_start"] == "0"
    assert harness.points.passed.index("netns.created") < harness.points.passed.index("cni.add")
    assert sandbox.record.netns


async def test_sysctls_of_interfaces_are_written_after_the_plugins_ran(
    harness: NodeHarness,
) -> None:
    config = pod_config()
    config.linux.sysctls["net/ipv4/conf/eth0/forwarding"] = "1"
    add = harness.points.hold("cni.add")
    call = asyncio.ensure_future(harness.pods.run_pod_sandbox(config, ""))
    await add.reached.wait()
    await until(lambda: "runtime.ran" in harness.points.passed)
    [sysctls] = harness.kernel.namespaces.values()
    assert "net.ipv4.conf.eth0.forwarding" not in sysctls
    add.release()
    await call
    [sysctls] = harness.kernel.namespaces.values()
    assert sysctls["net.ipv4.conf.eth0.forwarding"] == "1"


async def test_sysctl_of_an_interface_that_is_refused_undoes_the_pod(harness: NodeHarness) -> None:
    config = pod_config()
    config.linux.sysctls["net.ipv4.conf.eth0.forwarding"] = "1"
    harness.points.fail("netns.sysctls", InvalidArgumentError("no interface"))
    with pytest.raises(InvalidArgumentError, match="no interface"):
        await harness.pods.run_pod_sandbox(config, "")
    assert harness.leftovers() == {}
    assert "cni.del" in harness.points.passed


async def test_the_pause_container_does_not_wait_for_the_network(harness: NodeHarness) -> None:
    add = harness.points.hold("cni.add")
    call = asyncio.ensure_future(harness.pods.run_pod_sandbox(pod_config(), ""))
    await add.reached.wait()
    await until(lambda: "runtime.ran" in harness.points.passed)
    assert harness.pods.list_pod_sandbox() == []
    add.release()
    await call


# --- RunPodSandbox: refused --------------------------------------------------------------------------------------


async def test_an_unknown_handler_is_refused_before_anything_is_made(harness: NodeHarness) -> None:
    with pytest.raises(UnknownRuntimeHandlerError):
        await harness.pods.run_pod_sandbox(pod_config(), "gvisor")
    assert harness.leftovers() == {}


async def vm_pod(harness: NodeHarness) -> Sandbox:
    return harness.pods.find(await harness.pods.run_pod_sandbox(pod_config(), "kata"))


async def test_a_pod_with_a_kernel_of_its_own_gets_its_network_first(harness: NodeHarness) -> None:
    hold = harness.points.hold("cni.added")
    making = asyncio.create_task(vm_pod(harness))
    await hold.reached.wait()
    await turn_over()
    assert "monitor.spawn" not in harness.points.passed
    hold.release()
    await making
    assert "runtime.started" in harness.points.passed


async def test_a_network_that_fails_begins_no_sandbox_of_its_own_kernel(
    harness: NodeHarness,
) -> None:
    harness.points.fail("cni.add", CniPluginError("bridge", "ADD", "failed"))
    with pytest.raises(CniPluginError):
        await vm_pod(harness)
    assert "monitor.spawn" not in harness.points.passed
    assert harness.leftovers() == {}


async def test_a_stop_ends_containers_then_the_sandbox_then_the_network(
    harness: NodeHarness,
) -> None:
    sandbox = await vm_pod(harness)
    await harness.start(sandbox)
    del harness.points.passed[:]
    await harness.pods.stop_pod_sandbox(sandbox.id)
    passed = harness.points.passed
    first_delete, last_delete = passed.index("runtime.delete"), _last(passed, "runtime.delete")
    assert passed.index("runtime.kill") < first_delete < last_delete < passed.index("cni.del")
    assert harness.kernel.restored, "plugins find what they made by addresses"
    await harness.pods.remove_pod_sandbox(sandbox.id)
    assert harness.leftovers() == {}


def _last(passed: list[str], name: str) -> int:
    return len(passed) - 1 - passed[::-1].index(name)


@pytest.mark.parametrize("point", ["runtime.kill", "runtime.delete"])
async def test_a_runtime_that_does_not_answer_keeps_no_sandbox_from_going(
    harness: NodeHarness, point: str
) -> None:
    sandbox = await vm_pod(harness)
    await harness.start(sandbox)
    hypervisor = harness.kernel.spawn(("qemu", f"sandbox-{sandbox.id}"))
    harness.points.fail(point, DeadlineError("no answer"))
    await harness.pods.stop_pod_sandbox(sandbox.id)
    assert hypervisor.pid not in harness.kernel.processes
    harness.points.heal()
    for runtime in harness.runtimes.values():
        runtime.containers.clear()  # what is below its directories went by `clear`
    await harness.pods.remove_pod_sandbox(sandbox.id)
    assert harness.runtimes["kata"].cleared[-1] == (sandbox.id, sandbox.id)
    assert harness.leftovers() == {}


async def test_a_node_without_a_network_refuses_pods_but_those_on_its_own(
    harness: NodeHarness,
) -> None:
    harness.cni.ready = False
    with pytest.raises(NotReadyError):
        await harness.pods.run_pod_sandbox(pod_config(), "")
    assert harness.leftovers() == {}
    await harness.pods.run_pod_sandbox(pod_config(host_network=True), "")


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
    harness: NodeHarness, change: dict[str, Any]
) -> None:
    config = pod_config()
    config.MergeFrom(api.PodSandboxConfig(**change))
    with pytest.raises(InvalidArgumentError):
        await harness.pods.run_pod_sandbox(config, "")
    assert harness.leftovers() == {}
    assert harness.points.passed == []


@pytest.mark.parametrize("full_at", ["status.json", "record.json", "hosts", "config.json"])
async def test_a_full_disk_is_said_and_nothing_stays(
    harness: NodeHarness, monkeypatch: pytest.MonkeyPatch, full_at: str
) -> None:
    fill_disk(monkeypatch, full_at)
    with pytest.raises(ResourceExhaustedError, match="No space left"):
        await harness.pods.run_pod_sandbox(pod_config(), "")
    await harness.settle()
    assert harness.leftovers() == {}


async def test_a_sandbox_whose_completion_cannot_be_written_is_undone(
    harness: NodeHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    hold = harness.points.hold("runtime.ran")
    call = asyncio.ensure_future(outcome_of(harness.pods.run_pod_sandbox(pod_config(), "")))
    await hold.reached.wait()
    fill_disk(monkeypatch, "status.json")
    hold.release()
    assert isinstance(await call, ResourceExhaustedError)
    await harness.settle()
    assert harness.leftovers() == {}


# --- RunPodSandbox: interrupted ----------------------------------------------------------------------------------


async def test_the_steps_and_the_points_below_are_all_there_are(
    harness: NodeHarness, observe: Observe
) -> None:
    seen = record_steps(observe)
    await harness.run_pod()
    assert sorted(seen) == sorted(STEPS)
    assert sorted(harness.points.passed) == sorted(POINTS)


@pytest.mark.parametrize("step", STEPS)
async def test_a_creation_stopped_at_any_step_leaves_nothing_and_frees_the_name(
    harness: NodeHarness, observe: Observe, step: str
) -> None:
    stop_at(observe, step)
    with pytest.raises(RuntimeError, match=f"stopped at {step}"):
        await harness.pods.run_pod_sandbox(pod_config(), "")
    await harness.settle()
    assert harness.leftovers() == {}
    observe(None)
    await harness.run_pod()


@pytest.mark.parametrize("point", POINTS)
async def test_a_failing_effect_is_reported_as_it_is_and_leaves_nothing(
    harness: NodeHarness, point: str
) -> None:
    harness.points.fail(point, CniPluginError("bridge", "ADD", "no more addresses"))
    with pytest.raises(CniPluginError, match="no more addresses"):
        await harness.pods.run_pod_sandbox(pod_config(), "")
    await harness.settle()
    assert harness.leftovers() == {}
    harness.points.heal()
    await harness.run_pod()


@pytest.mark.parametrize("step", sorted(UNDO_EFFECTS))
async def test_what_could_not_be_undone_is_listed_not_ready_and_removed_later(
    harness: NodeHarness, step: str
) -> None:
    harness.points.fail(
        "runtime.ran", RuntimeCommandError("starting", ["runc"], "failed", "no such file")
    )
    harness.points.fail(UNDO_EFFECTS[step], OSError(errno.EBUSY, "not now"))
    with pytest.raises(RuntimeCommandError, match="no such file"):
        await harness.pods.run_pod_sandbox(pod_config(), "")
    [sandbox] = harness.pods.list_pod_sandbox()
    assert sandbox.state is SandboxState.NOT_READY
    assert step in sandbox.status.reason
    [(_, stored)] = harness.sandboxes.load()
    assert not isinstance(stored, CriShimError)
    assert stored.state is SandboxState.NOT_READY

    harness.points.heal()
    await harness.pods.stop_pod_sandbox(sandbox.id)
    await harness.pods.remove_pod_sandbox(sandbox.id)
    await harness.settle()
    assert harness.leftovers() == {}
    await harness.run_pod()


async def test_a_record_that_could_not_be_removed_is_listed_not_ready_and_removed_later(
    harness: NodeHarness,
) -> None:
    harness.points.fail("runtime.run", RuntimeCommandError("starting", ["runc"], "failed", "no"))
    harness.points.fail("remove_tree root", OSError(errno.EIO, "disk"))
    with pytest.raises(RuntimeCommandError):
        await harness.pods.run_pod_sandbox(pod_config(), "")
    [sandbox] = harness.pods.list_pod_sandbox()
    assert sandbox.state is SandboxState.NOT_READY
    assert "record" in sandbox.status.reason

    harness.points.heal()
    await harness.pods.remove_pod_sandbox(sandbox.id)
    assert harness.leftovers() == {}
    await harness.run_pod()


async def test_what_is_undone_at_its_very_end_reports_no_exit(
    harness: NodeHarness, observe: Observe
) -> None:
    stop_at(observe, "commit")
    with pytest.raises(RuntimeError):
        await harness.pods.run_pod_sandbox(pod_config(), "")
    await harness.settle()
    assert harness.reported == []


async def test_a_failed_creation_whose_network_stays_is_forgotten_and_its_delete_pending(
    harness: NodeHarness,
) -> None:
    harness.points.fail("runtime.run", RuntimeCommandError("starting", ["runc"], "failed", "no"))
    harness.points.fail("cni.del", CniPluginError("bridge", "DEL", "busy"))
    with pytest.raises(RuntimeCommandError):
        await harness.pods.run_pod_sandbox(pod_config(), "")
    assert harness.pods.list_pod_sandbox() == []
    # The namespace stays, for the DEL that is still to come.
    assert sorted(harness.leftovers()) == ["attachments", "files", "namespaces", "pending_deletes"]

    harness.points.heal()
    harness.reconciler.wake()
    await harness.reconciler.retry_due()
    assert harness.cni.deleted[-1].netns != ""
    assert harness.leftovers() == {}


async def test_a_detachment_that_cannot_even_be_noted_keeps_the_sandbox_and_its_namespace(
    harness: NodeHarness,
) -> None:
    harness.paths.pending_deletes_dir.write_text("in the way")
    harness.points.fail("runtime.run", RuntimeCommandError("starting", ["runc"], "failed", "no"))
    harness.points.fail("cni.del", CniPluginError("bridge", "DEL", "busy"))
    with pytest.raises(RuntimeCommandError):
        await harness.pods.run_pod_sandbox(pod_config(), "")
    [sandbox] = harness.pods.list_pod_sandbox()
    assert list(harness.kernel.namespaces)
    assert sandbox.status.attachments
    with pytest.raises(CriShimError, match="writing the pending delete"):
        await harness.pods.stop_pod_sandbox(sandbox.id)
    assert sandbox.status.attachments

    harness.points.heal()
    harness.paths.pending_deletes_dir.unlink()
    await harness.pods.remove_pod_sandbox(sandbox.id)
    assert harness.cni.deleted[-1].netns != ""
    assert harness.leftovers() == {}


@pytest.mark.parametrize("point", POINTS)
async def test_a_caller_that_goes_away_leaves_the_work_to_its_retry(
    harness: NodeHarness, point: str
) -> None:
    hold = harness.points.hold(point)
    first = asyncio.ensure_future(harness.pods.run_pod_sandbox(pod_config(), ""))
    await hold.reached.wait()
    first.cancel()
    assert isinstance(await outcome_of(first), asyncio.CancelledError)
    retry = asyncio.ensure_future(harness.pods.run_pod_sandbox(pod_config(), ""))
    await turn_over()
    hold.release()
    sandbox_id = await retry
    assert [s.id for s in harness.sandboxes] == [sandbox_id]
    assert harness.points.passed.count("runtime.run") == 1
    assert harness.pods.find(sandbox_id).state is SandboxState.READY
    await harness.pods.remove_pod_sandbox(sandbox_id)
    assert harness.leftovers() == {}


@pytest.mark.parametrize("point", POINTS)
async def test_a_different_request_undoes_the_one_under_way_and_takes_its_place(
    harness: NodeHarness, point: str
) -> None:
    hold = harness.points.hold(point)
    first = asyncio.ensure_future(harness.pods.run_pod_sandbox(pod_config(), ""))
    await hold.reached.wait()
    other = pod_config()
    other.labels["version"] = "2"
    second = asyncio.ensure_future(harness.pods.run_pod_sandbox(other, ""))
    await let_an_undo_run(point)
    hold.release()
    assert isinstance(await outcome_of(first), SupersededError)
    sandbox = harness.pods.find(await second)
    assert sandbox.config.labels["version"] == "2"
    assert [s.id for s in harness.sandboxes] == [sandbox.id]
    await harness.pods.remove_pod_sandbox(sandbox.id)
    await harness.settle()
    assert harness.leftovers() == {}


@pytest.mark.parametrize("point", POINTS)
async def test_a_daemon_that_stops_undoes_what_does_not_end_in_time(
    harness: NodeHarness, point: str
) -> None:
    hold = harness.points.hold(point)
    call = asyncio.ensure_future(outcome_of(harness.pods.run_pod_sandbox(pod_config(), "")))
    await hold.reached.wait()
    closing = asyncio.ensure_future(harness.pods.close(0))
    await let_an_undo_run(point)
    hold.release()
    await closing
    outcome = await call
    assert type(outcome) is UnavailableError
    assert "the server is stopping" in str(outcome)
    await harness.settle()
    assert harness.leftovers() == {}


async def test_networks_are_joined_while_mounts_are_made_and_a_failure_undoes_both(
    harness: NodeHarness,
) -> None:
    mount = harness.points.hold("overlay.mount")
    add = harness.points.hold("cni.add")
    harness.points.fail("cni.added", CniPluginError("bridge", "ADD", "no more addresses"))
    call = asyncio.ensure_future(harness.pods.run_pod_sandbox(pod_config(), ""))
    await mount.reached.wait()
    await add.reached.wait()
    assert "netns.created" in harness.points.passed
    add.release()
    mount.release()
    with pytest.raises(CniPluginError):
        await call
    await turn_over()
    assert harness.leftovers() == {}


async def test_a_mount_that_fails_beside_an_add_takes_the_pod_off_its_network(
    harness: NodeHarness,
) -> None:
    harness.points.fail("overlay.mount", ResourceExhaustedError("no space left"))
    mount = harness.points.hold("overlay.mount")
    add = harness.points.hold("cni.added")
    call = asyncio.ensure_future(harness.pods.run_pod_sandbox(pod_config(), ""))
    await mount.reached.wait()
    await add.reached.wait()
    mount.release()
    with pytest.raises(ResourceExhaustedError):
        await call
    await turn_over()
    assert harness.cni.attached == {}
    assert harness.leftovers() == {}


# --- RunPodSandbox: again ----------------------------------------------------------------------------------------


async def test_concurrent_calls_of_one_request_make_one_sandbox(harness: NodeHarness) -> None:
    ids = await asyncio.gather(*(harness.pods.run_pod_sandbox(pod_config(), "") for _ in range(5)))
    assert len(set(ids)) == 1
    assert len(harness.sandboxes) == 1


async def test_a_late_retry_gets_the_sandbox_that_is_there(harness: NodeHarness) -> None:
    first = await harness.pods.run_pod_sandbox(pod_config(), "")
    # The default handler by its name is the same request.
    assert await harness.pods.run_pod_sandbox(pod_config(), "runc") == first


async def test_a_different_request_for_a_held_name_is_told_who_holds_it(
    harness: NodeHarness,
) -> None:
    first = await harness.run_pod()
    other = pod_config()
    other.labels["version"] = "2"
    with pytest.raises(AlreadyExistsError, match=first.id):
        await harness.pods.run_pod_sandbox(other, "")


async def test_a_stopped_sandbox_is_no_answer_to_a_retry(harness: NodeHarness) -> None:
    sandbox = await harness.run_pod()
    await harness.pods.stop_pod_sandbox(sandbox.id)
    with pytest.raises(AlreadyExistsError, match="notready"):
        await harness.pods.run_pod_sandbox(pod_config(), "")
    await harness.pods.run_pod_sandbox(pod_config(attempt=1), "")


async def test_many_pods_at_once_are_all_made(harness: NodeHarness) -> None:
    names = [f"pod-{number}" for number in range(12)]
    ids = await asyncio.gather(
        *(harness.pods.run_pod_sandbox(pod_config(name), "") for name in names)
    )
    assert len(set(ids)) == 12
    assert [s.record.metadata.name for s in harness.pods.list_pod_sandbox()] == names


# --- user namespaces ---------------------------------------------------------------------------------------------


def with_users(config: api.PodSandboxConfig) -> api.PodSandboxConfig:
    """The pod, with a user namespace whose root is who runs the tests: anyone may give files to themselves."""
    users = config.linux.security_context.namespace_options.userns_options
    users.mode = api.POD
    users.uids.add(host_id=os.getuid(), length=100)
    users.gids.add(host_id=os.getgid(), length=200)
    return config


async def test_everything_of_a_pod_with_users_of_its_own_is_made_in_terms_of_them(
    harness: NodeHarness,
) -> None:
    made = harness.points.hold("runtime.run")
    call = asyncio.ensure_future(harness.pods.run_pod_sandbox(with_users(pod_config()), ""))
    await made.reached.wait()
    # It is held until the pause container, which joins it, is there.
    root = (os.getuid(), os.getgid())
    assert harness.kernel.user_namespaces == [(f"0 {root[0]} 100", f"0 {root[1]} 200")]
    made.release()
    sandbox = harness.pods.find(await call)
    paths = harness.paths.sandbox(sandbox.id)
    spec = json.loads(paths.spec_file.read_bytes())
    assert {"type": "user", "path": fd_path(USERNS_FD)} in spec["linux"]["namespaces"]
    assert harness.kernel.user_namespaces == []
    assert list(harness.kernel.netns_fds.values()) == [NETNS_FD]
    assert harness.kernel.mapped == {paths.rootfs_dir}
    assert harness.kernel.owners[paths.memory_dir] == root
    assert stat.S_IMODE(paths.state_dir.stat().st_mode) == 0o710
    assert harness.points.passed.index("userns.made") < harness.points.passed.index("netns.create")
    container = await harness.start(sandbox)
    assert harness.paths.container(container.id).rootfs_dir in harness.kernel.mapped
    await harness.pods.remove_pod_sandbox(sandbox.id)
    assert harness.leftovers() == {}


async def test_a_pod_with_users_of_its_own_may_be_on_the_nodes_network(
    harness: NodeHarness,
) -> None:
    config = with_users(pod_config(host_network=True))
    await harness.pods.run_pod_sandbox(config, "")
    assert harness.kernel.netns_fds == {}
    assert harness.cni.attached == {}


@pytest.mark.parametrize("point", ["userns.make", "userns.made", "netns.created", "runtime.run"])
async def test_a_creation_with_users_that_fails_leaves_nothing(
    harness: NodeHarness, point: str
) -> None:
    harness.points.fail(point, ResourceExhaustedError("user.max_user_namespaces"))
    with pytest.raises(ResourceExhaustedError):
        await harness.pods.run_pod_sandbox(with_users(pod_config()), "")
    await harness.settle()
    assert harness.leftovers() == {}
    assert harness.kernel.user_namespaces == []


async def test_no_container_is_made_where_the_users_are_gone(harness: NodeHarness) -> None:
    sandbox = harness.pods.find(await harness.pods.run_pod_sandbox(with_users(pod_config()), ""))
    assert sandbox.status.process
    del harness.kernel.processes[sandbox.status.process.pid]  # nobody has noticed yet
    with pytest.raises(WrongStateError, match="pause process has ended"):
        await harness.create(sandbox)
    await harness.pods.remove_pod_sandbox(sandbox.id)
    assert harness.leftovers() == {}


# --- UpdatePodSandboxResources -----------------------------------------------------------------------------------


async def test_a_pods_new_size_is_kept_and_shown_also_by_the_next_daemon(
    harness: NodeHarness,
) -> None:
    sandbox = await harness.run_pod()
    resources = api.LinuxContainerResources(cpu_quota=150_000, memory_limit_in_bytes=1 << 30)
    overhead = api.LinuxContainerResources(cpu_shares=10)
    await harness.pods.update_pod_sandbox_resources(sandbox.id, overhead, resources)
    expected = {
        "overhead": {"cpu_shares": "10"},
        "resources": {"cpu_quota": "150000", "memory_limit_in_bytes": str(1 << 30)},
    }
    assert (
        json.loads(
            msgspec.json.encode((await harness.pods.verbose_info(sandbox))["resourcesUpdate"])
        )
        == expected
    )
    [(_, again)] = harness.sandboxes.load()
    assert not isinstance(again, CriShimError)
    assert (
        json.loads(msgspec.json.encode((await harness.pods.verbose_info(again))["resourcesUpdate"]))
        == expected
    )


async def test_a_size_that_no_pod_can_have_or_for_no_ready_pod_is_refused(
    harness: NodeHarness,
) -> None:
    sandbox = await harness.run_pod()
    nothing = api.LinuxContainerResources()
    impossible = api.LinuxContainerResources(cpu_period=1)
    with pytest.raises(InvalidArgumentError, match=r"linux\.resources\.cpu_period"):
        await harness.pods.update_pod_sandbox_resources(sandbox.id, nothing, impossible)
    await harness.pods.stop_pod_sandbox(sandbox.id)
    with pytest.raises(WrongStateError, match="stopped"):
        await harness.pods.update_pod_sandbox_resources(sandbox.id, nothing, nothing)
    with pytest.raises(NotFoundError):
        await harness.pods.update_pod_sandbox_resources("0" * 64, nothing, nothing)


# --- StopPodSandbox ----------------------------------------------------------------------------------------------


async def test_a_stop_takes_everything_but_the_files(harness: NodeHarness) -> None:
    sandbox = await harness.run_pod()
    container = await harness.start(sandbox)
    await harness.pods.stop_pod_sandbox(sandbox.id)
    await harness.settle()
    assert sandbox.state is SandboxState.NOT_READY
    assert container.status.exit_code == 137
    left = harness.leftovers()
    assert sorted(left) == ["containers", "files", "mounts", "sandboxes"]
    assert [m for m in harness.kernel.mounts if sandbox.id in str(m)] == []


async def test_stopping_again_does_nothing(harness: NodeHarness) -> None:
    sandbox = await harness.run_pod()
    await harness.pods.stop_pod_sandbox(sandbox.id)
    passed = len(harness.points.passed)
    stopped = sandbox.status
    await harness.pods.stop_pod_sandbox(sandbox.id)
    assert harness.points.passed[passed:] == ["netns.remove"]  # a file of its name may have come
    assert sandbox.status is stopped


async def test_stopping_and_removing_what_is_gone_succeed(harness: NodeHarness) -> None:
    await harness.pods.stop_pod_sandbox("0" * 64)
    await harness.pods.remove_pod_sandbox("0" * 64)


async def test_concurrent_stops_share_one(harness: NodeHarness) -> None:
    sandbox = await harness.run_pod()
    await asyncio.gather(*(harness.pods.stop_pod_sandbox(sandbox.id) for _ in range(5)))
    assert harness.points.passed.count("cni.del") == 1


async def test_a_stop_whose_caller_goes_away_goes_on(harness: NodeHarness) -> None:
    sandbox = await harness.run_pod()
    hold = harness.points.hold("cni.del")
    call = asyncio.ensure_future(harness.pods.stop_pod_sandbox(sandbox.id))
    await hold.reached.wait()
    call.cancel()
    await outcome_of(call)
    hold.release()
    await until(lambda: sandbox.status.torn_down)


async def test_a_failing_detachment_holds_no_pod_up_and_is_made_good_later(
    harness: NodeHarness,
) -> None:
    sandbox = await harness.run_pod()
    harness.points.fail("cni.del", CniPluginError("bridge", "DEL", "iptables is locked"))
    await harness.pods.stop_pod_sandbox(sandbox.id)
    assert sandbox.state is SandboxState.NOT_READY
    assert (sandbox.status.torn_down, len(sandbox.status.attachments)) == (True, 0)
    await harness.pods.remove_pod_sandbox(sandbox.id)
    # Everything else is gone: the namespace alone stays, for the DEL that is still to come.
    assert sorted(harness.leftovers()) == ["attachments", "files", "namespaces", "pending_deletes"]
    [pending] = harness.pending_deletes
    assert (pending.pod, pending.container_id) == ("default/web", sandbox.id)
    assert "iptables is locked" in pending.error

    harness.points.heal()
    harness.reconciler.wake()
    await harness.reconciler.retry_due()
    assert harness.leftovers() == {}


async def test_a_pause_process_that_cannot_be_killed_keeps_no_address(harness: NodeHarness) -> None:
    sandbox = await harness.run_pod()
    harness.points.fail("cgroup.kill", DeadlineError("it hangs in the kernel"))
    with pytest.raises(DeadlineError, match="hangs in the kernel"):
        await harness.pods.stop_pod_sandbox(sandbox.id)
    assert (harness.cni.attached, harness.kernel.namespaces, harness.kernel.mounts) == (
        {},
        {},
        set(),
    )
    assert (sandbox.state, sandbox.status.torn_down) == (SandboxState.NOT_READY, False)
    # The note of its process is what the next stop needs.
    assert harness.paths.sandbox(sandbox.id).top_process_file.exists()

    harness.points.heal()
    await harness.pods.stop_pod_sandbox(sandbox.id)
    assert sandbox.status.torn_down
    assert sorted(harness.leftovers()) == ["files", "sandboxes"]


@pytest.mark.parametrize("slow", ["cni.del", "kill_family", "runtime.delete", "unmount"])
async def test_a_stop_leaves_the_network_beside_ending_the_pause_process(
    harness: NodeHarness, slow: str
) -> None:
    sandbox = await harness.run_pod()
    harness.points.passed.clear()
    hold = harness.points.hold(slow)
    stopping = asyncio.ensure_future(harness.pods.stop_pod_sandbox(sandbox.id))
    await hold.reached.wait()
    others = {"cni.del"} if slow != "cni.del" else {"kill_family", "runtime.delete", "unmount"}
    await until(lambda: others <= set(harness.points.passed))
    await turn_over()
    assert "netns.remove" not in harness.points.passed, "it waits for both"
    hold.release()
    await stopping
    assert harness.points.passed.index("netns.remove") > harness.points.passed.index("unmount")


async def test_a_namespace_whose_network_could_not_be_left_stays_for_the_next_call(
    harness: NodeHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    sandbox = await harness.run_pod()

    def full(*_: object, **__: object) -> None:
        raise CriShimError("the pending delete can't be written down")

    harness.points.fail("cni.del", CniPluginError("bridge", "DEL", "busy"))
    with monkeypatch.context() as patch:
        patch.setattr(harness.pending_deletes, "add", full)
        with pytest.raises(CriShimError, match="written down"):
            await harness.pods.stop_pod_sandbox(sandbox.id)
    assert list(harness.kernel.namespaces)
    harness.points.heal()
    await harness.pods.remove_pod_sandbox(sandbox.id)
    assert harness.leftovers() == {}


async def test_of_several_failures_of_a_stop_the_first_is_reported_and_the_rest_logged(
    harness: NodeHarness,
) -> None:
    sandbox = await harness.run_pod()
    harness.points.fail("cgroup.kill", DeadlineError("it hangs in the kernel"))
    harness.points.fail("netns.remove", OSError(errno.EBUSY, "its namespace is busy"))
    harness.points.fail("unmount", OSError(errno.EBUSY, "busy"))
    with capture_logs() as logs, pytest.raises(DeadlineError, match="hangs in the kernel"):
        await harness.pods.stop_pod_sandbox(sandbox.id)
    told = [line["error"] for line in logs if line["event"] == "failed as well"]
    assert len(told) == 2
    assert any("its namespace is busy" in line for line in told)
    assert any(line.endswith("] busy") for line in told)

    harness.points.heal()
    await harness.pods.remove_pod_sandbox(sandbox.id)
    assert harness.leftovers() == {}


async def test_a_mistake_in_the_program_is_no_failed_step(harness: NodeHarness) -> None:
    sandbox = await harness.run_pod()
    harness.points.fail("cni.del", KeyError("typo"))
    with pytest.raises(KeyError):
        await harness.pods.stop_pod_sandbox(sandbox.id)


async def test_a_sandbox_stopped_while_it_is_made_undoes_itself(harness: NodeHarness) -> None:
    hold = harness.points.hold("runtime.ran")
    call = asyncio.ensure_future(outcome_of(harness.pods.run_pod_sandbox(pod_config(), "")))
    await hold.reached.wait()
    [sandbox] = harness.sandboxes
    with pytest.raises(NotFoundError, match="still being created"):
        harness.pods.find(sandbox.id)
    stop = asyncio.ensure_future(harness.pods.stop_pod_sandbox(sandbox.id))
    await turn_over()
    hold.release()
    await stop
    assert isinstance(await call, CriShimError)
    await harness.settle()
    assert harness.leftovers() == {}


# --- RemovePodSandbox --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stopped_before", [True, False])
async def test_a_removal_leaves_nothing(harness: NodeHarness, *, stopped_before: bool) -> None:
    sandbox = await harness.run_pod()
    await harness.start(sandbox, "one")
    await harness.create(sandbox, "two")
    if stopped_before:
        await harness.pods.stop_pod_sandbox(sandbox.id)
    await harness.pods.remove_pod_sandbox(sandbox.id)
    await harness.settle()
    assert harness.leftovers() == {}
    await harness.run_pod()


async def test_stops_and_removals_may_run_at_once(harness: NodeHarness) -> None:
    sandbox = await harness.run_pod()
    await harness.start(sandbox)
    await asyncio.gather(
        harness.pods.remove_pod_sandbox(sandbox.id),
        harness.pods.stop_pod_sandbox(sandbox.id),
        harness.pods.remove_pod_sandbox(sandbox.id),
    )
    await harness.settle()
    assert harness.leftovers() == {}


async def test_ten_callers_at_once_stop_and_remove_a_pod_that_is_being_made(
    harness: NodeHarness,
) -> None:
    hold = harness.points.hold("runtime.ran")
    call = asyncio.ensure_future(outcome_of(harness.pods.run_pod_sandbox(pod_config(), "")))
    await hold.reached.wait()
    [sandbox] = harness.sandboxes
    callers = [
        asyncio.ensure_future(
            harness.pods.remove_pod_sandbox(sandbox.id)
            if number % 2
            else harness.pods.stop_pod_sandbox(sandbox.id)
        )
        for number in range(10)
    ]
    await turn_over()
    hold.release()
    await asyncio.gather(*callers)
    assert isinstance(await call, CriShimError)
    await harness.settle()
    assert harness.leftovers() == {}
    await harness.run_pod()


async def test_ten_callers_at_once_remove_a_pod_with_its_containers(harness: NodeHarness) -> None:
    sandbox = await harness.run_pod()
    await asyncio.gather(*(harness.start(sandbox, name) for name in ("one", "two")))
    await asyncio.gather(*(harness.pods.remove_pod_sandbox(sandbox.id) for _ in range(10)))
    assert harness.leftovers() == {}
    assert harness.points.passed.count("cni.del") == 1


async def test_a_removal_that_failed_is_finished_by_the_next(harness: NodeHarness) -> None:
    sandbox = await harness.run_pod()
    harness.points.fail("remove_tree root", OSError(errno.EIO, "disk"))
    with pytest.raises(OSError, match="disk"):
        await harness.pods.remove_pod_sandbox(sandbox.id)
    assert harness.pods.list_pod_sandbox() == [sandbox]
    harness.points.heal()
    await harness.pods.remove_pod_sandbox(sandbox.id)
    assert harness.leftovers() == {}


async def test_a_pod_removed_while_a_container_is_made_keeps_neither(harness: NodeHarness) -> None:
    sandbox = await harness.run_pod()
    hold = harness.points.hold("monitor.created")
    creation = asyncio.ensure_future(
        outcome_of(
            harness.containers.create_container(sandbox.id, container_config(), sandbox.config)
        )
    )
    await hold.reached.wait()
    await harness.pods.remove_pod_sandbox(sandbox.id)
    # Not only in the end: the runtime still hangs.
    assert harness.leftovers() == {}
    assert "was stopped during the creation of container" in str(await creation)


async def test_a_container_that_is_nothing_yet_is_not_made_after_its_pods_removal(
    harness: NodeHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    sandbox = await harness.run_pod()
    reached, go = asyncio.Event(), asyncio.Event()

    async def as_json_aside(message: api.ContainerConfig) -> msgspec.Raw:
        reached.set()
        await go.wait()
        return as_json(message)

    monkeypatch.setattr("cri_shim.sandbox.creation.as_json_aside", as_json_aside)
    call = harness.containers.create_container(sandbox.id, container_config(), sandbox.config)
    creation = asyncio.ensure_future(outcome_of(call))
    await reached.wait()
    await harness.pods.remove_pod_sandbox(sandbox.id)
    go.set()
    assert "not ready: stopped" in str(await creation)
    assert harness.leftovers() == {}


@pytest.mark.parametrize("point", ["cni.add", "runtime.run", "runtime.ran"])
async def test_a_pod_removed_while_it_is_made_is_undone(harness: NodeHarness, point: str) -> None:
    hold = harness.points.hold(point)
    creation = asyncio.ensure_future(outcome_of(harness.pods.run_pod_sandbox(pod_config(), "")))
    await hold.reached.wait()
    [sandbox] = harness.sandboxes
    await harness.pods.remove_pod_sandbox(sandbox.id)
    assert harness.leftovers() == {}
    assert "stopped during its creation" in str(await creation)


async def test_a_pod_is_removed_with_a_container_whose_creation_could_not_be_undone(
    harness: NodeHarness,
) -> None:
    sandbox = await harness.run_pod()
    harness.points.fail("monitor.created", RuntimeCommandError("x", ["runc"], "failed", "no"))
    harness.points.fail("cgroup.kill", CriShimError("busy"))
    with pytest.raises(RuntimeCommandError):
        await harness.create(sandbox)
    harness.points.heal()
    await harness.pods.remove_pod_sandbox(sandbox.id)
    await harness.settle()
    assert harness.leftovers() == {}


async def test_a_container_that_is_being_started_ends_with_its_pod(harness: NodeHarness) -> None:
    sandbox = await harness.run_pod()
    container = await harness.create(sandbox)
    hold = harness.points.hold("runtime.start")
    start = asyncio.ensure_future(outcome_of(harness.containers.start_container(container.id)))
    await hold.reached.wait()
    stop = asyncio.ensure_future(harness.pods.stop_pod_sandbox(sandbox.id))
    await turn_over()
    hold.release()
    await start
    await stop
    await harness.settle()
    assert container.state is ContainerState.EXITED
    await harness.pods.remove_pod_sandbox(sandbox.id)
    assert harness.leftovers() == {}


# --- on its own --------------------------------------------------------------------------------------------------


async def test_a_pod_whose_pause_process_ends_is_not_ready_and_says_why(
    harness: NodeHarness,
) -> None:
    sandbox = await harness.run_pod()
    assert sandbox.status.process
    harness.kernel.end(sandbox.status.process.pid, 137)
    await until(lambda: sandbox.state is SandboxState.NOT_READY)
    assert "pause container ended" in sandbox.status.reason
    assert not sandbox.status.torn_down
    await harness.pods.remove_pod_sandbox(sandbox.id)
    assert harness.leftovers() == {}


async def test_the_first_reason_why_a_pod_is_not_ready_stays(harness: NodeHarness) -> None:
    sandbox = await harness.run_pod()
    harness.pods.on_exit(sandbox)
    reason = sandbox.status.reason
    await harness.pods.stop_pod_sandbox(sandbox.id)
    assert sandbox.status.reason == reason


# --- looking -----------------------------------------------------------------------------------------------------


async def test_a_sandbox_is_found_by_its_id_or_a_prefix_of_it(harness: NodeHarness) -> None:
    sandbox = await harness.run_pod()
    assert harness.pods.find(sandbox.id) is sandbox
    assert harness.pods.find(sandbox.id[:12]) is sandbox
    with pytest.raises(NotFoundError):
        harness.pods.find("nothing")


# --- the pause image ---------------------------------------------------------------------------------------------


async def test_the_built_in_pause_image_is_imported_once_at_its_first_use() -> None:
    images = FakeImages()
    images.forget(PAUSE_REFERENCE)
    pause = PauseImage(images, None, FakePuller(images).pull)  # type: ignore[arg-type]
    first, second = await asyncio.gather(pause.get(), pause.get())
    assert first is second
    assert images.imports == [PAUSE_REFERENCE]
    assert pause.layers(first)


async def test_the_last_pod_of_a_removed_pause_image_gives_its_layers_back(
    harness: NodeHarness,
) -> None:
    one, two = await harness.run_pod("one"), await harness.run_pod("two")
    await harness.pods.remove_pod_sandbox(one.id)
    assert harness.images.sweeps == 0
    harness.images.forget(PAUSE_REFERENCE)
    await harness.pods.remove_pod_sandbox(two.id)
    assert harness.images.sweeps == 1
    assert harness.leftovers() == {}


async def test_a_configured_pause_image_is_pulled_when_it_is_not_there() -> None:
    images = FakeImages()
    pause = PauseImage(images, "registry.example/pause:3", FakePuller(images).pull)  # type: ignore[arg-type]
    assert "registry.example/pause:3" in (await pause.get()).repo_tags
    assert images.pulls == ["registry.example/pause:3"]
    await pause.get()
    assert images.pulls == ["registry.example/pause:3"]
