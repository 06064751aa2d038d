"""What is decided before the kernel is asked; the namespaces themselves are an integration test."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from cri_shim.errors import InvalidArgumentError
from cri_shim.host.namespaces import create_netns, is_netns, remove_netns, sysctl_file

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("net.ipv4.ip_forward", "net/ipv4/ip_forward"),
        ("net/ipv4/ip_forward", "net/ipv4/ip_forward"),
        ("net.ipv4.conf.eth0/100.forwarding", "net/ipv4/conf/eth0.100/forwarding"),
        ("net/ipv4/conf/eth0.100/forwarding", "net/ipv4/conf/eth0.100/forwarding"),
    ],
)
def test_both_spellings_of_a_sysctl_name_one_file(name: str, file: str) -> None:
    assert sysctl_file(name) == file


@pytest.mark.parametrize(
    "name",
    [
        "",
        "net",
        "net.",
        "net/",
        ".net.ipv4",
        "/net/ipv4",
        "kernel.shm_rmid_forced",
        "kernel/core_pattern",
        "network.ipv4",
        "net/../kernel/core_pattern",
        "net./.kernel.core_pattern",
        "net.//.kernel.core_pattern",
        "net.ipv4..ip_forward",
        "net//ipv4",
        "net.ipv4.ip_forward\n",
        "net.ipv4.ip_forward+kernel.core_pattern",
        "net.ipv4.ip_forward=1",
        "net.ipv4.\0",
        "net.ipv4.\uff46orward",
        "net.ipv4.ip forward",
    ],
)
def test_name_that_leaves_net_is_refused(name: str) -> None:
    with pytest.raises(InvalidArgumentError, match="sysctl"):
        sysctl_file(name)


@pytest.mark.parametrize("value", ["", "1\n", "1\n2", "1\0", "\x1b[0m", "é", "1\r"])
def test_value_of_more_than_one_printable_line_is_refused(value: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidArgumentError, match=r"net\.ipv4\.ip_forward"):
        create_netns(tmp_path / "ns", {"net.ipv4.ip_forward": value})
    assert list(tmp_path.iterdir()) == []


def test_bare_file_is_no_namespace_and_can_be_removed(tmp_path: Path) -> None:
    name = tmp_path / "left-over"
    name.touch()
    assert not is_netns(name)
    assert not is_netns(tmp_path)
    remove_netns(name)
    assert not name.exists()
    assert not is_netns(name)
    remove_netns(name)
