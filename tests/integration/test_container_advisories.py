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
from tests.integration.scene import Pod, cgroups_of, container_info, refused

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
        applets = ("sh", "cat", "id", "ln", "ls", "mkdir", "mv", "rm", "sleep", "grep", "stat")
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
    for directory in (
        *("/proc/self/fd/7", "/proc/self/fd/../fd/8/../..", "/dev/fd/9"),
        *("/./proc/self/fd/7", "/bin/../proc/self/fd/7/..", "//proc//1//cwd"),
    ):
        config = pod.container("id")
        config.image.image = hostile(working_dir=directory)
        with refused(INVALID, "WORKDIR", directory):
            pod.create(config)


def test_cve_2024_21626_link_of_the_image_is_no_working_directory_outside(
    client: Client, hostile: Hostile
) -> None:
    """The same through a link, in an image with a /proc that makes it look harmless while nothing is mounted there."""
    pod = Pod.run(client, hostile())
    for number in (6, 7, 8):
        image = hostile(
            *(images.directory(path) for path in ("proc/self", "proc/self/fd")),
            images.directory(f"proc/self/fd/{number}"),
            images.symlink("work", f"/proc/self/fd/{number}"),
            images.symlink("via", "work"),
            working_dir="/via",
        )
        config = pod.container("cat", "../../../etc/hostname")
        config.image.image = image
        with refused(INVALID, "WORKDIR", "leads out of the container"):
            pod.create(config)


def test_cve_2024_21626_no_descriptor_of_the_node_reaches_a_container(
    client: Client, hostile: Hostile
) -> None:
    """runc left the node's cgroup directory open to the container's first process, and to execs."""
    pod = Pod.run(client, hostile())
    script = (
        "for fd in /proc/self/fd/*; do echo $fd; done"  # the shell's own, and that of its listing
    )
    expected = {f"/proc/self/fd/{number}" for number in range(4)}
    assert set(pod.says(script).split()) <= expected
    assert set(pod.asks(pod.sleeper(), script).split()) <= expected


def test_cve_2025_31133_and_cve_2025_52565_devices_of_the_image_are_not_those_of_the_runtime(
    client: Client, hostile: Hostile, tmp_path: Path
) -> None:
    """runc bound /dev/null over what is masked, and a terminal to /dev/console, also where those led elsewhere."""
    target = tmp_path / "target"
    target.write_text("untouched")
    pod = Pod.run(
        client,
        hostile(
            *(images.symlink(f"dev/{name}", str(target)) for name in ("null", "console", "tty"))
        ),
    )
    config = pod.container()
    config.tty = True
    script = "cat /proc/keys; ls /sys/firmware; stat -c %t:%T /dev/null; stat -c %F /dev/console"
    said = pod.says(script, config).replace("\r", "").split("\n")
    assert said == ["1:3", "character special file", ""]
    assert target.read_text() == "untouched"


def test_cve_2021_30465_mount_through_a_link_of_a_volume_stays_inside(
    client: Client, hostile: Hostile, tmp_path: Path
) -> None:
    """runc followed a link that another container had put into a shared volume, out to the node."""
    volume, outside = tmp_path / "volume", tmp_path / "outside"
    volume.mkdir()
    outside.mkdir()
    (volume / "out").symlink_to("/../../../../../../.." + str(outside))
    pod = Pod.run(client, hostile())
    config = pod.container()
    config.mounts.add(container_path="/volume", host_path=str(volume))
    config.mounts.add(container_path="/volume/out/made", host_path=str(tmp_path))
    pod.says(f"ls {outside}/made", config)
    assert list(outside.iterdir()) == []


def test_cve_2022_27652_and_cve_2022_29162_nothing_is_inheritable(
    client: Client, hostile: Hostile
) -> None:
    """CRI-O, containerd and runc, in its exec, started programs with inheritable capabilities."""
    pod = Pod.run(client, hostile())
    container = pod.sleeper()
    script = "grep -E 'CapInh|CapAmb' /proc/self/status"
    none = ["CapInh:", "0" * 16, "CapAmb:", "0" * 16]
    assert pod.says(script).split() == none
    assert pod.asks(container, script).split() == none


def test_cve_2023_6476_and_cve_2024_3154_annotations_are_no_orders_to_the_runtime(
    client: Client, hostile: Hostile
) -> None:
    """CRI-O let a pod's annotations set any file of its cgroup, and any property of its systemd unit."""
    orders = {
        "io.kubernetes.cri-o.UnifiedCgroup.main": "memory.max=max;pids.max=max",
        "io.kubernetes.cri-o.cgroup2-mount-hierarchy-rw": "true",
        "org.systemd.property.ExecStartPre": "['/bin/touch', '/proof']",
        "run.oci.hooks.stdout": "/proof",
        "run.oci.systemd.subgroup": "out",
    }
    pod_config = client.pod_config()
    pod_config.annotations.update(orders)
    pod = Pod.run(client, hostile(), pod_config)
    config = pod.container()
    config.annotations.update(orders)
    config.linux.resources.memory_limit_in_bytes = 32 << 20
    container = pod.sleeper(config)
    info = container_info(client, container)
    assert not orders.keys() & info["runtimeSpec"]["annotations"].keys()
    assert "unified" not in info["runtimeSpec"]["linux"]["resources"]
    [limit] = [
        file.read_text().strip()
        for top in cgroups_of(container)
        for name in ("memory.limit_in_bytes", "memory.max")
        if (file := top / name).exists()
    ]
    assert int(limit) == 32 << 20
    assert not Path("/proof").exists()


def test_cve_2024_8676_and_cve_2026_53492_image_is_no_checkpoint_to_restore(
    client: Client, hostile: Hostile, tmp_path: Path
) -> None:
    """CRI-O and containerd restored checkpoints from images, with the mounts, devices and logs that those named."""
    image = hostile(
        images.file("config.dump", b'{"rootfsImageName": "x"}'),
        images.file("spec.dump", b'{"mounts": [{"destination": "/node", "source": "/"}]}'),
        images.directory("checkpoint"),
        labels={
            "io.kubernetes.cri-o.annotations.checkpoint.name": "main",
            "org.criu.checkpoint.container.name": "main",
            "cdi.k8s.io/x": "vendor.example/gpu=0",
        },
    )
    pod = Pod.run(client, image)
    assert "/node" not in pod.says("cat /proc/mounts; ls /")
    container = pod.sleeper()
    with refused(grpc.StatusCode.UNIMPLEMENTED):
        client.runtime.CheckpointContainer(
            api.CheckpointContainerRequest(
                container_id=container, location=str(tmp_path / "checkpoint.tar")
            ),
            timeout=20,
        )
    assert not (tmp_path / "checkpoint.tar").exists()


def test_ghsa_7ww5_4wqc_m92c_power_readings_of_the_node_are_masked(
    client: Client, hostile: Hostile
) -> None:
    """containerd let containers measure the node's power, and with it what others compute."""
    pod = Pod.run(client, hostile())
    container = pod.sleeper()
    said = client.exec(container, "ls", "/sys/devices/virtual/powercap")
    assert said.stdout == b""
    spec = container_info(client, container)["runtimeSpec"]
    assert "/sys/devices/virtual/powercap" in spec["linux"]["maskedPaths"]


def test_cve_2020_15257_no_socket_is_in_reach_of_a_container_on_the_nodes_network(
    client: Client, hostile: Hostile, daemon: Daemon
) -> None:
    """containerd's monitors listened on abstract sockets, which belong to the network namespace."""
    pod_config = client.pod_config()
    pod_config.hostname = ""
    pod_config.linux.security_context.namespace_options.network = api.NODE
    pod = Pod.run(client, hostile(), pod_config)
    config = pod.container()
    config.linux.security_context.namespace_options.network = api.NODE
    container = pod.sleeper(config)
    abstract = [
        line.split()[-1]
        for line in pod.asks(container, "cat /proc/net/unix").splitlines()
        if line.split()[-1].startswith("@")
    ]
    ours = (container[:12], pod.id[:12], str(daemon.root), "cri-shim", "conmon")
    assert not [name for name in abstract if any(word in name for word in ours)]


def test_cve_2022_1708_and_cve_2022_31030_output_of_an_exec_is_bounded(
    client: Client, hostile: Hostile, daemon: Daemon
) -> None:
    """CRI-O and containerd kept whatever an exec wrote in memory."""
    pod = Pod.run(client, hostile())
    container = pod.sleeper()

    def memory_kib() -> int:
        status = Path(f"/proc/{daemon.pid}/status").read_text()
        [line] = [line for line in status.splitlines() if line.startswith("VmRSS")]
        return int(line.split()[1])

    before = memory_kib()
    answer = client.exec(
        container,
        "sh",
        "-c",
        "cat /dev/zero | while read -n 1000000 x; do :; done & "
        "i=0; while [ $i -lt 8 ]; do cat /bin/busybox /bin/busybox /bin/busybox; i=$((i+1)); done",
    )
    assert answer.exit_code == 0
    assert len(answer.stdout) <= 16 << 20
    assert memory_kib() - before < 100 << 10


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


def test_log_that_a_container_made_a_link_is_not_written_through(
    client: Client, hostile: Hostile, tmp_path: Path
) -> None:
    """The class of CVE-2017-1002101: a pod with the node's logs as a volume plants links where logs will be."""
    target = tmp_path / "target"
    target.write_text("untouched")
    pod = Pod.run(client, hostile())
    attacker = pod.container()
    attacker.mounts.add(container_path="/logs", host_path=pod.config.log_directory)
    container = pod.sleeper(attacker)
    log = Path(client.status(container).status.log_path)

    victim = pod.container("sleep", "3600")
    pod.asks(container, f"mkdir -p /logs/victim; ln -s {target} /logs/victim/1.log")
    victim.log_path = "victim/1.log"
    with refused(grpc.StatusCode.FAILED_PRECONDITION, "log_path", "is a symbolic link"):
        pod.create(victim)
    pod.asks(container, "ln -s victim /logs/behind; rm /logs/victim/1.log")
    victim.log_path = "behind/1.log"
    with refused(grpc.StatusCode.FAILED_PRECONDITION, "log_path", "is a symbolic link"):
        pod.create(victim)

    inside = f"/logs/{log.relative_to(pod.config.log_directory)}"
    for planted in (inside, f"{inside}.tmp"):
        pod.asks(container, f"mv {inside} {inside}.1; ln -s {target} {planted}")
        with refused(grpc.StatusCode.FAILED_PRECONDITION, "log_path", "is a symbolic link"):
            client.runtime.ReopenContainerLog(
                api.ReopenContainerLogRequest(container_id=container), timeout=20
            )
        pod.asks(container, f"rm {planted}; mv {inside}.1 {inside}")
    assert target.read_text() == "untouched"


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
