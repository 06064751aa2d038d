"""Mistakes that other runtimes have published about containers, each sent with its real bytes.

The names are those of the advisories; what the mistake was stands with each test.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import pytest

from cri_shim._pb.cri.v1 import api_pb2 as api
from tests import images
from tests.integration.scene import Pod, container_info, refused

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.harness.client import Client
    from tests.harness.daemon import Daemon

pytestmark = pytest.mark.integration

INVALID = grpc.StatusCode.INVALID_ARGUMENT
PASSWD = b"""root:x:0:0:root:/root:/bin/sh
4294967296:x:0:0::/:/bin/sh
-1:x:0:0::/:/bin/sh
worker:x:1000:1001::/:/bin/sh
"""
Hostile = Callable[..., str]


@pytest.fixture
def hostile(daemon: Daemon, tmp_path: Path) -> Iterator[Hostile]:
    """Imports images of busybox, further entries and a configuration; makes their names."""
    names: list[str] = []

    def make(*entries: images.Entry, passwd: images.Entry | None = None, **config: Any) -> str:
        applets = ("sh", "cat", "id", "ls", "sleep", "grep", "stat")
        archive, name = tmp_path / "hostile.tar", f"test.example/hostile:{len(names)}"
        layer = images.layer(
            *(images.directory(path) for path in ("bin", "etc", "proc", "dev", "sys")),
            images.file("bin/busybox", Path("/bin/busybox").read_bytes(), 0o755),
            *(images.hardlink(f"bin/{applet}", "bin/busybox", 0o755) for applet in applets),
            passwd or images.file("etc/passwd", PASSWD),
            *entries,
        )
        archive.write_bytes(images.docker_archive(layer, tags=[name], **config))
        daemon.client.import_image(archive)
        names.append(name)
        return name

    yield make
    for name in names:
        daemon.client.remove_image(name)


@pytest.fixture
def client(hostile: Hostile, daemon: Daemon) -> Iterator[Client]:
    """As everywhere; pods go before the image does."""
    yield daemon.client
    daemon.client.remove_all_pods()


def test_cve_2022_23648_volumes_of_an_image_never_show_files_of_the_node(
    client: Client, hostile: Hostile, tmp_path: Path
) -> None:
    """containerd joined VOLUME paths to host paths, and followed links when it copied their content."""
    secret = tmp_path / "secret"
    secret.mkdir()
    (secret / "key").write_text("s3cret")
    up = "/../../../../../../../.." + str(secret)
    image = hostile(
        images.symlink("to-secret", str(secret)),
        images.directory("copied"),
        images.symlink("copied/key", str(secret / "key")),
        images.symlink("copied/dir", str(secret)),
        volumes={path: {} for path in (up, "/to-secret", "/copied")},
    )
    pod = Pod.run(client, image)
    container = pod.sleeper()
    said = client.exec(
        container, "sh", "-c", f"cat {secret}/key /to-secret/key /copied/*; ls {secret}"
    )
    assert b"s3cret" not in said.stdout
    volumes = Path(container_info(client, container)["rootDirectory"]) / "volumes"
    assert sorted(path.name for path in volumes.rglob("*")) == ["0", "1", "2", "dir", "key"]
    assert (secret / "key").read_text() == "s3cret"


def test_cve_2019_16884_volume_of_an_image_does_not_stand_in_for_proc(
    client: Client, hostile: Hostile
) -> None:
    """runc wrote its confinement to files of a /proc that the image had brought."""
    image = hostile(volumes={path: {} for path in ("/proc", "/proc/self", "/sys", "/dev")})
    said = Pod.run(client, image).says("cat /proc/mounts; ls /proc/self/attr")
    assert "proc /proc proc " in said
    assert "sysfs /sys sysfs " in said


@pytest.mark.parametrize("file", ["passwd", "group"])
def test_cve_2026_47262_and_cve_2025_4437_account_files_are_bounded(
    client: Client, hostile: Hostile, file: str
) -> None:
    """containerd and CRI-O read /etc/passwd and /etc/group of any size, and kind, into memory."""
    data = b"many:x:7:7:many,worker:/:\n" * 450_000
    entry = images.file(f"etc/{file}", data)
    image = hostile(entry) if file == "group" else hostile(passwd=entry)
    pod = Pod.run(client, image)
    config = pod.container()
    config.linux.security_context.run_as_user.value = 1000
    started = time.monotonic()
    assert "7" not in pod.says("id -G", config).split()
    assert time.monotonic() - started < 10


def test_cve_2024_40635_and_cve_2026_46680_user_out_of_range_is_never_root(
    client: Client, hostile: Hostile
) -> None:
    """containerd let such a USER wrap to 0; fixed, it looked the number up as a name in the image's passwd."""
    pod = Pod.run(client, hostile())
    for user in (
        *("4294967296", "4294967295", "2147483648", "-1", "18446744073709551616", "9" * 40),
        "worker:4294967296",
    ):
        config = pod.container("id")
        config.image.image = hostile(user=user)
        with refused(INVALID, user.partition(":")[2] or user):
            pod.create(config)


def test_cve_2024_40635_highest_user_is_the_one_that_runs_and_is_told(
    client: Client, hostile: Hostile
) -> None:
    pod = Pod.run(client, hostile(user="2147483647:2147483646"))
    container = pod.sleeper()
    assert pod.asks(container, "id -u; id -g").split() == ["2147483647", "2147483646"]
    user = client.status(container).status.user.linux
    assert (user.uid, user.gid) == (2147483647, 2147483646)


def test_cve_2024_21626_working_directory_never_leads_out(client: Client, hostile: Hostile) -> None:
    """runc leaked a descriptor of the node's cgroup directory; an image's WORKDIR named it."""
    pod = Pod.run(client, hostile())
    for directory in ("/proc/self/fd/7", "/proc/self/fd/../fd/8/../..", "/dev/fd/9"):
        config = pod.container("id")
        config.image.image = hostile(working_dir=directory)
        with refused(INVALID, "WORKDIR", directory):
            pod.create(config)


def test_cve_2022_2995_and_cve_2023_25173_primary_group_is_a_supplementary_one(
    client: Client, hostile: Hostile
) -> None:
    """CRI-O and containerd left it out: a file that denies the group could be read by dropping it."""
    pod = Pod.run(client, hostile(user="worker"))
    config = pod.container()
    config.linux.security_context.supplemental_groups.append(5)
    said = pod.says("grep Groups: /proc/self/status", config)
    assert said.split() == ["Groups:", "5", "1001"]


def test_cve_2022_4318_and_cve_2026_15809_home_does_not_forge_account_lines(
    client: Client, hostile: Hostile
) -> None:
    """CRI-O wrote HOME into /etc/passwd; its fix looked for a backslash and an n instead of the byte."""
    pod = Pod.run(client, hostile())
    for byte in ("\n", "\r"):
        home = f"/{byte}root::0:0::/:/bin/sh"
        asked, brought = pod.container("id"), pod.container("id")
        asked.envs.add(key="HOME", value=home.encode())
        brought.image.image = hostile(env=[f"HOME={home}"])
        for config in (asked, brought):
            with refused(INVALID, "HOME"):
                pod.create(config)


def test_cve_2025_47291_container_is_in_the_cgroup_that_limits_it(
    client: Client, hostile: Hostile, daemon: Daemon
) -> None:
    """containerd put containers with user namespaces outside their pod's cgroup, where no limit held."""
    pod = Pod.run(client, hostile())
    container = pod.sleeper()
    info = container_info(client, container)
    cgroups = Path(f"/proc/{info['pid']}/cgroup").read_text()
    assert f"{daemon.cgroup_parent}/{container}\n" in cgroups
    assert info["cgroup"].endswith(f"/{container}")


def test_cve_2024_5154_links_of_the_image_are_no_way_to_files_of_the_node(
    client: Client, hostile: Hostile, tmp_path: Path
) -> None:
    """CRI-O made /etc/mtab through a link of the image, on the node."""
    target = tmp_path / "target"
    names = ("mtab", "hosts", "hostname", "resolv.conf")
    image = hostile(
        *(images.symlink(f"etc/{name}", f"{target}/{name}") for name in names),
        images.symlink("work", str(target)),
    )
    pod = Pod.run(client, image)
    config = pod.container()
    config.mounts.add(container_path=f"{target}/mine", host_path=str(tmp_path))
    pod.says("cat /etc/hosts", config)
    assert not target.exists()


def test_cve_2025_0750_log_stays_in_its_directory(client: Client, hostile: Hostile) -> None:
    """CRI-O let a client's path lead its log helpers to any directory of the node."""
    pod = Pod.run(client, hostile())
    for path in ("../../escape.log", "a/../../escape.log", "/escape.log", "a\0b"):
        config = pod.container("id")
        config.log_path = path
        request = api.CreateContainerRequest(
            pod_sandbox_id=pod.id, config=config, sandbox_config=pod.config
        )
        with refused(INVALID, "log_path"):
            client.runtime.CreateContainer(request, timeout=20)


def test_cve_2026_53488_labels_of_an_image_stay_the_images(
    client: Client, hostile: Hostile, tmp_path: Path
) -> None:
    """containerd copied an image's LABELs to the container's, where a reserved one named a program to run as root."""
    reserved = {
        "containerd.io/restart.loguri": f"binary:///bin/touch?{tmp_path}/proof",
        "io.kubernetes.cri.container-type": "sandbox",
        "cri-shim.io/pids-limit": "1",
    }
    pod = Pod.run(client, hostile(labels=reserved))
    container = pod.sleeper()
    [entry] = client.containers()
    assert not entry.labels
    assert not entry.annotations
    spec = container_info(client, container)["runtimeSpec"]
    assert spec["annotations"]["io.kubernetes.cri.container-type"] == "container"
    assert not reserved.keys() & spec["annotations"].keys() - {"io.kubernetes.cri.container-type"}
    assert "pids" not in spec["linux"]["resources"]
    assert not (tmp_path / "proof").exists()


def test_cve_2021_41103_and_cve_2024_25621_nobody_else_walks_into_our_directories(
    client: Client, hostile: Hostile, daemon: Daemon
) -> None:
    """containerd's directories let every user of the node reach, and run, what images bring."""
    pod = Pod.run(client, hostile())
    info = container_info(client, pod.sleeper())
    for directory in (
        daemon.root,
        Path(info["rootDirectory"]),
        Path(info["snapshot"]["upper"]).parent,
    ):
        assert directory.stat().st_mode & 0o077 == 0, directory
    state = Path(info["runtimeSpec"]["root"]["path"]).parent
    assert state.stat().st_mode & 0o007 == 0
