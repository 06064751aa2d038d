"""What confines a container, by the kernel's own word: capabilities, seccomp, masked paths, devices, privileged."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING

import grpc
import pytest

from cri_shim._pb.cri.v1 import api_pb2 as api
from cri_shim.config.values import CAPABILITIES
from cri_shim.oci.spec.security import MASKED_PATHS
from tests import images
from tests.integration.scene import Pod, namespace, refused

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from tests.harness.client import Client
    from tests.harness.daemon import Daemon

pytestmark = pytest.mark.integration

DEFAULT_CAPABILITIES = {
    *("CHOWN", "DAC_OVERRIDE", "FSETID", "FOWNER", "MKNOD", "NET_RAW", "SETGID", "SETUID"),
    *("SETFCAP", "SETPCAP", "NET_BIND_SERVICE", "SYS_CHROOT", "KILL"),
}
EVERY_SET = ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")


def named(mask: int) -> set[str]:
    return {name for number, name in enumerate(CAPABILITIES) if mask >> number & 1}


def process_status(pod: Pod, config: api.ContainerConfig) -> dict[str, str]:
    """/proc/self/status of the container's own process."""
    said = pod.says("cat /proc/self/status", config)
    return {
        key: value.strip() for key, _, value in (line.partition(":") for line in said.splitlines())
    }


def capabilities(pod: Pod, config: api.ContainerConfig) -> dict[str, set[str]]:
    status = process_status(pod, config)
    return {each: named(int(status[each], 16)) for each in EVERY_SET}


def ours() -> set[str]:
    """What this process may hand on."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return named(next(int(line.split()[1], 16) for line in lines if line.startswith("CapBnd")))


# --- capabilities ------------------------------------------------------------------------------------------------


def test_container_has_the_default_capabilities_and_hands_none_on(
    client: Client, image: str
) -> None:
    pod = Pod.run(client, image)
    found = capabilities(pod, pod.container())
    assert found["CapPrm"] == found["CapEff"] == found["CapBnd"] == DEFAULT_CAPABILITIES
    assert found["CapInh"] == found["CapAmb"] == set()


@pytest.mark.parametrize(
    ("add", "drop", "expected"),
    [
        (["NET_ADMIN"], [], DEFAULT_CAPABILITIES | {"NET_ADMIN"}),
        ([], ["CHOWN", "KILL"], DEFAULT_CAPABILITIES - {"CHOWN", "KILL"}),
        ([], ["ALL"], set()),
        (["CHOWN"], ["ALL"], {"CHOWN"}),
    ],
    ids=["add", "drop", "drop all", "drop all add one"],
)
def test_capabilities_are_added_and_dropped(
    client: Client, image: str, add: Iterable[str], drop: Iterable[str], expected: set[str]
) -> None:
    pod = Pod.run(client, image)
    config = pod.container()
    config.linux.security_context.capabilities.add_capabilities.extend(add)
    config.linux.security_context.capabilities.drop_capabilities.extend(drop)
    found = capabilities(pod, config)
    assert found["CapEff"] == found["CapBnd"] == expected


def test_another_user_than_root_has_no_effective_capability(client: Client, image: str) -> None:
    pod = Pod.run(client, image)
    config = pod.container()
    config.linux.security_context.run_as_user.value = 1000
    found = capabilities(pod, config)
    assert found["CapPrm"] == found["CapEff"] == set()
    assert found["CapBnd"] == DEFAULT_CAPABILITIES


def test_ambient_capability_is_one_for_another_user_too(client: Client, image: str) -> None:
    pod = Pod.run(client, image)
    config = pod.container()
    context = config.linux.security_context
    context.run_as_user.value = 1000
    context.namespace_options.pid = api.CONTAINER
    context.capabilities.add_ambient_capabilities.append("NET_RAW")
    context.capabilities.drop_capabilities.append("ALL")
    container = pod.sleeper(config)
    only = 1 << CAPABILITIES.index("NET_RAW")
    for line in pod.asks(container, "grep ^Cap /proc/1/status /proc/self/status").splitlines():
        name, _, value = line.partition("Cap")[2].partition(":")
        assert int(value, 16) == only, name


def test_capability_that_linux_does_not_have_is_refused(client: Client, image: str) -> None:
    pod = Pod.run(client, image)
    config = pod.container("true")
    config.linux.security_context.capabilities.add_capabilities.append("FLY")
    with refused(grpc.StatusCode.INVALID_ARGUMENT, "FLY"):
        pod.create(config)


# --- privileges, seccomp -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("asked", [False, True])
def test_no_new_privileges_as_asked(client: Client, image: str, asked: bool) -> None:
    pod = Pod.run(client, image)
    config = pod.container()
    config.linux.security_context.no_new_privs = asked
    assert process_status(pod, config)["NoNewPrivs"] == str(int(asked))


@pytest.mark.parametrize(
    ("kind", "mode"),
    [(api.SecurityProfile.RuntimeDefault, "2"), (api.SecurityProfile.Unconfined, "0")],
    ids=["default", "unconfined"],
)
def test_seccomp_mode_is_as_asked(
    client: Client, image: str, kind: api.SecurityProfile.ProfileType.ValueType, mode: str
) -> None:
    pod = Pod.run(client, image)
    config = pod.container()
    config.linux.security_context.seccomp.profile_type = kind
    assert process_status(pod, config)["Seccomp"] == mode


def test_default_seccomp_profile_refuses_what_containers_have_no_business_with(
    client: Client, image: str
) -> None:
    pod = Pod.run(client, image)
    config = pod.container()
    context = config.linux.security_context
    context.seccomp.profile_type = api.SecurityProfile.RuntimeDefault
    script = "busybox unshare -U true 2>&1; mkdir /works && chmod 700 /works && ls -d /works"
    said = pod.says(script, config)
    assert "unshare" in said
    assert "not permitted" in said
    assert said.endswith("/works\n")


def test_localhost_seccomp_profile_is_the_file_named(
    client: Client, image: str, tmp_path: Path
) -> None:
    profile = tmp_path / "no-mkdir.json"
    rule = {"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 122}
    profile.write_text(json.dumps({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [rule]}))
    pod = Pod.run(client, image)
    config = pod.container()
    seccomp = config.linux.security_context.seccomp
    seccomp.profile_type = api.SecurityProfile.Localhost
    seccomp.localhost_ref = str(profile)
    assert "quota exceeded" in pod.says("mkdir /new 2>&1 || true", config).lower()
    other = pod.container("true")
    other.linux.security_context.seccomp.CopyFrom(seccomp)
    other.linux.security_context.seccomp.localhost_ref = str(tmp_path / "absent.json")
    with refused(grpc.StatusCode.INVALID_ARGUMENT, "absent.json"):
        pod.create(other)


# --- the file system ---------------------------------------------------------------------------------------------


def test_kernels_secrets_are_masked_and_its_knobs_read_only(client: Client, image: str) -> None:
    pod = Pod.run(client, image)
    secrets = [path for path in MASKED_PATHS if Path(path).exists()]
    assert secrets
    assert pod.says(f"cat $(find {' '.join(secrets)} -type f -o -type c)") == ""
    assert pod.says(f"find {' '.join(secrets)}").split() == secrets
    # With the first version of cgroups each hierarchy is a mount of its own.
    cgroup = "$(test -d /sys/fs/cgroup/memory && echo /sys/fs/cgroup/memory || echo /sys/fs/cgroup)"
    knobs = "/proc/sys/kernel/panic /sys/kernel/mm/ksm/run"
    said = pod.says(f"(for f in {knobs}; do echo 0 >$f; done; mkdir {cgroup}/mine) 2>&1; :")
    assert said.count("Read-only file system") == 3


def test_container_has_the_usual_devices_and_cannot_open_others(client: Client, image: str) -> None:
    pod = Pod.run(client, image)
    script = (
        "cd /dev; for name in null zero full random urandom tty ptmx; do test -c $name || echo $name; done; "
        "head -c 4 /dev/zero | wc -c; mknod /tmp/kmsg c 1 11 && head -c 1 /tmp/kmsg; ls /dev/sd* /dev/vd*"
    )
    status = pod.ends(pod.container("sh", "-c", script))
    log = Path(status.log_path).read_text()
    assert " stdout F 4\n" in log
    assert "Operation not permitted" in log
    assert "No such file" in log


def test_nothing_of_the_node_shows_in_a_containers_mounts(client: Client, image: str) -> None:
    pod = Pod.run(client, image)
    points = [line.split()[4] for line in pod.says("cat /proc/self/mountinfo").splitlines()]
    allowed = ("/proc", "/dev", "/sys", "/etc/hosts", "/etc/hostname", "/etc/resolv.conf")
    assert [point for point in points if point != "/" and not point.startswith(allowed)] == []


STRANGE_PASSWD = {
    "loop": images.symlink("etc/passwd", "/../../../../../../etc/passwd"),
    "link out": images.symlink("etc/passwd", "/proc/1/root/etc/passwd"),
    "directory": images.directory("etc/passwd"),
    "fifo": images.fifo("etc/passwd"),
    "device": images.device("etc/passwd", 1, 5),
    "too large": images.file("etc/passwd", b"daemon:x:1:1::/:\n" * 700_000),
}


@pytest.fixture(scope="module", params=STRANGE_PASSWD)
def strange_image(
    daemon: Daemon, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[str]:
    """An image whose /etc/passwd is none."""
    archive = tmp_path_factory.mktemp("strange") / "image.tar"
    name = "test.example/strange:1"
    archive.write_bytes(
        images.docker_archive(
            images.layer(
                *(images.directory(path) for path in ("bin", "etc")),
                images.file("bin/busybox", Path("/bin/busybox").read_bytes(), 0o755),
                STRANGE_PASSWD[request.param],
            ),
            tags=[name],
        )
    )
    daemon.client.import_image(archive)
    yield name
    spec = api.ImageSpec(image=name)
    daemon.client.images.RemoveImage(api.RemoveImageRequest(image=spec), timeout=30)


def test_account_file_that_is_none_leads_nowhere(client: Client, strange_image: str) -> None:
    pod = Pod.run(client, strange_image)
    config = pod.container("/bin/busybox", "true")
    config.linux.security_context.run_as_username = "daemon"
    with refused(grpc.StatusCode.INVALID_ARGUMENT, "/etc/passwd"):
        pod.create(config)


def test_image_whose_account_file_the_runtime_would_wait_for_is_refused_at_once(
    client: Client, strange_image: str, request: pytest.FixtureRequest
) -> None:
    pod = Pod.run(client, strange_image)
    config = pod.container("/bin/busybox", "true")
    if request.node.callspec.params["strange_image"] not in ("fifo", "directory", "device"):
        assert pod.ends(config).exit_code == 0
        return
    started = time.monotonic()
    with refused(grpc.StatusCode.INVALID_ARGUMENT, "image", "/etc/passwd", "not a regular file"):
        pod.create(config)
    assert time.monotonic() - started < 10


@pytest.mark.parametrize("directory", ["/proc/self/fd/7", "/proc/1/cwd", "/dev/fd/9", "relative"])
def test_working_directory_that_leads_out_is_refused(
    client: Client, image: str, directory: str
) -> None:
    pod = Pod.run(client, image)
    config = pod.container("true")
    config.working_dir = directory
    with refused(grpc.StatusCode.INVALID_ARGUMENT, "working_dir", directory):
        pod.create(config)


def test_container_gets_no_descriptor_but_its_streams(client: Client, image: str) -> None:
    pod = Pod.run(client, image)
    said = pod.says("ls /proc/$$/fd; :")
    # A shell may keep a descriptor of its own, from 10 on.
    assert [fd for fd in said.split() if int(fd) < 10] == ["0", "1", "2"]


# --- privileged --------------------------------------------------------------------------------------------------


def test_privileged_container_has_what_the_node_has(client: Client, image: str) -> None:
    config = client.pod_config()
    config.linux.security_context.privileged = True
    pod = Pod.run(client, image, config)
    container = pod.container()
    container.linux.security_context.privileged = True
    status = process_status(pod, container)
    assert named(int(status["CapEff"], 16)) == ours()
    assert status["Seccomp"] == "0"
    script = "mkdir /sys/fs/cgroup/*/mine-$$ && rmdir /sys/fs/cgroup/*/mine-$$; test -c /dev/kmsg && echo kmsg"
    again = pod.container()
    again.linux.security_context.privileged = True
    assert "kmsg" in pod.says(f"({script}) 2>&1", again)


def test_privileged_container_still_has_its_own_mounts_and_network(
    client: Client, image: str
) -> None:
    config = client.pod_config()
    config.linux.security_context.privileged = True
    pod = Pod.run(client, image, config)
    container = pod.container()
    container.linux.security_context.privileged = True
    said = pod.says("readlink /proc/self/ns/mnt; readlink /proc/self/ns/net", container).split()
    assert namespace("mnt") not in said
    assert namespace("net") not in said


def test_privileged_container_needs_a_privileged_pod(client: Client, image: str) -> None:
    pod = Pod.run(client, image)
    container = pod.container("true")
    container.linux.security_context.privileged = True
    with refused(grpc.StatusCode.INVALID_ARGUMENT, "privileged"):
        pod.create(container)
    assert client.containers() == []
