"""How deep a container's mounts really lie, once the links on the way to them are followed.

Rules:
- The runtime follows links of the image, and of what it mounted before, inside the container's root. So does this, by
  descriptors and one name at a time: no link leads out to the node.
- What is not there counts by its names: the runtime makes it, or says why it can't.
- A volume that a running container writes can change until the runtime looks: docs/security.md says what that costs.
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
"""Of names on the way to one mount, those of links included: a thousand such ways take a fifth of a second."""


@dataclass(slots=True)
class _Place:
    """In the container's root: something is mounted there, or below."""

    is_mounted: bool = False
    source: str | None = None
    """What is mounted there; None where it is nothing of the node's."""
    below: dict[str, _Place] = dataclasses.field(default_factory=dict)


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
    root = _Place(is_mounted=True, source=str(rootfs_dir))
    for mount in spec["mounts"]:
        destination: str = mount["destination"]
        place = root
        for name in _way(destination, fields.get(destination, "image"), root):
            place = place.below.setdefault(name, _Place())
        place.is_mounted, place.source = True, mount["source"] if mount["type"] == "bind" else None
        place.below = {}  # what lay there before is hidden


def _way(destination: str, field: str, root: _Place) -> list[str]:
    """The names that lead from the root to where the runtime will mount, no link among them."""
    names: list[str] = []
    fds = [_open(root.source)]  # of the root and each of `names`; None where nothing is known to be
    places: list[_Place | None] = [root]  # the same; None where nothing is mounted, there or below
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
                refuse(field, destination, f"links lead through more than {MAX_WALK} names there")
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
                why = f"links lead {len(names)} names deep there, or more: at most {MAX_DEPTH}"
                refuse(field, destination, why)
            above = places[-1]
            places.append(None if above is None else above.below.get(name))
            fds.append(_enter(fds[-1], name, places[-1], field))
        return names
    finally:
        for fd in fds:
            _close(fd)


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
        if is_lack(
            error
        ):  # the node's; other errors are the place's (a broken volume): the runtime says them
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
        if is_lack(
            error
        ):  # the node's; other errors are the place's (a broken volume): the runtime says them
            raise
        return None


def _close(fd: int | None) -> None:
    if fd is not None:
        os.close(fd)
