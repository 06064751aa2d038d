from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from cri_shim.cli.checks.row import Node, nearest_existing, version_text
from tests.unit.cli.checks.trees import plant

if TYPE_CHECKING:
    from pathlib import Path


def test_a_node_is_read_below_its_root(tmp_path: Path) -> None:
    node = plant(tmp_path, {"/proc/self/status": "Name:\tx\nCapEff:\t00ff\n", "/proc/self/ns/": ""})
    assert node.status_field("CapEff") == "00ff"
    assert node.status_field("CapBnd") == ""
    assert node.read("/nothing") is None
    assert node.names("/proc/self") == ["ns", "status"]
    assert node.names("/nothing") == []


@pytest.mark.parametrize(
    ("release", "command"),
    [
        ("ID=debian\n", "apt-get install conmon"),
        ('ID=linuxmint\nID_LIKE="ubuntu debian"\n', "apt-get install conmon"),
        ('ID="rocky"\nID_LIKE="rhel centos fedora"\n', "dnf install conmon"),
        ('ID="openEuler"\n', "dnf install conmon"),
        ('ID="sles"\nID_LIKE="suse"\n', "zypper install conmon"),
        ("ID=arch\n", "install the package conmon"),
    ],
)
def test_the_remedy_is_the_distributions_own_command(
    tmp_path: Path, release: str, command: str
) -> None:
    assert plant(tmp_path, {"/etc/os-release": release}).install("conmon") == command


def test_a_package_may_have_another_name_elsewhere(tmp_path: Path) -> None:
    node = plant(tmp_path, {"/etc/os-release": "ID=fedora"})
    assert node.install("libarchive13", "libarchive") == "dnf install libarchive"
    assert Node(tmp_path / "none").install("x") == "install the package x"


def test_the_nearest_directory_that_exists(tmp_path: Path) -> None:
    assert nearest_existing(tmp_path / "a" / "b") == tmp_path
    assert nearest_existing(tmp_path) == tmp_path


def test_versions_are_written_with_dots() -> None:
    assert version_text((5, 12)) == "5.12"
