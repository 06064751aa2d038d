"""Block devices by their names, and file systems by what they hold."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from cri_shim.host.block_devices import device_path, file_system_of

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(
    ("target", "path"),
    [
        ("../../devices/pci0000:00/block/vda/vda1", "/dev/vda1"),
        ("../../devices/virtual/block/dm-0", "/dev/dm-0"),
        ("../../devices/block/cciss!c0d0", "/dev/cciss/c0d0"),
    ],
)
def test_a_device_is_called_what_dev_calls_it(tmp_path: Path, target: str, path: str) -> None:
    (tmp_path / "254:1").symlink_to(target)
    assert device_path(254, 1, str(tmp_path)) == path
    assert device_path(254, 2, str(tmp_path)) == ""


def test_a_file_system_is_that_of_the_directory(tmp_path: Path) -> None:
    device = os.stat(tmp_path).st_dev
    (tmp_path / f"{os.major(device)}:{os.minor(device)}").symlink_to("../block/sdz")
    found, expected = file_system_of(tmp_path, str(tmp_path)), os.statvfs(tmp_path)
    assert found.device == "/dev/sdz"
    assert found.size_bytes == expected.f_blocks * expected.f_frsize
    assert (found.inodes, found.free_inodes >= 0) == (expected.f_files, True)
    with pytest.raises(FileNotFoundError):
        file_system_of(tmp_path / "gone")
