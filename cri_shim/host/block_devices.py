"""Names block devices, and tells how full the file system of a directory is."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from pathlib import Path

_SYS_BLOCK: Final = "/sys/dev/block"


@dataclass(frozen=True, slots=True)
class FileSystem:
    """A file system's size and what is left of it."""

    device: str
    """The path of its device, as `device_path` names it."""
    size_bytes: int
    inodes: int
    free_inodes: int


def device_path(major: int, minor: int, sys_block: str = _SYS_BLOCK) -> str:
    """`/dev/NAME` of a block device; "" for one without a name, such as that of a network file system."""
    try:
        name = os.path.basename(os.readlink(f"{sys_block}/{major}:{minor}"))
    except OSError:
        return ""
    return f"/dev/{name.replace('!', '/')}"


def file_system_of(directory: Path, sys_block: str = _SYS_BLOCK) -> FileSystem:
    """The file system that the directory is on. Raises OSError."""
    device, found = os.stat(directory).st_dev, os.statvfs(directory)
    return FileSystem(
        device_path(os.major(device), os.minor(device), sys_block),
        found.f_blocks * found.f_frsize,
        found.f_files,
        found.f_ffree,
    )
