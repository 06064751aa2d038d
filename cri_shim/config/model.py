"""Defines every configuration key: type, default, meaning, and whether a reload applies it.

The module is as long as the list of keys.

Rules:
- A key is a struct field annotated with `doc(...)`. A section is described by its docstring. The reader, the default
  file, `docs/configuration.md` and the reload plan all derive from these definitions.
- The Python name of a value with a unit ends in the unit (`idle_timeout_s`); `name=` gives the name in the file.
- "" in the file means "none", which is None here.
- Code gets the section that it needs (`StreamingSettings`, one `HandlerSettings`), never the whole `Config`.
- Rules between several keys are in `rules.py`.
"""

from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

from msgspec import Meta, Struct, field

from cri_shim.config.metric_groups import MetricGroup
from cri_shim.config.values import (
    AnnotationPattern,
    ByteSize,
    Capability,
    EnvName,
    Executable,
    FileMode,
    GroupName,
    HandlerName,
    HostPort,
    HttpUrl,
    IpAddress,
    ListenUrl,
    Seconds,
    SysctlName,
    SysctlValue,
    UlimitName,
)

MAX_LISTENERS = 10


class CgroupDriver(StrEnum):
    """Who makes the pods' cgroups."""

    AUTO = "auto"
    CGROUPFS = "cgroupfs"
    SYSTEMD = "systemd"


class LogLevel(StrEnum):
    """The least severe event that is written."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


class LogFormat(StrEnum):
    """How an event is written."""

    AUTO = "auto"
    CONSOLE = "console"
    JSON = "json"


class HandlerKind(StrEnum):
    """How a runtime handler isolates a pod."""

    OCI = "oci"
    """Processes on the host's kernel."""
    VM = "vm"
    """A virtual machine with its own kernel per pod."""
    SHIM = "shim"
    """A shim that speaks containerd's task protocol."""


class Switch(StrEnum):
    """On, off, or whatever the node can do."""

    AUTO = "auto"
    ON = "on"
    OFF = "off"


class GcMode(StrEnum):
    """When CNI garbage collection runs."""

    AUTO = "auto"
    OFF = "off"


def doc(
    description: str,
    *,
    reload: bool = False,
    in_effect: bool = True,
    minimum: float | None = None,
    maximum: float | None = None,
    min_items: int | None = None,
    max_items: int | None = None,
) -> Meta:
    """Describe a key. `reload`: SIGHUP applies a change. Bounds are inclusive, in the unit of the Python value.

    A key that is not `in_effect` is read and checked, but this version ignores it.
    """
    extra: dict[str, Any] = {
        "reload": reload,
        "in_effect": in_effect,
        "minimum": minimum,
        "maximum": maximum,
        "min_items": min_items,
        "max_items": max_items,
    }
    return Meta(description=description, extra=extra)


def later(description: str, **bounds: Any) -> Meta:  # noqa: ANN401 - those of `doc`
    """Describe a key that this version ignores."""
    return doc(description, in_effect=False, **bounds)


class Section(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A mapping of the configuration file."""


class SocketSettings(Section, frozen=True):
    """Who may connect to the unix sockets of `listen`. Whoever may connect is root on this node."""

    group: Annotated[GroupName, doc("Group that owns the sockets: a name or a number.")] = (
        GroupName("root")
    )
    mode: Annotated[FileMode, doc("Permissions of the sockets.")] = FileMode(0o660)


class TlsSettings(Section, frozen=True):
    """PEM files of a TLS server."""

    cert: Annotated[Path | None, doc("The server's certificate chain.")] = None
    key: Annotated[Path | None, doc("The private key of `cert`.")] = None
    client_ca: Annotated[
        Path | None, doc("Authorities whose client certificates are accepted.")
    ] = None

    @property
    def enabled(self) -> bool:
        """Whether the server speaks TLS."""
        return self.cert is not None


class LogSettings(Section, frozen=True):
    """The daemon's own log, on standard error."""

    level: Annotated[LogLevel, doc("The least severe level that is logged.", reload=True)] = (
        LogLevel.INFO
    )
    format: Annotated[
        LogFormat, doc("How events are written; auto: console on a terminal, JSON elsewhere.")
    ] = LogFormat.AUTO


class MetricsSettings(Section, frozen=True):
    """Prometheus metrics at /metrics, health at /healthz and /readyz."""

    address: Annotated[
        HostPort | None, doc('Address of the HTTP server, which has no TLS; "" disables it.')
    ] = HostPort("127.0.0.1:10351")


class TracingSettings(Section, frozen=True):
    """OpenTelemetry traces; needs the optional OpenTelemetry packages."""

    endpoint: Annotated[
        HttpUrl | None, later('OTLP endpoint that receives the spans; "" disables tracing.')
    ] = None
    sampling_per_million: Annotated[
        int, later("Number of calls in a million that are traced.", minimum=0, maximum=1_000_000)
    ] = 0


class StreamingSettings(Section, frozen=True):
    """The HTTP server for exec, attach and port-forward."""

    address: Annotated[IpAddress, doc("Address that the server listens on.")] = IpAddress(
        "127.0.0.1"
    )
    port: Annotated[
        int, doc("Port that the server listens on; 0: any free port.", minimum=0, maximum=65535)
    ] = 10350
    base_url: Annotated[
        HttpUrl | None,
        doc('URL that clients receive, if a proxy is in front; "" for the address above.'),
    ] = None
    token_ttl_s: Annotated[
        Seconds,
        doc(
            "How long the URL of a session is valid, for one use.",
            reload=True,
            minimum=1,
            maximum=3600,
        ),
    ] = field(default=Seconds(60), name="token_ttl")
    idle_timeout_s: Annotated[
        Seconds, doc("The server closes a session without traffic after this time.", minimum=1)
    ] = field(default=Seconds(4 * 3600), name="idle_timeout")
    creation_timeout_s: Annotated[
        Seconds, doc("Time for a client to open the streams of its session.", minimum=1)
    ] = field(default=Seconds(30), name="creation_timeout")
    tls: Annotated[
        TlsSettings, doc("TLS for this server; with client_ca, clients need a certificate.")
    ] = TlsSettings()


class HandlerSettings(Section, frozen=True):
    """One runtime handler, under the name that a RuntimeClass uses."""

    path: Annotated[Executable, doc("The OCI runtime: a path, or a name in PATH.", reload=True)]
    kind: Annotated[
        HandlerKind,
        doc(
            "oci: processes of this kernel; vm: each pod in a sandbox with its own kernel (kata-runtime, runsc); shim: "
            "a shim of containerd's, version 2 (containerd-shim-kata-v2, -runsc-v1, -runc-v2).",
            reload=True,
        ),
    ] = HandlerKind.OCI
    args: Annotated[
        tuple[str, ...], doc("Arguments before the runtime's command.", reload=True)
    ] = ()
    pod_annotations: Annotated[
        tuple[AnnotationPattern, ...],
        doc("Pod annotations passed to the runtime: keys, or prefixes with *.", reload=True),
    ] = ()
    container_annotations: Annotated[
        tuple[AnnotationPattern, ...],
        doc("Container annotations passed to the runtime: keys, or prefixes with *.", reload=True),
    ] = ()
    privileged_without_host_devices: Annotated[
        bool, doc("Give privileged containers no devices of the host.", reload=True)
    ] = False
    device_ownership_from_security_context: Annotated[
        bool,
        doc(
            "Requested devices belong to the container's user and group instead of their owners on the node.",
            reload=True,
        ),
    ] = False
    env: Annotated[
        Mapping[EnvName, str],
        doc("Environment of the runtime's commands, in addition to PATH.", reload=True),
    ] = field(default_factory=dict)
    config_path: Annotated[str, doc("Kind shim: the shim's configuration.", reload=True)] = ""
    type_url: Annotated[str, doc("Kind shim: the type of that configuration.", reload=True)] = ""


def _default_handlers() -> Mapping[HandlerName, HandlerSettings]:
    return {
        HandlerName("runc"): HandlerSettings(path=Executable("runc")),
        HandlerName("crun"): HandlerSettings(path=Executable("crun")),
        HandlerName("kata"): HandlerSettings(
            path=Executable("kata-runtime"),
            kind=HandlerKind.VM,
            args=("--kata-config", "/usr/share/defaults/kata-containers/configuration.toml"),
            pod_annotations=(
                AnnotationPattern("io.katacontainers.*"),
                AnnotationPattern("com.github.containers.virtcontainers.*"),
            ),
        ),
    }


class RuntimeSettings(Section, frozen=True):
    """OCI runtimes, and the monitor of each container."""

    default_handler: Annotated[
        HandlerName, doc("The handler of pods without a RuntimeClass.", reload=True)
    ] = HandlerName("runc")
    handlers: Annotated[
        Mapping[HandlerName, HandlerSettings],
        doc(
            "Runtime handlers by name, in addition to the built-in ones; `NAME: null` removes one.",
            reload=True,
            min_items=1,
        ),
    ] = field(default_factory=_default_handlers)
    monitor: Annotated[Executable, doc("conmon: a path, or a name in PATH.")] = Executable("conmon")
    command_timeout_s: Annotated[
        Seconds,
        doc(
            "Longest time for one command of the OCI runtime; the daemon kills it then.", minimum=1
        ),
    ] = field(default=Seconds(30), name="command_timeout")
    start_timeout_s: Annotated[
        Seconds, doc("Longest time for the creation of one container.", minimum=1)
    ] = field(default=Seconds(120), name="start_timeout")
    max_parallel_creates: Annotated[
        int,
        doc(
            "Creations of sandboxes and containers at the same time, four of one pod; 0: four per core. "
            "A creation that takes longer than 2 s gives its slot to another.",
            minimum=0,
            maximum=10_000,
        ),
    ] = 0


class SandboxSettings(Section, frozen=True):
    """Settings of all pods."""

    cgroup_parent: Annotated[
        str | None,
        doc('Parent cgroup of pods that name none; "" for /cri-shim, with systemd cri-shim.slice.'),
    ] = None
    image: Annotated[str | None, doc('Reference of the pause image; "" for the built-in one.')] = (
        None
    )
    hostport: Annotated[bool, doc("Whether host ports of pods are published.")] = True


class CniSettings(Section, frozen=True):
    """Pod networks. The daemon watches the files in `conf_dir`, and reads them again on SIGHUP."""

    plugin_dirs: Annotated[
        tuple[Path, ...], doc("Directories of plugins, in the order of the search.", min_items=1)
    ] = (Path("/opt/cni/bin"), Path("/usr/lib/cni"))
    conf_dir: Annotated[
        Path, doc("Directory of network configurations; the first by name is the default network.")
    ] = Path("/etc/cni/net.d")
    timeout_s: Annotated[
        Seconds, doc("Longest time for one call of a plugin; the daemon kills it then.", minimum=1)
    ] = field(default=Seconds(120), name="timeout")
    use_internal_loopback: Annotated[
        bool,
        doc("true: the daemon brings `lo` up; false: the loopback plugin does, for every pod."),
    ] = True
    gc: Annotated[
        GcMode,
        doc(
            "auto: call GC of CNI 1.1 plugins at start and hourly, to release what belongs to no pod; off: never."
        ),
    ] = GcMode.AUTO
    conf_template: Annotated[
        Path | None,
        doc(
            "Template of a network file: filled with the kubelet's pod CIDR and written to `conf_dir`."
        ),
    ] = None


class ImageSettings(Section, frozen=True):
    """Images and registries."""

    registry_config: Annotated[
        Path,
        doc(
            "Directory of DIR/<host>/hosts.toml: mirrors, authorities and client certificates per registry.",
            reload=True,
        ),
    ] = Path("/etc/cri-shim/certs.d")
    auth_file: Annotated[
        Path | None,
        doc("Docker's config.json, with credentials for pulls that bring none.", reload=True),
    ] = None
    max_parallel_downloads: Annotated[
        int,
        doc(
            "Downloads of layers of one image at the same time; all pulls together have four times as many.",
            minimum=1,
            maximum=100,
        ),
    ] = 3
    pull_progress_timeout_s: Annotated[
        Seconds, doc("A pull fails after this time without progress; 0s: never.")
    ] = field(default=Seconds(300), name="pull_progress_timeout")
    pinned: Annotated[
        tuple[str, ...],
        doc(
            "Images that neither the kubelet nor `image gc` removes: names, or patterns with `*`. "
            "The pause image is always pinned.",
            reload=True,
        ),
    ] = ()
    discard_blobs: Annotated[
        bool,
        doc("Drop compressed layers after unpacking; such images can't be exported."),
    ] = False


class Ulimit(Section, frozen=True):
    """A resource limit; -1 means unlimited."""

    soft: Annotated[
        int, doc("The limit in force; -1: unlimited.", minimum=-1, maximum=(1 << 63) - 1)
    ]
    hard: Annotated[
        int,
        doc(
            "The highest limit that a process may set; -1: unlimited.",
            minimum=-1,
            maximum=(1 << 63) - 1,
        ),
    ]


class SecuritySettings(Section, frozen=True):
    """Defaults for the confinement of containers."""

    seccomp_default_profile: Annotated[
        Path | None, doc('Seccomp profile for RuntimeDefault; "" for the built-in one.')
    ] = None
    apparmor_profile: Annotated[
        str,
        doc(
            "AppArmor profile for RuntimeDefault, where the kernel has AppArmor. The daemon loads the default one; "
            "load another one before the daemon starts; unconfined means none."
        ),
    ] = "cri-shim-default"
    selinux: Annotated[
        Switch,
        doc(
            "auto: label containers if the node enforces SELinux; on: also in permissive mode; off: never."
        ),
    ] = Switch.AUTO
    default_capabilities: Annotated[
        tuple[Capability, ...], doc("Capabilities of unprivileged containers.")
    ] = tuple(
        Capability(name)
        for name in (
            *("CHOWN", "DAC_OVERRIDE", "FSETID", "FOWNER", "MKNOD", "NET_RAW", "SETGID", "SETUID"),
            *("SETFCAP", "SETPCAP", "NET_BIND_SERVICE", "SYS_CHROOT", "KILL"),
        )
    )
    default_ulimits: Annotated[
        Mapping[UlimitName, Ulimit],
        doc("Resource limits of containers, like `nofile: {soft: 1024, hard: 524288}`."),
    ] = field(default_factory=dict)
    default_sysctls: Annotated[
        Mapping[SysctlName, SysctlValue],
        doc("Sysctls of pods, like `net.ipv4.ping_group_range: 0 0`; a pod's own override them."),
    ] = field(default_factory=dict)
    hooks_dirs: Annotated[
        tuple[Path, ...],
        doc(
            "Directories of OCI hook files, format 1.0.0; changes apply at once. If two files have one name, the one "
            "in the later directory counts."
        ),
    ] = (Path("/etc/containers/oci/hooks.d"),)
    hook_spec: Annotated[
        Path | None,
        doc(
            "One file with OCI hooks for every container, in iSulad's form: lists prestart, poststart and poststop. "
            "The daemon reads it at start."
        ),
    ] = None
    cdi_dirs: Annotated[
        tuple[Path, ...],
        doc(
            "Directories of Container Device Interface files; changes apply at once. If two files describe one device, "
            "the one in the later directory counts."
        ),
    ] = (
        Path("/etc/cdi"),
        Path("/run/cdi"),
    )
    restrict_oom_score_adj: Annotated[
        Switch,
        doc(
            "auto: where the daemon may not lower oom_score_adj, it raises lower requests to its own value."
        ),
    ] = Switch.AUTO
    umask: Annotated[FileMode, doc("The umask of containers' processes.")] = FileMode(0o022)


class LimitSettings(Section, frozen=True):
    """Bounds of one call."""

    exec_sync_output_bytes: Annotated[
        ByteSize,
        doc(
            "Output that ExecSync keeps of stdout and of stderr; both are cut so that the answer fits grpc_message.",
            minimum=4096,
            maximum=1 << 30,
        ),
    ] = field(default=ByteSize(16 << 20), name="exec_sync_output")
    grpc_message_bytes: Annotated[
        ByteSize, doc("Largest gRPC request and response.", minimum=1 << 20, maximum=1 << 30)
    ] = field(default=ByteSize(16 << 20), name="grpc_message")


class StatsSettings(Section, frozen=True):
    """Statistics of pods and containers."""

    cache_s: Annotated[
        Seconds, doc("Highest age of an answer; 0s: read at every call.", maximum=3600)
    ] = field(default=Seconds(10), name="cache")
    metrics: Annotated[
        tuple[MetricGroup, ...],
        doc("Groups of metrics for ListPodSandboxMetrics; with none it is Unimplemented."),
    ] = tuple(MetricGroup)


class EventSettings(Section, frozen=True):
    """GetContainerEvents."""

    enabled: Annotated[bool, doc("Whether the daemon serves the event stream.")] = True


class Config(Section, frozen=True):
    """The whole configuration, for the composition root only."""

    root: Annotated[
        Path, doc("Directory of persistent data: records, images, layers, writable layers.")
    ] = Path("/var/lib/cri-shim")
    state: Annotated[
        Path, doc("Directory of volatile data: bundles, pid files, exit files. Best on a tmpfs.")
    ] = Path("/run/cri-shim")
    listen: Annotated[
        tuple[ListenUrl, ...],
        doc(
            f"Addresses that serve CRI, up to {MAX_LISTENERS}; tcp:// only with `tls`.",
            min_items=1,
            max_items=MAX_LISTENERS,
        ),
    ] = (ListenUrl("unix:///run/cri-shim/cri-shim.sock"),)
    socket: SocketSettings = SocketSettings()
    tls: Annotated[
        TlsSettings, doc("Mutual TLS for tcp:// listeners; all three keys are required.")
    ] = TlsSettings()
    cgroup_driver: Annotated[
        CgroupDriver,
        doc(
            "The driver of the pods' cgroups, the same as the kubelet's; auto: systemd where it runs."
        ),
    ] = CgroupDriver.AUTO
    log: LogSettings = LogSettings()
    metrics: MetricsSettings = MetricsSettings()
    tracing: TracingSettings = TracingSettings()
    streaming: StreamingSettings = StreamingSettings()
    runtime: RuntimeSettings = field(default_factory=RuntimeSettings)
    sandbox: SandboxSettings = SandboxSettings()
    cni: CniSettings = CniSettings()
    images: ImageSettings = ImageSettings()
    security: SecuritySettings = field(default_factory=SecuritySettings)
    limits: LimitSettings = LimitSettings()
    stats: StatsSettings = StatsSettings()
    events: EventSettings = EventSettings()
