"""Checks and creates the directories that a container's request names: host paths, destinations, working directory.

Rules:
- Links in a host path are resolved once, here, and the resolved path is mounted. So what was checked is mounted.
- A missing host path is created as a directory, as volumes of type hostPath expect, but only after the rest of the
  request was accepted. It is not created through a dangling link, since the author of the link need not be the author
  of the request. The directory stays when the container is removed.
- Errors name the request's field, which errors of the OCI runtime do not.
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
    """A mount's resolved host path."""

    path: str
    """Without links."""
    missing: bool
    """It does not exist, and will be created as a directory."""
    is_directory: bool


def resolve_host_paths(config: api.ContainerConfig) -> dict[int, HostPath]:
    """Resolve the host paths of the requested mounts, by index in the request. Blocking. Creates nothing.

    Raises InvalidArgumentError for a path that can neither be resolved nor created, and for a mount on /proc that is
    not a proc file system; WrongStateError if the node's mounts do not support the requested propagation.
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
                refuse(
                    f"{field}.host_path",
                    mount.host_path,
                    "is not a proc file system, and no other can be mounted at /proc",
                )
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
        why = (
            "has '..' after a missing directory" if ".." in missing else "leads to a dangling link"
        )
        refuse(f"{field}.host_path", path, f"{why}, so it cannot be created")
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
            f"{field}.propagation: {mount.host_path} is on the mount {where}, whose propagation does not allow it: run "
            f"mount --make-rshared {where} on the node"
        )


def check_destinations(
    config: api.ContainerConfig, directories: dict[int, bool], rootfs_dir: Path
) -> None:
    """Refuse to mount a directory on a file of the image, or a file on a directory. Blocking.

    `directories` tells for each mount, by index in the request, whether its source is a directory. Raises
    InvalidArgumentError. Destinations below other mounts are left to the runtime, since those are not mounted yet.
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
                    f"is {kinds[is_directory]} in the image, but the mount's source is {kinds[not is_directory]}",
                )
    finally:
        os.close(root_fd)


def lying_below(paths: Iterable[str], places: Iterable[str]) -> set[str]:
    """Those of `paths` that are below one of `places`. All are cleaned paths. One pass over both, sorted."""
    # With a separator that sorts before all other characters, a directory comes right before the paths below it.
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
    """Refuse devices at paths that exist in the image: a runtime would silently keep the existing file. Blocking.

    Devices in /dev are not checked, since the container gets an empty /dev. Raises InvalidArgumentError.
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
                    "devices.container_path",
                    path,
                    "exists in the image, so no device can be created there",
                )
    finally:
        os.close(root_fd)


def check_pod_files(spec: Spec, config: api.ContainerConfig, rootfs_dir: Path) -> None:
    """Refuse an image with a directory or a loop of links at the path of a pod's file (/etc/hosts). Blocking.

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
                refuse(
                    "image", destination, "is a directory, but a file of the pod is mounted there"
                )
    finally:
        os.close(root_fd)


def _is_directory(root_fd: int, path: str, field: str) -> bool | None:
    """Whether the image's file at that path is a directory. None if nothing exists there."""
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
    """Create the missing directories. Blocking. Raises CriShimError, ResourceExhaustedError."""
    for index, each in paths.items():
        if each.missing:
            working_on(f"mounts[{index}].host_path", each.path)
            with host_step(f"mounts[{index}].host_path: creating {each.path}"):
                os.makedirs(each.path, mode=0o755, exist_ok=True)


def make_working_directory(
    spec: Spec, rootfs_dir: Path, root: tuple[int, int] | None, field: str
) -> None:
    """Create the working directory if it is missing in the image. Its owner is the pod's root. Blocking.

    A directory on a mount is left to the runtime. Raises ProgramError if a file or a loop of links is in the way;
    InvalidArgumentError for a link in the image that leads into /proc or to a descriptor, which resolves differently
    when the container starts (CVE-2024-21626).
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
            words = f"{field}: {quoted(cwd)}: cannot be entered: in the image: {error.strerror}"
            raise ProgramError("the program cannot be run", words, NOT_RUNNABLE) from error
        raise
    if f"{really}/".startswith("/proc/") or leads_through_a_process(really):
        refuse(field, cwd, f"is a link to {really} in the image, which leads out of the container")


def _real_path_in(root_dir: Path, path: str) -> str:
    fd = open_in_root(root_dir, path, os.O_PATH)
    try:
        return "/" + os.path.relpath(os.readlink(f"/proc/self/fd/{fd}"), os.path.realpath(root_dir))
    finally:
        os.close(fd)
