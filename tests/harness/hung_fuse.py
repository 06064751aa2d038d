"""A file system that hangs like a dead NFS server's: a FUSE mount whose requests are never read."""

from __future__ import annotations

import ctypes
import os
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_MS_NOSUID, _MS_NODEV, _MNT_DETACH = 2, 4, 2


@contextmanager
def hung_fuse(mount_point: Path) -> Iterator[None]:
    """Mounted at `mount_point` while the block runs. At its end every call that hangs there fails, and it is gone."""
    libc = ctypes.CDLL(None, use_errno=True)
    target = os.fsencode(mount_point)
    device = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    try:
        options = f"fd={device},rootmode=40000,user_id=0,group_id=0".encode()
        if libc.mount(b"hung", target, b"fuse", _MS_NOSUID | _MS_NODEV, options):
            raise OSError(ctypes.get_errno(), "mounting a FUSE file system", str(mount_point))
        try:
            yield
        finally:
            # The last descriptor: the kernel ends the connection, and with it what waits for answers.
            os.close(device)
            device = -1
            if libc.umount2(target, _MNT_DETACH):
                raise OSError(ctypes.get_errno(), "unmounting a FUSE file system", target)
    finally:
        if device >= 0:
            os.close(device)
