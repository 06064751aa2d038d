"""Mounts: the kernel's file systems, the pod's generated files, the image's volumes, the request's mounts.

Rules:
- A requested mount replaces a default one at the same path; one at /dev or /sys also replaces the defaults below it. Of
  two requested at one path, the later stays. Shallow paths come first, so that no mount hides a deeper one.
- The caller has resolved the sources of requested mounts (`mount_sources`). The runtime resolves paths in the
  container.
- No `rw` option is written: some runtimes would remount for it and drop the volume's own nosuid or noexec.
- At most `MAX_MOUNTS` may be requested, none more than `MAX_DEPTH` names deep: for mounts inside one another a
  runtime's work grows with the cube of the depth.
- /proc must be the real one (CVE-2019-16884). Nothing is mounted below it except the files that lxcfs replaces, and an
  image's VOLUME can't cover /proc, /sys or /dev.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from cri_shim._pb.cri.v1 import api_pb2
from cri_shim.errors import InvalidArgumentError
from cri_shim.oci.spec.checks import (
    MAX_NAME_BYTES,
    MAX_PATH_BYTES,
    absolute_path,
    clean_container_path,
    refuse,
)
from cri_shim.oci.spec.namespaces import check_mapping
from cri_shim.oci.spec.selinux import check_relabel
from cri_shim.quoting import quoted

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from cri_shim._pb.cri.v1.api_pb2 import ContainerConfig, Mount
    from cri_shim.oci.spec.inputs import BindVolume, HandlerFacts, NodeFacts, SandboxFacts, Spec

_PROPAGATION = {
    api_pb2.PROPAGATION_PRIVATE: "rprivate",
    api_pb2.PROPAGATION_HOST_TO_CONTAINER: "rslave",
    api_pb2.PROPAGATION_BIDIRECTIONAL: "rshared",
}
_MOUNT_OPTIONS = frozenset({"noexec", "nodev", "nosuid"})
_IMAGE_OPTIONS = ("ro", "nosuid", "nodev")
"""For an image as a volume. Its author is untrusted: it may bring programs, but no setuid bits and no devices."""
_PROC_FILES = frozenset(
    f"/proc/{name}"
    for name in (
        *("cpuinfo", "diskstats", "loadavg", "meminfo", "net/dev", "slabinfo", "stat", "swaps"),
        *("sys/crypto/fips_enabled", "sys/kernel/ns_last_pid", "uptime"),
    )
)
"""The files below /proc on which runtimes allow a mount."""
_KERNELS = ("/dev", "/proc", "/sys")
MAX_MOUNTS = 1024
"""Per request. So many cost a runtime half a second of CPU time, and for each the kernel locks all of the node's."""
MAX_DEPTH = 32
"""Names in the path of a mount. A thousand mounts, each inside the one before, cost runc a minute of CPU time."""
_TTY_GROUP = 5
"""The GID of `tty` in every distribution."""
HOST_SHM = "/dev/shm"  # noqa: S108 - the node's, for a pod with host IPC


@dataclass(frozen=True, slots=True)
class ImageMount:
    """A requested mount of an image."""

    index: int
    """Index in the request's mounts."""
    image: str
    sub_path: str
    """As in the request, unchecked."""


_POD_FILE = ("rprivate", "nosuid", "noexec", "nodev")
"""The options of the tmpfs that holds the pod's files: in a user namespace, a mount of it can't drop any of them."""


def check_cost(config: ContainerConfig) -> None:
    """Raises InvalidArgumentError for more mounts, or deeper ones, than a runtime can create in reasonable time."""
    if len(config.mounts) > MAX_MOUNTS:
        raise InvalidArgumentError(f"mounts: {len(config.mounts)} entries: at most {MAX_MOUNTS}")
    for index, mount in enumerate(config.mounts):
        _check_depth(mount.container_path, f"mounts[{index}].container_path")


def _check_depth(path: str, field: str) -> None:
    # The common case. To normalise the path can only make it shallower.
    if path.count("/") <= MAX_DEPTH:
        return
    depth = clean_container_path(path, field).count("/")
    if depth > MAX_DEPTH:
        refuse(field, path, f"has {depth} names: at most {MAX_DEPTH}; choose a shallower path")


def image_mounts(config: ContainerConfig) -> list[ImageMount]:
    """The requested mounts of images.

    Raises InvalidArgumentError with the field for one that is not read-only, or that has a host path as well.
    """
    found = []
    for index, mount in enumerate(config.mounts):
        field = f"mounts[{index}]"
        if not mount.HasField("image"):
            if mount.image_sub_path:
                refuse(f"{field}.image_sub_path", mount.image_sub_path, "the mount has no image")
            continue
        if not mount.readonly:
            refuse(f"{field}.readonly", mount.readonly, "must be true: image volumes are read-only")
        if mount.host_path:
            refuse(f"{field}.host_path", mount.host_path, "must be empty for the mount of an image")
        if not mount.image.image:
            raise InvalidArgumentError(f"{field}.image.image: missing")
        if mount.propagation == api_pb2.PROPAGATION_BIDIRECTIONAL:
            raise InvalidArgumentError(
                f"{field}.propagation: PROPAGATION_BIDIRECTIONAL is not possible for an image"
            )
        found.append(ImageMount(index, mount.image.image, mount.image_sub_path))
    return found


def volume_paths(declared: Iterable[str], config: ContainerConfig) -> Iterator[str]:
    """The paths of an image's VOLUMEs, without duplicates and without those that the request mounts something at.

    The root and the kernel's directories can't be volumes: images that declare one run without that volume.

    Raises InvalidArgumentError for a volume deeper than `MAX_DEPTH`.
    """
    taken = {
        clean_container_path(mount.container_path, "container_path")
        for mount in config.mounts
        if mount.container_path.startswith("/")
    }
    for path in declared:
        longest_name = max(len(name.encode()) for name in path.split("/"))
        if "\0" in path or len(path.encode()) > MAX_PATH_BYTES or longest_name > MAX_NAME_BYTES:
            continue
        destination = clean_container_path(f"/{path}", "image VOLUME")
        kernels = any(_at_or_below(destination, place) for place in _KERNELS)
        if destination not in taken and destination != "/" and not kernels:
            _check_depth(destination, "image VOLUME")
            taken.add(destination)
            yield destination


def build_sandbox_mounts(sandbox: SandboxFacts, *, host_ipc: bool) -> list[Spec]:
    """The mounts of a pause container: few, since it only waits.

    /dev/shm and resolv.conf are for handlers that derive the guest's from them.
    """
    # Each network namespace has one sysfs superblock, and its first mount decides whether it is writable. A read-only
    # one here would make /sys read-only in the pod's privileged containers for good.
    mounts = [_proc(), _dev(), _sys(sandbox, read_only=not sandbox.privileged)]
    if (shm := _shm_source(sandbox, host_ipc=host_ipc)) is not None:
        mounts.append(_bind(shm, "/dev/shm", ["rprivate"]))  # noqa: S108
    if sandbox.resolv_conf_file is not None:
        mounts.append(_bind(sandbox.resolv_conf_file, "/etc/resolv.conf", [*_POD_FILE, "ro"]))
    return mounts


def build_container_mounts(
    config: ContainerConfig,
    *,
    sandbox: SandboxFacts,
    handler: HandlerFacts,
    node: NodeFacts,
    volumes: Sequence[BindVolume],
    sources: Mapping[int, str],
) -> list[Spec]:
    """Every mount of a container, in the order in which the runtime must create them.

    `sources` is `ContainerFacts.mount_sources`, complete for images.

    Raises InvalidArgumentError with the mount and the field.
    """
    context = config.linux.security_context
    image_mounts(config)
    requested = {}
    for index, mount in enumerate(config.mounts):
        field = f"mounts[{index}]"
        made = _requested_mount(mount, field, sources.get(index), handler=handler, node=node)
        requested[made["destination"]] = made
    defaults = _default_mounts(
        sandbox,
        read_only_files=context.readonly_rootfs,
        host_ipc=context.namespace_options.ipc == api_pb2.NODE,
        privileged=context.privileged,
    )
    for volume in volumes:
        path = clean_container_path(volume.container_path, "image VOLUME")
        defaults.append(_bind(volume.host_dir, path, ["rprivate"]))
    mounts = {mount["destination"]: mount for mount in defaults}
    for place in ("/dev", "/sys"):
        if place in requested:
            mounts = {path: m for path, m in mounts.items() if not path.startswith(f"{place}/")}
    mounts.update(requested)
    # Stable: mounts of equal depth keep their order.
    return sorted(mounts.values(), key=_depth)


def rootfs_propagation(config: ContainerConfig) -> str | None:
    """The root's propagation, as the requested mounts need it; None for the runtime's default."""
    wanted = {mount.propagation for mount in config.mounts}
    if api_pb2.PROPAGATION_BIDIRECTIONAL in wanted:
        return "rshared"
    if api_pb2.PROPAGATION_HOST_TO_CONTAINER in wanted:
        return "rslave"
    return None


def _requested_mount(
    mount: Mount, field: str, source: str | None, *, handler: HandlerFacts, node: NodeFacts
) -> Spec:
    id_mappings = _id_mappings(mount, field, handler)
    destination = clean_container_path(mount.container_path, f"{field}.container_path")
    if destination == "/":
        refuse(f"{field}.container_path", mount.container_path, "can't be the root directory")
    if destination.startswith("/proc/") and destination not in _PROC_FILES:
        refuse(
            f"{field}.container_path",
            mount.container_path,
            "below /proc only files that lxcfs replaces can be mounted over",
        )
    if source is None or not mount.HasField("image"):
        host_path = absolute_path(mount.host_path, f"{field}.host_path")
        source = source or host_path
        if mount.selinux_relabel and node.selinux_enabled:
            check_relabel(source, f"{field}.selinux_relabel")
    if mount.propagation not in _PROPAGATION:
        refuse(f"{field}.propagation", mount.propagation, "is not a propagation of CRI")
    options = [_PROPAGATION[mount.propagation]]
    if mount.recursive_read_only:
        _check_recursive_read_only(mount, field, handler)
        options.append("rro")
    if mount.readonly:
        options.append("ro")
    for option in mount.mount_options:
        if option not in _MOUNT_OPTIONS:
            refuse(f"{field}.mount_options", option, "must be noexec, nodev or nosuid")
        if option not in options:
            options.append(option)
    if mount.HasField("image"):
        # The caller mounted it with the pod's ID mapping; a mapping here would apply a second time.
        return _bind(source, destination, list(dict.fromkeys((*options, *_IMAGE_OPTIONS))))
    return {**_bind(source, destination, options), **id_mappings}


def _id_mappings(mount: Mount, field: str, handler: HandlerFacts) -> Spec:
    """The mapping of the volume's owners into the container, for an ID-mapped mount."""
    given = {"uidMappings": mount.uidMappings, "gidMappings": mount.gidMappings}
    if not any(given.values()):
        return {}
    for key, mappings in given.items():
        if not mappings:
            raise InvalidArgumentError(
                f"{field}.{key}: missing: users and groups must be mapped together"
            )
        for mapping in mappings:
            check_mapping(mapping, f"{field}.{key}")
    if not handler.user_namespaces:
        raise InvalidArgumentError(
            f"{field}.uidMappings: the runtime handler {quoted(handler.name)} or this kernel does not support "
            "ID-mapped mounts"
        )
    return {
        key: [
            {"containerID": m.container_id, "hostID": m.host_id, "size": m.length} for m in mappings
        ]
        for key, mappings in given.items()
    }


def _check_recursive_read_only(mount: Mount, field: str, handler: HandlerFacts) -> None:
    if not mount.readonly:
        raise InvalidArgumentError(f"{field}.recursive_read_only: requires readonly")
    if mount.propagation != api_pb2.PROPAGATION_PRIVATE:
        raise InvalidArgumentError(
            f"{field}.recursive_read_only: requires PROPAGATION_PRIVATE: mounts that arrive later would be writable"
        )
    if not handler.recursive_read_only_mounts:
        raise InvalidArgumentError(
            f"{field}.recursive_read_only: the runtime handler {quoted(handler.name)} or this kernel does not "
            "support it"
        )


def _default_mounts(
    sandbox: SandboxFacts, *, read_only_files: bool, host_ipc: bool, privileged: bool
) -> list[Spec]:
    mounts = [
        _proc(),
        _dev(),
        _sys(sandbox, read_only=not privileged),
        {
            "destination": "/dev/pts",
            "type": "devpts",
            "source": "devpts",
            "options": [
                *("nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"),
                *([f"gid={_TTY_GROUP}"] if _has_group(sandbox, _TTY_GROUP) else []),
            ],
        },
        {
            "destination": "/dev/mqueue",
            "type": "mqueue",
            "source": "mqueue",
            "options": ["nosuid", "noexec", "nodev"],
        },
        {
            "destination": "/sys/fs/cgroup",
            "type": "cgroup",
            "source": "cgroup",
            "options": ["nosuid", "noexec", "nodev", "relatime", "rw" if privileged else "ro"],
        },
    ]
    if (shm := _shm_source(sandbox, host_ipc=host_ipc)) is not None:
        mounts.append(_bind(shm, "/dev/shm", ["rprivate"]))  # noqa: S108
    file_options = [*_POD_FILE, "ro"] if read_only_files else _POD_FILE
    for source, path in (
        (sandbox.hostname_file, "/etc/hostname"),
        (sandbox.hosts_file, "/etc/hosts"),
        (sandbox.resolv_conf_file, "/etc/resolv.conf"),
    ):
        if source is not None:
            mounts.append(_bind(source, path, list(file_options)))
    return mounts


def _shm_source(sandbox: SandboxFacts, *, host_ipc: bool) -> str | None:
    return HOST_SHM if host_ipc else sandbox.shm_dir


def _bind(source: str, destination: str, options: list[str]) -> Spec:
    return {
        "destination": destination,
        "type": "bind",
        "source": source,
        "options": ["rbind", *options],
    }


def _proc() -> Spec:
    return {
        "destination": "/proc",
        "type": "proc",
        "source": "proc",
        "options": ["nosuid", "noexec", "nodev"],
    }


def _dev() -> Spec:
    return {
        "destination": "/dev",
        "type": "tmpfs",
        "source": "tmpfs",
        "options": ["nosuid", "strictatime", "mode=755", "size=65536k"],
    }


def _has_group(sandbox: SandboxFacts, gid: int) -> bool:
    # devpts rejects a gid that the user namespace does not map.
    return sandbox.users is None or gid < sandbox.users.gids.length


def _sys(sandbox: SandboxFacts, *, read_only: bool) -> Spec:
    if sandbox.users is not None and sandbox.netns_path is None:
        # Only the owner of a network namespace may mount its sysfs, and the node's belongs to another user namespace.
        # So bind the node's own.
        return _bind("/sys", "/sys", ["rprivate", "nosuid", "noexec", "nodev", "rro"])
    return {
        "destination": "/sys",
        "type": "sysfs",
        "source": "sysfs",
        "options": ["nosuid", "noexec", "nodev", "ro" if read_only else "rw"],
    }


def _at_or_below(path: str, place: str) -> bool:
    return path == place or path.startswith(f"{place}/")


def _depth(mount: Spec) -> int:
    destination: str = mount["destination"]
    return destination.count("/")
