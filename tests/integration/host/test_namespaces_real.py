"""Network namespaces on the real kernel; needs root and iproute2."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import socket
import subprocess
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from cri_shim import paths
from cri_shim.errors import InvalidArgumentError
from cri_shim.host.namespaces import (
    create_netns,
    is_netns,
    remove_netns,
    run_in_netns,
    set_netns_sysctls,
)
from tests.harness.mount_points import mounts_below

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.integration

SELF = Path("/proc/thread-self/ns/net")


def ip(*arguments: str) -> str:
    return subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True).stdout


def namespaces_of_threads() -> set[str]:
    found = set()
    for task in os.listdir("/proc/self/task"):
        with contextlib.suppress(FileNotFoundError):
            found.add(os.readlink(f"/proc/self/task/{task}/ns/net"))
    return found


@pytest.fixture
def netns() -> Iterator[Path]:
    own = os.readlink(SELF)
    path = paths.netns_file(secrets.token_hex(32))
    yield path
    remove_netns(path)
    assert not path.exists()
    assert os.readlink(SELF) == own
    assert path.name not in ip("netns")


def test_namespace_shows_in_ip_netns_with_loopback_up(netns: Path) -> None:
    create_netns(netns, {})
    assert is_netns(netns)
    assert netns.name in ip("netns")
    assert "LOOPBACK,UP" in ip("-n", netns.name, "link", "show", "lo")
    assert "127.0.0.1" in ip("-n", netns.name, "addr", "show", "lo")


def test_sysctls_hold_inside_only(netns: Path) -> None:
    outside = Path("/proc/sys/net/ipv4/ip_local_port_range").read_text()
    create_netns(
        netns,
        {"net.ipv4.ip_local_port_range": "20000 20999", "net/ipv4/conf/lo/log_martians": "1"},
    )

    def read(name: str) -> str:
        return run_in_netns(netns, lambda: Path("/proc/sys/net", name).read_text().strip())

    assert read("ipv4/ip_local_port_range") == "20000\t20999"
    assert read("ipv4/conf/lo/log_martians") == "1"
    assert Path("/proc/sys/net/ipv4/ip_local_port_range").read_text() == outside


def test_sysctls_of_interfaces_are_set_when_they_are_there(netns: Path) -> None:
    forwarding = "net.ipv4.conf.eth0/7.forwarding"
    create_netns(netns, {"net.ipv4.conf.default.forwarding": "0"})
    with pytest.raises(
        InvalidArgumentError, match=r"eth0/7\.forwarding: the pod has no .* 'eth0\.7'"
    ):
        set_netns_sysctls(netns, {forwarding: "1"})
    set_netns_sysctls(netns, {forwarding: "1"}, {forwarding})
    ip("-n", netns.name, "link", "add", "eth0.7", "type", "veth")
    set_netns_sysctls(netns, {forwarding: "1"}, {forwarding})
    file = Path("/proc/sys/net/ipv4/conf/eth0.7/forwarding")
    assert run_in_netns(netns, file.read_text) == "1\n"
    for name, value, words in (
        ("forwarding", "words", "rejected the value 'words'"),
        ("no_such_thing", "1", "no such sysctl"),
    ):
        with pytest.raises(InvalidArgumentError, match=words):
            set_netns_sysctls(netns, {f"net.ipv4.conf.eth0/7.{name}": value})


@pytest.mark.parametrize(
    ("sysctls", "words"),
    [
        ({"net.ipv4.no_such_thing": "1"}, "no such sysctl"),
        ({"net.ipv4.conf": "1"}, "no such sysctl"),
        ({"net.ipv4.ip_local_port_range": "nonsense"}, "rejected the value 'nonsense'"),
        ({"net.core.netdev_max_backlog": "7"}, "no such sysctl"),
    ],
)
def test_sysctl_that_the_namespace_refuses_leaves_nothing(
    netns: Path, sysctls: dict[str, str], words: str
) -> None:
    with pytest.raises(InvalidArgumentError, match=words):
        create_netns(netns, sysctls)
    assert not netns.exists()
    assert netns not in mounts_below(netns.parent)


def test_taken_name_is_left_alone(netns: Path) -> None:
    create_netns(netns, {})
    inode = netns.stat().st_ino
    with pytest.raises(FileExistsError):
        create_netns(netns, {})
    assert netns.stat().st_ino == inode


def test_socket_opened_inside_stays_inside(netns: Path) -> None:
    create_netns(netns, {})
    thread = threading.get_ident()

    def listen() -> socket.socket:
        assert threading.get_ident() != thread
        assert os.stat(SELF).st_ino == netns.stat().st_ino
        return socket.create_server(("127.0.0.1", 0))

    with run_in_netns(netns, listen) as server:
        address = server.getsockname()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(address, timeout=1)
        run_in_netns(netns, lambda: socket.create_connection(address, timeout=1)).close()


def test_what_is_no_namespace_is_not_entered(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="cannot enter the network namespace") as caught:
        run_in_netns(tmp_path / "file", os.getpid)
    assert caught.value.filename == str(tmp_path / "file")
    with pytest.raises(FileNotFoundError):
        run_in_netns(tmp_path / "none", os.getpid)
    assert not is_netns(Path("/proc/self/ns/mnt"))
    assert not is_netns(Path("/dev/null"))
    assert is_netns(Path("/proc/self/ns/net"))


def test_namespace_in_use_loses_its_name_only(netns: Path) -> None:
    create_netns(netns, {})
    with run_in_netns(netns, lambda: socket.create_server(("127.0.0.1", 0))) as server:
        remove_netns(netns)
        assert not netns.exists()
        assert server.getsockname()[0] == "127.0.0.1"


def test_ip_netns_after_ours_hides_no_pin(netns: Path) -> None:
    create_netns(netns, {})
    other = f"cri-test-{secrets.token_hex(4)}"
    ip("netns", "add", other)
    try:
        remove_netns(netns)
        assert netns not in mounts_below(netns.parent)
    finally:
        ip("netns", "del", other)


@pytest.mark.asyncio
async def test_many_namespaces_are_made_at_once(tmp_path: Path) -> None:
    own = os.readlink(SELF)
    names = [tmp_path / "dir" / f"ns{number}" for number in range(20)]
    await asyncio.gather(*(asyncio.to_thread(create_netns, name, {}) for name in names))
    assert len({name.stat().st_ino for name in names}) == 20
    for _ in range(100):
        if namespaces_of_threads() == {own}:
            break
        await asyncio.sleep(
            0.01
        )  # a thread that was joined may still be on its way out of the kernel
    assert namespaces_of_threads() == {own}
    await asyncio.gather(*(asyncio.to_thread(remove_netns, name) for name in names))
    assert os.listdir(tmp_path / "dir") == []
    assert mounts_below(tmp_path) == []
