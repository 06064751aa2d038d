"""What the spec builders are told: the node, the handler, the pod, the image, the user, the container.

Rules of the file: frozen values only, gathered by the caller; a builder never looks anything up itself. Names of
capabilities carry no `CAP_` prefix. What is absent is None or empty and says so beside the field.
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
"""A runtime-spec document, or a part of one, ready for JSON."""


@dataclass(frozen=True, slots=True)
class DeviceNode:
    """A device node of the host, as `stat` shows it."""

    path: str
    """Where it is on the host; also where it goes in the container unless the request says otherwise."""
    type: str
    """`c` or `b`, as the runtime-spec writes it."""
    major: int
    minor: int
    file_mode: int = 0o666
    """Permission bits only."""
    uid: int = 0
    gid: int = 0


@dataclass(frozen=True, slots=True)
class Ulimit:
    """One resource limit; -1 is infinity, as in the kernel's RLIM_INFINITY."""

    soft: int
    hard: int


@dataclass(frozen=True, slots=True)
class IdRange:
    """IDs of a user namespace, from 0 on, and whom they are on the node."""

    host_id: int
    length: int

    @property
    def proc_text(self) -> str:
        """A line of /proc/PID/uid_map (user_namespaces(7))."""
        return f"0 {self.host_id} {self.length}"


@dataclass(frozen=True, slots=True)
class UserMappings:
    """The one mapping of users, and the one of groups, that a pod's user namespace has."""

    uids: IdRange
    gids: IdRange


@dataclass(frozen=True, slots=True)
class NodeFacts:
    """What holds for every container of this node: kernel, configuration, and what this process may do."""

    arch: str
    """The machine as `uname -m` names it."""
    kernel: tuple[int, int]
    """Major and minor."""
    cgroup_v2: bool
    """Whether the controllers are in the unified hierarchy."""
    cgroup_namespace: bool
    """Whether containers get a cgroup namespace of their own; as elsewhere, on cgroup v2 only."""
    capabilities: tuple[str, ...]
    """What this process can hand out: its permitted and bounding sets, known to this kernel."""
    default_capabilities: tuple[str, ...]
    default_ulimits: Mapping[str, Ulimit] = field(default_factory=dict)
    """By the lower-case name without `RLIMIT_`: `nofile`."""
    default_sysctls: Mapping[str, str] = field(default_factory=dict)
    umask: int = 0o022
    min_oom_score_adj: int | None = None
    """The lowest value this process may set; None: any."""
    seccomp_available: bool = True
    default_seccomp: Profile | None = None
    """The operator's own RuntimeDefault; None: the built-in one."""
    apparmor_profiles: frozenset[str] | None = None
    """The profiles that are loaded now; None: this kernel has no AppArmor."""
    apparmor_default_profile: str = ""
    """The profile that RuntimeDefault means."""
    selinux_enabled: bool = False
    """Whether containers are labelled."""
    swap_accounting: bool = False
    """Whether memory.swap limits can be set at all."""
    hugepage_sizes: frozenset[str] = frozenset()
    """Page sizes the hugetlb controller limits, as `2MB`; empty where the controller is absent."""
    lack_of_files_limits: str = "this node has no cgroup controller for open files"
    """Why the number of open files can't be limited; "" where it can be."""
    host_devices: tuple[DeviceNode, ...] = ()
    """Every device node of the host: what a privileged container sees."""
    extra_masked_paths: tuple[str, ...] = ()
    """Paths to mask that only this node knows, e.g. the thermal_throttle directory of each CPU."""


@dataclass(frozen=True, slots=True)
class HandlerFacts:
    """The runtime handler that the pod asked for."""

    name: str
    kind: HandlerKind = HandlerKind.OCI
    pod_annotations: tuple[str, ...] = ()
    """Shell-style patterns of pod annotations let through to the spec."""
    container_annotations: tuple[str, ...] = ()
    """The same for container annotations."""
    unsafe_annotations: tuple[str, ...] = ()
    """Keys, or their beginnings, that the runtime says it takes as orders."""
    privileged_without_host_devices: bool = False
    device_ownership_from_security_context: bool = False
    """Whether requested devices belong to the container's user rather than to whom they belong on the node."""
    recursive_read_only_mounts: bool = False
    """Whether the runtime knows the mount option `rro`, and the kernel mount_setattr."""
    user_namespaces: bool = False
    """Whether runtime, kernel and the layers' file system know ID-mapped mounts."""
    max_user_id: int = 2**32 - 2
    """The highest user or group that the runtime takes."""
    reads_user_mappings: bool = False
    """Whether the runtime wants no mappings in the spec beside the path of a user namespace to join."""


@dataclass(frozen=True, slots=True)
class SandboxFacts:
    """The pod. The same value serves its pause container (no `pause_pid` yet) and its containers."""

    id: str
    name: str
    namespace: str
    uid: str
    hostname: str
    netns_path: str | None
    """The pinned network namespace; None: the node's network."""
    pause_pid: int | None = None
    """The pause container's process, whose namespaces containers join; None while it is being built."""
    users: UserMappings | None = None
    """Of the pod's own user namespace; None: the node's."""
    userns_path: str | None = None
    """Where the pause container finds that namespace; containers find it at the pause container."""
    host_ipc: bool = False
    privileged: bool = False
    shm_dir: str | None = None
    """The tmpfs that is the pod's /dev/shm; None with host IPC, and for a handler that makes its own."""
    hostname_file: str | None = None
    hosts_file: str | None = None
    resolv_conf_file: str | None = None
    annotations: Mapping[str, str] = field(default_factory=dict)
    """The pod's annotations as given; only what the handler's allow-list names goes further."""
    labels: Labels = field(default_factory=Labels)
    """SELinux."""


@dataclass(frozen=True, slots=True)
class ImageDefaults:
    """The image's own configuration. It is untrusted: whoever made the image wrote it."""

    name: str = ""
    """The reference the container was asked to run, for the image-name annotation."""
    entrypoint: tuple[str, ...] = ()
    cmd: tuple[str, ...] = ()
    env: tuple[str, ...] = ()
    working_dir: str = ""
    user: str = ""
    stop_signal: str = ""


@dataclass(frozen=True, slots=True)
class ResolvedUser:
    """Whom the process runs as, numbers settled. This is also what ContainerStatus reports."""

    uid: int = 0
    gid: int = 0
    additional_gids: tuple[int, ...] = (0,)
    """The primary gid first, always: else a file that denies the group could be read."""
    username: str = ""
    """The name in the container's passwd file, if it has one for this uid."""
    home: str = "/"
    user_field: str = field(default="run_as_user", compare=False)
    """The field, the request's or the image's, that says so: for refusals."""
    group_field: str = field(default="run_as_group", compare=False)


@dataclass(frozen=True, slots=True)
class BindVolume:
    """A host directory for a VOLUME that the image declares."""

    container_path: str
    host_dir: str


@dataclass(frozen=True, slots=True)
class ContainerFacts:
    """The container: where its parts are on this node."""

    id: str
    rootfs_path: str
    cgroups_path: str
    """The spec's cgroupsPath: a path under cgroupfs, or `slice:prefix:name` for systemd."""
    target_pid: int | None = None
    """The process whose PID namespace is joined when the request says TARGET."""
    image_volumes: tuple[BindVolume, ...] = ()
    """For the VOLUMEs that the image declares."""
    mount_sources: Mapping[int, str] = field(default_factory=dict)
    """What is bound for a requested mount, by its place in the request; its host_path as given where none is here."""
    host_devices: Mapping[str, tuple[DeviceNode, ...]] = field(default_factory=dict)
    """What each requested device's host_path turned out to be; a directory holds several. CDI's devices, too."""
    localhost_seccomp: Profile | None = None
    """The parsed file, when the request names a Localhost seccomp profile."""
    cdi_edits: tuple[ContainerEdits, ...] = ()
    """What the requested CDI devices bring."""
    hooks: tuple[ConditionalHook, ...] = ()
    """The node's OCI hooks, in the order in which they run."""
    labels: Labels = field(default_factory=Labels)
    """SELinux."""
