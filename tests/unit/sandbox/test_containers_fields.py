"""Every field of a container's request does something, or is refused by its name: none is passed over in silence."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import pytest_asyncio
from google.protobuf.json_format import MessageToDict, ParseDict

from cri_shim._pb.cri.v1 import api_pb2 as api
from cri_shim._pb.cri.v1alpha2 import api_pb2 as v1alpha2
from cri_shim.errors import (
    InvalidArgumentError,
    NotFoundError,
    PermissionRefusedError,
    UnsupportedError,
    WrongStateError,
)
from cri_shim.host.mountinfo import Mount
from cri_shim.oci.cdi_registry import CdiRegistry
from cri_shim.oci.spec.inputs import DeviceNode
from cri_shim.oci.spec.selinux import parse_contexts
from cri_shim.rpc.translate_containers import container_status
from cri_shim.sandbox.spec import container_specs as specs_module
from cri_shim.sandbox.spec import host_paths
from cri_shim.sandbox.spec import selinux as selinux_module
from cri_shim.sandbox.spec.node_resources import NodeResources
from cri_shim.sandbox.spec.selinux import SELinux
from tests.fakes.node_harness import container_config, node_facts, pod_config

if TYPE_CHECKING:
    from google.protobuf.descriptor import Descriptor

    from cri_shim.sandbox.store.store import Container
    from tests.fakes.node_harness import NodeHarness

pytestmark = pytest.mark.asyncio

CONTEXT = "linux.security_context"
RESOURCES = "linux.resources"
OPTIONS = f"{CONTEXT}.namespace_options"
USERNS = f"{OPTIONS}.userns_options"
SELINUX = f"{CONTEXT}.selinux_options"


class Made:
    """A container that was made, and what was made of it."""

    def __init__(self, harness: NodeHarness, container: Container) -> None:
        self.harness = harness
        self.container = container
        self.status = container_status(container)
        self.spec: dict[str, Any] = json.loads(
            harness.paths.container(container.id).spec_file.read_bytes()
        )
        self.monitor = harness.monitors.requests[-1]
        self.relabelled = list(RELABELLED)
        self.target_pid = 0

    @property
    def process(self) -> dict[str, Any]:
        found: dict[str, Any] = self.spec["process"]
        return found

    @property
    def limits(self) -> dict[str, Any]:
        found: dict[str, Any] = self.spec["linux"]["resources"]
        return found

    @property
    def namespaces(self) -> dict[str, str]:
        return {each["type"]: each.get("path", "") for each in self.spec["linux"]["namespaces"]}

    def mount(self, path: str = "/m") -> dict[str, Any]:
        [found] = [each for each in self.spec["mounts"] if each["destination"] == path]
        return dict(found)


Look = Callable[[Made], object]
MAPPING = {"host_id": 1000, "container_id": 0, "length": 10}
SPEC = {"hostID": 1000, "containerID": 0, "size": 10}
UIDS = {"hostID": 1000, "containerID": 0, "size": 65536}
GIDS = {"hostID": 5000, "containerID": 0, "size": 65536}


def mount(**fields: Any) -> list[dict[str, Any]]:
    return [{"container_path": "/m", "host_path": "/", **fields}]


def option(name: str) -> Look:
    return lambda made: name in made.mount()["options"]


def mapped(which: str) -> Look:
    return lambda made: made.mount()[which] == [SPEC]


def told(field: str) -> Look:
    return lambda made: getattr(made.status.mounts[0].image, field)


def labelled(part: str) -> Look:
    return lambda made: part in made.process["selinuxLabel"].split(":", 3)


def in_terms_of(which: str) -> Look:
    """Whether the container is in the pod's user namespace, in its terms."""
    key, expected = {"uids": ("uidMappings", UIDS), "gids": ("gidMappings", GIDS)}[which]
    return lambda made: made.spec["linux"][key] == [expected]


IMAGE = mount(host_path="", readonly=True, image={"image": "data"})
MAPPED = mount(uidMappings=[MAPPING], gidMappings=[MAPPING])
USERS = {
    "mode": "POD",
    "uids": [{"host_id": 1000, "container_id": 0, "length": 65536}],
    "gids": [{"host_id": 5000, "container_id": 0, "length": 65536}],
}
GPU = "vendor.example/gpu=0"
WHOLE = (
    *("mounts", "devices", "envs", "CDI_devices", f"{RESOURCES}.hugepage_limits", USERNS, SELINUX),
    *(f"{CONTEXT}.seccomp", f"{CONTEXT}.apparmor"),
)
"""What is put into a request as one."""
RELABELLED: list[str] = []
OWN_LABEL = {"user": "own_u", "role": "own_r", "type": "own_t", "level": "s0:c7,c9"}
FUSE = {"container_path": "/dev/mine", "host_path": "/dev/fuse", "permissions": "r"}


def device(made: Made) -> dict[str, Any]:
    [found] = [each for each in made.spec["linux"]["devices"] if each["path"] == "/dev/mine"]
    return dict(found)


HONOURED: dict[str, tuple[object, Look]] = {
    "metadata.name": ("db", lambda made: made.status.metadata.name == "db"),
    "metadata.attempt": (3, lambda made: made.status.metadata.attempt == 3),
    "image.image": ("other", lambda made: made.status.image.image == "other"),
    "image.annotations": ({"a": "b"}, lambda made: made.status.image.annotations == {"a": "b"}),
    "image.user_specified_image": (
        "mine:1",
        lambda made: "mine:1" in made.spec["annotations"].values(),
    ),
    "image.runtime_handler": ("runc", lambda made: made.status.image.runtime_handler == "runc"),
    "image.image_ref": ("x", lambda made: made.status.image.image_ref == "x"),
    "command": (["a", "b"], lambda made: made.process["args"] == ["a", "b"]),
    "args": (["c"], lambda made: made.process["args"] == ["sleep", "9", "c"]),
    "working_dir": ("/", lambda made: made.process["cwd"] == "/"),
    "envs.key": ([{"key": "A", "value": "Yg=="}], lambda made: "A=b" in made.process["env"]),
    "envs.value": ([{"key": "A", "value": "Yg=="}], lambda made: "A=b" in made.process["env"]),
    "mounts.container_path": (mount(), lambda made: made.mount()),
    "mounts.host_path": (mount(host_path="/usr"), lambda made: made.mount()["source"] == "/usr"),
    "mounts.readonly": (mount(readonly=True), option("ro")),
    "mounts.propagation": (mount(propagation="PROPAGATION_BIDIRECTIONAL"), option("rshared")),
    **{
        f"mounts.{which}.{field}": (MAPPED, mapped(which))
        for which in ("uidMappings", "gidMappings")
        for field in MAPPING
    },
    "mounts.selinux_relabel": (
        mount(host_path="/usr/bin", selinux_relabel=True),
        lambda made: made.relabelled == [os.path.realpath("/usr/bin")],
    ),
    "mounts.recursive_read_only": (mount(readonly=True, recursive_read_only=True), option("rro")),
    "mounts.image.image": (
        IMAGE,
        lambda made: (
            made.mount()["source"].endswith("/images/0") and made.status.mounts[0].image.image_ref
        ),
    ),
    # What a client tells itself by these is given back to it.
    **{
        f"mounts.image.{field}": (
            mount(host_path="", readonly=True, image={"image": "data", field: value}),
            told(field),
        )
        for field, value in {
            "annotations": {"a": "b"},
            "user_specified_image": "mine:1",
            "runtime_handler": "runc",
            "image_ref": "x",  # ours in the answer
        }.items()
    },
    "mounts.image_sub_path": (
        [IMAGE[0] | {"image_sub_path": "a"}],
        lambda made: made.mount()["source"].endswith("/images/0.part"),
    ),
    "mounts.mount_options": (mount(mount_options=["noexec"]), option("noexec")),
    "devices.container_path": ([FUSE], device),
    "devices.host_path": ([FUSE], lambda made: device(made)["minor"] == 229),
    "devices.permissions": (
        [FUSE],
        lambda made: (
            {"allow": True, "type": "c", "major": 10, "minor": 229, "access": "r"}
            in made.limits["devices"]
        ),
    ),
    "CDI_devices.name": (
        [{"name": GPU}],
        lambda made: any(each["path"] == "/dev/gpu0" for each in made.spec["linux"]["devices"]),
    ),
    "labels": ({"a": "b"}, lambda made: dict(made.status.labels) == {"a": "b"}),
    "annotations": (
        {"cgroup.pids.max": "7"},
        lambda made: made.limits["pids"] == {"limit": 7} and dict(made.status.annotations),
    ),
    "log_path": ("main/0.log", lambda made: made.status.log_path.endswith("/logs/main/0.log")),
    "stdin": (True, lambda made: made.monitor.stdin),
    "stdin_once": (True, lambda made: made.monitor.stdin_once),
    "tty": (True, lambda made: made.monitor.terminal and made.process["terminal"]),
    "stop_signal": ("SIGNAL_SIGUSR1", lambda made: made.status.stop_signal == api.SIGNAL_SIGUSR1),
    f"{RESOURCES}.cpu_period": (20_000, lambda made: made.limits["cpu"]["period"] == 20_000),
    f"{RESOURCES}.cpu_quota": (-1, lambda made: made.limits["cpu"]["quota"] == -1),
    f"{RESOURCES}.cpu_shares": (512, lambda made: made.limits["cpu"]["shares"] == 512),
    f"{RESOURCES}.memory_limit_in_bytes": (
        1 << 26,
        lambda made: made.limits["memory"]["limit"] == 1 << 26,
    ),
    f"{RESOURCES}.memory_swap_limit_in_bytes": (
        1 << 27,
        lambda made: made.limits["memory"]["swap"] == 1 << 27,
    ),
    f"{RESOURCES}.oom_score_adj": (9, lambda made: made.process["oomScoreAdj"] == 9),
    f"{RESOURCES}.cpuset_cpus": ("0-1", lambda made: made.limits["cpu"]["cpus"] == "0-1"),
    f"{RESOURCES}.cpuset_mems": ("0", lambda made: made.limits["cpu"]["mems"] == "0"),
    **{
        f"{RESOURCES}.hugepage_limits.{field}": (
            [{"page_size": "2MB", "limit": 1 << 21}],
            lambda made: made.limits["hugepageLimits"] == [{"pageSize": "2MB", "limit": 1 << 21}],
        )
        for field in ("page_size", "limit")
    },
    f"{RESOURCES}.unified": (
        {"memory.high": "1"},
        lambda made: made.limits["unified"] == {"memory.high": "1"},
    ),
    f"{CONTEXT}.capabilities.add_capabilities": (
        ["SYS_ADMIN"],
        lambda made: "CAP_SYS_ADMIN" in made.process["capabilities"]["bounding"],
    ),
    f"{CONTEXT}.capabilities.drop_capabilities": (
        ["KILL"],
        lambda made: "CAP_KILL" not in made.process["capabilities"]["bounding"],
    ),
    f"{CONTEXT}.capabilities.add_ambient_capabilities": (
        ["KILL"],
        lambda made: "CAP_KILL" in made.process["capabilities"]["ambient"],
    ),
    f"{CONTEXT}.privileged": (True, lambda made: "rw" in made.mount("/sys")["options"]),
    f"{OPTIONS}.network": ("NODE", lambda made: "network" not in made.namespaces),
    f"{OPTIONS}.pid": ("CONTAINER", lambda made: made.namespaces["pid"] == ""),
    f"{OPTIONS}.ipc": ("NODE", lambda made: "ipc" not in made.namespaces),
    f"{OPTIONS}.target_id": (
        "TARGET",
        lambda made: made.namespaces["pid"] == f"/proc/{made.target_pid}/ns/pid",
    ),
    f"{USERNS}.mode": (USERS, lambda made: made.namespaces["user"]),
    **{
        f"{USERNS}.{which}.{field}": (USERS, in_terms_of(which))
        for which in ("uids", "gids")
        for field in MAPPING
    },
    **{
        f"{SELINUX}.{field}": (
            OWN_LABEL,
            labelled(value),
        )
        for field, value in OWN_LABEL.items()
    },
    f"{CONTEXT}.run_as_user": ({"value": 7}, lambda made: made.status.user.linux.uid == 7),
    f"{CONTEXT}.run_as_group": (8, lambda made: made.process["user"]["gid"] == 8),
    f"{CONTEXT}.run_as_username": ("12", lambda made: made.process["user"]["uid"] == 12),
    f"{CONTEXT}.readonly_rootfs": (True, lambda made: made.spec["root"]["readonly"]),
    f"{CONTEXT}.supplemental_groups": (
        [9],
        lambda made: list(made.status.user.linux.supplemental_groups) == [0, 9],
    ),
    f"{CONTEXT}.supplemental_groups_policy": (
        "Strict",
        lambda made: made.process["user"]["additionalGids"] == [0],
    ),
    f"{CONTEXT}.no_new_privs": (True, lambda made: made.process["noNewPrivileges"]),
    f"{CONTEXT}.masked_paths": (
        ["/proc/mine"],
        lambda made: "/proc/mine" in made.spec["linux"]["maskedPaths"],
    ),
    f"{CONTEXT}.readonly_paths": (
        ["/proc/mine"],
        lambda made: "/proc/mine" in made.spec["linux"]["readonlyPaths"],
    ),
    f"{CONTEXT}.seccomp.profile_type": (
        {"profile_type": "RuntimeDefault"},
        lambda made: "seccomp" in made.spec["linux"],
    ),
    f"{CONTEXT}.seccomp.localhost_ref": (
        {"profile_type": "Localhost", "localhost_ref": "SECCOMP"},
        lambda made: made.spec["linux"]["seccomp"]["defaultAction"] == "SCMP_ACT_LOG",
    ),
    f"{CONTEXT}.apparmor.profile_type": (
        {"profile_type": "Unconfined"},
        lambda made: "apparmorProfile" not in made.process,
    ),
    f"{CONTEXT}.apparmor.localhost_ref": (
        {"profile_type": "Localhost", "localhost_ref": "mine"},
        lambda made: made.process["apparmorProfile"] == "mine",
    ),
    f"{CONTEXT}.apparmor_profile": (
        "localhost/mine",
        lambda made: made.process["apparmorProfile"] == "mine",
    ),
    f"{CONTEXT}.seccomp_profile_path": (
        "runtime/default",
        lambda made: "seccomp" in made.spec["linux"],
    ),
}
"""A value for each field, and where it is seen."""

REFUSED: dict[str, tuple[object, str]] = {
    "windows": ({}, "windows"),
    "image.image": ("none", "none"),
    "command": (["a\0b"], r"command\[0\]"),
    "args": (["a\0b"], r"args\[0\]"),
    "working_dir": ("relative", "working_dir"),
    "envs.key": ([{"key": "A=B"}], r"envs\[0\]\.key"),
    "envs.value": ([{"key": "A", "value": "AA=="}], r"envs\[0\]\.value"),
    "mounts.container_path": (mount(container_path="m"), r"mounts\[0\]\.container_path"),
    "mounts.host_path": (mount(host_path="h"), r"mounts\[0\]\.host_path"),
    "mounts.propagation": (mount(propagation=7), r"mounts\[0\]\.propagation"),
    "mounts.uidMappings.length": (
        mount(uidMappings=[MAPPING | {"length": 0}], gidMappings=[MAPPING]),
        r"mounts\[0\]\.uidMappings\.length",
    ),
    "mounts.gidMappings.length": (
        mount(uidMappings=[MAPPING], gidMappings=[MAPPING | {"length": 0}]),
        r"mounts\[0\]\.gidMappings\.length",
    ),
    "mounts.uidMappings.host_id": (
        mount(uidMappings=[MAPPING | {"host_id": 2**32 - 1}], gidMappings=[MAPPING]),
        r"mounts\[0\]\.uidMappings\.host_id",
    ),
    "mounts.gidMappings.container_id": (
        mount(uidMappings=[MAPPING], gidMappings=[MAPPING | {"container_id": 2**32 - 1}]),
        r"mounts\[0\]\.gidMappings\.container_id",
    ),
    "mounts.gidMappings.host_id": (mount(uidMappings=[MAPPING]), r"mounts\[0\]\.gidMappings"),
    "mounts.uidMappings.container_id": (
        mount(gidMappings=[MAPPING]),
        r"mounts\[0\]\.uidMappings",
    ),
    "mounts.selinux_relabel": (
        mount(host_path="/etc", selinux_relabel=True),
        r"mounts\[0\]\.selinux_relabel",
    ),
    f"{SELINUX}.level": ({"level": "s0\n"}, r"selinux_options\.level"),
    f"{SELINUX}.type": ({"type": "a:b"}, r"selinux_options\.type"),
    f"{SELINUX}.user": ({"user": "a b"}, r"selinux_options\.user"),
    f"{SELINUX}.role": ({"role": "a,b"}, r"selinux_options\.role"),
    "mounts.recursive_read_only": (
        mount(recursive_read_only=True),
        r"mounts\[0\]\.recursive_read_only",
    ),
    "mounts.image.image": (mount(image={"image": "data"}), r"mounts\[0\]\.readonly"),
    "mounts.image_sub_path": (mount(image_sub_path="a"), r"mounts\[0\]\.image_sub_path"),
    "mounts.mount_options": (mount(mount_options=["suid"]), r"mounts\[0\]\.mount_options"),
    "devices.host_path": ([FUSE | {"host_path": "/no"}], "devices"),
    "devices.container_path": ([FUSE | {"container_path": "x"}], "devices"),
    "devices.permissions": ([FUSE | {"permissions": "x"}], "devices"),
    "CDI_devices.name": ([{"name": "vendor.example/none=0"}], "(?i)cdi"),
    "annotations": ({"cgroup.pids.max": "many"}, r"cgroup\.pids\.max"),
    "log_path": ("../x", "log_path"),
    "stop_signal": (4000, "stop_signal"),
    f"{CONTEXT}.capabilities.add_capabilities": (["FLY"], "(?i)FLY"),
    f"{CONTEXT}.capabilities.drop_capabilities": (["FLY"], "(?i)FLY"),
    f"{CONTEXT}.capabilities.add_ambient_capabilities": (["FLY"], "(?i)FLY"),
    f"{OPTIONS}.network": ("CONTAINER", r"namespace_options\.network"),
    f"{OPTIONS}.pid": (9, r"namespace_options\.pid"),
    f"{OPTIONS}.ipc": ("TARGET", r"namespace_options\.ipc"),
    f"{OPTIONS}.target_id": ("ab", "target_id"),
    f"{USERNS}.mode": (USERS | {"mode": "CONTAINER"}, r"userns_options\.mode"),
    f"{USERNS}.uids.host_id": (USERS | {"uids": [MAPPING]}, "userns_options: differs"),
    f"{USERNS}.gids.host_id": (USERS | {"gids": [MAPPING]}, "userns_options: differs"),
    f"{USERNS}.uids.length": (USERS | {"uids": [{}]}, r"userns_options\.uids\.length"),
    f"{USERNS}.gids.length": (USERS | {"gids": []}, r"userns_options\.gids"),
    f"{USERNS}.uids.container_id": (
        USERS | {"uids": [MAPPING | {"container_id": 1}]},
        r"userns_options\.uids\.container_id",
    ),
    f"{CONTEXT}.run_as_user": ({"value": -1}, "run_as_user"),
    f"{CONTEXT}.run_as_group": (1 << 32, "run_as_group"),
    f"{CONTEXT}.run_as_username": ("nobody-here", "nobody-here"),
    f"{CONTEXT}.supplemental_groups": ([1 << 40], "supplemental_groups"),
    f"{CONTEXT}.supplemental_groups_policy": (7, "supplemental_groups_policy"),
    f"{CONTEXT}.masked_paths": (["relative"], "masked_paths"),
    f"{CONTEXT}.readonly_paths": (["relative"], "readonly_paths"),
    f"{CONTEXT}.seccomp.profile_type": ({"profile_type": 7}, r"seccomp\.profile_type"),
    f"{CONTEXT}.seccomp.localhost_ref": (
        {"profile_type": "Localhost", "localhost_ref": "x"},
        r"seccomp\.localhost_ref",
    ),
    f"{CONTEXT}.seccomp_profile_path": ("odd", "seccomp_profile_path"),
    f"{CONTEXT}.apparmor.profile_type": ({"profile_type": 7}, r"apparmor\.profile_type"),
    f"{CONTEXT}.apparmor.localhost_ref": (
        {"profile_type": "Localhost", "localhost_ref": "none"},
        r"apparmor\.localhost_ref",
    ),
    f"{CONTEXT}.apparmor_profile": ("localhost/none", "apparmor_profile"),
} | {
    f"{RESOURCES}.{field}": (value, field)
    for field, value in {
        "cpu_period": 1,
        "cpu_quota": 7,
        "cpu_shares": -1,
        "memory_limit_in_bytes": -2,
        "memory_swap_limit_in_bytes": -2,
        "cpuset_cpus": "all",
        "cpuset_mems": "0;1",
        "hugepage_limits.page_size": [{"page_size": "big"}],
        "unified": {"../memory.high": "1"},
        "oom_score_adj": 2000,
    }.items()
}
"""A value that can't be for each field that has such, and what the refusal names."""


def leaves(descriptor: Descriptor, prefix: str = "") -> set[str]:
    found = set()
    for field in descriptor.fields:
        path = f"{prefix}{field.name}"
        message = field.message_type
        if (
            message is None
            or message.GetOptions().map_entry
            or message.name in ("Int64Value", "WindowsContainerConfig")
        ):
            found.add(path)
        else:
            found |= leaves(message, f"{path}.")
    return found


async def test_these_are_all_the_fields_there_are() -> None:
    fields = leaves(api.ContainerConfig.DESCRIPTOR)
    assert fields == HONOURED.keys() | {"windows"}
    assert fields >= REFUSED.keys()


async def test_the_former_version_has_no_field_that_is_not_among_them() -> None:
    former = leaves(v1alpha2.ContainerConfig.DESCRIPTOR)
    assert former <= leaves(api.ContainerConfig.DESCRIPTOR)


@pytest_asyncio.fixture
async def harness(harness: NodeHarness, monkeypatch: pytest.MonkeyPatch) -> NodeHarness:
    """With another image, and a node that has all that a field may ask for."""
    harness.images.add("other")
    harness.images.add("data")
    node = node_facts()
    everything = type(node)(
        **{name: getattr(node, name) for name in node.__slots__}
        | {"swap_accounting": True, "hugepage_sizes": frozenset({"2MB"})}
        | {"apparmor_profiles": frozenset({"default", "mine"}), "selinux_enabled": True}
        | {"apparmor_default_profile": "default"}
    )
    harness.node = everything
    harness.handlers.recursive_read_only_mounts = True
    gpu = {"path": "/dev/gpu0", "hostPath": "/dev/fuse"}
    devices = harness.base / "cdi"
    devices.mkdir()
    (devices / "gpu.json").write_text(
        json.dumps(
            {
                "cdiVersion": "0.5.0",
                "kind": GPU.partition("=")[0],
                "devices": [{"name": "0", "containerEdits": {"deviceNodes": [gpu]}}],
            }
        )
    )
    contexts = (
        'process = "system_u:system_r:container_t"\nfile = "system_u:object_r:container_file_t"'
    )
    harness.node_resources = NodeResources(
        cdi=CdiRegistry([devices]), selinux=SELinux(parse_contexts(contexts, "policy"), tuple)
    )
    harness.rebuild()
    monkeypatch.setattr(selinux_module, "relabel", lambda path, *_, **__: RELABELLED.append(path))
    RELABELLED.clear()
    (harness.base / "seccomp.json").write_text('{"defaultAction": "SCMP_ACT_LOG"}')
    fuse = DeviceNode("/dev/fuse", "c", 10, 229)
    monkeypatch.setattr(
        specs_module, "device_nodes", lambda path: (fuse,) if path == "/dev/fuse" else ()
    )
    root = Mount(1, 0, "0:1", "/", Path("/"), "rw", ("shared:1",), "ext4", "disk", "rw")
    monkeypatch.setattr(host_paths, "read_mounts", lambda: [root])
    monkeypatch.setattr(
        "cri_shim.sandbox.spec.volumes.open_sub_path", lambda *_: os.open("/", os.O_PATH)
    )
    return harness


async def made_of(harness: NodeHarness, path: str, value: object) -> Made:
    pod = pod_config(log_directory=f"{harness.base}/logs")
    if path.startswith(f"{OPTIONS}.") or path.endswith("privileged"):
        pod.linux.security_context.privileged = True
        options = pod.linux.security_context.namespace_options
        options.network = options.ipc = api.NODE if value == "NODE" else api.POD
    if path.startswith(USERNS) and value != "NODE":
        ParseDict(USERS, pod.linux.security_context.namespace_options.userns_options)
        pod.linux.security_context.privileged = False
    if path.endswith("unified"):
        facts = harness.spec_facts.node
        v2 = {name: getattr(facts, name) for name in facts.__slots__} | {"cgroup_v2": True}
        harness.spec_facts.node = type(facts)(**v2)
    sandbox = harness.pods.find(await harness.pods.run_pod_sandbox(pod, ""))
    config = container_config()
    document = MessageToDict(config, preserving_proto_field_name=True)
    put(document, path, value)
    target = (
        await harness.start(sandbox, "target")
        if path.endswith("target_id") and value == "TARGET"
        else None
    )
    if target is not None:
        put(document, OPTIONS, {"pid": "TARGET", "target_id": target.id})
    config = ParseDict(document, api.ContainerConfig())
    if path.endswith("seccomp.localhost_ref"):
        seccomp = config.linux.security_context.seccomp
        seccomp.localhost_ref = f"{harness.base}/{seccomp.localhost_ref.lower()}.json"
    created = await harness.containers.create_container(sandbox.id, config, sandbox.config)
    made = Made(harness, harness.containers.find(created))
    if target is not None and target.status.process is not None:
        made.target_pid = target.status.process.pid
    return made


def put(document: dict[str, Any], path: str, value: object) -> None:
    """Set a field by its dotted name; what belongs together is asked for together."""
    for whole in WHOLE:
        if path.startswith(f"{whole}."):
            path = whole
    *parents, last = path.split(".")
    for part in parents:
        document = document.setdefault(part, {})
    document[last] = value
    if last == "run_as_group":
        document.update(run_as_group={"value": value}, run_as_user={"value": 7})
    if last == "memory_swap_limit_in_bytes":
        document.update(memory_limit_in_bytes=1 << 26)


@pytest.mark.parametrize("path", sorted(HONOURED))
async def test_what_a_field_asks_for_is_done(harness: NodeHarness, path: str) -> None:
    value, look = HONOURED[path]
    assert look(await made_of(harness, path, value))


@pytest.mark.parametrize("path", sorted(REFUSED))
async def test_what_can_not_be_is_refused_by_its_name(harness: NodeHarness, path: str) -> None:
    value, says = REFUSED[path]
    errors = (
        *(InvalidArgumentError, UnsupportedError, PermissionRefusedError),
        *(NotFoundError, WrongStateError),
    )
    with pytest.raises(errors, match=says):
        await made_of(harness, path, value)
    assert not list(harness.stored)
