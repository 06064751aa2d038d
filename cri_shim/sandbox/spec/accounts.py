"""An image's /etc/passwd and /etc/group: read within a bound, and refused where OCI runtimes could not read them.

Rules: both come from whoever made the image. What is no regular file would make a runtime wait for ever, and a huge one
would make it work for minutes, for each process anew: such images make no container. What a request mounts over them
counts instead, and is the pod's own affair: its runtimes work in its cgroups, on slots that it has a share of.
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
"""/etc/passwd and /etc/group come from the image: what is longer is no such file. Reading 2 MiB of the shortest lines
takes half a second of a thread that shares the interpreter."""
MAX_READ_BY_RUNTIMES_BYTES = 16 << 20
"""OCI runtimes read the whole of both files for each process; of short lines, runc 16 MiB in two seconds of a core."""


def account_file(host: Host, rootfs_dir: Path, path: str, config: api.ContainerConfig) -> bytes:
    """What an image has there; a loop of links or a large file is no account file.

    Raises InvalidArgumentError for what is no file, or a huge one: OCI runtimes read it as well, and would wait on a
    FIFO for ever.
    """
    try:
        return host.read_in_root(rootfs_dir, path, MAX_ACCOUNT_FILE_BYTES) or b""
    except OSError as error:
        if not _is_mounted_over(f"/{path}", config):
            _check_for_runtimes(rootfs_dir, path, error)
        log.warning("no account file", path=path, rootfs=str(rootfs_dir), error=str(error))
        return b""


def _check_for_runtimes(rootfs_dir: Path, path: str, error: OSError) -> None:
    if error.errno == errno.EINVAL:
        refuse(
            "image", f"/{path}", "is no regular file, as OCI runtimes need it: rebuild the image"
        )
    if error.errno != errno.EFBIG:
        return
    size = size_in_root(rootfs_dir, path) or 0
    if size > MAX_READ_BY_RUNTIMES_BYTES:
        refuse(
            "image",
            f"/{path}",
            f"has {size} bytes, all of which OCI runtimes read for each process: at most "
            f"{MAX_READ_BY_RUNTIMES_BYTES}: rebuild the image",
        )


def _is_mounted_over(path: str, config: api.ContainerConfig) -> bool:
    places = (
        clean_container_path(mount.container_path, "container_path") for mount in config.mounts
    )
    return any(f"{path}/".startswith(f"{place}/") for place in places)
