"""Computes the path of a container's cgroup, and `linux.cgroupsPath` of the runtime-spec. Pure.

Rules:
- cgroupfs driver: `cgroupsPath` is an absolute path, and the cgroup has that path in every hierarchy.
- systemd driver: `cgroupsPath` is `SLICE:PREFIX:ID`, and systemd creates `PREFIX-ID.scope` in the slice. The name of a
  slice contains its parents: `a-b.slice` is the directory `a.slice/a-b.slice`, and `-.slice` is the root
  (systemd.slice(5)).
- The parent comes from the client. It must not lead out of the hierarchy, nor add a separator to `cgroupsPath`.
"""

from __future__ import annotations

from dataclasses import dataclass

from cri_shim.errors import InvalidArgumentError
from cri_shim.quoting import quoted

SCOPE_PREFIX = "cri-shim"
DEFAULT_PARENT = "cri-shim"
DEFAULT_SLICE = "cri-shim.slice"
_SUFFIX = ".slice"
_MAX_NAME_CHARS = 255
"""NAME_MAX, since each slice is a directory."""


@dataclass(frozen=True, slots=True)
class CgroupPath:
    """The cgroup of one container."""

    spec_path: str
    """`linux.cgroupsPath` of the runtime-spec."""
    relative_dir: str
    """The directory below each hierarchy's mount point."""


def cgroup_path(parent: str, container_id: str, *, systemd: bool) -> CgroupPath:
    """The cgroup of `container_id` below the pod's `cgroup_parent`. For an empty parent a default is used.

    Raises InvalidArgumentError for a malformed parent, and with the systemd driver for one that is not a slice.
    """
    parent_dir = parent_directory(parent, systemd=systemd)
    if systemd:
        slice_name = parent_dir.rpartition("/")[2] or "-.slice"
        scope = f"{SCOPE_PREFIX}-{container_id}.scope"
        return CgroupPath(
            spec_path=f"{slice_name}:{SCOPE_PREFIX}:{container_id}",
            relative_dir=f"{parent_dir}/{scope}".lstrip("/"),
        )
    relative_dir = f"{parent_dir}/{container_id}".lstrip("/")
    return CgroupPath(spec_path=f"/{relative_dir}", relative_dir=relative_dir)


def is_named_after(name: str, container_id: str) -> bool:
    """Whether `name` is the directory name of the container's cgroup under one of the drivers.

    Runtimes with kernels of their own make others, of such names behind a prefix, or of a whole `cgroupsPath`.
    """
    ends = (container_id, f"{SCOPE_PREFIX}-{container_id}.scope")
    return name in ends or name.endswith(tuple(f"{mark}{end}" for end in ends for mark in "_:"))


def parent_directory(parent: str, *, systemd: bool) -> str:
    """The directory of a pod's `cgroup_parent` in each hierarchy; "" for the root.

    With the systemd driver kubelet sends the path of nested slices. Its last element suffices.

    Raises InvalidArgumentError as `cgroup_path` does.
    """
    segments = [segment for segment in parent.split("/") if segment not in ("", ".")]
    if ".." in segments or any(ord(char) < 0x20 or char == "\x7f" for char in parent):
        raise InvalidArgumentError(
            f"cgroup_parent {quoted(parent)}: '..' and control characters are not allowed"
        )
    if systemd:
        return expand_slice(segments[-1] if segments else DEFAULT_SLICE)
    if not segments:
        return "" if parent else DEFAULT_PARENT
    return "/".join(segments)


def expand_slice(name: str) -> str:
    """`a-b-c.slice` -> `a.slice/a-b.slice/a-b-c.slice`; `-.slice` -> "".

    Raises InvalidArgumentError for a name that systemd would not accept for a slice.
    """
    stem = name.removesuffix(_SUFFIX)
    if len(name) > _MAX_NAME_CHARS:
        raise InvalidArgumentError(
            f"cgroup_parent {quoted(name)} has {len(name)} characters; the limit for a slice is {_MAX_NAME_CHARS}"
        )
    if stem == name or not stem or ":" in stem or "/" in stem:
        raise InvalidArgumentError(
            f"cgroup_parent {quoted(name)} is not a slice: the systemd cgroup driver needs a name such as "
            "kubepods-besteffort.slice (check that kubelet uses the same cgroup driver)"
        )
    if stem == "-":
        return ""
    parts = stem.split("-")
    if "" in parts:
        raise InvalidArgumentError(
            f"cgroup_parent {quoted(name)} is not a slice: '-' separates levels, of which none may be empty"
        )
    return "/".join("-".join(parts[: depth + 1]) + _SUFFIX for depth in range(len(parts)))
