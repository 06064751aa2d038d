"""Containers: made whole or not at all, started once, removed, found."""

from __future__ import annotations

import asyncio
import errno
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import pytest

from cri_shim._pb.cri.v1 import api_pb2 as api
from cri_shim.errors import (
    AlreadyExistsError,
    CriShimError,
    DeadlineError,
    InvalidArgumentError,
    MonitorError,
    NotFoundError,
    ProgramError,
    RuntimeCommandError,
    UnavailableError,
    WrongStateError,
)
from cri_shim.oci.spec.inputs import DeviceNode
from cri_shim.sandbox.container_resources import resources_in_force
from cri_shim.sandbox.spec import container_specs as specs_module
from cri_shim.sandbox.store.model import ContainerState
from cri_shim.single_flight import SupersededError
from tests.fakes.clock import turn_over, until
from tests.fakes.node_harness import container_config, pod_config
from tests.unit.sandbox.interruptions import (
    UNDO_EFFECTS,
    let_an_undo_run,
    outcome_of,
    record_steps,
    stop_at,
)
from tests.unit.sandbox.looking import exited, process_of

if TYPE_CHECKING:
    from typing import Any

    from cri_shim.sandbox.store.store import Container, Sandbox
    from tests.fakes.node_harness import NodeHarness
    from tests.unit.conftest import Observe

pytestmark = pytest.mark.asyncio

STEPS = ("record", "bundle", "rootfs", "monitor", "process", "commit")
POINTS = (
    *("overlay.mount", "overlay.mounted", "monitor.spawn", "accounts.read"),
    *("monitor.create", "monitor.created"),
)
REFUSED = RuntimeCommandError("creating", ["runc"], "failed", "no such file or directory")


async def create_in(harness: NodeHarness, sandbox: Sandbox, **labels: str) -> str:
    config = container_config()
    config.labels.update(labels)
    return await harness.containers.create_container(sandbox.id, config, sandbox.config)


def only_the_pod(harness: NodeHarness, before: dict[str, object]) -> None:
    """Nothing has come to what was there `before`."""
    assert harness.leftovers() == before


# --- CreateContainer: complete -----------------------------------------------------------------------------------


async def test_a_created_container_waits_for_its_start(harness: NodeHarness) -> None:
    container = await harness.create(await harness.run_pod())
    status = container.status
    assert container.state is ContainerState.CREATED
    assert status.process is not None
    assert status.user is not None
    assert (status.user.uid, status.user.gid) == (0, 0)
    assert harness.runtime.containers[container.id].status == "created"
    assert container.record.image_ref == "busybox@sha256:" + "d" * 64
    assert harness.containers.list_containers() == [container]


async def test_an_image_without_digest_is_shown_by_its_id(harness: NodeHarness) -> None:
    image = harness.images.add("mine")
    sandbox = await harness.run_pod()
    config = container_config()
    config.image.image = "mine"
    created = await harness.containers.create_container(sandbox.id, config, sandbox.config)
    assert harness.containers.find(created).record.image_ref == image.id


async def test_its_record_survives_the_daemon(harness: NodeHarness) -> None:
    container = await harness.create(await harness.run_pod())
    [(_, again)] = harness.stored.load()
    assert not isinstance(again, CriShimError)
    assert again.record == container.record
    assert again.status == container.status
    assert again.config == container.config


async def test_its_variables_and_words_are_only_on_record_once_it_is_made(
    harness: NodeHarness,
) -> None:
    sandbox = await harness.run_pod()
    config = container_config()
    config.args.append("a-word")
    config.envs.add(key="K", value=b"v")
    made = await harness.containers.create_container(sandbox.id, config, sandbox.config)
    assert await harness.containers.create_container(sandbox.id, config, sandbox.config) == made
    container = harness.containers.find(made)
    [(_, again)] = harness.stored.load()
    assert not isinstance(again, CriShimError)
    for kept in (container.config, again.config):
        assert (list(kept.envs), list(kept.command), list(kept.args)) == ([], [], [])
        assert kept.metadata == config.metadata
    shown = json.loads(msgspec.json.encode(await harness.containers.verbose_info(container)))
    assert shown["config"]["args"] == ["a-word"]
    assert shown["runtimeSpec"]["process"]["args"] == ["sleep", "9", "a-word"]


async def test_its_monitor_is_told_where_the_log_goes_and_the_directory_is_made(
    harness: NodeHarness, tmp_path: Path
) -> None:
    logs = tmp_path / "logs"
    sandbox = harness.pods.find(
        await harness.pods.run_pod_sandbox(pod_config(log_directory=str(logs)), "")
    )
    config = container_config()
    config.log_path = "main/0.log"
    config.tty = config.stdin = config.stdin_once = True
    created = await harness.containers.create_container(sandbox.id, config, sandbox.config)
    request = harness.monitors.requests[-1]
    assert request.log_file == logs / "main/0.log"
    assert (logs / "main").is_dir()
    assert (request.terminal, request.stdin, request.stdin_once) == (True, True, True)
    assert harness.containers.find(created).record.log_path == str(logs / "main/0.log")


# --- CreateContainer: refused ------------------------------------------------------------------------------------


async def test_a_container_needs_a_sandbox(harness: NodeHarness) -> None:
    with pytest.raises(NotFoundError, match="sandbox"):
        await harness.containers.create_container("0" * 64, container_config(), pod_config())


async def test_a_container_needs_a_sandbox_that_is_ready(harness: NodeHarness) -> None:
    sandbox = await harness.run_pod()
    await harness.pods.stop_pod_sandbox(sandbox.id)
    before = harness.leftovers()
    with pytest.raises(WrongStateError, match="not ready: stopped"):
        await create_in(harness, sandbox)
    only_the_pod(harness, before)


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"image": api.ImageSpec(image="missing")}, NotFoundError),
        ({"log_path": "../escape.log"}, InvalidArgumentError),
        ({"log_path": "/absolute.log"}, InvalidArgumentError),
        ({"stop_signal": 4000}, InvalidArgumentError),
    ],
    ids=str,
)
async def test_what_no_container_can_be_is_refused_before_anything_is_made(
    harness: NodeHarness, tmp_path: Path, change: dict[str, Any], error: type[CriShimError]
) -> None:
    sandbox = harness.pods.find(
        await harness.pods.run_pod_sandbox(pod_config(log_directory=str(tmp_path / "logs")), "")
    )
    before, passed = harness.leftovers(), len(harness.points.passed)
    config = container_config()
    config.MergeFrom(api.ContainerConfig(**change))
    with pytest.raises(error):
        await harness.containers.create_container(sandbox.id, config, sandbox.config)
    only_the_pod(harness, before)
    assert len(harness.points.passed) == passed


async def test_what_only_the_spec_refuses_is_undone(harness: NodeHarness) -> None:
    sandbox = await harness.run_pod()
    before = harness.leftovers()
    config = container_config()
    config.working_dir = "relative"
    with pytest.raises(InvalidArgumentError, match="working_dir"):
        await harness.containers.create_container(sandbox.id, config, sandbox.config)
    only_the_pod(harness, before)


@pytest.mark.parametrize("error", [errno.EISDIR, errno.ELOOP, errno.EFBIG])
async def test_what_is_no_account_file_names_no_accounts(harness: NodeHarness, error: int) -> None:
    harness.points.fail("accounts.read", OSError(error, "not that"))
    container = await harness.create(await harness.run_pod())
    assert container.status.user is not None
    assert (container.status.user.uid, container.status.user.gid) == (0, 0)


NO_DIRECTORY = "error during container init: mkdir /data/x: read-only file system"
NO_PROGRAM = 'unable to start container process: exec: "nope": executable file not found in $PATH'


def config_without_program(harness: NodeHarness) -> api.ContainerConfig:
    """What `without_program` asks for."""
    config = container_config()
    config.mounts.add(container_path="/data", host_path=str(harness.base))
    config.working_dir = "/data/x/y"
    return config


async def without_program(harness: NodeHarness, words: str = NO_PROGRAM) -> Container:
    """A container whose program the runtime can't run, in these words."""
    sandbox = await harness.run_pod()
    harness.points.fail(
        "monitor.created", RuntimeCommandError("creating", ["runc"], "failed", words)
    )
    config = config_without_program(harness)
    created = await harness.containers.create_container(sandbox.id, config, sandbox.config)
    harness.points.heal()
    return harness.containers.find(created)


@pytest.mark.parametrize("words", [NO_DIRECTORY, NO_PROGRAM])
async def test_a_program_that_can_not_be_run_fails_the_start_and_not_the_creation(
    harness: NodeHarness, words: str
) -> None:
    container = await without_program(harness, words)
    created = container.status
    assert (created.state, created.process) == (ContainerState.CREATED, None)
    assert created.user is not None
    with pytest.raises(ProgramError, match=re.escape(words)):
        await harness.containers.start_container(container.id)
    status = container.status
    assert (status.state, status.exit_code, status.reason) == ("exited", 128, "StartError")
    assert (status.message, status.started_at_ns) == (words, 0)
    assert container.ended.is_set()
    with pytest.raises(WrongStateError, match="exited"):
        await harness.containers.start_container(container.id)


async def test_a_container_without_a_program_holds_nothing_but_files(harness: NodeHarness) -> None:
    sandbox = await harness.run_pod()
    before = harness.leftovers()
    container = await without_program(harness)
    left = harness.leftovers()
    changed = {kind for kind in left if left[kind] != before.get(kind)}
    assert changed == {"containers", "files", "mounts"}
    await harness.containers.remove_container(container.id)
    only_the_pod(harness, before)
    assert sandbox.id == container.sandbox_id


async def test_a_retry_finds_the_container_without_a_program(harness: NodeHarness) -> None:
    container = await without_program(harness)
    sandbox = harness.pods.find(container.sandbox_id)
    config = config_without_program(harness)
    again = await harness.containers.create_container(sandbox.id, config, sandbox.config)
    assert again == container.id


async def test_a_stop_of_a_container_without_a_program_is_its_end_at_once(
    harness: NodeHarness,
) -> None:
    container = await without_program(harness)
    passed = len(harness.points.passed)
    await harness.containers.stop_container(container.id, 30)
    assert (container.status.exit_code, container.status.reason) == (128, "StartError")
    assert len(harness.points.passed) == passed, "there was nothing to kill"
    await harness.containers.stop_container(container.id, 30)


async def test_an_update_of_a_container_without_a_program_is_remembered(
    harness: NodeHarness,
) -> None:
    container = await without_program(harness)
    wanted = api.LinuxContainerResources(cpu_shares=512)
    await harness.containers.update_container_resources(container.id, wanted, {})
    assert resources_in_force(container).cpu_shares == 512
    assert harness.runtime.updates == []


async def test_what_a_failed_program_left_must_be_gone_before_the_container_is_there(
    harness: NodeHarness,
) -> None:
    await harness.run_pod()
    before = harness.leftovers()
    harness.points.fail("cgroup.remove", CriShimError("busy"))
    with pytest.raises(CriShimError, match="busy"):
        await without_program(harness)
    [failed] = harness.containers.list_containers()
    assert failed.status.reason == "CreateContainerError"
    harness.points.heal()
    await harness.containers.remove_container(failed.id)
    only_the_pod(harness, before)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (
            "mknod /run/c/rootfs/opt/b: read-only file system",
            r"^devices\[1\]\.container_path: no device can be created at '/opt/b'",
        ),
        (
            "mknod /run/c/rootfs/dev/snd/one: read-only",
            r"^devices\[0\]\.container_path: no device can be created at '/dev/snd'",
        ),
        ("mknod /run/c/rootfs/opt/bc: read-only file system", "^creating: runc failed"),
        (
            "write /sys/fs/cgroup/cpuset/c/cpuset.cpus: invalid argument",
            "^cpuset_cpus: the kernel rejected the value '7'",
        ),
        ("write /sys/fs/cgroup/c/memory.high: invalid argument", "^creating: runc failed"),
        ("unable to set memory limit to 4096", "^memory_limit_in_bytes: 4096"),
        ("something else", "^creating: runc failed: something else"),
    ],
)
async def test_words_of_the_runtime_about_a_field_are_said_with_its_name(
    harness: NodeHarness, monkeypatch: pytest.MonkeyPatch, words: str, says: str
) -> None:
    node = DeviceNode("/dev/x", "c", 9, 9)
    monkeypatch.setattr(specs_module, "device_nodes", lambda _path: (node,))
    sandbox = await harness.run_pod()
    harness.points.fail(
        "monitor.created", RuntimeCommandError("creating", ["runc"], "failed", words)
    )
    config = container_config()
    config.devices.add(host_path="/dev/snd")
    config.devices.add(host_path="/dev/x", container_path="/opt//b")
    config.linux.resources.memory_limit_in_bytes = 4096
    config.linux.resources.cpuset_cpus = "7"
    with pytest.raises((InvalidArgumentError, RuntimeCommandError), match=says):
        await harness.containers.create_container(sandbox.id, config, sandbox.config)


async def test_image_whose_account_file_a_runtime_would_wait_for_is_refused(
    harness: NodeHarness,
) -> None:
    sandbox = await harness.run_pod()
    before = harness.leftovers()
    harness.points.fail("accounts.read", OSError(errno.EINVAL, "not a regular file"))
    with pytest.raises(InvalidArgumentError, match=r"image: '/etc/passwd': is not a regular file"):
        await harness.create(sandbox)
    only_the_pod(harness, before)
    config = container_config()
    config.mounts.add(container_path="/etc/../etc", host_path=str(harness.base))
    await harness.containers.create_container(sandbox.id, config, sandbox.config)


async def test_a_log_directory_that_cannot_be_made_is_said(
    harness: NodeHarness, tmp_path: Path
) -> None:
    logs = tmp_path / "logs"
    sandbox = harness.pods.find(
        await harness.pods.run_pod_sandbox(pod_config(log_directory=str(logs)), "")
    )
    before = harness.leftovers()
    (logs / "main").write_text("in the way")
    config = container_config()
    config.log_path = "main/0.log"
    with pytest.raises(
        CriShimError, match=r"config\.log_path: .*/main is a symbolic link or not a regular file"
    ):
        await harness.containers.create_container(sandbox.id, config, sandbox.config)
    only_the_pod(harness, before)


# --- CreateContainer: interrupted --------------------------------------------------------------------------------


async def test_the_steps_and_the_points_below_are_all_there_are(
    harness: NodeHarness, observe: Observe
) -> None:
    sandbox = await harness.run_pod()
    harness.points.passed.clear()
    seen = record_steps(observe)
    await harness.create(sandbox)
    assert tuple(seen) == STEPS
    assert tuple(dict.fromkeys(harness.points.passed)) == POINTS


@pytest.mark.parametrize("step", STEPS)
async def test_a_creation_stopped_at_any_step_leaves_nothing_and_frees_the_name(
    harness: NodeHarness, observe: Observe, step: str
) -> None:
    sandbox = await harness.run_pod()
    before = harness.leftovers()
    stop_at(observe, step)
    with pytest.raises(RuntimeError, match=f"stopped at {step}"):
        await create_in(harness, sandbox)
    await harness.settle()
    only_the_pod(harness, before)
    observe(None)
    await create_in(harness, sandbox)


@pytest.mark.parametrize("point", POINTS)
async def test_a_failing_effect_is_reported_as_it_is_and_leaves_nothing(
    harness: NodeHarness, point: str
) -> None:
    sandbox = await harness.run_pod()
    before = harness.leftovers()
    harness.points.fail(point, MonitorError("creating", ["conmon"], "was killed", ""))
    with pytest.raises(MonitorError):
        await create_in(harness, sandbox)
    await harness.settle()
    only_the_pod(harness, before)
    harness.points.heal()
    await create_in(harness, sandbox)


@pytest.mark.parametrize("step", [step for step in STEPS if step in UNDO_EFFECTS])
async def test_what_could_not_be_undone_is_listed_exited_and_removed_later(
    harness: NodeHarness, step: str
) -> None:
    sandbox = await harness.run_pod()
    before = harness.leftovers()
    harness.points.fail("monitor.created", REFUSED)
    harness.points.fail(UNDO_EFFECTS[step], OSError(errno.EBUSY, "not now"))
    with pytest.raises(RuntimeCommandError, match="no such file"):
        await create_in(harness, sandbox)
    [container] = harness.containers.list_containers()
    assert container.state is ContainerState.EXITED
    assert container.status.reason == "CreateContainerError"
    assert not container.config.command, "it is listed until it is removed, its words are not kept"
    assert container.config.metadata.name == "main"
    assert step in container.status.message

    harness.points.heal()
    await harness.containers.stop_container(container.id, 10)
    await harness.containers.remove_container(container.id)
    await harness.settle()
    only_the_pod(harness, before)
    await create_in(harness, sandbox)


@pytest.mark.parametrize("point", POINTS)
async def test_a_caller_that_goes_away_leaves_the_work_to_its_retry(
    harness: NodeHarness, point: str
) -> None:
    sandbox = await harness.run_pod()
    before = harness.leftovers()
    hold = harness.points.hold(point)
    first = asyncio.ensure_future(create_in(harness, sandbox))
    await hold.reached.wait()
    first.cancel()
    assert isinstance(await outcome_of(first), asyncio.CancelledError)
    retry = asyncio.ensure_future(create_in(harness, sandbox))
    await turn_over()
    hold.release()
    container_id = await retry
    assert [c.id for c in harness.stored] == [container_id]
    assert harness.points.passed.count("monitor.spawn") == 1
    await harness.containers.remove_container(container_id)
    only_the_pod(harness, before)


@pytest.mark.parametrize("point", POINTS)
async def test_a_different_request_undoes_the_one_under_way_and_takes_its_place(
    harness: NodeHarness, point: str
) -> None:
    sandbox = await harness.run_pod()
    before = harness.leftovers()
    hold = harness.points.hold(point)
    first = asyncio.ensure_future(create_in(harness, sandbox))
    await hold.reached.wait()
    second = asyncio.ensure_future(create_in(harness, sandbox, version="2"))
    await let_an_undo_run(point)
    hold.release()
    assert isinstance(await outcome_of(first), SupersededError)
    container = harness.containers.find(await second)
    assert container.config.labels["version"] == "2"
    assert [c.id for c in harness.stored] == [container.id]
    await harness.containers.remove_container(container.id)
    await harness.settle()
    only_the_pod(harness, before)


@pytest.mark.parametrize("point", POINTS)
async def test_a_daemon_that_stops_undoes_what_does_not_end_in_time(
    harness: NodeHarness, point: str
) -> None:
    sandbox = await harness.run_pod()
    before = harness.leftovers()
    hold = harness.points.hold(point)
    call = asyncio.ensure_future(outcome_of(create_in(harness, sandbox)))
    await hold.reached.wait()
    closing = asyncio.ensure_future(harness.containers.close(0))
    await let_an_undo_run(point)
    hold.release()
    await closing
    outcome = await call
    assert type(outcome) is UnavailableError
    assert "the server is stopping" in str(outcome)
    await harness.settle()
    only_the_pod(harness, before)


async def test_a_record_that_could_not_be_removed_is_listed_exited_and_removed_later(
    harness: NodeHarness,
) -> None:
    sandbox = await harness.run_pod()
    before = harness.leftovers()
    harness.points.fail("monitor.created", REFUSED)
    harness.points.fail("remove_tree root", OSError(errno.EIO, "disk"))
    with pytest.raises(RuntimeCommandError, match="no such file"):
        await create_in(harness, sandbox)
    [container] = harness.containers.list_containers()
    assert (container.state, container.ended.is_set()) == (ContainerState.EXITED, True)
    assert "record" in container.status.message

    harness.points.heal()
    await harness.containers.remove_container(container.id)
    only_the_pod(harness, before)
    await create_in(harness, sandbox)


async def test_what_is_undone_at_its_very_end_reports_no_exit(
    harness: NodeHarness, observe: Observe
) -> None:
    sandbox = await harness.run_pod()
    stop_at(observe, "commit")
    with pytest.raises(RuntimeError):
        await create_in(harness, sandbox)
    await harness.settle()
    assert harness.reported == []


async def test_a_process_that_ends_before_its_creation_is_complete_fails_it(
    harness: NodeHarness,
) -> None:
    sandbox = await harness.run_pod()
    before = harness.leftovers()
    hold = harness.points.hold("monitor.created")
    call = asyncio.ensure_future(outcome_of(create_in(harness, sandbox)))
    await hold.reached.wait()
    [process] = [p for p in harness.kernel.processes.values() if p.argv == ("sleep", "9")]
    harness.kernel.end(process.pid, 1)
    hold.release()
    assert "ended before its start" in str(await call)
    await harness.settle()
    only_the_pod(harness, before)
    assert harness.reported == []


async def test_a_pod_stopped_while_a_container_is_made_has_it_undone(harness: NodeHarness) -> None:
    sandbox = await harness.run_pod()
    hold = harness.points.hold("monitor.created")
    call = asyncio.ensure_future(outcome_of(create_in(harness, sandbox)))
    await hold.reached.wait()
    [creating] = harness.stored
    with pytest.raises(NotFoundError, match="still being created"):
        harness.containers.find(creating.id)
    with pytest.raises(WrongStateError, match="still being created"):
        await harness.containers.remove_container(creating.id)
    assert harness.containers.list_containers() == []
    await harness.pods.stop_pod_sandbox(sandbox.id)
    hold.release()
    assert isinstance(await call, WrongStateError)
    assert sorted(harness.leftovers()) == ["files", "sandboxes"]


# --- CreateContainer: again --------------------------------------------------------------------------------------


async def test_a_retry_gets_the_container_that_is_there(harness: NodeHarness) -> None:
    sandbox = await harness.run_pod()
    ids = await asyncio.gather(*(create_in(harness, sandbox) for _ in range(4)))
    assert len(set(ids)) == 1
    assert await create_in(harness, sandbox) == ids[0]


async def test_a_name_that_another_container_holds_is_refused(harness: NodeHarness) -> None:
    sandbox = await harness.run_pod()
    first = await create_in(harness, sandbox)
    with pytest.raises(AlreadyExistsError, match=first):
        await create_in(harness, sandbox, version="2")
    await harness.containers.start_container(first)
    with pytest.raises(AlreadyExistsError, match="running"):
        await create_in(harness, sandbox)


async def test_two_pods_may_have_containers_of_one_name(harness: NodeHarness) -> None:
    one, two = await harness.run_pod("one"), await harness.run_pod("two")
    assert await create_in(harness, one) != await create_in(harness, two)


# --- StartContainer ----------------------------------------------------------------------------------------------


async def test_a_started_container_runs(harness: NodeHarness) -> None:
    container = await harness.start(await harness.run_pod())
    assert container.state is ContainerState.RUNNING
    assert container.status.started_at_ns >= container.status.committed_at_ns


async def test_only_a_created_container_can_be_started(harness: NodeHarness) -> None:
    container = await harness.start(await harness.run_pod())
    with pytest.raises(WrongStateError, match="running, not created"):
        await harness.containers.start_container(container.id)
    with pytest.raises(NotFoundError):
        await harness.containers.start_container("0" * 64)


async def test_starts_at_once_share_one(harness: NodeHarness) -> None:
    container = await harness.create(await harness.run_pod())
    harness.points.passed.clear()
    outcomes = await asyncio.gather(
        *(outcome_of(harness.containers.start_container(container.id)) for _ in range(3))
    )
    assert outcomes == [None] * 3
    assert harness.points.passed.count("runtime.start") == 1


@pytest.mark.parametrize("point", ["runtime.start", "runtime.started"])
async def test_a_start_whose_caller_goes_away_goes_on(harness: NodeHarness, point: str) -> None:
    container = await harness.create(await harness.run_pod())
    hold = harness.points.hold(point)
    call = asyncio.ensure_future(harness.containers.start_container(container.id))
    await hold.reached.wait()
    call.cancel()
    assert isinstance(await outcome_of(call), asyncio.CancelledError)
    hold.release()
    await until(lambda: container.state is ContainerState.RUNNING)
    assert harness.runtime.containers[container.id].status == "running"


@pytest.mark.parametrize("point", ["runtime.start", "runtime.started"])
async def test_a_retried_start_joins_the_one_under_way(harness: NodeHarness, point: str) -> None:
    container = await harness.create(await harness.run_pod())
    harness.points.passed.clear()
    hold = harness.points.hold(point)
    first = asyncio.ensure_future(harness.containers.start_container(container.id))
    await hold.reached.wait()
    first.cancel()
    await outcome_of(first)
    retry = asyncio.ensure_future(harness.containers.start_container(container.id))
    await turn_over()
    hold.release()
    await retry
    assert container.state is ContainerState.RUNNING
    assert harness.points.passed.count("runtime.start") == 1


async def test_a_start_that_a_stopping_daemon_cuts_short_is_said_to_be(
    harness: NodeHarness,
) -> None:
    container = await harness.create(await harness.run_pod())
    hold = harness.points.hold("runtime.start")
    call = asyncio.ensure_future(outcome_of(harness.containers.start_container(container.id)))
    await hold.reached.wait()
    await harness.containers.close(0)
    assert type(await call) is UnavailableError
    assert container.state is ContainerState.CREATED


async def test_nothing_is_started_in_a_pod_that_is_not_ready(harness: NodeHarness) -> None:
    sandbox = await harness.run_pod()
    container = await harness.create(sandbox)
    harness.pods.on_exit(sandbox)
    with pytest.raises(WrongStateError, match="not ready"):
        await harness.containers.start_container(container.id)
    assert container.state is ContainerState.CREATED


async def test_a_refused_start_leaves_an_exited_container_that_holds_nothing(
    harness: NodeHarness,
) -> None:
    sandbox = await harness.run_pod()
    container = await harness.create(sandbox)
    harness.points.fail(
        "runtime.start",
        RuntimeCommandError("starting", ["runc"], "failed", 'exec: "nope": not found'),
    )
    with pytest.raises(RuntimeCommandError, match="nope"):
        await harness.containers.start_container(container.id)
    status = container.status
    assert container.state is ContainerState.EXITED
    assert (status.exit_code, status.reason) == (128, "StartError")
    assert "nope" in status.message
    await harness.settle()
    assert container.status.torn_down
    assert container.id not in harness.runtime.containers
    assert [p.argv for p in harness.kernel.processes.values()] == [("/pause",)]


async def test_a_refused_start_says_why_even_if_the_runtime_then_says_nothing_more(
    harness: NodeHarness,
) -> None:
    container = await harness.create(await harness.run_pod())
    harness.points.fail(
        "runtime.start", RuntimeCommandError("starting", ["runc"], "failed", "the cause")
    )
    harness.points.fail("runtime.state", DeadlineError("runc state hangs"))
    with pytest.raises(RuntimeCommandError, match="the cause"):
        await harness.containers.start_container(container.id)
    assert (container.status.reason, container.status.exit_code) == ("StartError", 128)
    assert "the cause" in container.status.message
    await harness.settle()
    assert container.status.torn_down


async def test_what_a_refused_start_leaves_is_torn_down_once_that_is_possible(
    harness: NodeHarness,
) -> None:
    container = await harness.create(await harness.run_pod())
    harness.points.fail("runtime.start", RuntimeCommandError("starting", ["runc"], "failed", "no"))
    harness.points.fail("cgroup.remove", CriShimError("busy"))
    with pytest.raises(RuntimeCommandError):
        await harness.containers.start_container(container.id)
    await until(lambda: harness.points.passed.count("cgroup.remove") > 1)
    assert not container.status.torn_down
    harness.points.heal()
    await until(lambda: container.status.torn_down)
    assert harness.cgroup_paths.directory_of(container) not in harness.kernel.cgroups.dirs


async def test_a_start_that_an_earlier_call_began_is_taken_for_done(harness: NodeHarness) -> None:
    container = await harness.create(await harness.run_pod())
    await harness.runtime.start(
        container.id, Path("/nonexistent")
    )  # by a daemon that did not live to note it
    await harness.containers.start_container(container.id)
    assert container.state is ContainerState.RUNNING


async def test_an_exit_during_the_start_is_noted_after_it(harness: NodeHarness) -> None:
    sandbox = await harness.run_pod()
    container = await harness.create(sandbox)
    harness.runtime.on_start = lambda process: harness.kernel.end(process.pid, 3)
    hold = harness.points.hold("runtime.started")
    call = asyncio.ensure_future(harness.containers.start_container(container.id))
    await hold.reached.wait()
    await turn_over()
    assert container.state is ContainerState.CREATED
    hold.release()
    await call
    await exited(container)
    assert container.status.started_at_ns > 0
    assert container.status.exit_code == 3


# --- RemoveContainer ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", ["created", "running", "exited"])
async def test_a_container_is_removed_in_any_state(harness: NodeHarness, state: str) -> None:
    sandbox = await harness.run_pod()
    before = harness.leftovers()
    container = await (harness.create if state == "created" else harness.start)(sandbox)
    if state == "exited":
        harness.kernel.end(process_of(harness, container).pid, 0)
        await exited(container)
    await harness.containers.remove_container(container.id)
    await harness.settle()
    only_the_pod(harness, before)
    assert harness.containers.list_containers() == []
    await create_in(harness, sandbox)


async def test_removing_what_is_gone_succeeds(harness: NodeHarness) -> None:
    await harness.containers.remove_container("0" * 64)


async def test_concurrent_removals_and_stops_agree(harness: NodeHarness) -> None:
    sandbox = await harness.run_pod()
    before = harness.leftovers()
    container = await harness.start(sandbox)
    await asyncio.gather(
        harness.containers.remove_container(container.id),
        harness.containers.stop_container(container.id, 30),
        harness.containers.remove_container(container.id),
    )
    await harness.settle()
    only_the_pod(harness, before)


@pytest.mark.parametrize("effect", [*UNDO_EFFECTS.values(), "cgroup.remove", "remove_tree root"])
async def test_a_removal_that_failed_is_finished_by_the_next(
    harness: NodeHarness, effect: str
) -> None:
    sandbox = await harness.run_pod()
    before = harness.leftovers()
    container = await harness.start(sandbox)
    harness.points.fail(effect, CriShimError("not now"))
    outcome = await outcome_of(harness.containers.remove_container(container.id))
    harness.points.heal()
    if outcome is not None:
        assert harness.stored.get(container.id) is container
    await harness.containers.remove_container(container.id)
    await harness.settle()
    only_the_pod(harness, before)


async def test_the_last_container_of_a_removed_image_gives_its_layers_back(
    harness: NodeHarness,
) -> None:
    sandbox = await harness.run_pod()
    one, two = await harness.create(sandbox, "one"), await harness.create(sandbox, "two")
    await harness.containers.remove_container(one.id)
    assert harness.images.sweeps == 0
    harness.images.forget("busybox")
    await harness.containers.remove_container(two.id)
    assert harness.images.sweeps == 1


# --- looking, and small things -----------------------------------------------------------------------------------


async def test_a_container_is_found_by_its_id_or_a_prefix_of_it(harness: NodeHarness) -> None:
    container = await harness.create(await harness.run_pod())
    assert harness.containers.find(container.id[:10]) is container


async def test_a_command_needs_a_container_that_runs(harness: NodeHarness) -> None:
    with pytest.raises(NotFoundError):
        await harness.containers.exec_sync("0" * 64, ["true"], 1)
    container = await harness.create(await harness.run_pod())
    with pytest.raises(WrongStateError, match="not running"):
        await harness.containers.exec_sync(container.id[:12], ["true"], 1)


async def test_a_log_is_reopened_by_the_monitor_of_a_running_container(
    harness: NodeHarness, tmp_path: Path
) -> None:
    logs = tmp_path / "logs"
    sandbox = harness.pods.find(
        await harness.pods.run_pod_sandbox(pod_config(log_directory=str(logs)), "")
    )
    config = container_config()
    config.log_path = "0.log"
    created = await harness.containers.create_container(sandbox.id, config, sandbox.config)
    with pytest.raises(WrongStateError, match="not running"):
        await harness.containers.reopen_container_log(created)
    await harness.containers.start_container(created)
    await harness.containers.reopen_container_log(created)
    assert harness.monitors.reopened == [
        (harness.paths.container(created).bundle_dir, logs / "0.log")
    ]


async def test_a_container_without_a_log_has_none_to_reopen(harness: NodeHarness) -> None:
    container = await harness.start(await harness.run_pod())
    with pytest.raises(WrongStateError, match="has no log"):
        await harness.containers.reopen_container_log(container.id)
