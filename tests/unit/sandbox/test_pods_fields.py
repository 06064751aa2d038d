"""Every field of a pod's request does something, or is refused by its name: none is passed over in silence."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from google.protobuf.json_format import ParseDict

from cri_shim._pb.cri.v1 import api_pb2 as api
from cri_shim.errors import InvalidArgumentError, UnsupportedError
from tests.fakes.node_harness import pod_config

if TYPE_CHECKING:
    from google.protobuf.descriptor import Descriptor

    from cri_shim.sandbox.store.store import Sandbox
    from tests.fakes.node_harness import NodeHarness

pytestmark = pytest.mark.asyncio

CONTEXT = "linux.security_context"
OPTIONS = f"{CONTEXT}.namespace_options"
SIZES = {
    *("cpu_period", "cpu_quota", "cpu_shares", "memory_limit_in_bytes", "oom_score_adj"),
    *("cpuset_cpus", "cpuset_mems", "hugepage_limits", "unified", "memory_swap_limit_in_bytes"),
}
WHOLE = {"windows", f"{CONTEXT}.selinux_options"}
"""Messages that are taken or refused as one."""


class Made:
    """A pod that was made, and what was made of it."""

    def __init__(self, harness: NodeHarness, sandbox: Sandbox) -> None:
        self.harness = harness
        self.sandbox = sandbox
        self.paths = harness.paths.sandbox(sandbox.id)
        self.spec: dict[str, Any] = json.loads(self.paths.spec_file.read_bytes())

    @property
    def process(self) -> dict[str, Any]:
        found: dict[str, Any] = self.spec["process"]
        return found

    @property
    def namespaces(self) -> set[str]:
        return {namespace["type"] for namespace in self.spec["linux"]["namespaces"]}

    @property
    def capabilities(self) -> dict[str, object]:
        [attachment] = self.harness.cni.attached.values()
        return dict(attachment.capability_args)

    def etc(self, name: str) -> str:
        return (self.paths.etc_dir / name).read_text()


Look = Callable[[Made], object]
MAPPING = {"host_id": os.getuid(), "container_id": 0, "length": 10}
USERS = {"mode": "POD", "uids": [MAPPING], "gids": [MAPPING]}
PORT = {"protocol": "UDP", "container_port": 53, "host_port": 5353, "host_ip": "127.0.0.1"}


def nested(path: str, value: object) -> dict[str, Any]:
    for part in reversed(path.split(".")):
        value = {part: value}
    return value  # type: ignore[return-value]


def with_users(made: Made) -> bool:
    return "user" in made.namespaces


def with_port(made: Made) -> bool:
    wanted = {"hostPort": 5353, "containerPort": 53, "protocol": "udp", "hostIP": "127.0.0.1"}
    return made.capabilities["portMappings"] == [wanted]


def dns(line: str) -> Look:
    return lambda made: line in made.etc("resolv.conf").splitlines()


HONOURED: dict[str, tuple[object, Look]] = {
    "metadata.name": ("db", lambda made: made.sandbox.record.metadata.name == "db"),
    "metadata.uid": ("u", lambda made: made.sandbox.record.metadata.uid == "u"),
    "metadata.namespace": ("shop", lambda made: made.sandbox.record.metadata.namespace == "shop"),
    "metadata.attempt": (3, lambda made: made.sandbox.record.metadata.attempt == 3),
    "hostname": (
        "db",
        lambda made: (made.spec["hostname"], made.etc("hostname")) == ("db", "db\n"),
    ),
    "log_directory": (
        "LOGS",
        lambda made: os.path.isdir(made.sandbox.config.log_directory),
    ),
    "dns_config.servers": (["10.0.0.10"], dns("nameserver 10.0.0.10")),
    "dns_config.searches": (["a.b", "c"], dns("search a.b c")),
    "dns_config.options": (["ndots:5"], dns("options ndots:5")),
    "port_mappings.protocol": ([PORT], with_port),
    "port_mappings.container_port": ([PORT], with_port),
    "port_mappings.host_port": ([PORT], with_port),
    "port_mappings.host_ip": ([PORT], with_port),
    "labels": ({"a": "b"}, lambda made: dict(made.sandbox.config.labels) == {"a": "b"}),
    "annotations": ({"a": "b"}, lambda made: dict(made.sandbox.config.annotations) == {"a": "b"}),
    "linux.cgroup_parent": (
        "/kubepods/pod1",
        lambda made: made.spec["linux"]["cgroupsPath"] == f"/kubepods/pod1/{made.sandbox.id}",
    ),
    "linux.sysctls": (
        {"net.core.somaxconn": "9", "kernel.sem": "1 2 3 4"},
        lambda made: (
            made.spec["linux"]["sysctl"] == {"kernel.sem": "1 2 3 4"}
            and [*made.harness.kernel.namespaces.values()] == [{"net.core.somaxconn": "9"}]
        ),
    ),
    f"{OPTIONS}.network": ("NODE", lambda made: "network" not in made.namespaces),
    f"{OPTIONS}.pid": ("NODE", lambda made: "pid" not in made.namespaces),
    f"{OPTIONS}.ipc": ("NODE", lambda made: "ipc" not in made.namespaces),
    f"{OPTIONS}.userns_options.mode": (USERS, with_users),
    f"{OPTIONS}.userns_options.uids": (USERS, with_users),
    f"{OPTIONS}.userns_options.gids": (USERS, with_users),
    f"{CONTEXT}.run_as_user": ({"value": 7}, lambda made: made.process["user"]["uid"] == 7),
    f"{CONTEXT}.run_as_group": ({"value": 8}, lambda made: made.process["user"]["gid"] == 8),
    f"{CONTEXT}.readonly_rootfs": (True, lambda made: made.spec["root"]["readonly"]),
    f"{CONTEXT}.supplemental_groups": (
        [9],
        lambda made: 9 in made.process["user"]["additionalGids"],
    ),
    f"{CONTEXT}.supplemental_groups_policy": (
        "Strict",
        lambda made: made.process["user"]["additionalGids"] == [0],
    ),
    f"{CONTEXT}.privileged": (
        True,
        lambda made: any("rw" in m["options"] for m in made.spec["mounts"] if m["type"] == "sysfs"),
    ),
    f"{CONTEXT}.seccomp": (
        {"profile_type": "Unconfined"},
        lambda m: "seccomp" not in m.spec["linux"],
    ),
    f"{CONTEXT}.seccomp_profile_path": ("unconfined", lambda m: "seccomp" not in m.spec["linux"]),
}
"""A value for each field, and where it is seen."""

REFUSED: dict[str, tuple[object, str]] = {
    "windows": ({}, "windows"),
    f"{OPTIONS}.target_id": ("ab", "target_id"),
    f"{CONTEXT}.apparmor": ({"profile_type": "Localhost", "localhost_ref": "mine"}, "(?i)apparmor"),
    f"{CONTEXT}.supplemental_groups_policy": (7, "supplemental_groups_policy"),
    f"{CONTEXT}.run_as_user": ({"value": -1}, "run_as_user"),
    f"{CONTEXT}.run_as_group": ({"value": 1 << 32}, "run_as_group"),
    f"{CONTEXT}.supplemental_groups": ([1 << 40], "supplemental_groups"),
    f"{CONTEXT}.seccomp": ({"profile_type": "Localhost", "localhost_ref": "x"}, "seccomp"),
    f"{CONTEXT}.seccomp_profile_path": ("odd", "seccomp_profile_path"),
    f"{OPTIONS}.network": ("CONTAINER", "namespace_options.network"),
    f"{OPTIONS}.pid": ("TARGET", "namespace_options.pid"),
    f"{OPTIONS}.ipc": ("TARGET", "namespace_options.ipc"),
    "linux.cgroup_parent": ("/a/../../b", "cgroup_parent"),
    "linux.sysctls": ({"kernel.core_pattern": "|/evil"}, "sysctls"),
    "hostname": ("a b", "hostname"),
    "log_directory": ("../x", "log_directory"),
} | {
    f"linux.{which}.{field}": (value, rf"linux\.{which}\.{field}")
    for which in ("overhead", "resources")
    for field, value in {
        "cpu_period": 1,
        "cpu_quota": 7,
        "memory_limit_in_bytes": -2,
        "memory_swap_limit_in_bytes": -2,
        "cpuset_cpus": "all",
        "cpuset_mems": "0;1",
        "hugepage_limits": [{"page_size": "big"}],
        "unified": {"memory.high": "1"},
        "oom_score_adj": 2000,
    }.items()
}
"""A value that can't be for each field that has such, and what the refusal names."""

SHOWN_ONLY = {f"linux.{which}.{field}" for which in ("overhead", "resources") for field in SIZES}
"""They size a pod: kept and shown; see UpdatePodSandboxResources."""
INERT_HERE = {f"{CONTEXT}.selinux_options", f"{CONTEXT}.apparmor"}
"""A node without that module has nothing to do for them; where it is there: `test_security`."""


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
        ):
            found.add(path)
        else:
            found |= leaves(message, f"{path}.")
    return found


async def test_these_are_all_the_fields_there_are() -> None:
    known = HONOURED.keys() | REFUSED.keys() | SHOWN_ONLY | INERT_HERE
    assert leaves(api.PodSandboxConfig.DESCRIPTOR) == known


def request(path: str, value: object, logs: str) -> api.PodSandboxConfig:
    # What belongs together is asked for together.
    for whole in ("port_mappings", f"{OPTIONS}.userns_options"):
        if path.startswith(whole):
            path = whole
    config = pod_config()
    config.ClearField("labels")
    ParseDict(nested(path, logs if value == "LOGS" else value), config)
    return config


@pytest.mark.parametrize("path", sorted(HONOURED))
async def test_what_a_field_asks_for_is_done(harness: NodeHarness, path: str) -> None:
    value, look = HONOURED[path]
    config = request(path, value, f"{harness.base}/logs")
    sandbox = harness.pods.find(await harness.pods.run_pod_sandbox(config, ""))
    assert look(Made(harness, sandbox))


@pytest.mark.parametrize("path", sorted(REFUSED))
async def test_what_can_not_be_is_refused_by_its_name(harness: NodeHarness, path: str) -> None:
    value, says = REFUSED[path]
    with pytest.raises((InvalidArgumentError, UnsupportedError), match=says):
        await harness.pods.run_pod_sandbox(request(path, value, ""), "")
    assert harness.leftovers() == {}


@pytest.mark.parametrize("which", ["overhead", "resources"])
async def test_a_pods_size_is_shown_and_limits_nothing(harness: NodeHarness, which: str) -> None:
    size = {
        "cpu_period": "100000",
        "cpu_quota": "50000",
        "cpu_shares": "512",
        "memory_limit_in_bytes": "1073741824",
        "cpuset_cpus": "0-1",
        "cpuset_mems": "0",
        "oom_score_adj": "100",
    }
    config = request(f"linux.{which}", size, "")
    made = Made(harness, harness.pods.find(await harness.pods.run_pod_sandbox(config, "")))
    shown = json.loads(
        msgspec.json.encode((await harness.pods.verbose_info(made.sandbox))["config"])
    )
    assert {k: str(v) for k, v in shown["linux"][which].items()} == size
    assert "cpu" not in made.spec["linux"]["resources"]
