"""Creates a container's volumes from images: images mounted as volumes, and the VOLUMEs of its own image.

Rules:
- An image volume is an overlay below the container's state directory, named by the mount's index in the request. So
  `teardown.mounts` finds it by the container's ID. The record has the names of its layers.
- A VOLUME is a directory below the container's root directory, with a copy of the image's files at that path. It is
  removed with the container. Its path is always resolved inside the image (CVE-2022-23648).
- Most functions block. Coroutines call them through `kernel_call`. Work that continues after a timeout fails when the
  container's directories are removed, since it does not create them again.
"""

from __future__ import annotations

import errno
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import structlog

from cri_shim.errors import host_step
from cri_shim.host.files import open_in_root
from cri_shim.host.tree_copy import copy_tree
from cri_shim.image.volume import open_sub_path
from cri_shim.oci.spec.inputs import BindVolume
from cri_shim.oci.spec.mounts import image_mounts
from cri_shim.sandbox.store.model import ImageVolumeRecord

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from contextlib import AsyncExitStack

    from cri_shim._pb.cri.v1 import api_pb2 as api
    from cri_shim.host.port import Host
    from cri_shim.image.store import ImageStore
    from cri_shim.image.volume import ImageVolume
    from cri_shim.paths import ObjectPaths

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Volumes:
    """The volumes of a container."""

    images: Mapping[int, Path]
    """The path to bind for each requested image mount, by its index in the request."""
    declared: tuple[BindVolume, ...]
    """The VOLUMEs of the container's own image."""


_NO_DIRECTORY = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG)


async def hold_image_volumes(
    images: ImageStore, config: api.ContainerConfig, held: AsyncExitStack
) -> dict[int, ImageVolume]:
    """Look up the images to mount, by the mounts' index in the request. Their layers are kept while `held` is open.

    Raises InvalidArgumentError, NotFoundError for an image that is not in the store.
    """
    return {
        mount.index: await held.enter_async_context(images.volume(mount.image, mount.sub_path))
        for mount in image_mounts(config)
    }


def volume_records(volumes: Mapping[int, ImageVolume]) -> tuple[ImageVolumeRecord, ...]:
    """The entries of a container's record."""
    return tuple(
        ImageVolumeRecord(index, volume.image.id, volume.layers)
        for index, volume in volumes.items()
    )


def mount_images(
    host: Host,
    paths: ObjectPaths,
    volumes: Mapping[int, ImageVolume],
    *,
    userns_fd: int | None,
    label: str = "",
) -> dict[int, Path]:
    """Mount images read-only, ID-mapped to the pod's user namespace, with its SELinux label. Blocking.

    Returns the path to bind for each. Raises NotFoundError and InvalidArgumentError for a sub path,
    ResourceExhaustedError, CriShimError.
    """
    sources = {}
    with host_step(f"{paths.root_dir.name}: mounting images"):
        paths.images_dir.mkdir(mode=0o755)
    for index, volume in volumes.items():
        whole = paths.images_dir / str(index)
        with host_step(f"mounts[{index}].image: mounting {volume.image.name}"):
            whole.mkdir(mode=0o755)
            host.mount_overlay(
                whole,
                layers_dir=volume.layers_dir,
                lowers=volume.lowers,
                upper=None,
                work=None,
                userns_fd=userns_fd,
                label=label,
            )
            sources[index] = whole
            if volume.sub_path:
                sources[index] = _bind_part(host, whole, volume)
    return sources


def _bind_part(host: Host, whole: Path, volume: ImageVolume) -> Path:
    """Bind the sub path by a descriptor: the runtime would resolve links in a path on the node, outside the image."""
    part = whole.with_name(f"{whole.name}.part")
    fd = open_sub_path(whole, volume)
    try:
        if stat.S_ISDIR(os.fstat(fd).st_mode):
            part.mkdir(mode=0o755)
        else:
            part.touch(mode=0o644)
        host.bind(Path(f"/proc/self/fd/{fd}"), part)
    finally:
        os.close(fd)
    return part


def make_volumes(
    paths: ObjectPaths, container_paths: Iterable[str], root: tuple[int, int] | None
) -> tuple[BindVolume, ...]:
    """Create the VOLUMEs at `container_paths`, with the files of the mounted root file system there. Blocking.

    A VOLUME without a directory in the image is empty and owned by `root`, the pod's root on the node. Raises
    ResourceExhaustedError if the disk is full, CriShimError.
    """
    made = []
    with host_step(f"{paths.root_dir.name}: creating the image's VOLUMEs"):
        for number, container_path in enumerate(container_paths):
            directory = paths.volumes_dir / str(number)
            if _make_volume(directory, paths.rootfs_dir, container_path, root):
                made.append(BindVolume(container_path, str(directory)))
    return tuple(made)


def _make_volume(
    directory: Path, rootfs_dir: Path, container_path: str, root: tuple[int, int] | None
) -> bool:
    """Create one VOLUME. Returns False, and does nothing, if the image has a file at the path that is no directory."""
    try:
        source: int | None = open_in_root(rootfs_dir, container_path, os.O_PATH | os.O_DIRECTORY)
    except OSError as error:
        if error.errno not in _NO_DIRECTORY:
            raise
        if error.errno != errno.ENOENT:
            log.warning("VOLUME ignored", path=container_path, error=error.strerror)
            return False
        source = None
    directory.parent.mkdir(mode=0o700, exist_ok=True)
    directory.mkdir(mode=0o755)
    directory.chmod(0o755)
    if source is None:
        if root is not None:
            os.chown(directory, *root)
        return True
    try:
        copy_tree(source, directory)
    finally:
        os.close(source)
    return True
