"""How deep a container's mounts really lie, once the links on the way to them are followed.

Rules:
- The runtime follows links of the image, and of what it mounted before, inside the container's root. So does this, by
  descriptors and one name at a time: no link leads out to the node.
- What is not there counts by its names: the runtime makes it, or says why it can't.
- A volume that a running container writes can change until the runtime looks: docs/security.md says what that costs.
"""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

from cri_shim.kernel_call import working_on
from cri_shim.oci.spec.checks import clean_container_path, refuse
from cri_shim.oci.spec.mounts import MAX_DEPTH

if TYPE_CHECKING:
    from pathlib import Path

    from cri_shim._pb.cri.v1 import api_pb2 as api
    from cri_shim.oci.spec.inputs import Spec

MAX_WALK = 4 * MAX_DEPTH
"""Of names on the way to one mount, those of links included: a thousand such ways take a fifth of a second."""
_OURS = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)
"""What is lacking then is the node's; other errors are the place's (a broken volume): the runtime says them."""


def check_depths(spec: Spec, config: api.ContainerConfig, rootfs_dir: Path) -> None:
    """Refuse a mount that links take deeper than `MAX_DEPTH` names. Blocking.

    `spec` has the mounts in the order of the runtime. Raises InvalidArgumentError naming the requested mount, or the
    image.
    """
    fields = {
        clean_container_path(
            mount.container_path, "container_path"
        ): f"mounts[{index}].container_path"
        for index, mount in enumerate(config.mounts)
    }
    mounted: dict[tuple[str, ...], str | None] = {(): str(rootfs_dir)}
    for mount in spec["mounts"]:
        destination: str = mount["destination"]
        field = fields.get(destination, "image")
        place = _place(destination, field, mounted)
        for hidden in [each for each in mounted if each and each[: len(place)] == place]:
            del mounted[hidden]
        mounted[place] = mount["source"] if mount["type"] == "bind" else None


def _place(
    destination: str, field: str, mounted: dict[tuple[str, ...], str | None]
) -> tuple[str, ...]:
    """The names of the place where the runtime will mount."""
    names: list[str] = []
    fds = [_open(mounted[()])]  # of the root and each of `names`; None where nothing is known to be
    left, walked = _names(destination), 0
    try:
        while left:
            name = left.pop()
            walked += 1
            if walked > MAX_WALK:
                refuse(field, destination, f"links lead through more than {MAX_WALK} names there")
            if name == "..":
                _leave(names, fds, max(len(names) - 1, 0))
                continue
            target = _link(fds[-1], name)
            if target is not None:
                _leave(names, fds, 0 if target.startswith("/") else len(names))
                left += _names(target)
                continue
            names.append(name)
            if len(names) > MAX_DEPTH:
                why = f"links lead {len(names)} names deep there, or more: at most {MAX_DEPTH}"
                refuse(field, destination, why)
            fds.append(_enter(fds[-1], tuple(names), field, mounted))
        return tuple(names)
    finally:
        for fd in fds:
            _close(fd)


def _leave(names: list[str], fds: list[int | None], stays: int) -> None:
    while len(names) > stays:
        names.pop()
        _close(fds.pop())


def _names(path: str) -> list[str]:
    """The last first."""
    return [name for name in reversed(path.split("/")) if name not in ("", ".")]


def _link(directory: int | None, name: str) -> str | None:
    """What the link of this name says; None for anything else."""
    if directory is None:
        return None
    try:
        return os.readlink(name, dir_fd=directory)
    except OSError as error:
        if error.errno in _OURS:
            raise
        return None


def _enter(
    directory: int | None,
    place: tuple[str, ...],
    field: str,
    mounted: dict[tuple[str, ...], str | None],
) -> int | None:
    if place not in mounted:
        return None if directory is None else _open(place[-1], directory)
    source = mounted[place]
    if source is not None:
        working_on(field, source)
    return _open(source)


def _open(path: str | None, directory: int | None = None) -> int | None:
    if path is None:
        return None
    try:
        return os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
    except OSError as error:
        if error.errno in _OURS:
            raise
        return None


def _close(fd: int | None) -> None:
    if fd is not None:
        os.close(fd)
