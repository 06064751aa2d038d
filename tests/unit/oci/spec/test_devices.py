from dataclasses import replace
from typing import Any

import pytest

from cri_shim._pb.cri.v1.api_pb2 import Device, LinuxContainerSecurityContext
from cri_shim.errors import InvalidArgumentError
from cri_shim.oci.spec.devices import build_devices, host_device_paths
from cri_shim.oci.spec.inputs import DeviceNode, ResolvedUser
from tests.unit.oci.spec.cases import (
    FUSE,
    GOLDEN_CGROUP,
    RUNC,
    container_config,
    container_facts,
)

TUN = DeviceNode("/dev/net/tun", "c", 10, 200, file_mode=0o600, uid=1, gid=2)
DENY = {"allow": False, "access": "rwm"}
ALLOW = {"allow": True, "access": "rwm"}
NODE = replace(GOLDEN_CGROUP.node, host_devices=(FUSE, TUN))


def build(
    *devices: Device,
    found: dict[str, tuple[DeviceNode, ...]] | None = None,
    privileged: bool = False,
    without_host_devices: bool = False,
    owned_by_user: bool = False,
) -> tuple[list[Any], list[Any]]:
    return build_devices(
        container_config(
            devices=devices, context=LinuxContainerSecurityContext(privileged=privileged)
        ),
        container=container_facts(GOLDEN_CGROUP, host_devices=found or {}),
        handler=replace(
            RUNC,
            privileged_without_host_devices=without_host_devices,
            device_ownership_from_security_context=owned_by_user,
        ),
        node=NODE,
        user=ResolvedUser(uid=1000, gid=0),
    )


def test_everything_is_denied_by_default() -> None:
    assert build() == ([], [DENY])


def test_requested_device_is_made_and_allowed() -> None:
    device = Device(host_path="/dev/net/tun", container_path="/dev/vpn", permissions="mr")
    nodes, rules = build(device, found={"/dev/net/tun": (TUN,)})
    assert nodes == [
        {
            "path": "/dev/vpn",
            "type": "c",
            "major": 10,
            "minor": 200,
            "fileMode": 0o600,
            "uid": 1,
            "gid": 2,
        }
    ]
    assert rules == [
        DENY,
        {"allow": True, "type": "c", "major": 10, "minor": 200, "access": "rm"},
    ]


def test_device_that_every_container_has_stays_usable() -> None:
    """runc could not start a container whose own /dev/null it may only read."""
    null, disk = DeviceNode("/dev/null", "c", 1, 3), DeviceNode("/dev/ram3", "b", 1, 3)
    for node, access in ((null, "rwm"), (disk, "r")):
        device = Device(host_path=node.path, permissions="r")
        _, rules = build(device, found={node.path: (node,)})
        assert rules[1]["access"] == access


@pytest.mark.parametrize(
    "path",
    [
        *("/dev/shm", "/dev/shm/x", "/dev/pts/0", "/dev/mqueue/x", "/proc/kcore", "/sys/x", "/sys"),
        *("/dev/null/x", "/dev/tty/a/b", "/dev/x/../pts", "/dev/" + "n" * 256),
    ],
)
def test_place_where_no_device_can_be_made_is_refused(path: str) -> None:
    device = Device(host_path="/dev/net/tun", container_path=path)
    with pytest.raises(InvalidArgumentError, match=r"devices\[0\]\.container_path"):
        build(device, found={"/dev/net/tun": (TUN,)})


def test_directory_of_devices_is_made_below_the_given_path() -> None:
    device = Device(host_path="/dev/net/", container_path="/dev/mine")
    nodes, _ = build(device, found={"/dev/net/": (TUN,)})
    assert [node["path"] for node in nodes] == ["/dev/mine/tun"]


def test_device_keeps_its_path_when_none_is_given_and_a_link_does_not_matter() -> None:
    nodes, rules = build(Device(host_path="/dev/by-id/x"), found={"/dev/by-id/x": (TUN,)})
    assert nodes[0]["path"] == "/dev/by-id/x"
    assert rules[1]["access"] == "rwm"


@pytest.mark.parametrize("permissions", ["x", "rwx", "r w", "R"])
def test_permissions_are_r_w_and_m(permissions: str) -> None:
    device = Device(host_path="/dev/fuse", permissions=permissions)
    with pytest.raises(InvalidArgumentError, match=r"devices\[0\].permissions"):
        build(device, found={"/dev/fuse": (FUSE,)})


def test_missing_device_is_refused() -> None:
    with pytest.raises(InvalidArgumentError, match=r"devices\[0\].host_path: '/dev/no'"):
        build(Device(host_path="/dev/no"))


@pytest.mark.parametrize("path", ["/", "/dev", "/dev/../dev/"])
def test_device_does_not_take_the_place_of_a_directory_that_all_have(path: str) -> None:
    device = Device(host_path="/dev/fuse", container_path=path)
    with pytest.raises(InvalidArgumentError, match=r"devices\[0\].container_path"):
        build(device, found={"/dev/fuse": (FUSE,)})


def test_requested_device_belongs_to_the_containers_user_where_that_is_configured() -> None:
    device = Device(host_path="/dev/net/tun", permissions="rw")
    nodes, _ = build(device, found={"/dev/net/tun": (TUN,)}, owned_by_user=True)
    assert (nodes[0]["uid"], nodes[0]["gid"]) == (1000, 2), "root is nobody to give a device to"
    nodes, _ = build(device, found={"/dev/net/tun": (TUN,)})
    assert (nodes[0]["uid"], nodes[0]["gid"]) == (1, 2)


def test_privileged_container_has_the_nodes_devices_unless_the_handler_withholds_them() -> None:
    nodes, rules = build(privileged=True)
    assert [node["path"] for node in nodes] == ["/dev/fuse", "/dev/net/tun"]
    assert rules == [ALLOW]
    assert build(privileged=True, without_host_devices=True) == ([], [DENY])


def test_host_paths_to_look_up_are_absolute() -> None:
    config = container_config(devices=[Device(host_path="/dev/a"), Device(host_path="/dev/b")])
    assert host_device_paths(config) == ["/dev/a", "/dev/b"]
    with pytest.raises(InvalidArgumentError, match=r"devices\[0\]"):
        host_device_paths(container_config(devices=[Device(host_path="a")]))
