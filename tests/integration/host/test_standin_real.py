"""A namespace in the place of one that has vanished, on the real kernel."""

from __future__ import annotations

import secrets
import subprocess
from ipaddress import ip_interface
from typing import TYPE_CHECKING

import pytest

from cri_shim import paths
from cri_shim.host.namespaces import create_netns, is_netns, remove_netns
from cri_shim.host.standin import make_standin, restore_addresses

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.integration
ADDRESSES = [ip_interface(text) for text in ("10.9.8.7/24", "10.9.9.7/16", "fd00::7/64")]


@pytest.fixture
def netns() -> Iterator[Path]:
    path = paths.netns_file(secrets.token_hex(32))
    yield path
    remove_netns(path)


@pytest.mark.parametrize("interface", ["eth0", "a-name-of-15-xx"])
@pytest.mark.parametrize("left", [False, True])
def test_stand_in_has_the_interface_with_its_addresses(
    netns: Path, interface: str, left: bool
) -> None:
    if left:
        netns.parent.mkdir(exist_ok=True)
        netns.touch(0o000)
    make_standin(netns, interface, ADDRESSES)
    show = ["ip", "-n", netns.name, "-oneline", "addr", "show", "dev", interface]
    shown = subprocess.run(show, check=True, capture_output=True, text=True).stdout
    assert {line.split()[3] for line in shown.splitlines()} == set(map(str, ADDRESSES))


def test_namespace_that_lives_is_left_alone(netns: Path) -> None:
    create_netns(netns, {})
    inode = netns.stat().st_ino
    with pytest.raises(FileExistsError):
        make_standin(netns, "eth0", ADDRESSES)
    assert netns.stat().st_ino == inode


def test_nothing_stays_of_one_that_can_not_be(netns: Path) -> None:
    with pytest.raises(OSError, match=r"."):
        make_standin(netns, "lo", ADDRESSES)
    assert not netns.exists()
    assert not is_netns(netns)


def test_addresses_that_somebody_took_come_back_and_those_that_are_there_stay(netns: Path) -> None:
    make_standin(netns, "eth0", ADDRESSES)
    taken = ["ip", "-n", netns.name, "addr", "del", str(ADDRESSES[0]), "dev", "eth0"]
    subprocess.run(taken, check=True)

    restore_addresses(netns, "eth0", ADDRESSES)

    show = ["ip", "-n", netns.name, "-oneline", "addr", "show", "dev", "eth0"]
    shown = subprocess.run(show, check=True, capture_output=True, text=True).stdout
    assert {line.split()[3] for line in shown.splitlines()} == set(map(str, ADDRESSES))
    restore_addresses(netns, "gone0", ADDRESSES)
    remove_netns(netns)
    restore_addresses(netns, "eth0", ADDRESSES)
