"""What is looked up of a node, on a tree that stands for /."""

from __future__ import annotations

import os
import platform
import stat
from typing import TYPE_CHECKING, Any, cast

import pytest

from cri_shim.config.model import SecuritySettings, Switch, Ulimit
from cri_shim.config.values import FileMode, SysctlName, SysctlValue, UlimitName
from cri_shim.errors import ConfigError, InvalidArgumentError
from cri_shim.host.tree import remove_tree
from cri_shim.sandbox.spec import node as node_module
from cri_shim.sandbox.spec.node import boot_id, device_nodes, host_devices, read_node_facts
from tests.fakes.kernel import FakeCgroups, Kernel
from tests.fakes.points import Points

if TYPE_CHECKING:
    from pathlib import Path

    from cri_shim.host.cgroups.tree import Cgroups
    from cri_shim.oci.spec.inputs import NodeFacts

ALL = "000001ffffffffff"
CHOWN_AND_KILL = f"{1 << 0 | 1 << 5:016x}"
SYS_RESOURCE = f"{1 << 24:016x}"


class Node:
    """A tree of the files that are looked at."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.cgroups: FakeCgroups = Kernel(Points()).cgroups
        self.settings = SecuritySettings()
        self.status(CapPrm=ALL, CapBnd=ALL, CapEff=ALL, Seccomp="0")
        self.file("proc/sys/kernel/cap_last_cap", "40\n")
        self.file("proc/self/oom_score_adj", "-900\n")
        self.file("proc/sys/kernel/random/boot_id", "3e5f-boot\n")

    def file(self, path: str, text: str = "") -> None:
        (self.root / path).parent.mkdir(parents=True, exist_ok=True)
        (self.root / path).write_text(text)

    def status(self, **fields: str) -> None:
        self.file("proc/self/status", "".join(f"{key}:\t{fields[key]}\n" for key in fields))

    def facts(self) -> NodeFacts:
        return read_node_facts(self.settings, cast("Cgroups", self.cgroups), self.root)


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path)


def test_the_boot_is_named_by_the_kernel(node: Node) -> None:
    assert boot_id(node.root) == "3e5f-boot"


def test_the_machine_and_its_kernel_are_told_apart(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    for release, version in (
        ("6.1.0-18-amd64", (6, 1)),
        ("5.10.211+", (5, 10)),
        ("strange", (0, 0)),
    ):
        monkeypatch.setattr(platform, "release", lambda release=release: release)
        assert node.facts().kernel == version
    assert node.facts().arch == "aarch64"


@pytest.mark.parametrize("mode", ["v1", "hybrid", "v2"])
def test_only_on_v2_are_there_cgroup_namespaces(node: Node, mode: str) -> None:
    node.cgroups.mode = mode
    facts = node.facts()
    assert (facts.cgroup_v2, facts.cgroup_namespace) == (mode == "v2", mode == "v2")


def test_capabilities_are_those_held_and_not_bounded_away(node: Node) -> None:
    node.status(CapPrm=ALL, CapBnd=CHOWN_AND_KILL, CapEff=ALL)
    assert node.facts().capabilities == ("CHOWN", "KILL")
    node.status(CapPrm=CHOWN_AND_KILL, CapBnd=ALL, CapEff=ALL)
    assert node.facts().capabilities == ("CHOWN", "KILL")


def test_what_the_kernel_does_not_know_is_not_handed_out(node: Node) -> None:
    assert len(node.facts().capabilities) == 41
    node.file("proc/sys/kernel/cap_last_cap", "37\n")
    assert "AUDIT_READ" in node.facts().capabilities
    assert "PERFMON" not in node.facts().capabilities


def test_the_configuration_is_taken_over(node: Node) -> None:
    node.settings = SecuritySettings(
        default_sysctls={SysctlName("net.ipv4.ip_forward"): SysctlValue("1")},
        umask=FileMode(0o027),
    )
    facts = node.facts()
    assert facts.default_sysctls == {"net.ipv4.ip_forward": "1"}
    assert facts.umask == 0o027
    assert "CHOWN" in facts.default_capabilities


def test_default_limits_are_taken_over(node: Node) -> None:
    node.settings = SecuritySettings(
        default_ulimits={UlimitName("nofile"): Ulimit(soft=1024, hard=4096)}
    )
    [(name, limit)] = node.facts().default_ulimits.items()
    assert (name, limit.soft, limit.hard) == ("nofile", 1024, 4096)


@pytest.mark.parametrize(
    ("switch", "effective", "lowest"),
    [
        (Switch.AUTO, ALL, None),
        (Switch.AUTO, SYS_RESOURCE, None),
        (Switch.AUTO, CHOWN_AND_KILL, -900),
        (Switch.ON, ALL, -900),
        (Switch.OFF, CHOWN_AND_KILL, None),
    ],
)
def test_who_may_not_lower_the_oom_score_stays_at_its_own(
    node: Node, switch: Switch, effective: str, lowest: int | None
) -> None:
    node.settings = SecuritySettings(restrict_oom_score_adj=switch)
    node.status(CapPrm=ALL, CapBnd=ALL, CapEff=effective)
    assert node.facts().min_oom_score_adj == lowest


def test_seccomp_is_there_if_the_kernel_mentions_it(node: Node) -> None:
    assert node.facts().seccomp_available
    node.status(CapPrm=ALL, CapBnd=ALL, CapEff=ALL)
    assert not node.facts().seccomp_available


def test_the_operators_own_default_profile_is_read(node: Node) -> None:
    assert node.facts().default_seccomp is None
    node.file("profile.json", '{"defaultAction": "SCMP_ACT_ALLOW"}')
    node.settings = SecuritySettings(seccomp_default_profile=node.root / "profile.json")
    assert node.facts().default_seccomp is not None
    node.settings = SecuritySettings(seccomp_default_profile=node.root / "missing.json")
    with pytest.raises(ConfigError, match=r"security\.seccomp_default_profile: .*missing"):
        node.facts()


@pytest.mark.parametrize(
    ("mode", "file"),
    [
        ("v1", "sys/fs/cgroup/memory/memory.memsw.limit_in_bytes"),
        ("v2", "sys/fs/cgroup/system.slice/memory.swap.max"),
    ],
)
def test_swap_is_accounted_where_the_kernel_has_the_file(node: Node, mode: str, file: str) -> None:
    node.cgroups.mode = mode
    assert not node.facts().swap_accounting
    node.file(file)
    assert node.facts().swap_accounting


def test_huge_pages_are_limited_where_the_controller_is(node: Node) -> None:
    for size in (64, 2048, 32768, 1048576, 16777216):
        (node.root / f"sys/kernel/mm/hugepages/hugepages-{size}kB").mkdir(parents=True)
    assert node.facts().hugepage_sizes == frozenset()
    node.cgroups.controllers |= {"hugetlb"}
    assert node.facts().hugepage_sizes == {"64KB", "2MB", "32MB", "1GB", "16GB"}


def test_each_cpus_thermal_counters_are_masked(node: Node) -> None:
    for name in ("cpu1", "cpu0", "cpu10", "cpufreq"):
        (node.root / f"sys/devices/system/cpu/{name}/thermal_throttle").mkdir(parents=True)
    (node.root / "sys/devices/system/cpu/cpu2").mkdir()
    assert node.facts().extra_masked_paths == (
        "/sys/devices/system/cpu/cpu0/thermal_throttle",
        "/sys/devices/system/cpu/cpu1/thermal_throttle",
        "/sys/devices/system/cpu/cpu10/thermal_throttle",
    )


# --- devices, of the machine this runs on --------------------------------------------------------------------------


def test_a_device_is_described_by_what_it_is() -> None:
    [null] = device_nodes("/dev/null")
    assert (null.path, null.type, null.major, null.minor) == ("/dev/null", "c", 1, 3)
    assert null.file_mode == stat.S_IMODE(os.stat("/dev/null").st_mode)


def test_a_link_is_followed_and_shown_under_its_own_name(tmp_path: Path) -> None:
    (tmp_path / "mine").symlink_to("/dev/zero")
    [zero] = device_nodes(str(tmp_path / "mine"))
    assert (zero.path, zero.minor) == (str(tmp_path / "mine"), 5)


def test_what_is_no_device_is_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert device_nodes(str(tmp_path / "file")) == ()
    assert device_nodes(str(tmp_path / "missing")) == ()
    assert device_nodes(str(tmp_path)) == ()


def test_a_directory_of_devices_is_looked_at_without_following_its_links(tmp_path: Path) -> None:
    directory = tmp_path / "cards"
    (directory / "by-path").mkdir(parents=True)
    (directory / "link").symlink_to("/dev/null")
    os.mknod(directory / "by-path" / "null", 0o600 | stat.S_IFCHR, os.makedev(1, 3))
    (tmp_path / "moved").symlink_to(directory)
    for path in (str(directory), f"{directory}/", str(tmp_path / "moved")):
        [found] = device_nodes(path)
        assert (found.path, found.minor) == (f"{path.rstrip('/')}/by-path/null", 3)


def test_a_directory_of_much_else_is_refused_by_its_field(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(node_module, "MAX_DEVICE_ENTRIES", 3)
    for name in "abc":
        (tmp_path / name).touch()
    assert device_nodes(str(tmp_path)) == ()
    (tmp_path / "d").touch()
    with pytest.raises(InvalidArgumentError, match=r"devices\.host_path: .*more than 3 files"):
        device_nodes(str(tmp_path))


def test_directory_that_can_not_be_read_has_no_devices(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As some of /proc, even for root."""
    (tmp_path / "closed").mkdir()
    os.mknod(tmp_path / "null", 0o600 | stat.S_IFCHR, os.makedev(1, 3))
    before = os.scandir

    def refuse(fd: int) -> Any:
        if os.readlink(f"/proc/self/fd/{fd}").endswith("/closed"):
            raise PermissionError
        return before(fd)

    monkeypatch.setattr("os.scandir", refuse)
    assert [found.path for found in device_nodes(str(tmp_path))] == [f"{tmp_path}/null"]


def test_directories_may_be_deeper_than_python_recurses(tmp_path: Path) -> None:
    fd = os.open(tmp_path, os.O_RDONLY)
    for _ in range(1500):
        os.mkdir("d", dir_fd=fd)
        below = os.open("d", os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = below
    os.close(fd)
    try:
        assert device_nodes(str(tmp_path)) == ()
    finally:
        remove_tree(tmp_path / "d")


def test_a_privileged_container_sees_the_hosts_devices_but_not_its_terminals() -> None:
    paths = {device.path for device in host_devices()}
    assert {"/dev/null", "/dev/zero", "/dev/urandom"} <= paths
    assert not any(path.startswith(("/dev/pts/", "/dev/shm/", "/dev/mqueue/")) for path in paths)
    assert "/dev/console" not in paths
