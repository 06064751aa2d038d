"""The inputs of the spec builders: node, handler, pod, image, user, container.

Rules: frozen values that the caller gathers; builders look nothing up. Names of capabilities have no `CAP_` prefix. An
absent value is None or empty, and its meaning stands beside the field.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from cri_shim.config.model import HandlerKind
from cri_shim.oci.spec.selinux import Labels

if TYPE_CHECKING:
    from collections.abc import Mapping

    from cri_shim.oci.spec.cdi import ContainerEdits
    from cri_shim.oci.spec.hooks import ConditionalHook
    from cri_shim.oci.spec.seccomp import Profile

Spec = dict[str, Any]
"""A runtime-spec document or a part of one, ready to encode as JSON."""


@dataclass(frozen=True, slots=True)
class DeviceNode:
    """A device node of the host, as stat(2) shows it."""

    path: str
    """Its path on the host, and in the container unless the request says otherwise."""
    type: str
    """`c` or `b`, as in the runtime-spec."""
    major: int
    minor: int
    file_mode: int = 0o666
    """Permission bits only."""
    uid: int = 0
    gid: int = 0


@dataclass(frozen=True, slots=True)
class Ulimit:
    """One resource limit; -1 means RLIM_INFINITY."""

    soft: int
    hard: int


@dataclass(frozen=True, slots=True)
class IdRange:
    """The IDs of a user namespace, from 0 on, and the IDs on the node that they map to."""

    host_id: int
    length: int

    @property
    def proc_text(self) -> str:
        """A line of /proc/PID/uid_map (user_namespaces(7))."""
        return f"0 {self.host_id} {self.length}"


@dataclass(frozen=True, slots=True)
class UserMappings:
    """The single mapping of users, and the one of groups, of a pod's user namespace."""

    uids: IdRange
    gids: IdRange


@dataclass(frozen=True, slots=True)
class NodeFacts:
    """Facts that hold for every container of the node: kernel, configuration, and privileges of this process."""

    arch: str
    """The machine, as in `uname -m`."""
    kernel: tuple[int, int]
    """Major and minor."""
    cgroup_v2: bool
    """Whether the controllers are on the unified hierarchy."""
    cgroup_namespace: bool
    """Whether containers get their own cgroup namespace: on cgroup v2 only, as with other runtimes."""
    capabilities: tuple[str, ...]
    """The capabilities that this process can hand out: in its permitted and bounding sets, and known to the kernel."""
    default_capabilities: tuple[str, ...]
    default_ulimits: Mapping[str, Ulimit] = field(default_factory=dict)
    """By lower-case name without `RLIMIT_`, such as `nofile`."""
    default_sysctls: Mapping[str, str] = field(default_factory=dict)
    umask: int = 0o022
    min_oom_score_adj: int | None = None
    """The lowest value that this process may set; None for any."""
    seccomp_available: bool = True
    default_seccomp: Profile | None = None
    """The operator's RuntimeDefault profile; None for the built-in one."""
    apparmor_profiles: frozenset[str] | None = None
    """The profiles that are loaded now; None if the kernel has no AppArmor."""
    apparmor_default_profile: str = ""
    """The profile for RuntimeDefault."""
    selinux_enabled: bool = False
    """Whether containers get SELinux labels."""
    swap_accounting: bool = False
    """Whether swap limits can be set."""
    cpus: int = 0
    """The number of processors that are not isolated; 0 if unknown."""
    hugepage_sizes: frozenset[str] = frozenset()
    """Page sizes that the hugetlb controller limits, such as `2MB`; empty without the controller."""
    lack_of_files_limits: str = "this node has no cgroup controller for open files"
    """Why open files can't be limited; empty if they can."""
    host_devices: tuple[DeviceNode, ...] = ()
    """Every device node of the host, for privileged containers."""
    extra_masked_paths: tuple[str, ...] = ()
    """Masked paths specific to this node, such as the thermal_throttle directory of each CPU."""


@dataclass(frozen=True, slots=True)
class HandlerFacts:
    """The pod's runtime handler."""

    name: str
    kind: HandlerKind = HandlerKind.OCI
    pod_annotations: tuple[str, ...] = ()
    """Shell-style patterns of pod annotations that are passed to the spec."""
    container_annotations: tuple[str, ...] = ()
    """The same for container annotations."""
    unsafe_annotations: tuple[str, ...] = ()
    """Keys, or prefixes, of annotations that the runtime reports as changing what it does."""
    privileged_without_host_devices: bool = False
    device_ownership_from_security_context: bool = False
    """Whether requested devices get the container's user as owner, instead of the owner on the node."""
    recursive_read_only_mounts: bool = False
    """Whether the runtime has the mount option `rro`, and the kernel mount_setattr(2)."""
    user_namespaces: bool = False
    """Whether runtime, kernel and the layers' file system support ID-mapped mounts."""
    max_user_id: int = 2**32 - 2
    """The highest user or group ID that the runtime accepts."""
    reads_user_mappings: bool = False
    """Whether the runtime wants no mappings in the spec when a user namespace is joined by path."""


@dataclass(frozen=True, slots=True)
class SandboxFacts:
    """The pod. The same type serves its pause container (no `pause_pid` yet) and its containers."""

    id: str
    name: str
    namespace: str
    uid: str
    hostname: str
    netns_path: str | None
    """The pinned network namespace; None for the node's network."""
    pause_pid: int | None = None
    """The pause container's process, whose namespaces containers join; None while it is created."""
    users: UserMappings | None = None
    """The mappings of the pod's own user namespace; None for the node's."""
    userns_path: str | None = None
    """The user namespace for the pause container. Containers join it through the pause container's process."""
    host_ipc: bool = False
    privileged: bool = False
    shm_dir: str | None = None
    """The pod's tmpfs for /dev/shm; None with host IPC, and for handlers that create their own."""
    hostname_file: str | None = None
    hosts_file: str | None = None
    resolv_conf_file: str | None = None
    annotations: Mapping[str, str] = field(default_factory=dict)
    """The pod's annotations, unfiltered. The handler's allow-list decides which reach the spec."""
    labels: Labels = field(default_factory=Labels)
    """SELinux labels."""


@dataclass(frozen=True, slots=True)
class ImageDefaults:
    """The image's configuration. Its author is untrusted."""

    name: str = ""
    """The requested reference, for the image-name annotation."""
    entrypoint: tuple[str, ...] = ()
    cmd: tuple[str, ...] = ()
    env: tuple[str, ...] = ()
    working_dir: str = ""
    user: str = ""
    stop_signal: str = ""


@dataclass(frozen=True, slots=True)
class ResolvedUser:
    """The process's user and groups as numbers, as ContainerStatus reports them."""

    uid: int = 0
    gid: int = 0
    additional_gids: tuple[int, ...] = (0,)
    """Always with the primary GID first: without it, a process could read files that deny that group access."""
    username: str = ""
    """The name for this UID in the container's passwd file, if there is one."""
    home: str = "/"
    user_field: str = field(default="run_as_user", compare=False)
    """The field of the request or image that the value comes from, for errors."""
    group_field: str = field(default="run_as_group", compare=False)


@dataclass(frozen=True, slots=True)
class BindVolume:
    """A host directory for a VOLUME of the image."""

    container_path: str
    host_dir: str


@dataclass(frozen=True, slots=True)
class ContainerFacts:
    """The container's parts on this node."""

    id: str
    rootfs_path: str
    cgroups_path: str
    """The spec's cgroupsPath: a path in cgroupfs, or `slice:prefix:name` for systemd."""
    target_pid: int | None = None
    """The process whose PID namespace is joined in mode TARGET."""
    image_volumes: tuple[BindVolume, ...] = ()
    """For the image's VOLUMEs."""
    mount_sources: Mapping[int, str] = field(default_factory=dict)
    """The resolved sources of requested mounts, by their index. Without an entry, the host_path is used as it is."""
    host_devices: Mapping[str, tuple[DeviceNode, ...]] = field(default_factory=dict)
    """The nodes behind each requested device's host_path, several for a directory. CDI devices as well."""
    localhost_seccomp: Profile | None = None
    """The parsed Localhost seccomp profile, if the request names one."""
    cdi_edits: tuple[ContainerEdits, ...] = ()
    """The container edits of the requested CDI devices."""
    hooks: tuple[ConditionalHook, ...] = ()
    """The node's OCI hooks, in the order in which they run."""
    labels: Labels = field(default_factory=Labels)
    """SELinux labels."""
