"""Requests that exercise the spec builders, one per feature, for the golden files and for the real runtime.

`python -m tests.unit.oci.spec.cases` rewrites the golden files; read the difference before you commit it.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from cri_shim._pb.cri.v1 import api_pb2
from cri_shim._pb.cri.v1.api_pb2 import (
    Capability,
    CDIDevice,
    ContainerConfig,
    ContainerMetadata,
    Device,
    HugepageLimit,
    IDMapping,
    ImageSpec,
    Int64Value,
    KeyValue,
    LinuxContainerConfig,
    LinuxContainerResources,
    LinuxContainerSecurityContext,
    LinuxPodSandboxConfig,
    LinuxSandboxSecurityContext,
    Mount,
    NamespaceOption,
    PodSandboxConfig,
    PodSandboxMetadata,
    SecurityProfile,
    UserNamespace,
)
from cri_shim.config.model import HandlerKind
from cri_shim.config.values import CAPABILITIES
from cri_shim.oci.spec.cdi import parse_cdi_spec
from cri_shim.oci.spec.cdi_edits import PlacedSpec, edits_for
from cri_shim.oci.spec.container import build_container_spec
from cri_shim.oci.spec.hooks import parse_hook_file
from cri_shim.oci.spec.inputs import (
    BindVolume,
    ContainerFacts,
    DeviceNode,
    HandlerFacts,
    IdRange,
    ImageDefaults,
    NodeFacts,
    ResolvedUser,
    SandboxFacts,
    Ulimit,
    UserMappings,
)
from cri_shim.oci.spec.sandbox import build_sandbox_spec, plan_sandbox
from cri_shim.oci.spec.seccomp import parse_profile
from cri_shim.oci.spec.user import resolve_user

GOLDEN_DIR = Path(__file__).parents[3] / "data" / "spec"
DEFAULT_CAPABILITIES = (
    *("CHOWN", "DAC_OVERRIDE", "FSETID", "FOWNER", "MKNOD", "NET_RAW", "SETGID", "SETUID"),
    *("SETFCAP", "SETPCAP", "NET_BIND_SERVICE", "SYS_CHROOT", "KILL"),
)
SANDBOX_ID = "5a" * 32
CONTAINER_ID = "c0" * 32


@dataclass(frozen=True)
class Place:
    """Where things are: made-up for the golden files, real for the real runtime."""

    node: NodeFacts
    rootfs: str = "/run/cri-shim/containers/c0/rootfs"
    cgroups_path: str = "/kubepods/burstable/pod-1/c0"
    netns: str = "/run/netns/cri-5a5a5a5a"
    userns: str = "/proc/99/fd/7"
    pause_pid: int = 4711
    target_pid: int = 4712
    shm: str = "/run/cri-shim/sandboxes/5a/shm"
    etc: str = "/var/lib/cri-shim/sandboxes/5a/etc"
    volume: str = "/var/lib/kubelet/pods/1/volumes/data"
    vm: HandlerFacts = field(
        default_factory=lambda: HandlerFacts(
            "kata",
            HandlerKind.VM,
            pod_annotations=("io.katacontainers.*", "com.github.containers.virtcontainers.*"),
        )
    )


GOLDEN_CGROUP = Place(
    NodeFacts(
        arch="x86_64",
        kernel=(6, 1),
        cgroup_v2=False,
        cgroup_namespace=False,
        capabilities=CAPABILITIES,
        default_capabilities=DEFAULT_CAPABILITIES,
        hugepage_sizes=frozenset({"2MB"}),
        swap_accounting=True,
    )
)
V2_NODE = replace(GOLDEN_CGROUP.node, cgroup_v2=True, cgroup_namespace=True)
IMAGE = ImageDefaults(
    name="registry.example/app:1",
    entrypoint=("/bin/busybox",),
    cmd=("sleep", "60"),
    env=("PATH=/bin:/usr/bin", "LANG=C.UTF-8"),
)
PAUSE = ImageDefaults(name="cri-shim/pause:1", entrypoint=("/pause", "-P"))
RUNC = HandlerFacts("runc", recursive_read_only_mounts=True)
MAPPING_RUNC = replace(RUNC, user_namespaces=True, reads_user_mappings=True)
MAPPING_CRUN = HandlerFacts("crun", user_namespaces=True)
FUSE = DeviceNode("/dev/fuse", "c", 10, 229)


def sandbox_facts(place: Place, **changes: Any) -> SandboxFacts:
    facts = SandboxFacts(
        id=SANDBOX_ID,
        name="web",
        namespace="shop",
        uid="9d7c",
        hostname="web",
        netns_path=place.netns,
        pause_pid=place.pause_pid,
        shm_dir=place.shm,
        hostname_file=f"{place.etc}/hostname",
        hosts_file=f"{place.etc}/hosts",
        resolv_conf_file=f"{place.etc}/resolv.conf",
    )
    return replace(facts, **changes)


def container_facts(place: Place, **changes: Any) -> ContainerFacts:
    facts = ContainerFacts(CONTAINER_ID, place.rootfs, place.cgroups_path)
    return replace(facts, **changes)


def pod_config(**linux: Any) -> PodSandboxConfig:
    return PodSandboxConfig(
        metadata=PodSandboxMetadata(name="web", namespace="shop", uid="9d7c"),
        hostname="web",
        linux=LinuxPodSandboxConfig(**linux),
    )


def container_config(
    *,
    resources: LinuxContainerResources | None = None,
    context: LinuxContainerSecurityContext | None = None,
    **fields: Any,
) -> ContainerConfig:
    return ContainerConfig(
        metadata=ContainerMetadata(name="app"),
        linux=LinuxContainerConfig(resources=resources, security_context=context),
        **fields,
    )


def sandbox_spec(
    config: PodSandboxConfig, place: Place = GOLDEN_CGROUP, **changes: Any
) -> dict[str, Any]:
    node, handler = changes.pop("node", place.node), changes.pop("handler", RUNC)
    return build_sandbox_spec(
        config,
        plan_sandbox(config, handler=handler, node=node),
        node=node,
        handler=handler,
        sandbox=changes.pop("sandbox", sandbox_facts(place, pause_pid=None)),
        image=changes.pop("image", PAUSE),
        rootfs_path=place.rootfs,
        cgroups_path=place.cgroups_path,
        **changes,
    )


def container_spec(
    config: ContainerConfig, place: Place = GOLDEN_CGROUP, **changes: Any
) -> dict[str, Any]:
    return build_container_spec(
        config,
        node=changes.get("node", place.node),
        handler=changes.get("handler", RUNC),
        sandbox=changes.get("sandbox", sandbox_facts(place)),
        image=changes.get("image", IMAGE),
        user=changes.get("user", ResolvedUser()),
        container=changes.get("container", container_facts(place)),
    )


def _sandbox_ordinary(place: Place) -> dict[str, Any]:
    return sandbox_spec(
        pod_config(sysctls={"net.ipv4.ip_forward": "1", "kernel.shm_rmid_forced": "1"}), place
    )


def _sandbox_host_namespaces(place: Place) -> dict[str, Any]:
    node = api_pb2.NODE
    context = LinuxSandboxSecurityContext(
        namespace_options=NamespaceOption(network=node, pid=node, ipc=node),
        run_as_user=Int64Value(value=65535),
        run_as_group=Int64Value(value=65535),
        supplemental_groups=[12],
        seccomp=SecurityProfile(profile_type=SecurityProfile.Unconfined),
    )
    facts = sandbox_facts(place, pause_pid=None, netns_path=None, shm_dir=None)
    return sandbox_spec(pod_config(security_context=context), place, sandbox=facts)


USERS = UserMappings(IdRange(200_000, 65_536), IdRange(300_000, 65_536))


def user_namespace() -> UserNamespace:
    return UserNamespace(
        mode=api_pb2.POD,
        uids=[IDMapping(host_id=200_000, length=65_536)],
        gids=[IDMapping(host_id=300_000, length=65_536)],
    )


def _sandbox_user_namespace(place: Place) -> dict[str, Any]:
    context = LinuxSandboxSecurityContext(
        namespace_options=NamespaceOption(userns_options=user_namespace())
    )
    facts = sandbox_facts(place, pause_pid=None, users=USERS, userns_path=place.userns)
    return sandbox_spec(
        pod_config(security_context=context), place, handler=MAPPING_RUNC, sandbox=facts
    )


def _sandbox_privileged(place: Place) -> dict[str, Any]:
    config = pod_config(
        security_context=LinuxSandboxSecurityContext(privileged=True),
        sysctls={"kernel.shm_rmid_forced": "1"},
    )
    facts = sandbox_facts(place, pause_pid=None, privileged=True)
    return sandbox_spec(config, place, sandbox=facts)


def _sandbox_vm(place: Place) -> dict[str, Any]:
    size = "com.github.containers.virtcontainers.sandbox_cpu"
    facts = sandbox_facts(
        place,
        pause_pid=None,
        annotations={size: "2", "org.systemd.property.MemoryMax": "'infinity'", "other": "x"},
    )
    config = pod_config(sysctls={"net.ipv4.ip_forward": "1"})
    return sandbox_spec(config, place, handler=place.vm, sandbox=facts)


def _container_ordinary(place: Place) -> dict[str, Any]:
    return container_spec(container_config(), place)


def _container_seccomp_default(place: Place) -> dict[str, Any]:
    context = LinuxContainerSecurityContext(
        seccomp=SecurityProfile(profile_type=SecurityProfile.RuntimeDefault)
    )
    return container_spec(container_config(context=context), place)


def _container_seccomp_localhost(place: Place) -> dict[str, Any]:
    profile = b"""{"defaultAction": "SCMP_ACT_ALLOW",
        "archMap": [{"architecture": "SCMP_ARCH_X86_64", "subArchitectures": ["SCMP_ARCH_X86"]}],
        "syscalls": [
          {"names": ["chmod", "fchmod"], "action": "SCMP_ACT_ERRNO", "errnoRet": 1},
          {"name": "mount", "action": "SCMP_ACT_ERRNO", "excludes": {"caps": ["CAP_SYS_ADMIN"]}},
          {"names": ["reboot"], "action": "SCMP_ACT_ERRNO", "includes": {"arches": ["arm64"]}}]}"""
    context = LinuxContainerSecurityContext(
        seccomp=SecurityProfile(
            profile_type=SecurityProfile.Localhost, localhost_ref="/etc/profiles/no-chmod.json"
        )
    )
    facts = container_facts(place, localhost_seccomp=parse_profile(profile, name="no-chmod.json"))
    return container_spec(container_config(context=context), place, container=facts)


def _container_privileged(place: Place) -> dict[str, Any]:
    context = LinuxContainerSecurityContext(
        privileged=True,
        seccomp=SecurityProfile(profile_type=SecurityProfile.RuntimeDefault),
        masked_paths=["/proc/kcore"],
    )
    node = replace(place.node, host_devices=(FUSE,))
    return container_spec(
        container_config(context=context),
        place,
        node=node,
        sandbox=sandbox_facts(place, privileged=True),
    )


def _container_resources(place: Place) -> dict[str, Any]:
    limits = LinuxContainerResources(
        cpu_period=100000,
        cpu_quota=50000,
        cpu_shares=512,
        memory_limit_in_bytes=64 << 20,
        oom_score_adj=600,
        cpuset_cpus="0",
        cpuset_mems="0",
        hugepage_limits=[
            HugepageLimit(page_size="2MB", limit=4 << 20),
            HugepageLimit(page_size="64KB", limit=0),
        ],
    )
    return container_spec(
        container_config(resources=limits, annotations={"cgroup.pids.max": "100"}), place
    )


def _container_mounts(place: Place) -> dict[str, Any]:
    def volume(path: str, **fields: Any) -> Mount:
        return Mount(container_path=path, host_path=place.volume, **fields)

    config = container_config(
        mounts=[
            volume("/data/deep/down"),
            volume("/data/", propagation=api_pb2.PROPAGATION_HOST_TO_CONTAINER),
            volume("/srv/../ro", readonly=True),
            volume("/rro", readonly=True, recursive_read_only=True),
            volume("/dev/shm", mount_options=["noexec", "nodev"]),
            Mount(container_path="/etc/hosts", host_path=f"{place.etc}/hosts", readonly=True),
            volume("/twice", readonly=True),
            volume("/twice"),
        ]
    )
    volumes = (BindVolume("/data", place.volume), BindVolume("/var/lib/db", place.volume))
    return container_spec(config, place, container=container_facts(place, image_volumes=volumes))


def _container_image_mounts(place: Place) -> dict[str, Any]:
    def image(path: str, **fields: Any) -> Mount:
        return Mount(container_path=path, image=ImageSpec(image="data"), readonly=True, **fields)

    config = container_config(
        mounts=[
            image("/data/deep"),
            image("/models", mount_options=["noexec"]),
            image("/part", image_sub_path="a/b"),
        ]
    )
    sources = dict.fromkeys(range(3), place.volume)
    return container_spec(config, place, container=container_facts(place, mount_sources=sources))


def _container_kernel_mounts(place: Place) -> dict[str, Any]:
    config = container_config(
        mounts=[
            Mount(container_path="/sys", host_path="/sys", readonly=True),
            Mount(container_path="/proc/meminfo", host_path="/proc/meminfo", readonly=True),
            Mount(container_path="/dev/mqueue", host_path=place.volume),
        ]
    )
    return container_spec(config, place)


def _container_strict_groups(place: Place) -> dict[str, Any]:
    context = LinuxContainerSecurityContext(
        run_as_user=Int64Value(value=1000),
        run_as_group=Int64Value(value=77),
        supplemental_groups=[88],
        supplemental_groups_policy=api_pb2.Strict,
    )
    user = resolve_user(
        context,
        image_user="root",
        passwd=b"app:x:1000:1000::/home/app:/bin/sh\n",
        group=b"audio:x:29:app\n",
    )
    return container_spec(container_config(context=context), place, user=user)


def _container_capabilities(place: Place) -> dict[str, Any]:
    context = LinuxContainerSecurityContext(
        capabilities=Capability(
            drop_capabilities=["ALL"],
            add_capabilities=["net_admin", "CAP_SYS_TIME"],
            add_ambient_capabilities=["NET_BIND_SERVICE"],
        ),
        no_new_privs=True,
    )
    return container_spec(container_config(context=context), place)


def _container_user_and_terminal(place: Place) -> dict[str, Any]:
    context = LinuxContainerSecurityContext(
        run_as_username="app", supplemental_groups=[4000], readonly_rootfs=True
    )
    user = resolve_user(
        context,
        image_user="",
        passwd=b"root:x:0:0::/root:/bin/sh\napp:x:1000:1000::/home/app:/bin/sh\n",
        group=b"app:x:1000:\naudio:x:29:app\n",
    )
    config = container_config(
        context=context,
        tty=True,
        command=["/bin/busybox", "sh"],
        args=["-l"],
        working_dir="/tmp",
        envs=[KeyValue(key="LANG", value=b"de_DE"), KeyValue(key="RAW", value=b"a\xffb")],
    )
    node = replace(place.node, default_ulimits={"core": Ulimit(0, 0)}, umask=0o027)
    return container_spec(config, place, user=user, node=node)


def _container_host_namespaces(place: Place) -> dict[str, Any]:
    node = api_pb2.NODE
    context = LinuxContainerSecurityContext(
        namespace_options=NamespaceOption(network=node, pid=node, ipc=node)
    )
    facts = sandbox_facts(place, netns_path=None, shm_dir=None, host_ipc=True)
    return container_spec(container_config(context=context), place, sandbox=facts)


def _container_user_namespace(place: Place) -> dict[str, Any]:
    context = LinuxContainerSecurityContext(
        namespace_options=NamespaceOption(userns_options=user_namespace())
    )
    mappings = [IDMapping(host_id=200_000, length=65_536)]
    volume = Mount(
        container_path="/data", host_path=place.volume, uidMappings=mappings, gidMappings=mappings
    )
    return container_spec(
        container_config(context=context, mounts=[volume]),
        place,
        handler=MAPPING_RUNC,
        sandbox=sandbox_facts(place, users=USERS),
    )


def _container_user_namespace_host_network(place: Place) -> dict[str, Any]:
    options = NamespaceOption(network=api_pb2.NODE, userns_options=user_namespace())
    return container_spec(
        container_config(context=LinuxContainerSecurityContext(namespace_options=options)),
        place,
        handler=MAPPING_CRUN,
        sandbox=sandbox_facts(place, netns_path=None, users=USERS),
    )


def _container_own_pids(place: Place) -> dict[str, Any]:
    context = LinuxContainerSecurityContext(
        namespace_options=NamespaceOption(pid=api_pb2.CONTAINER)
    )
    return container_spec(container_config(context=context), place)


def _container_target_pids(place: Place) -> dict[str, Any]:
    context = LinuxContainerSecurityContext(
        namespace_options=NamespaceOption(pid=api_pb2.TARGET, target_id="ab12")
    )
    facts = container_facts(place, target_pid=place.target_pid)
    return container_spec(container_config(context=context), place, container=facts)


def _container_devices(place: Place) -> dict[str, Any]:
    config = container_config(
        devices=[
            Device(host_path="/dev/fuse", container_path="/dev/fuse", permissions="mr"),
            Device(host_path="/dev/net", container_path="/dev/net"),
        ]
    )
    found = {"/dev/fuse": (FUSE,), "/dev/net": (DeviceNode("/dev/net/tun", "c", 10, 200),)}
    return container_spec(config, place, container=container_facts(place, host_devices=found))


def _container_cdi_and_hooks(place: Place) -> dict[str, Any]:
    document = {
        "cdiVersion": "0.7.0",
        "kind": "vendor.com/gpu",
        "devices": [
            {
                "name": "0",
                "containerEdits": {
                    "deviceNodes": [
                        {"path": "/dev/gpu0", "hostPath": "/dev/null", "permissions": "rw"}
                    ]
                },
            }
        ],
        "containerEdits": {
            "env": ["GPU_VISIBLE=0"],
            "mounts": [
                {
                    "hostPath": place.volume,
                    "containerPath": "/usr/lib/gpu",
                    "options": ["ro", "nosuid", "nodev", "rbind"],
                }
            ],
            "hooks": [{"hookName": "createContainer", "path": "/bin/true", "args": ["true"]}],
            "additionalGids": [44],
        },
    }
    file = PlacedSpec(parse_cdi_spec(document, "gpu.json"), "gpu.json", 0)
    hook = b"""{"version": "1.0.0", "hook": {"path": "/bin/true", "timeout": 5},
                "when": {"annotations": {"^gpu$": "."}}, "stages": ["prestart", "poststop"]}"""
    facts = container_facts(
        place,
        cdi_edits=edits_for(["vendor.com/gpu=0"], [file]),
        host_devices={"/dev/null": (DeviceNode("/dev/null", "c", 1, 3),)},
        hooks=(parse_hook_file(hook, "hook.json"),),
    )
    config = container_config(
        CDI_devices=[CDIDevice(name="vendor.com/gpu=0")], annotations={"gpu": "yes"}
    )
    return container_spec(config, place, container=facts, user=ResolvedUser(uid=1000, gid=1000))


def _container_unified(place: Place) -> dict[str, Any]:
    limits = LinuxContainerResources(
        memory_limit_in_bytes=64 << 20,
        memory_swap_limit_in_bytes=96 << 20,
        unified={"memory.high": "60000000", "memory.oom.group": "1"},
    )
    return container_spec(container_config(resources=limits), place, node=V2_NODE)


def _container_vm(place: Place) -> dict[str, Any]:
    facts = sandbox_facts(
        place, annotations={"com.github.containers.virtcontainers.sandbox_cpu": "2"}
    )
    return container_spec(container_config(), place, handler=place.vm, sandbox=facts)


CASES: Mapping[str, Callable[[Place], dict[str, Any]]] = {
    name.removeprefix("_"): build
    for name, build in list(globals().items())
    if name.startswith(("_sandbox_", "_container_"))
}
NEEDS_USER_NAMESPACES = {
    *("sandbox_user_namespace", "container_user_namespace"),
    "container_user_namespace_host_network",
}
NEEDS_CGROUP_V2 = {"container_unified"}


def golden_text(spec: dict[str, Any]) -> str:
    return json.dumps(spec, indent=1, sort_keys=True, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    for case, build in CASES.items():
        (GOLDEN_DIR / f"{case}.json").write_text(golden_text(build(GOLDEN_CGROUP)))
