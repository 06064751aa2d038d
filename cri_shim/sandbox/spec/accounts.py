"""Reads an image's /etc/passwd and /etc/group, and refuses images in which OCI runtimes could not read them.

The files are under the control of the image's author. A runtime that opens a FIFO blocks for ever, and a huge file
takes it minutes, for each process again. Such an image gets no container.

A file that the request mounts there is not checked. It can delay only the pod's own runtimes, which run in the pod's
cgroups and in the pod's share of the slots.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

import structlog

from cri_shim.host.files import size_in_root
from cri_shim.oci.spec.checks import clean_container_path, refuse

if TYPE_CHECKING:
    from pathlib import Path

    from cri_shim._pb.cri.v1 import api_pb2 as api
    from cri_shim.host.port import Host

log = structlog.get_logger()
MAX_ACCOUNT_FILE_BYTES = 2 << 20
"""Larger files count as empty. Parsing 2 MiB of the shortest lines takes half a second of CPU in this process."""
MAX_READ_BY_RUNTIMES_BYTES = 16 << 20
"""Images with larger files are refused. OCI runtimes read both files for each process: runc takes two seconds of CPU
for 16 MiB of short lines."""


def account_file(host: Host, rootfs_dir: Path, path: str, config: api.ContainerConfig) -> bytes:
    """Read an account file. A missing, unreadable or large file, or a loop of links, counts as empty.

    Raises InvalidArgumentError if OCI runtimes could not read the file: it is not a regular file, or it is huge.
    """
    try:
        return host.read_in_root(rootfs_dir, path, MAX_ACCOUNT_FILE_BYTES) or b""
    except OSError as error:
        if not _is_mounted_over(f"/{path}", config):
            _check_for_runtimes(rootfs_dir, path, error)
        log.warning(
            "cannot read an account file of the image",
            path=path,
            rootfs=str(rootfs_dir),
            error=str(error),
        )
        return b""


def _check_for_runtimes(rootfs_dir: Path, path: str, error: OSError) -> None:
    if error.errno == errno.EINVAL:
        refuse(
            "image", f"/{path}", "is not a regular file, as OCI runtimes need: rebuild the image"
        )
    if error.errno != errno.EFBIG:
        return
    size = size_in_root(rootfs_dir, path) or 0
    if size > MAX_READ_BY_RUNTIMES_BYTES:
        refuse(
            "image",
            f"/{path}",
            f"has {size} bytes, which OCI runtimes read for each process: the limit is "
            f"{MAX_READ_BY_RUNTIMES_BYTES}: rebuild the image",
        )


def _is_mounted_over(path: str, config: api.ContainerConfig) -> bool:
    places = (
        clean_container_path(mount.container_path, "container_path") for mount in config.mounts
    )
    return any(f"{path}/".startswith(f"{place}/") for place in places)
