"""Every field of a container's request does something, or is refused by its name: none is passed over in silence."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from google.protobuf.json_format import MessageToDict, ParseDict

from cri_shim._pb.cri.v1 import api_pb2 as api
from cri_shim.errors import (
    InvalidArgumentError,
    NotFoundError,
    PermissionRefusedError,
    UnsupportedError,
    WrongStateError,
)
from cri_shim.host.mountinfo import Mount
from cri_shim.oci.spec.inputs import DeviceNode, HandlerFacts
from cri_shim.rpc.translate_containers import container_status
from cri_shim.sandbox import host_paths
from cri_shim.sandbox import specs as specs_module
from tests.fakes.house import container_config, node_facts, pod_config

if TYPE_CHECKING:
    from google.protobuf.descriptor import Descriptor

    from cri_shim.sandbox.store import Container
    from tests.fakes.house import House

pytestmark = pytest.mark.asyncio

CONTEXT = "linux.security_context"
RESOURCES = "linux.resources"
OPTIONS = f"{CONTEXT}.namespace_options"
WHOLE = {"windows", f"{CONTEXT}.selinux_options"}
"""Messages that are taken or refused as one."""


class Made:
    """A container that was made, and what was made of it."""

    def __init__(self, house: House, container: Container) -> None:
        self.house = house
        self.container = container
        self.status = container_status(container)
        self.spec: dict[str, Any] = json.loads(
            house.paths.container(container.id).spec_file.read_bytes()
        )
        self.monitor = house.monitors.requests[-1]

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


def mount(**fields: Any) -> list[dict[str, Any]]:
    return [{"container_path": "/m", "host_path": "/", **fields}]


def option(name: str) -> Look:
    return lambda made: name in made.mount()["options"]


IMAGE = mount(host_path="", readonly=True, image={"image": "data"})
MAPPED = mount(uidMappings=[MAPPING], gidMappings=[MAPPING])
NULL = {"container_path": "/dev/mine", "host_path": "/dev/null", "permissions": "r"}


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
    "mounts.uidMappings": (MAPPED, lambda made: made.mount()["uidMappings"]),
    "mounts.gidMappings": (MAPPED, lambda made: made.mount()["gidMappings"]),
    "mounts.recursive_read_only": (mount(readonly=True, recursive_read_only=True), option("rro")),
    "mounts.image": (
        IMAGE,
        lambda made: (
            made.mount()["source"].endswith("/images/0") and made.status.mounts[0].image.image_ref
        ),
    ),
    "mounts.image_sub_path": (
        [IMAGE[0] | {"image_sub_path": "a"}],
        lambda made: made.mount()["source"].endswith("/images/0.part"),
    ),
    "mounts.mount_options": (mount(mount_options=["noexec"]), option("noexec")),
    "devices.container_path": ([NULL], device),
    "devices.host_path": ([NULL], lambda made: device(made)["minor"] == 3),
    "devices.permissions": (
        [NULL],
        lambda made: (
            {"allow": True, "type": "c", "major": 1, "minor": 3, "access": "r"}
            in made.limits["devices"]
        ),
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
    f"{RESOURCES}.hugepage_limits": (
        [{"page_size": "2MB", "limit": 1 << 21}],
        lambda made: made.limits["hugepageLimits"] == [{"pageSize": "2MB", "limit": 1 << 21}],
    ),
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
    f"{CONTEXT}.seccomp": (
        {"profile_type": "RuntimeDefault"},
        lambda made: "seccomp" in made.spec["linux"],
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
    "mounts.uidMappings": (mount(uidMappings=[MAPPING]), r"mounts\[0\]\.gidMappings"),
    "mounts.gidMappings": (mount(gidMappings=[{}]), r"mounts\[0\]\.uidMappings"),
    "mounts.recursive_read_only": (
        mount(recursive_read_only=True),
        r"mounts\[0\]\.recursive_read_only",
    ),
    "mounts.image": (mount(image={"image": "data"}), r"mounts\[0\]\.readonly"),
    "mounts.image_sub_path": (mount(image_sub_path="a"), r"mounts\[0\]\.image_sub_path"),
    "mounts.mount_options": (mount(mount_options=["suid"]), r"mounts\[0\]\.mount_options"),
    "devices.host_path": ([NULL | {"host_path": "/no"}], "devices"),
    "devices.container_path": ([NULL | {"container_path": "x"}], "devices"),
    "devices.permissions": ([NULL | {"permissions": "x"}], "devices"),
    "CDI_devices": ([{"name": "vendor.example/none=0"}], "(?i)cdi"),
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
    f"{OPTIONS}.userns_options.mode": ("CONTAINER", "userns_options"),
    f"{OPTIONS}.userns_options.uids": ([MAPPING], "userns_options"),
    f"{OPTIONS}.userns_options.gids": ([MAPPING], "userns_options"),
    f"{CONTEXT}.run_as_user": ({"value": -1}, "run_as_user"),
    f"{CONTEXT}.run_as_group": (1 << 32, "run_as_group"),
    f"{CONTEXT}.run_as_username": ("nobody-here", "nobody-here"),
    f"{CONTEXT}.supplemental_groups": ([1 << 40], "supplemental_groups"),
    f"{CONTEXT}.supplemental_groups_policy": (7, "supplemental_groups_policy"),
    f"{CONTEXT}.masked_paths": (["relative"], "masked_paths"),
    f"{CONTEXT}.readonly_paths": (["relative"], "readonly_paths"),
    f"{CONTEXT}.seccomp": ({"profile_type": "Localhost", "localhost_ref": "x"}, "seccomp"),
    f"{CONTEXT}.seccomp_profile_path": ("odd", "seccomp_profile_path"),
    f"{CONTEXT}.apparmor": ({"profile_type": "Localhost", "localhost_ref": "mine"}, "(?i)apparmor"),
    f"{CONTEXT}.apparmor_profile": ("localhost/mine", "(?i)apparmor"),
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
        "hugepage_limits": [{"page_size": "big"}],
        "unified": {"../memory.high": "1"},
        "oom_score_adj": 2000,
    }.items()
}
"""A value that can't be for each field that has such, and what the refusal names."""

INERT_HERE = {f"{CONTEXT}.selinux_options", "mounts.selinux_relabel"}
"""A node without that module has nothing to do for them; where it is there: `test_selinux`."""


def leaves(descriptor: Descriptor, prefix: str = "") -> set[str]:
    found = set()
    for field in descriptor.fields:
        path = f"{prefix}{field.name}"
        message = field.message_type
        if (
            message is None
            or message.GetOptions().map_entry
            or message.name in ("Int64Value", "SecurityProfile", "HugepageLimit", "IDMapping")
            or path in WHOLE
            or path in ("mounts.image", "CDI_devices")
        ):
            found.add(path)
        else:
            found |= leaves(message, f"{path}.")
    return found


async def test_these_are_all_the_fields_there_are() -> None:
    known = HONOURED.keys() | REFUSED.keys() | INERT_HERE
    assert leaves(api.ContainerConfig.DESCRIPTOR) == known


@pytest.fixture
def house(house: House, monkeypatch: pytest.MonkeyPatch) -> House:
    """With another image, and a node that has all that a field may ask for."""
    house.images.add("other")
    house.images.add("data")
    node = node_facts()
    everything = type(node)(
        **{name: getattr(node, name) for name in node.__slots__}
        | {"swap_accounting": True, "hugepage_sizes": frozenset({"2MB"})}
    )
    able = HandlerFacts("runc", user_namespaces=True, recursive_read_only_mounts=True)
    monkeypatch.setattr(house.specs, "_node", everything)
    monkeypatch.setattr(house.specs, "_handler_facts", lambda _: able)
    null = DeviceNode("/dev/null", "c", 1, 3)
    monkeypatch.setattr(
        specs_module, "device_nodes", lambda path: (null,) if path == "/dev/null" else ()
    )
    root = Mount(1, 0, "0:1", "/", Path("/"), "rw", ("shared:1",), "ext4", "disk", "rw")
    monkeypatch.setattr(host_paths, "read_mounts", lambda: [root])
    monkeypatch.setattr(
        "cri_shim.sandbox.volumes.open_sub_path", lambda *_: os.open("/", os.O_PATH)
    )
    return house


async def made_of(house: House, path: str, value: object) -> Made:
    pod = pod_config(log_directory=f"{house.base}/logs")
    if path.startswith(OPTIONS) or path.endswith("privileged"):
        pod.linux.security_context.privileged = True
        options = pod.linux.security_context.namespace_options
        options.network = options.ipc = api.NODE if value == "NODE" else api.POD
    if path.endswith("unified"):
        facts = house.specs._node
        v2 = {name: getattr(facts, name) for name in facts.__slots__} | {"cgroup_v2": True}
        house.specs._node = type(facts)(**v2)
    sandbox = house.pods.find(await house.pods.run_pod_sandbox(pod, ""))
    config = container_config()
    document = MessageToDict(config, preserving_proto_field_name=True)
    put(document, path, value)
    config = ParseDict(document, api.ContainerConfig())
    created = await house.containers.create_container(sandbox.id, config, sandbox.config)
    return Made(house, house.containers.find(created))


def put(document: dict[str, Any], path: str, value: object) -> None:
    """Set a field by its dotted name; what belongs together is asked for together."""
    for whole in ("mounts", "devices", "envs"):
        if path.startswith(f"{whole}."):
            path = whole
    *parents, last = path.split(".")
    for part in parents:
        document = document.setdefault(part, {})
    document[last] = value
    if last == "run_as_group":
        document.update(run_as_group={"value": value}, run_as_user={"value": 7})
    if last in ("uids", "gids"):
        document.update(mode="POD")
    if last == "memory_swap_limit_in_bytes":
        document.update(memory_limit_in_bytes=1 << 26)


@pytest.mark.parametrize("path", sorted(HONOURED))
async def test_what_a_field_asks_for_is_done(house: House, path: str) -> None:
    value, look = HONOURED[path]
    assert look(await made_of(house, path, value))


@pytest.mark.parametrize("path", sorted(REFUSED))
async def test_what_can_not_be_is_refused_by_its_name(house: House, path: str) -> None:
    value, says = REFUSED[path]
    errors = (
        *(InvalidArgumentError, UnsupportedError, PermissionRefusedError),
        *(NotFoundError, WrongStateError),
    )
    with pytest.raises(errors, match=says):
        await made_of(house, path, value)
    assert not list(house.stored)
