"""Mounts: the kernel's file systems, the pod's generated files, the image's volumes, the request's mounts.

Rules of the file:
- A requested mount replaces a default one at the same path, and one at /dev the defaults below it; of two
  requested at one path the later one stays. Shallow paths come first, so that a mount never hides a deeper one.
- Host paths are passed as given: the kernel follows a symbolic link there, as CRI asks. Inside the container the
  runtime resolves.
- No `rw` option is written: it would make some runtimes remount and so lose the volume's own nosuid or noexec.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cri_shim._pb.cri.v1 import api_pb2
from cri_shim.errors import InvalidArgumentError, UnsupportedError
from cri_shim.oci.spec.checks import absolute_path, clean_container_path, refuse
from cri_shim.oci.spec.namespaces import check_mapping

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cri_shim._pb.cri.v1.api_pb2 import ContainerConfig, Mount
    from cri_shim.oci.spec.inputs import BindVolume, HandlerFacts, NodeFacts, SandboxFacts, Spec

_PROPAGATION = {
    api_pb2.PROPAGATION_PRIVATE: "rprivate",
    api_pb2.PROPAGATION_HOST_TO_CONTAINER: "rslave",
    api_pb2.PROPAGATION_BIDIRECTIONAL: "rshared",
}
_MOUNT_OPTIONS = frozenset({"noexec", "nodev", "nosuid"})
_TTY_GROUP = 5
"""In every distribution."""
HOST_SHM = "/dev/shm"  # noqa: S108 - the node's, for a pod that shares its IPC


def build_sandbox_mounts(sandbox: SandboxFacts, *, host_ipc: bool) -> list[Spec]:
    """What a pause container sees: little, since it only waits.

    /dev/shm and resolv.conf are for handlers that make the guest's from them.
    """
    # sysfs has one superblock per network namespace, and its first mount decides whether it can be written at all:
    # a read-only one here would make /sys of the pod's privileged containers read-only for good.
    mounts = [_proc(), _dev(), _sys(sandbox, read_only=not sandbox.privileged)]
    if (shm := _shm_source(sandbox, host_ipc=host_ipc)) is not None:
        mounts.append(_bind(shm, "/dev/shm", ["rprivate"]))  # noqa: S108
    if sandbox.resolv_conf_file is not None:
        mounts.append(_bind(sandbox.resolv_conf_file, "/etc/resolv.conf", ["rprivate", "ro"]))
    return mounts


def build_container_mounts(
    config: ContainerConfig,
    *,
    sandbox: SandboxFacts,
    handler: HandlerFacts,
    node: NodeFacts,
    volumes: Sequence[BindVolume],
) -> list[Spec]:
    """Every mount of a container, in the order the runtime must make them.

    Raises InvalidArgumentError naming the mount and field, UnsupportedError for kinds not built.
    """
    context = config.linux.security_context
    requested = {
        mount["destination"]: mount
        for mount in (
            _requested_mount(mount, f"mounts[{index}]", handler=handler, node=node)
            for index, mount in enumerate(config.mounts)
        )
    }
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
    if "/dev" in requested:
        mounts = {path: mount for path, mount in mounts.items() if not path.startswith("/dev/")}
    mounts.update(requested)
    return sorted(mounts.values(), key=_depth)


def rootfs_propagation(config: ContainerConfig) -> str | None:
    """What the root needs so that the requested propagation can work at all; None: the runtime's default."""
    wanted = {mount.propagation for mount in config.mounts}
    if api_pb2.PROPAGATION_BIDIRECTIONAL in wanted:
        return "rshared"
    if api_pb2.PROPAGATION_HOST_TO_CONTAINER in wanted:
        return "rslave"
    return None


def _requested_mount(mount: Mount, field: str, *, handler: HandlerFacts, node: NodeFacts) -> Spec:
    if mount.HasField("image") and not mount.readonly:
        refuse(f"{field}.readonly", mount.readonly, "must be true: image volumes are read-only")
    if mount.HasField("image") or mount.image_sub_path:
        raise UnsupportedError(f"{field}.image: image volumes are not supported yet")
    id_mappings = _id_mappings(mount, field, handler)
    if mount.selinux_relabel and node.selinux_enabled:
        raise UnsupportedError(f"{field}.selinux_relabel: SELinux labels are not supported yet")
    destination = clean_container_path(mount.container_path, f"{field}.container_path")
    if destination == "/":
        refuse(f"{field}.container_path", mount.container_path, "can't cover the root itself")
    source = absolute_path(mount.host_path, f"{field}.host_path")
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
    return {**_bind(source, destination, options), **id_mappings}


def _id_mappings(mount: Mount, field: str, handler: HandlerFacts) -> Spec:
    """Whom the volume's files belong to in the container, where that isn't their owners (ID-mapped mounts)."""
    given = {"uidMappings": mount.uidMappings, "gidMappings": mount.gidMappings}
    if not any(given.values()):
        return {}
    for key, mappings in given.items():
        if not mappings:
            raise InvalidArgumentError(
                f"{field}.{key}: missing: users and groups are mapped together"
            )
        for mapping in mappings:
            check_mapping(mapping, f"{field}.{key}")
    if not handler.user_namespaces:
        raise InvalidArgumentError(
            f"{field}.uidMappings: the runtime handler {handler.name!r} or this kernel does not support "
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
        raise InvalidArgumentError(f"{field}.recursive_read_only: needs readonly as well")
    if mount.propagation != api_pb2.PROPAGATION_PRIVATE:
        raise InvalidArgumentError(
            f"{field}.recursive_read_only: needs PROPAGATION_PRIVATE: a mount that arrived later would be writable"
        )
    if not handler.recursive_read_only_mounts:
        raise InvalidArgumentError(
            f"{field}.recursive_read_only: the runtime handler {handler.name!r} or this kernel does not support it"
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
    file_options = ["rprivate", "ro"] if read_only_files else ["rprivate"]
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
    return sandbox.users is None or gid < sandbox.users.gids.length


def _sys(sandbox: SandboxFacts, *, read_only: bool) -> Spec:
    if sandbox.users is not None and sandbox.netns_path is None:
        # sysfs shows a network namespace, and the node's is not this user namespace's to mount: it sees the node's own.
        return _bind("/sys", "/sys", ["rprivate", "nosuid", "noexec", "nodev", "rro"])
    return {
        "destination": "/sys",
        "type": "sysfs",
        "source": "sysfs",
        "options": ["nosuid", "noexec", "nodev", "ro" if read_only else "rw"],
    }


def _depth(mount: Spec) -> int:
    destination: str = mount["destination"]
    return destination.count("/")
