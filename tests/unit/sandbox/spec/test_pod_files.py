"""The files a pod's containers find in /etc, and what may not get into them."""

from __future__ import annotations

import socket
import stat
from typing import TYPE_CHECKING

import pytest

from cri_shim._pb.cri.v1 import api_pb2 as api
from cri_shim.errors import CriShimError, InvalidArgumentError
from cri_shim.host.port import Host
from cri_shim.paths import Paths
from cri_shim.sandbox.spec.pod_files import MAX_HOST_FILE_BYTES, PodFiles, shared_dirs
from tests.fakes.node_harness import pod_config
from tests.unit.sandbox.records import make_sandbox

if TYPE_CHECKING:
    from pathlib import Path


class NoMounts(Host):
    """Files are made where the mount would be."""

    def __init__(self) -> None:
        self.mounted: list[tuple[Path, int | None]] = []

    def mount_tmpfs(self, target: Path, *, size_bytes: int | None = None, **_: object) -> None:
        self.mounted.append((target, size_bytes))


class Node:
    """A host's /etc and the files of one pod."""

    def __init__(self, base: Path) -> None:
        self.paths = Paths(base / "root", base / "state")
        self.host_etc = base / "etc"
        self.host_etc.mkdir()
        self.host = NoMounts()
        self.files = PodFiles(self.host, self.paths, self.host_etc)

    def write(self, config: api.PodSandboxConfig) -> dict[str, str]:
        sandbox = make_sandbox(config=config)
        self.paths.sandbox(sandbox.id).state_dir.mkdir(parents=True)
        self.files.make(sandbox)
        etc = self.paths.sandbox(sandbox.id).etc_dir
        return {path.name: path.read_text() for path in sorted(etc.iterdir())}


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path)


def test_a_pod_gets_its_hostname_and_the_hosts_own_files(node: Node) -> None:
    (node.host_etc / "hosts").write_text("127.0.0.1 localhost\n")
    (node.host_etc / "resolv.conf").write_text("nameserver 10.0.0.1\n")
    assert node.write(pod_config()) == {
        "hostname": "web\n",
        "hosts": "127.0.0.1 localhost\n",
        "resolv.conf": "nameserver 10.0.0.1\n",
    }


def test_everybody_in_the_pod_may_read_them(node: Node) -> None:
    node.write(pod_config())
    etc = node.paths.sandbox("5" * 64).etc_dir
    assert etc.stat().st_mode & 0o777 == 0o755
    assert {path.stat().st_mode & 0o777 for path in etc.iterdir()} == {0o644}


@pytest.mark.parametrize("case", ["missing", "too large", "a directory"])
def test_without_usable_host_files_a_pod_still_knows_itself(node: Node, case: str) -> None:
    hosts = node.host_etc / "hosts"
    if case == "too large":
        hosts.write_bytes(b"#" * (MAX_HOST_FILE_BYTES + 1))
    elif case == "a directory":
        hosts.mkdir()
    files = node.write(pod_config())
    assert "localhost" in files["hosts"]
    assert files["resolv.conf"] == ""


def test_the_pods_own_dns_replaces_the_hosts(node: Node) -> None:
    (node.host_etc / "resolv.conf").write_text("nameserver 10.0.0.1\n")
    config = pod_config()
    config.dns_config.servers.extend(["10.96.0.10", "10.96.0.11"])
    config.dns_config.searches.extend(["default.svc", "svc"])
    config.dns_config.options.append("ndots:5")
    assert node.write(config)["resolv.conf"] == (
        "search default.svc svc\nnameserver 10.96.0.10\nnameserver 10.96.0.11\noptions ndots:5\n"
    )


@pytest.mark.parametrize("part", ["servers", "searches", "options"])
def test_a_part_of_dns_alone_is_enough(node: Node, part: str) -> None:
    config = pod_config()
    getattr(config.dns_config, part).append("word")
    assert node.write(config)["resolv.conf"].endswith(" word\n")


@pytest.mark.parametrize("part", ["servers", "searches", "options"])
@pytest.mark.parametrize("word", ["", "a b", "a\nnameserver 6.6.6.6", "a\t", "ü", "\0"])
def test_dns_words_cannot_add_lines(node: Node, part: str, word: str) -> None:
    config = pod_config()
    getattr(config.dns_config, part).append(word)
    with pytest.raises(InvalidArgumentError, match=f"dns_config.{part}"):
        node.files.check(config)


@pytest.mark.parametrize("name", ["a", "web-1", "web.example.org", "A1", "x" * 63, f"{'x' * 62}.a"])
def test_a_good_hostname_is_taken(node: Node, name: str) -> None:
    assert node.files.check(api.PodSandboxConfig(hostname=name)) == name


@pytest.mark.parametrize(
    "name",
    [
        "a b",
        "a\n",
        "a\nb",
        "a#b",
        "x" * 65,
        "ü" * 33,
        "\0",
    ],
)
def test_what_no_host_can_be_called_is_refused(node: Node, name: str) -> None:
    with pytest.raises(InvalidArgumentError, match=r"config\.hostname"):
        node.files.check(api.PodSandboxConfig(hostname=name))


def test_without_a_name_or_on_the_nodes_network_a_pod_is_called_like_the_node(node: Node) -> None:
    assert node.files.check(api.PodSandboxConfig()) == socket.gethostname()
    config = pod_config(host_network=True)
    config.hostname = "mine"
    assert node.files.check(config) == socket.gethostname()


@pytest.mark.parametrize("directory", ["relative", "/var/log/../../etc", "..", "/.."])
def test_a_log_directory_is_absolute_and_climbs_nowhere(node: Node, directory: str) -> None:
    with pytest.raises(InvalidArgumentError, match="log_directory"):
        node.files.check(pod_config(log_directory=directory))


def test_the_log_directory_is_made(node: Node, tmp_path: Path) -> None:
    logs = tmp_path / "logs" / "default_web"
    sandbox = make_sandbox(config=pod_config(log_directory=str(logs)))
    node.files.make_log_directory(sandbox)
    node.files.make_log_directory(sandbox)
    assert logs.is_dir()


def test_files_that_cannot_be_written_are_said(node: Node) -> None:
    with pytest.raises(CriShimError, match="creating /dev/shm and the files"):
        node.files.make(make_sandbox())  # its directory is not there


def test_they_are_on_a_tmpfs_of_bounded_size(node: Node) -> None:
    node.write(pod_config())
    paths = node.paths.sandbox("5" * 64)
    assert node.host.mounted == [(paths.memory_dir, 64 << 20)]
    shm_dir, etc_dir = shared_dirs(paths)
    assert {shm_dir.parent, etc_dir.parent} == {paths.memory_dir}
    assert stat.S_IMODE(shm_dir.stat().st_mode) == 0o1777


def test_pods_of_former_versions_keep_their_places(node: Node) -> None:
    paths = node.paths.sandbox("5" * 64)
    former = paths.root_dir / "etc"
    former.mkdir(parents=True)
    assert shared_dirs(paths) == (paths.state_dir / "shm", former)
