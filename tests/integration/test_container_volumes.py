"""Volumes: images as volumes, an image's own VOLUMEs, host paths; what is in them, whose it is, and that it goes."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import grpc
import pytest

from cri_shim._pb.cri.v1 import api_pb2 as api
from tests import images
from tests.fakes import idmap_runtime
from tests.harness import leaks
from tests.integration.scene import Pod, container_info, refused

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.harness.client import Client
    from tests.harness.daemon import Daemon, Daemons

pytestmark = pytest.mark.integration

INVALID = grpc.StatusCode.INVALID_ARGUMENT
DATA = "test.example/data:1"
DECLARING = "test.example/declaring:1"
HANDLER = "mapped"
REMOVED = {"runc": "test.example/data:2", HANDLER: "test.example/data:3"}
"""Images that a test removes."""
FIRST, LENGTH = 400_000, 65_536


def data_image(name: str) -> bytes:
    """Data in two layers that no other image has, with links that would like to lead out."""
    return images.docker_archive(
        images.layer(
            images.directory("etc"),
            images.file("name", name.encode()),
            images.file("etc/conf", b"lower\n", uid=5, gid=6),
            images.file("etc/gone", b"x"),
            images.file("busybox", Path("/bin/busybox").read_bytes(), 0o4755),
        ),
        images.layer(
            images.whiteout("etc/gone"),
            images.file("name", f"still {name}".encode()),
            images.directory("deep/er"),
            images.file("deep/er/file", b"found\n"),
            images.symlink("inside", "/deep/er"),
            images.symlink("out", "/../../../../etc"),
            images.symlink("self", "/proc/self/root"),
        ),
        tags=[name],
    )


def declaring_image() -> bytes:
    """VOLUMEs with content, without, at the end of a link, on a file, and where none can be."""
    applets = ("sh", "cat", "ls", "stat", "sleep", "touch", "test", "readlink", "mount")
    return images.docker_archive(
        images.layer(
            *(images.directory(path) for path in ("bin", "data", "etc", "proc")),
            images.file("bin/busybox", Path("/bin/busybox").read_bytes(), 0o755),
            *(images.hardlink(f"bin/{applet}", "bin/busybox", 0o755) for applet in applets),
            images.directory("data/db", 0o750, uid=26, gid=27),
            images.file("data/db/table", b"rows\n", 0o640, uid=26, gid=27),
            images.symlink("data/db/link", "/etc/shadow"),
            images.symlink("leads-out", "/../../../../../etc"),
            images.file("a-file", b"stays\n"),
        ),
        tags=[DECLARING],
        volumes={path: {} for path in ("/data/db", "new", "/leads-out", "/a-file", "/", "/proc")},
    )


@pytest.fixture(scope="module")
def served(
    daemons: Daemons, archives: list[Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Daemon]:
    """A daemon with these images, and a handler that offers user namespaces."""
    archive = tmp_path_factory.mktemp("volumes") / "image.tar"
    runtime = idmap_runtime.install(tmp_path_factory.mktemp("runtime"))
    handlers = {"runc": {"path": "runc"}, HANDLER: {"path": str(runtime)}}
    try:
        with daemons.without_leaks(
            settings={"runtime": {"handlers": handlers}}, archives=archives
        ) as daemon:
            for made in (*map(data_image, (DATA, *REMOVED.values())), declaring_image()):
                archive.write_bytes(made)
                daemon.client.import_image(archive)
            yield daemon
            for name in (DATA, *REMOVED.values(), DECLARING):
                daemon.client.remove_image(name)
    except leaks.LeakError as error:
        pytest.fail(str(error), pytrace=False)


@pytest.fixture
def client(served: Daemon) -> Iterator[Client]:
    """That daemon, called; what a test leaves of its pods is removed."""
    yield served.client
    served.client.remove_all_pods()


def with_users(config: api.PodSandboxConfig) -> api.PodSandboxConfig:
    users = config.linux.security_context.namespace_options.userns_options
    users.mode = api.POD
    for mappings in (users.uids, users.gids):
        mappings.add(host_id=FIRST, container_id=0, length=LENGTH)
    return config


def an_image(path: str, sub_path: str = "", image: str = DATA) -> api.Mount:
    return api.Mount(
        container_path=path,
        image=api.ImageSpec(image=image),
        image_sub_path=sub_path,
        readonly=True,
    )


# --- images as volumes -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("handler", ["runc", HANDLER])
def test_images_are_volumes(served: Daemon, client: Client, image: str, handler: str) -> None:
    config = client.pod_config()
    pod = Pod.run(
        client, image, with_users(config) if handler == HANDLER else config, handler=handler
    )
    container, data = pod.container(), REMOVED[handler]
    image_id = client.image_id(data) or ""
    container.mounts.extend(
        [
            an_image("/whole", image=data),
            an_image("/whole-by-id", image=image_id),
            an_image("/part", "deep/er", data),
            an_image("/by-link", "inside", data),
            an_image("/one-file", "etc/conf", data),
            an_image("/etc-of-it", "out", data),
        ]
    )
    if handler == HANDLER:
        for mount in container.mounts:
            mount.uidMappings.add(host_id=FIRST, container_id=0, length=LENGTH)
            mount.gidMappings.add(host_id=FIRST, container_id=0, length=LENGTH)
    running = pod.sleeper(container)

    # What is in them: the image's own, whiteouts and owners heeded, links inside it.
    said = pod.asks(
        running,
        "cat /whole/etc/conf /whole-by-id/deep/er/file /part/file /by-link/file /one-file; ls /etc-of-it; "
        "stat -c %u:%g /whole/etc/conf /one-file",
    )
    assert said.split() == (["lower", "found", "found", "found", "lower", "conf", "5:6", "5:6"])
    assert pod.asks(running, "/whole/busybox echo runs; grep ' /whole ' /proc/mounts").startswith(
        "runs\n"
    )
    for script in ("touch /whole/x", "touch /one-file", "ls /whole/etc/gone"):
        assert client.exec(running, "sh", "-c", script).exit_code != 0

    # What is told of them, and that the image is in use.
    shown = client.status(running).status.mounts
    assert {(mount.image.image, mount.image.image_ref) for mount in shown} == {(image_id, image_id)}
    assert len(container_info(client, running)["imageVolumes"]) == 6
    client.remove_image(data)
    assert pod.asks(running, "cat /whole/etc/conf") == "lower\n"
    served.restart()
    assert pod.asks(running, "cat /whole/etc/conf /part/file") == "lower\nfound\n"
    with refused(grpc.StatusCode.NOT_FOUND, data):
        pod.create(_with(pod.container("true"), an_image("/again", image=data)))

    # They go with the container, and the image's layers with them.
    layers = served.root / "layers"
    used = {
        layer
        for each in container_info(client, running)["imageVolumes"]
        for layer in each["layers"]
    }
    assert used <= {path.name for path in layers.iterdir()}
    client.remove(running)
    assert not used & {path.name for path in layers.iterdir()}


def _with(config: api.ContainerConfig, *mounts: api.Mount) -> api.ContainerConfig:
    config.mounts.extend(mounts)
    return config


def test_image_that_can_not_be_mounted_is_refused_and_leaves_nothing(
    client: Client, image: str
) -> None:
    pod = Pod.run(client, image)
    missing = grpc.StatusCode.NOT_FOUND
    for mount, code, words in (
        (an_image("/x", "no/such"), missing, ("image_sub_path", "no/such")),
        (an_image("/x", "self/etc"), missing, ("image_sub_path",)),
        (an_image("/x", "../x"), INVALID, ("image_sub_path",)),
        (an_image("/x", "/etc"), INVALID, ("image_sub_path",)),
        (an_image("/x", image="test.example/none"), missing, ("none",)),
        (an_image("/etc/passwd"), INVALID, ("mounts[0].container_path", "/etc/passwd")),
    ):
        with refused(code, *words):
            pod.create(_with(pod.container("true"), mount))
    assert client.containers() == []


# --- what an image declares --------------------------------------------------------------------------------------


@pytest.mark.parametrize("handler", ["runc", HANDLER])
def test_volumes_of_the_image_have_its_content_and_are_the_containers_own(
    served: Daemon, client: Client, handler: str
) -> None:
    config = client.pod_config()
    config = with_users(config) if handler == HANDLER else config
    pod = Pod.run(client, DECLARING, config, handler=handler)
    container = pod.container()
    container.linux.security_context.readonly_rootfs = True
    running = pod.sleeper(container)
    said = pod.asks(
        running,
        "stat -c '%n %a %u:%g' /data/db /data/db/table /new; cat /data/db/table; readlink /data/db/link; "
        "touch /data/db/mine /new/mine && echo written; ls /leads-out; cat /a-file",
    )
    assert said.splitlines() == [
        *("/data/db 750 26:27", "/data/db/table 640 26:27", "/new 755 0:0", "rows", "/etc/shadow"),
        *("written", "hostname", "hosts", "resolv.conf", "stays"),
    ]
    volumes = Path(container_info(client, running)["rootDirectory"]) / "volumes"
    first = FIRST if handler == HANDLER else 0
    assert {path.stat().st_uid - first for path in volumes.iterdir()} == {0, 26}
    other = pod.sleeper(pod.container())
    assert pod.asks(other, "ls /data/db /new").split() == ["/data/db:", "link", "table", "/new:"]
    client.remove(running)
    assert not volumes.exists()


def test_request_takes_the_place_of_a_declared_volume(client: Client, tmp_path: Path) -> None:
    (tmp_path / "asked").touch()
    pod = Pod.run(client, DECLARING)
    config = _with(pod.container(), api.Mount(container_path="/data/db/", host_path=str(tmp_path)))
    assert pod.says("ls /data/db", config) == "asked\n"


# --- host paths --------------------------------------------------------------------------------------------------


def test_host_paths_are_made_followed_and_refused_by_name(
    client: Client, image: str, tmp_path: Path
) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real/file").write_text("one\n")
    (tmp_path / "link").symlink_to("real")
    (tmp_path / "dangling").symlink_to("made-elsewhere")
    pod = Pod.run(client, image)
    good = {
        "/dir": tmp_path / "link",
        "/file": tmp_path / "link/file",
        "/dir-made": tmp_path / "new/er",
        "/outer": tmp_path,
        "/outer/real/inner": tmp_path / "real",
    }
    config = pod.container()
    for path, host_path in sorted(good.items(), reverse=True):
        config.mounts.add(container_path=path, host_path=str(host_path))
    assert (
        pod.says("cat /dir/file /file /outer/real/inner/file; ls -A /dir-made", config)
        == "one\n" * 3
    )
    assert (tmp_path / "new/er").is_dir()

    for host_path, container_path, field in (
        (tmp_path / "dangling", "/x", "mounts[0].host_path"),
        (tmp_path / "real/file/x", "/x", "mounts[0].host_path"),
        (tmp_path / "never-made", "/etc/passwd", "mounts[0].container_path"),
        (tmp_path / "never-made", "/proc/sys", "mounts[0].container_path"),
        (tmp_path / "real", "/proc", "mounts[0].host_path"),
    ):
        mount = api.Mount(container_path=container_path, host_path=str(host_path))
        with refused(INVALID, field):
            pod.create(_with(pod.container("true"), mount))
    assert sorted(os.listdir(tmp_path)) == ["dangling", "link", "new", "real"]
    assert len(client.containers()) == 1


def test_working_directory_is_made_for_the_container(client: Client, image: str) -> None:
    pod = Pod.run(client, image)
    config = pod.container()
    config.working_dir = "/srv/new/dir"
    config.linux.security_context.readonly_rootfs = True
    assert pod.says("pwd; stat -c '%a %u' .", config).split() == ["/srv/new/dir", "755", "0"]


@pytest.mark.parametrize(
    "directory", ["/data/x/y", "/sys/none/x", "/proc/none", "/data/file", "/etc/passwd"]
)
def test_working_directory_that_can_not_be_entered_fails_the_start(
    client: Client, image: str, tmp_path: Path, directory: str
) -> None:
    (tmp_path / "file").touch()
    pod = Pod.run(client, image)
    config = pod.container("true")
    config.mounts.add(container_path="/data", host_path=str(tmp_path), readonly=True)
    config.working_dir = directory
    container = pod.create(config)
    with refused(grpc.StatusCode.FAILED_PRECONDITION, container):
        client.start(container)
    status = client.status(container).status
    assert (status.exit_code, status.reason) == (128, "StartError")
    assert any(words in status.message for words in ("mkdir", "chdir", "cannot be entered"))
