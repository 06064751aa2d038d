"""Pods with kernels of their own, and the daemon's death: at every step of their creations, in the middle of each of
their runtime's commands, and with the node. Nothing stays.

With the stand-in for kata-runtime, whose own commands go on without the daemon, and which can't delete what was cut
short; with the real shim of runc; and with the real runsc.
"""

from __future__ import annotations

import os
import shutil
import signal
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import grpc
import pytest

from cri_shim._pb.cri.v1 import api_pb2 as api
from cri_shim.host.mounts import unmount_below
from cri_shim.host.namespaces import remove_netns
from cri_shim.paths import netns_file
from tests.fakes import kata_runtime
from tests.faults.every_step import EveryStep
from tests.faults.interpose import Interposers, Orphaned
from tests.faults.looking import (
    assert_nothing_new,
    container_state,
    is_alive,
    pod_reason,
    wait_until,
)
from tests.faults.test_kill_at_every_step import KINDS, MANY, Creation
from tests.faults.test_reboot import change_boot_id
from tests.faults.test_shims import holder_of
from tests.harness import leaks, procs
from tests.harness.isolation import RUNTIME_DIRS
from tests.integration.scene import Pod
from tests.integration.secure.conftest import KATA, RUNSC, secure_settings
from tests.integration.shim.conftest import SHIM

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.faults.interpose import Moment
    from tests.harness.daemon import Daemon, Daemons

EACH = pytest.mark.parametrize(
    "handler", [KATA, SHIM, pytest.param(RUNSC, marks=[pytest.mark.slow, pytest.mark.runsc])]
)


def of_kata(*verbs: str) -> list[Moment]:
    """The moments of these commands of the stand-in."""
    return [(KATA, verb, moment) for verb in verbs for moment in ("before", "after")]


def comes_and_goes(leak: leaks.Leak) -> bool:
    """gVisor's sandbox on ptrace has a process without a command line for each address space of its own.

    What holds the streams of shims' containers ends with a daemon that had none yet; the next one starts another.
    """
    return leak.kind == "process" and (
        leak.name.startswith("[exe]") or "streams_process" in leak.name
    )


@pytest.fixture
def secure(crash_daemon: Daemon) -> Iterator[Daemon]:
    """The daemon with handlers of both."""
    settings, _ = secure_settings(crash_daemon)
    with crash_daemon.changed_settings(settings):
        crash_daemon.restart()
        yield crash_daemon
        if crash_daemon.pid is None:
            crash_daemon.start()
        crash_daemon.client.remove_all_pods()
    crash_daemon.restart()


@EACH
def test_daemon_killed_at_any_step_leaves_nothing_and_a_retry_succeeds(
    secure: Daemon,
    image: str,
    tmp_path: Path,
    leak_scope: leaks.Scope,
    subtests: pytest.Subtests,
    handler: str,
) -> None:
    steps = EveryStep(secure, tmp_path, "kill")
    secure.kill9()
    secure.start()
    empty = leaks.Snapshot.take(leak_scope)
    for kind in KINDS:
        for _ in range(MANY):
            creation = Creation(secure.client, image, handler=handler)
            if kind == "container":
                creation.make("sandbox")
            before = leaks.Snapshot.take(leak_scope)
            steps.arm()
            try:
                creation.make(kind)
            except grpc.RpcError:
                pass  # as it was meant to be; how it ended is looked at below
            else:
                steps.disarm()
                creation.remove()
                break
            with subtests.test(steps.met()[-1]):
                assert secure.wait_ended() == -signal.SIGKILL
                secure.start()
                if steps.met()[-1] == f"{kind} commit":
                    assert creation.there_are(kind) == [creation.make(kind)]
                else:
                    assert creation.there_are(kind) == []
                    assert_nothing_new(
                        leak_scope, before, "after the restart", of_living=comes_and_goes
                    )
                    creation.make(kind)
                if kind == "container":
                    creation.use()
                creation.remove()
                assert_nothing_new(leak_scope, empty, "after the removal")
    assert len(steps.met()) == len(set(steps.met()))
    assert {"sandbox network", "sandbox process", "container process"} <= set(steps.met())
    steps.end()
    secure.kill9()


@pytest.fixture(scope="module")
def interposers(tmp_path_factory: pytest.TempPathFactory) -> Interposers:
    directory = tmp_path_factory.mktemp("interpose")
    return Interposers(directory, runtimes={KATA: kata_runtime.__file__})


@pytest.fixture(scope="module")
def interposed(
    daemons: Daemons, archives: list[Path], interposers: Interposers
) -> Iterator[Daemon]:
    with daemons.without_leaks(settings=interposers.settings(), archives=archives) as daemon:
        settings, _ = secure_settings(daemon)
        daemon.write_settings(settings)
        daemon.write_settings(interposers.settings())
        daemon.restart()
        yield daemon


@pytest.fixture
def orphaned(interposed: Daemon, interposers: Interposers) -> Orphaned:
    return Orphaned(interposed, interposers)


def test_daemon_killed_while_the_runtime_makes_a_pod(
    interposed: Daemon, orphaned: Orphaned, leak_scope: leaks.Scope, subtests: pytest.Subtests
) -> None:
    client = interposed.client
    for moment in of_kata("create", "start"):
        with subtests.test(" ".join(moment)):
            empty = leaks.Snapshot.take(leak_scope)
            orphaned(moment, lambda: client.run_pod(client.pod_config(), handler=KATA))
            assert client.pods() == []
            assert_nothing_new(leak_scope, empty, "after the restart")


def test_daemon_killed_while_the_runtime_makes_starts_and_uses_a_container(
    interposed: Daemon,
    image: str,
    orphaned: Orphaned,
    leak_scope: leaks.Scope,
    subtests: pytest.Subtests,
) -> None:
    client = interposed.client
    pod = Pod.run(client, image, handler=KATA)
    before = leaks.Snapshot.take(leak_scope)
    for moment in of_kata("create"):
        with subtests.test(" ".join(moment)):
            orphaned(moment, pod.create, pod.container("sleep", "600"))
            assert client.containers() == []
            assert_nothing_new(leak_scope, before, "after the restart")
    container = ""
    for moment in of_kata("start"):
        with subtests.test(" ".join(moment)):
            container = pod.create(pod.container("sleep", "600"))
            orphaned(moment, client.start, container)
            # Whoever finds it created starts it, as the kubelet's next look would.
            if container_state(client, container) == "CONTAINER_CREATED":
                client.start(container)
            assert client.exec(container, "echo", "here").stdout == b"here\n"
    for moment in of_kata("exec"):
        with subtests.test(" ".join(moment)):
            # The attached form ends with its command.
            command = ("true",) if moment[2] == "after" else ("sleep", "4321")
            orphaned(moment, client.exec, container, *command)
            wait_until(lambda: not sleepers("4321"), "the command has ended")
            assert client.exec(container, "echo", "here").stdout == b"here\n"
    client.stop_pod(pod.id)
    client.remove_pod(pod.id)


def sleepers(seconds: str) -> list[procs.Process]:
    """What sleeps that long in the guests, which are PID namespaces here."""
    return [p for p in procs.all_processes() if p.command == f"sleep {seconds}"]


def test_daemon_killed_while_the_runtime_takes_a_pod_away(
    interposed: Daemon,
    image: str,
    orphaned: Orphaned,
    leak_scope: leaks.Scope,
    subtests: pytest.Subtests,
) -> None:
    client = interposed.client
    for verb, containers, call in (("kill", 1, client.stop_pod), ("delete", 0, client.remove_pod)):
        for moment in of_kata(verb):
            with subtests.test(f"{' '.join(moment)}, {containers} containers"):
                empty = leaks.Snapshot.take(leak_scope)
                pod = Pod.run(client, image, handler=KATA)
                for _ in range(containers):
                    pod.sleeper()
                orphaned(moment, call, pod.id)
                client.stop_pod(pod.id)
                client.remove_pod(pod.id)
                assert_nothing_new(leak_scope, empty, "after the removal")


# --- reboots -----------------------------------------------------------------------------------------------------


def end_with_the_node(daemon: Daemon, pod: Pod, pids: list[int]) -> None:
    """Do to a stopped daemon's pod what a reboot does, but to nothing else on this machine."""
    for pid in pids:
        with suppress(ProcessLookupError):  # gone with its parent
            os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not any(map(is_alive, pids)), "everything is dead")
    for directory in (daemon.state, *RUNTIME_DIRS):
        unmount_below(directory)
        for entry in directory.iterdir():
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
    remove_netns(netns_file(pod.id))
    for top, names, _ in os.walk("/sys/fs/cgroup", topdown=False):
        if top.endswith(daemon.cgroup_parent):
            for name in names:
                Path(top, name).rmdir()
    change_boot_id(daemon)


@EACH
@pytest.mark.parametrize("runs_on", [False, True], ids=["rebooted", "still running"])
def test_after_a_reboot_a_pod_is_not_ready_and_goes(
    secure: Daemon, image: str, handler: str, leak_scope: leaks.Scope, *, runs_on: bool
) -> None:
    """What runs on in spite of another boot ID is killed by the Stop."""
    client = secure.client
    empty = leaks.Snapshot.take(leak_scope)
    pod = Pod.run(client, image, handler=handler)
    running, created = pod.sleeper(), pod.create(pod.container("true"))
    named = [p.pid for each in (pod.id, running, created) for p in procs.processes_naming(each)]
    if handler == SHIM:
        named.append(holder_of(secure))
    secure.kill9()
    pids = [pid for pid in named if is_alive(pid)]
    assert len(pids) > 3

    if runs_on:
        change_boot_id(secure)
    else:
        end_with_the_node(secure, pod, pids)
    secure.start()

    assert [each.state for each in client.pods()] == [api.SANDBOX_NOTREADY]
    assert "rebooted" in pod_reason(client, pod.id)
    for container in (running, created):
        status = client.status(container).status
        assert (status.state, status.exit_code) == (api.CONTAINER_EXITED, 255)
    client.stop_pod(pod.id)
    assert not any(map(is_alive, pids))
    client.remove_pod(pod.id)
    assert_nothing_new(leak_scope, empty, "after the removal")
