"""This version takes over what a former one left: running pods by the records it wrote, and what had ended by then.

`tests/data/state` has what each released version left on disk. Its processes can't be recorded, so pods of today get
records with the keys of that version and no others.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from cri_shim._pb.cri.v1 import api_pb2 as api
from tests.faults.looking import container_pids, pause_pid, pod_state, wait_until

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tests.harness.daemon import Daemon

STATE = Path(__file__).parents[1] / "data" / "state"
VERSIONS = sorted(path.name for path in STATE.iterdir())
OBEDIENT = "trap 'exit 7' TERM; while :; do sleep 0.02; done"


def keys_of(version: str, kind: str, name: str) -> set[str]:
    """The keys that this version wrote to such files."""
    files = (STATE / version / kind).glob(f"*/{name}")
    return {key for file in files for key in json.loads(file.read_bytes())}


def write_as(version: str, daemon: Daemon) -> None:
    """Make all records of a daemon that doesn't run those of `version`."""
    for kind in ("sandboxes", "containers"):
        for name in ("record.json", "status.json"):
            known = keys_of(version, kind, name)
            for file in (daemon.root / kind).glob(f"*/{name}"):
                document: Mapping[str, Any] = json.loads(file.read_bytes())
                assert known <= document.keys(), "no field has gone"
                file.write_text(json.dumps({k: v for k, v in document.items() if k in known}))


def leave_recorded(version: str, daemon: Daemon) -> list[str]:
    """Put the recorded state under the daemon's root, as if it were its own; the pods' IDs."""
    for kind in ("sandboxes", "containers"):
        for source in (STATE / version / kind).iterdir():
            target = daemon.root / kind / source.name
            shutil.copytree(source, target)
            for file in target.iterdir():
                text = file.read_text().replace('"network":"pods"', f'"network":"{daemon.name}"')
                file.write_text(text.replace('"/pods"', f'"{daemon.cgroup_parent}"'))
    return [path.name for path in (STATE / version / "sandboxes").iterdir()]


@pytest.mark.parametrize("version", VERSIONS)
def test_state_of_a_former_version_is_taken_over(
    crash_daemon: Daemon, image: str, version: str
) -> None:
    client = crash_daemon.client
    config = client.pod_config(host_ports={18083: 80})
    pod = client.run_pod(config)
    running = client.run(pod, client.container_config(image, ["sh", "-c", OBEDIENT]), config)
    created_config = client.container_config(image, ["sh", "-c", "exit 5"])
    created = client.create(pod, created_config, config)
    before = pause_pid(client, pod), container_pids(client, running)
    told = client.pod_status(pod).status, client.status(running).status
    crash_daemon.kill9()
    write_as(version, crash_daemon)
    recorded = leave_recorded(version, crash_daemon)
    crash_daemon.start()
    assert (pause_pid(client, pod), container_pids(client, running)) == before
    pod_now, container_now = client.pod_status(pod).status, client.status(running).status
    container_now.ClearField("resources")
    told[1].ClearField("resources")
    assert (pod_now, container_now) == told
    assert client.exec(running, "echo", "here").stdout == b"here\n"
    assert client.run_pod(config) == pod
    assert client.create(pod, created_config, config) == created
    client.start(created)
    assert client.wait_exited(created).exit_code == 5
    client.stop(running, timeout_s=10)
    assert client.status(running).status.exit_code == 7
    # What it recorded had all ended with a reboot, which gives the addresses back.
    codes = {
        (c.exit_code, c.reason)
        for c in (client.status(each.id).status for each in client.containers())
        if c.id not in (running, created)
    }
    assert codes == {(255, "Unknown"), (3, "Error")}
    assert {pod_state(client, each) for each in recorded} == {"SANDBOX_NOTREADY"}
    wait_until(lambda: all(is_torn_down(crash_daemon, each) for each in recorded), "DEL is called")
    assert {pod_state(client, pod)} == {"SANDBOX_READY"}
    new = client.run(pod, client.container_config(image, ["sleep", "600"]), config)
    assert client.status(new).status.state == api.CONTAINER_RUNNING


def is_torn_down(daemon: Daemon, pod: str) -> bool:
    status = json.loads((daemon.root / "sandboxes" / pod / "status.json").read_bytes())
    return bool(status["torn_down"]) and not status["attachments"]
