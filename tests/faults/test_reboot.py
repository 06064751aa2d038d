"""The node was rebooted: no process, mount, namespace or file of /run is left, and the kernel has a new boot ID.

The boot ID can't be changed, so that of the records is. Pods are shown not ready and containers exited with 255,
`Unknown`, unless an exit file says otherwise; Stop and Remove find nothing and still give the addresses back.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from cri_shim._pb.cri.v1 import api_pb2 as api
from cri_shim.host.mounts import unmount_below
from cri_shim.host.namespaces import remove_netns
from cri_shim.paths import netns_file
from tests.faults.looking import container_pids, is_alive, pause_pid, pod_reason, wait_until

if TYPE_CHECKING:
    from tests.harness.client import Client
    from tests.harness.daemon import Daemon

ANOTHER_BOOT = "00000000-0000-4000-8000-000000000000"


class Pod:
    """A pod with a container of each state that a reboot can meet."""

    def __init__(self, client: Client, image: str) -> None:
        config = client.pod_config(host_ports={18082: 80})
        self.id = client.run_pod(config)

        def container(script: str) -> str:
            return client.create(
                self.id, client.container_config(image, ["sh", "-c", script]), config
            )

        self.running = container("sleep 600")
        client.start(self.running)
        self.created = container("true")
        self.exited = container("exit 4")
        client.start(self.exited)
        client.wait_exited(self.exited)
        self.pids = [
            pause_pid(client, self.id),
            *(
                pid
                for pids in (
                    container_pids(client, self.running),
                    container_pids(client, self.created),
                )
                for pid in (pids.monitor, pids.process)
            ),
        ]


def change_boot_id(daemon: Daemon) -> None:
    for record in daemon.root.glob("*/*/record.json"):
        document = json.loads(record.read_bytes())
        record.write_text(json.dumps({**document, "boot_id": ANOTHER_BOOT}))


def reboot(daemon: Daemon, pod: Pod) -> None:
    """Do to a stopped daemon's pod what a reboot does, but to nothing else on this machine."""
    for pid in pod.pids:
        with suppress(ProcessLookupError):  # one that was not started yet goes with its monitor
            os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not any(map(is_alive, pod.pids)), "everything is dead")
    unmount_below(daemon.state)
    shutil.rmtree(daemon.state)
    remove_netns(netns_file(pod.id))
    for cgroup in Path("/sys/fs/cgroup").glob(f"*{daemon.cgroup_parent}/*/"):
        cgroup.rmdir()
    # These are the test session's own: it has a network namespace to itself.
    subprocess.run(["nft", "flush", "ruleset"], check=True)
    change_boot_id(daemon)


def assert_rebooted(client: Client, pod: Pod) -> None:
    assert [item.state for item in client.pods()] == [api.SANDBOX_NOTREADY]
    assert "rebooted" in pod_reason(client, pod.id)
    for container in (pod.running, pod.created):
        status = client.status(container).status
        assert status.state == api.CONTAINER_EXITED
        assert (status.exit_code, status.reason) == (255, "Unknown")
        assert status.finished_at >= status.started_at
    assert client.status(pod.exited).status.exit_code == 4


@pytest.fixture
def pod(crash_daemon: Daemon, image: str) -> Pod:
    return Pod(crash_daemon.client, image)


def test_after_a_reboot_everything_has_ended_and_can_be_removed(
    crash_daemon: Daemon, pod: Pod
) -> None:
    client = crash_daemon.client
    lease = client.pod_status(pod.id).status.network.ip
    crash_daemon.kill9()
    reboot(crash_daemon, pod)
    assert list(crash_daemon.lease_dir.glob(f"*/{lease}"))
    crash_daemon.start()
    assert_rebooted(client, pod)
    client.stop_pod(pod.id)
    assert not list(crash_daemon.lease_dir.glob(f"*/{lease}")), "the address is not given back"
    client.remove_pod(pod.id)
    assert client.pods() == client.containers() == []


def test_new_pods_start_beside_those_of_before_the_reboot(
    crash_daemon: Daemon, image: str, pod: Pod
) -> None:
    client = crash_daemon.client
    crash_daemon.kill9()
    reboot(crash_daemon, pod)
    crash_daemon.start()
    config = client.pod_config()
    new = client.run_pod(config)
    container = client.run(new, client.container_config(image, ["sleep", "600"]), config)
    assert client.exec(container, "true").exit_code == 0
    crash_daemon.restart()
    states = {item.id: item.state for item in client.pods()}
    assert states == {pod.id: api.SANDBOX_NOTREADY, new: api.SANDBOX_READY}
    assert client.status(container).status.state == api.CONTAINER_RUNNING


def test_other_boot_id_alone_is_believed_and_what_still_runs_is_killed(
    crash_daemon: Daemon, pod: Pod
) -> None:
    client = crash_daemon.client
    crash_daemon.kill9()
    change_boot_id(crash_daemon)
    crash_daemon.start()
    assert_rebooted(client, pod)
    client.stop_pod(pod.id)
    assert not any(map(is_alive, pod.pids))


def test_creation_cut_short_by_the_reboot_is_undone(
    crash_daemon: Daemon, pod: Pod, image: str
) -> None:
    client = crash_daemon.client
    for kind, object_id in (("sandboxes", pod.id), ("containers", pod.running)):
        assert (crash_daemon.root / kind / object_id).is_dir()
    crash_daemon.kill9()
    reboot(crash_daemon, pod)
    unfinished = crash_daemon.root / "containers" / pod.created / "status.json"
    status = json.loads(unfinished.read_bytes())
    unfinished.write_text(json.dumps({**status, "committed_at_ns": 0}))
    crash_daemon.start()
    listed = {item.id for item in client.containers()}
    assert listed == {pod.running, pod.exited}
    assert not unfinished.parent.exists()
