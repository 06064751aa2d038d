"""AppArmor in force: which profile processes run under, and what the default one keeps them from.

Debian has profiles for the runtimes themselves, in the mode unconfined, which is what an unconfined container keeps.
With no_new_privs, which a pause container has, crun stacks a container's profile on its own.
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import grpc
import pytest

from cri_shim._pb.cri.v1 import api_pb2 as api
from cri_shim.oci.spec.apparmor import DEFAULT_PROFILE
from tests.harness import leaks
from tests.integration.scene import Pod, container_info, refused, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.harness.client import Client
    from tests.harness.daemon import Daemon, Daemons

PROFILES = Path("/sys/kernel/security/apparmor/profiles")
LOCALHOST = "cri-test-no-writes-to-srv"
LOCALHOST_TEXT = f"""
profile {LOCALHOST} flags=(attach_disconnected,mediate_deleted) {{
  file,
  network,
  capability,
  signal,
  deny /srv/** w,
}}
"""
IN_FORCE = f"{DEFAULT_PROFILE} (enforce)"
IN_FORCE_STACKED = f"{DEFAULT_PROFILE}//&crun (mixed)"
SAY = "cat /proc/self/attr/current"


@pytest.fixture(scope="module")
def daemon(daemons: Daemons, archives: list[Path]) -> Iterator[Daemon]:
    """One for these tests; its cgroup driver is no matter here."""
    try:
        with daemons.without_leaks(archives=archives) as daemon:
            yield daemon
    except leaks.LeakError as error:
        pytest.fail(str(error), pytrace=False)


@pytest.fixture
def pod(client: Client, image: str, handler: str) -> Pod:
    """A pod that asks for nothing."""
    return Pod.run(client, image, handler=handler)


@pytest.fixture
def localhost_profile(tmp_path: Path) -> Iterator[str]:
    """A profile of the operator's own, loaded."""
    file = tmp_path / "profile"
    file.write_text(LOCALHOST_TEXT)
    parse("--replace", str(file))
    yield LOCALHOST
    parse("--remove", str(file))


def parse(*arguments: str) -> None:
    argv = ["apparmor_parser", "--skip-cache", *arguments]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr


def asking(
    pod: Pod, kind: api.SecurityProfile.ProfileType.ValueType, name: str = ""
) -> api.ContainerConfig:
    config = pod.container()
    config.linux.security_context.apparmor.profile_type = kind
    config.linux.security_context.apparmor.localhost_ref = name
    return config


def profile_of(pid: int) -> str:
    return Path(f"/proc/{pid}/attr/current").read_text().strip()


def test_default_profile_confines_pause_container_and_exec(pod: Pod) -> None:
    assert f"{IN_FORCE}\n" in PROFILES.read_text()
    pause = json.loads(pod.client.pod_status(pod.id, verbose=True).info["info"])["pid"]
    assert profile_of(pause) in (IN_FORCE, IN_FORCE_STACKED)
    container = pod.sleeper()
    assert profile_of(container_info(pod.client, container)["pid"]) == IN_FORCE
    assert pod.asks(container, SAY).strip() == IN_FORCE
    asked = asking(pod, api.SecurityProfile.RuntimeDefault)
    assert pod.says(SAY, asked).strip() == IN_FORCE


def test_default_profile_refuses_what_capabilities_would_allow(pod: Pod) -> None:
    def powerful(config: api.ContainerConfig) -> api.ContainerConfig:
        config.linux.security_context.capabilities.add_capabilities.append("ALL")
        return config

    tries = (
        "mkdir /m; mount -t tmpfs none /m && echo mounted; "
        "mount -t proc none /m && echo hotplug > /m/sys/kernel/hotplug && echo written; true"
    )
    assert pod.says(f"({tries}) 2>/dev/null", powerful(pod.container())) == ""
    # The capabilities were there: unconfined, the same may mount.
    free = powerful(asking(pod, api.SecurityProfile.Unconfined))
    assert "mounted" in pod.says(f"({tries}) 2>/dev/null", free)


@pytest.mark.parametrize("no_new_privs", [False, True])
def test_ordinary_work_goes_on_under_the_default_profile(pod: Pod, no_new_privs: bool) -> None:
    def restrained(config: api.ContainerConfig) -> api.ContainerConfig:
        config.linux.security_context.no_new_privs = no_new_privs
        return config

    script = (
        "set -e; echo x >/file; ln -s file /link; mv /link /other; mkfifo /fifo; chmod 700 /file; "
        "chown 7:7 /file; sleep 100 & sleep 0.2; cat /proc/$!/environ >/file; kill $!; "
        "cat /etc/hosts /proc/meminfo >/dev/null; echo x >/dev/shm/x; exec 3<>/dev/null; ps >/dev/null; echo all"
    )
    assert pod.says(script, restrained(pod.container())) == "all\n"
    # The daemon's signal, and the runtime's, come through.
    container = pod.start(
        restrained(
            pod.container("sh", "-c", "trap 'exit 5' TERM; echo ready; while :; do sleep 0.1; done")
        )
    )
    log = Path(pod.client.status(container).status.log_path)
    wait_until(lambda: b"ready" in log.read_bytes())
    pod.client.stop(container, timeout_s=300)
    assert pod.client.wait_exited(container).exit_code == 5


def test_profile_of_the_nodes_own_is_in_force_where_it_is_asked_for(
    pod: Pod, localhost_profile: str
) -> None:
    config = asking(pod, api.SecurityProfile.Localhost, localhost_profile)
    script = f"mkdir -p /srv/x /tmp 2>/dev/null; touch /srv/file 2>/dev/null && echo written; {SAY}"
    assert pod.says(script, config) == f"{localhost_profile} (enforce)\n"
    older = pod.container()
    older.linux.security_context.apparmor_profile = f"localhost/{localhost_profile}"
    assert pod.says(SAY, older) == f"{localhost_profile} (enforce)\n"
    both = asking(pod, api.SecurityProfile.Localhost, localhost_profile)
    both.linux.security_context.apparmor_profile = "localhost/cri-test-not-there"
    assert pod.says(SAY, both) == f"{localhost_profile} (enforce)\n"


def test_unconfined_and_privileged_are_not_confined(
    client: Client, image: str, handler: str
) -> None:
    config = client.pod_config()
    config.linux.security_context.privileged = True
    pod = Pod.run(client, image, config, handler=handler)
    unconfined = ("unconfined\n", f"{handler} (unconfined)\n")
    assert pod.says(SAY, asking(pod, api.SecurityProfile.Unconfined)) in unconfined
    privileged = pod.container()
    privileged.linux.security_context.privileged = True
    assert pod.says(SAY, privileged) in unconfined


def test_profile_that_is_not_loaded_is_refused(pod: Pod) -> None:
    config = asking(pod, api.SecurityProfile.Localhost, "cri-test-not-there")
    with refused(grpc.StatusCode.INVALID_ARGUMENT, "cri-test-not-there", "apparmor_parser"):
        pod.create(config)


def test_default_profile_that_vanished_is_loaded_again(pod: Pod, daemon: Daemon) -> None:
    parse("--remove", str(daemon.state / "apparmor" / DEFAULT_PROFILE))
    assert DEFAULT_PROFILE not in PROFILES.read_text()
    assert pod.says(SAY).strip() == IN_FORCE
