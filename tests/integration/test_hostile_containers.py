"""Containers of images that mean harm, or know no better: each is started as it is, or refused at once and by name."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import pytest

from cri_shim.sandbox.spec.accounts import MAX_READ_BY_RUNTIMES_BYTES
from tests import images
from tests.integration.scene import Pod, refused

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.harness.client import Client
    from tests.harness.daemon import Daemon

pytestmark = pytest.mark.integration

INVALID = grpc.StatusCode.INVALID_ARGUMENT
LONG = "x" * 5000
HUGE = b"\0" * (MAX_READ_BY_RUNTIMES_BYTES + 1)
Hostile = Callable[..., str]


@pytest.fixture
def hostile(daemon: Daemon, tmp_path: Path) -> Iterator[Hostile]:
    """Imports an image of busybox, further entries and a configuration; makes its name."""
    name, archive = "test.example/hostile:containers", tmp_path / "hostile.tar"

    def make(*entries: images.Entry, **config: Any) -> str:
        applets = ("sh", "cat", "id", "ls", "sleep", "stat")
        layer = images.layer(
            *(images.directory(path) for path in ("bin", "etc", "proc", "dev", "sys")),
            images.file("bin/busybox", Path("/bin/busybox").read_bytes(), 0o755),
            *(images.hardlink(f"bin/{applet}", "bin/busybox", 0o755) for applet in applets),
            *entries,
        )
        archive.write_bytes(images.docker_archive(layer, tags=[name], **config))
        daemon.client.import_image(archive)
        return name

    yield make
    daemon.client.remove_image(name)


@pytest.fixture
def client(hostile: Hostile, daemon: Daemon) -> Iterator[Client]:
    """As everywhere; pods go before the image does."""
    yield daemon.client
    daemon.client.remove_all_pods()


def volumes(*paths: str) -> dict[str, dict[str, Any]]:
    return {path: {} for path in paths}


HARMLESS: dict[str, tuple[list[images.Entry], dict[str, Any]]] = {
    "accounts behind a loop": ([images.symlink("etc/passwd", "passwd")], {}),
    "accounts behind a link out": ([images.symlink("etc/passwd", "/proc/1/root/etc/passwd")], {}),
    "volumes of the kernel's": (
        [],
        {"volumes": volumes("/proc", "/proc/self/fd", "/dev/shm", "/sys/fs", "/", "", ".", "..")},
    ),
    "volume on a file": ([], {"volumes": volumes("/bin/busybox", "/bin/busybox/x")}),
    "volume behind a loop": (
        [images.symlink("loop", "loop"), images.symlink("none", "/no/where")],
        {"volumes": volumes("/loop", "/loop/x", "/none", "/none/x")},
    ),
    "volume on a fifo": ([images.fifo("fifo")], {"volumes": volumes("/fifo")}),
    "volume with all kinds of files": (
        [
            images.directory("v"),
            images.device("v/null", 1, 3),
            images.fifo("v/fifo"),
            images.symlink("v/link", "/etc"),
        ],
        {"volumes": volumes("/v", "/v/a", "/v/a/b")},
    ),
    "volumes of odd names": (
        [],
        {"volumes": volumes("/a\0b", "/x\ny", f"/{LONG}", "/" + "n" * 300)},
    ),
    "hundreds of volumes": ([], {"volumes": volumes(*(f"/v{number}" for number in range(300)))}),
    "volume over the pod's files": ([], {"volumes": volumes("/etc", "/etc/hosts")}),
    "odd environment": ([], {"env": ["A=b\0c", "=x", "NONE", "", "Ä=ö\n", "B=" + LONG]}),
    "deep working directory": ([], {"working_dir": "/" + "d/" * 1500}),
    "odd user": ([], {"user": ":"}),
    "user of zeros": ([], {"user": "0000:000"}),
    "real-time stop signal": ([], {"stop_signal": "SIGRTMIN+3"}),
    "files where devices go": ([images.file("dev/null"), images.symlink("dev/shm", "/etc")], {}),
    "fifo as a file of the pod": ([images.fifo("etc/hosts")], {}),
}


@pytest.mark.parametrize("case", HARMLESS)
def test_what_does_no_harm_is_started(client: Client, hostile: Hostile, case: str) -> None:
    entries, config = HARMLESS[case]
    pod = Pod.run(client, hostile(*entries, **config))
    started = time.monotonic()
    container = pod.sleeper()
    assert time.monotonic() - started < 10
    assert pod.asks(container, "id -u") == "0\n"
    assert "proc /proc proc" in pod.asks(container, "cat /proc/mounts")


REFUSED: dict[str, tuple[list[images.Entry], dict[str, Any], str]] = {
    "accounts in a fifo": ([images.fifo("etc/passwd")], {}, "image: '/etc/passwd'"),
    "groups in a fifo": ([images.fifo("etc/group")], {}, "image: '/etc/group'"),
    "accounts in a directory": ([images.directory("etc/passwd")], {}, "image: '/etc/passwd'"),
    "accounts in a device": ([images.device("etc/passwd", 1, 5)], {}, "image: '/etc/passwd'"),
    "huge accounts": ([images.file("etc/group", HUGE)], {}, "image: '/etc/group'"),
    "directory as a file of the pod": ([images.directory("etc/hosts")], {}, "image: '/etc/hosts'"),
    "loop as a file of the pod": (
        [images.symlink("etc/hosts", "hosts")],
        {},
        "image: '/etc/hosts'",
    ),
    "volume that a link takes too deep": (
        [images.symlink("deep", "/m" * 32)],
        {"volumes": volumes("/deep/x")},
        "image: '/deep/x': links lead to a path 33 or more names deep",
    ),
    "relative working directory": ([], {"working_dir": "a/b"}, "image WORKDIR"),
    "working directory with a NUL": ([], {"working_dir": "/a\0b"}, "image WORKDIR"),
    "long working directory": ([], {"working_dir": f"/{LONG}"}, "image WORKDIR"),
    "long name of a working directory": ([], {"working_dir": "/" + "n" * 300}, "image WORKDIR"),
    "user with a newline": ([], {"user": "root\n"}, "image USER"),
    "user of other digits": ([], {"user": "\u0661"}, "image USER"),
    "negative user": ([], {"user": "-0"}, "image USER"),
    "user with too many parts": ([], {"user": "0:0:0"}, "the group of image USER"),
    "stop signal that is none": ([], {"stop_signal": "TERM\0"}, "image StopSignal"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_can_not_be_is_refused_at_once_and_by_name(
    client: Client, hostile: Hostile, case: str
) -> None:
    entries, config, words = REFUSED[case]
    pod = Pod.run(client, hostile(*entries, **config))
    started = time.monotonic()
    with refused(INVALID, words):
        pod.create(pod.container("sleep", "3600"))
    assert time.monotonic() - started < 10


NOWHERE: dict[str, tuple[list[images.Entry], str]] = {
    "on a file": ([], "/bin/busybox"),
    "behind a loop": ([images.symlink("loop", "loop")], "/loop"),
    "behind nothing": ([images.symlink("none", "/no/where")], "/none"),
    "of the kernel's": ([], "/sys/none"),
}


@pytest.mark.parametrize("case", NOWHERE)
def test_working_directory_that_no_program_can_be_in_fails_the_start(
    client: Client, hostile: Hostile, case: str
) -> None:
    entries, working_dir = NOWHERE[case]
    pod = Pod.run(client, hostile(*entries, working_dir=working_dir))
    container = pod.create(pod.container("sleep", "3600"))
    with refused(grpc.StatusCode.FAILED_PRECONDITION, container, working_dir):
        client.start(container)
    assert client.status(container).status.reason == "StartError"


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"entrypoint": ["a\0b"]}, "image ENTRYPOINT or CMD"),
        ({"entrypoint": [""]}, "image ENTRYPOINT"),
        ({"cmd": [""]}, "image CMD"),
        ({}, "neither the request nor the image"),
    ],
)
def test_command_that_can_not_be_is_refused(
    client: Client, hostile: Hostile, config: dict[str, Any], words: str
) -> None:
    pod = Pod.run(client, hostile(**config))
    with refused(INVALID, words):
        pod.create(pod.container())
