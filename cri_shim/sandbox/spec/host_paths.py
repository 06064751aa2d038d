"""The directories that a container's request names: its mounts' host paths and destinations, its working directory.

Rules:
- Links are resolved here, once, on the node: what was looked at is what is bound.
- A path that is not there becomes a directory, as volumes of type hostPath expect it, but only once everything else
  about the container was accepted, and never through a link that leads nowhere: who can write that link may not be
  who may choose the place. The directory is the request's, so it stays when the container goes.
- What shows only on the node is said by the field's name: a runtime's own words would not name it.
"""

from __future__ import annotations

import errno
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cri_shim._pb.cri.v1 import api_pb2 as api
from cri_shim.errors import ProgramError, WrongStateError, host_step
from cri_shim.host.files import make_dirs_in_root, open_in_root
from cri_shim.host.mountinfo import mount_of, read_mounts
from cri_shim.kernel_call import working_on
from cri_shim.oci.runtime_errors import NOT_RUNNABLE
from cri_shim.oci.spec.checks import absolute_path, clean_container_path, refuse
from cri_shim.oci.spec.process import leads_through_a_process
from cri_shim.quoting import quoted

if TYPE_CHECKING:
    from collections.abc import Iterable

    from cri_shim.host.mountinfo import Mount
    from cri_shim.oci.spec.inputs import Spec

_POD_FILES = ("/etc/hosts", "/etc/hostname", "/etc/resolv.conf")
_NO_WAY = (errno.ENOTDIR, errno.ELOOP, errno.EEXIST, errno.ENAMETOOLONG)


@dataclass(frozen=True, slots=True)
class HostPath:
    """What a requested mount's host path is."""

    path: str
    """Without links."""
    missing: bool
    """Nothing is there yet: it will be a directory."""
    is_directory: bool


def resolve_host_paths(config: api.ContainerConfig) -> dict[int, HostPath]:
    """The host paths of the requested mounts by their place in the request. Blocking; changes nothing.

    Raises InvalidArgumentError for a path that leads nowhere, or is no /proc where one is to be; WrongStateError when
    the node's mounts don't propagate as asked.
    """
    found = {}
    mounts: list[Mount] | None = None
    for index, mount in enumerate(config.mounts):
        if mount.HasField("image"):
            continue
        field = f"mounts[{index}]"
        path = absolute_path(mount.host_path, f"{field}.host_path")
        working_on(f"{field}.host_path", path)
        resolved = found[index] = _resolve(path, field)
        to_proc = clean_container_path(mount.container_path, f"{field}.container_path") == "/proc"
        if to_proc or mount.propagation != api.PROPAGATION_PRIVATE:
            mounts = mounts or read_mounts()
            place = mount_of(Path(resolved.path), mounts)
            if to_proc and (place is None or place.fs_type != "proc"):
                refuse(f"{field}.host_path", mount.host_path, "only a proc can be mounted at /proc")
            _check_propagation(mount, field, place)
    return found


def _resolve(path: str, field: str) -> HostPath:
    try:
        real = os.path.realpath(path, strict=True)
        return HostPath(real, missing=False, is_directory=stat.S_ISDIR(os.stat(real).st_mode))
    except FileNotFoundError:
        pass
    except OSError as error:
        refuse(f"{field}.host_path", path, error.strerror or str(error))
    there, missing = path.rstrip("/"), []
    while there and not os.path.lexists(there):
        there, _, name = there.rpartition("/")
        missing.append(name)
    if ".." in missing or not os.path.isdir(there or "/"):
        why = "goes up from a directory that is not there" if ".." in missing else "leads nowhere"
        refuse(f"{field}.host_path", path, f"{why}, so it can't be made")
    real = os.path.join(os.path.realpath(there or "/"), *reversed(missing))
    return HostPath(real, missing=True, is_directory=True)


def _check_propagation(mount: api.Mount, field: str, place: Mount | None) -> None:
    wanted = mount.propagation
    shared = place is not None and place.is_shared
    slave = place is not None and any(p.startswith("master:") for p in place.propagation)
    if (wanted == api.PROPAGATION_BIDIRECTIONAL and not shared) or (
        wanted == api.PROPAGATION_HOST_TO_CONTAINER and not (shared or slave)
    ):
        where = place.target if place is not None else "/"
        raise WrongStateError(
            f"{field}.propagation: {mount.host_path} lies on the mount {where}, which is private: nothing propagates "
            f"from there; on the node: mount --make-rshared {where}"
        )


def check_destinations(
    config: api.ContainerConfig, directories: dict[int, bool], rootfs_dir: Path
) -> None:
    """Refuse what would put a directory on a file of the image, or a file on a directory. Blocking.

    `directories` says of each mount, by its place in the request, whether a directory is mounted. Raises
    InvalidArgumentError. Mounts on other mounts are left to the runtime: what is there shows only then.
    """
    taken = [clean_container_path(m.container_path, "container_path") for m in config.mounts]
    root_fd = os.open(rootfs_dir, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        nested = lying_below(taken, (*taken, "/proc", "/dev", "/sys"))
        for index, destination in enumerate(taken):
            if destination in nested:
                continue
            field = f"mounts[{index}].container_path"
            is_directory = _is_directory(root_fd, destination, field)
            if is_directory is not None and is_directory != directories[index]:
                kinds = ("a file", "a directory")
                refuse(
                    field,
                    destination,
                    f"is {kinds[is_directory]} in the image, what shall be mounted there is {kinds[not is_directory]}",
                )
    finally:
        os.close(root_fd)


def lying_below(paths: Iterable[str], places: Iterable[str]) -> set[str]:
    """Those of `paths` that lie below one of `places`; all in their one spelling. In one pass over both, sorted."""
    # A place comes right before what is below it, once the separator sorts before every character of a name.
    ranked = sorted(
        {
            *((f"{place}/".replace("/", "\0"), "") for place in places),
            *((f"{path}/".replace("/", "\0"), path) for path in paths),
        }
    )
    below, outermost = set(), ""
    for rank, path in ranked:
        if outermost and rank.startswith(outermost):
            if path and rank != outermost:
                below.add(path)
        elif not path:
            outermost = rank
    return below


def check_devices(spec: Spec, config: api.ContainerConfig, rootfs_dir: Path) -> None:
    """Refuse devices at what the image has already: a runtime would pass over them. Blocking.

    Those in /dev come to an empty one. Raises InvalidArgumentError.
    """
    taken = [clean_container_path(m.container_path, "container_path") for m in config.mounts]
    root_fd = os.open(rootfs_dir, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        paths = [node["path"] for node in spec["linux"].get("devices", ())]
        hidden = lying_below(paths, (*taken, "/dev")).union(taken)
        for path in paths:
            if path in hidden:
                continue
            if _is_directory(root_fd, path, "devices.container_path") is not None:
                refuse(
                    "devices.container_path", path, "is in the image: no device can be made there"
                )
    finally:
        os.close(root_fd)


def check_pod_files(spec: Spec, config: api.ContainerConfig, rootfs_dir: Path) -> None:
    """Refuse an image that has a directory, or a loop of links, where a file of the pod goes. Blocking.

    Raises InvalidArgumentError.
    """
    taken = [clean_container_path(m.container_path, "container_path") for m in config.mounts]
    root_fd = os.open(rootfs_dir, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for destination in {mount["destination"] for mount in spec["mounts"]}.intersection(
            _POD_FILES
        ):
            if any(f"{destination}/".startswith(f"{other}/") for other in taken):
                continue
            if _is_directory(root_fd, destination, "image"):
                refuse("image", destination, "is a directory, where a file of the pod goes")
    finally:
        os.close(root_fd)


def _is_directory(root_fd: int, path: str, field: str) -> bool | None:
    """Whether the image has a directory there; None: nothing."""
    try:
        fd = open_in_root(root_fd, path, os.O_PATH)
    except FileNotFoundError:
        return None
    except OSError as error:
        if error.errno in _NO_WAY:
            refuse(field, path, f"in the image: {error.strerror}")
        raise
    try:
        return stat.S_ISDIR(os.fstat(fd).st_mode)
    finally:
        os.close(fd)


def make_missing(paths: dict[int, HostPath]) -> None:
    """Make the directories that are not there yet. Blocking. Raises CriShimError, ResourceExhaustedError."""
    for index, each in paths.items():
        if each.missing:
            working_on(f"mounts[{index}].host_path", each.path)
            with host_step(f"mounts[{index}].host_path: making {each.path}"):
                os.makedirs(each.path, mode=0o755, exist_ok=True)


def make_working_directory(
    spec: Spec, rootfs_dir: Path, root: tuple[int, int] | None, field: str
) -> None:
    """Make the process's working directory if the image has none there; it belongs to the pod's root. Blocking.

    One on a mount is the runtime's to make. Raises ProgramError when something else is in the way, InvalidArgumentError
    for a link of the image that leads into /proc or to a descriptor (CVE-2024-21626): what is there now is not what
    will be.
    """
    cwd = clean_container_path(spec["process"]["cwd"], field)
    if any(f"{cwd}/".startswith(f"{mount['destination']}/") for mount in spec["mounts"]):
        return
    uid, gid = root or (0, 0)
    try:
        make_dirs_in_root(rootfs_dir, cwd, mode=0o755, uid=uid, gid=gid)
        really = _real_path_in(rootfs_dir, cwd)
    except OSError as error:
        if error.errno in _NO_WAY:
            words = f"{field}: {quoted(cwd)}: can't be entered: in the image: {error.strerror}"
            raise ProgramError("the program can't be run", words, NOT_RUNNABLE) from error
        raise
    if f"{really}/".startswith("/proc/") or leads_through_a_process(really):
        refuse(field, cwd, f"is a link to {really} in the image, which leads out of the container")


def _real_path_in(root_dir: Path, path: str) -> str:
    fd = open_in_root(root_dir, path, os.O_PATH)
    try:
        return "/" + os.path.relpath(os.readlink(f"/proc/self/fd/{fd}"), os.path.realpath(root_dir))
    finally:
        os.close(fd)
