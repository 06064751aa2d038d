"""Bounds the depth of a container's mounts after links in their destinations are resolved.

Rules:
- The runtime follows links in the image and in earlier mounts, inside the container's root. This module does the same
  with descriptors, one name at a time, so that no link leads out to the node.
- Names that do not exist count as well, since the runtime creates them.
- A running container can change links in a volume before the runtime resolves them. docs/security.md has the effects.
"""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cri_shim.errors import is_lack
from cri_shim.kernel_call import working_on
from cri_shim.oci.spec.checks import clean_container_path, refuse
from cri_shim.oci.spec.mounts import MAX_DEPTH

if TYPE_CHECKING:
    from pathlib import Path

    from cri_shim._pb.cri.v1 import api_pb2 as api
    from cri_shim.oci.spec.inputs import Spec

MAX_WALK = 4 * MAX_DEPTH
"""Names on the path to one mount, those of links included. A thousand such paths take a fifth of a second."""


@dataclass(slots=True)
class _Place:
    """A directory in the container's root: something is mounted there, or below."""

    is_mounted: bool = False
    source: str | None = None
    """The mounted path of the node. None for a mount without one, such as a tmpfs."""
    below: dict[str, _Place] = dataclasses.field(default_factory=dict)


def check_depths(spec: Spec, config: api.ContainerConfig, rootfs_dir: Path) -> None:
    """Refuse a mount whose resolved destination is deeper than `MAX_DEPTH` names. Blocking.

    `spec` has the mounts in the runtime's order. Raises InvalidArgumentError that names the requested mount or the
    image.
    """
    fields = {
        clean_container_path(
            mount.container_path, "container_path"
        ): f"mounts[{index}].container_path"
        for index, mount in enumerate(config.mounts)
    }
    root = _Place(is_mounted=True, source=str(rootfs_dir))
    for mount in spec["mounts"]:
        destination: str = mount["destination"]
        place = root
        for name in _way(destination, fields.get(destination, "image"), root):
            place = place.below.setdefault(name, _Place())
        place.is_mounted, place.source = True, mount["source"] if mount["type"] == "bind" else None
        place.below = {}  # the mount hides earlier mounts below it


def _way(destination: str, field: str, root: _Place) -> list[str]:
    """The names of the path at which the runtime will mount, with all links resolved."""
    names: list[str] = []
    fds = [_open(root.source)]  # of the root and each of `names`; None if nothing exists there
    places: list[_Place | None] = [root]  # likewise; None if nothing is mounted there or below
    left, walked = _names(destination), 0

    def leave(stays: int) -> None:
        while len(names) > stays:
            names.pop()
            places.pop()
            _close(fds.pop())

    try:
        while left:
            name = left.pop()
            walked += 1
            if walked > MAX_WALK:
                refuse(
                    field, destination, f"links on the path lead through more than {MAX_WALK} names"
                )
            if name == "..":
                leave(max(len(names) - 1, 0))
                continue
            target = _link(fds[-1], name)
            if target is not None:
                leave(0 if target.startswith("/") else len(names))
                left += _names(target)
                continue
            names.append(name)
            if len(names) > MAX_DEPTH:
                why = f"links lead to a path {len(names)} or more names deep: the limit is {MAX_DEPTH}"
                refuse(field, destination, why)
            above = places[-1]
            places.append(None if above is None else above.below.get(name))
            fds.append(_enter(fds[-1], name, places[-1], field))
        return names
    finally:
        for fd in fds:
            _close(fd)


def _names(path: str) -> list[str]:
    """The names of a path, the last one first."""
    return [name for name in reversed(path.split("/")) if name not in ("", ".")]


def _link(directory: int | None, name: str) -> str | None:
    """The target of a symbolic link. None if the name is not a link."""
    if directory is None:
        return None
    try:
        return os.readlink(name, dir_fd=directory)
    except OSError as error:
        # A lack of resources is the node's. Other errors (of a broken volume) are left to the runtime's own message.
        if is_lack(error):
            raise
        return None


def _enter(directory: int | None, name: str, place: _Place | None, field: str) -> int | None:
    if place is None or not place.is_mounted:
        return None if directory is None else _open(name, directory)
    if place.source is not None:
        working_on(field, place.source)
    return _open(place.source)


def _open(path: str | None, directory: int | None = None) -> int | None:
    if path is None:
        return None
    try:
        return os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
    except OSError as error:
        # A lack of resources is the node's. Other errors (of a broken volume) are left to the runtime's own message.
        if is_lack(error):
            raise
        return None


def _close(fd: int | None) -> None:
    if fd is not None:
        os.close(fd)
