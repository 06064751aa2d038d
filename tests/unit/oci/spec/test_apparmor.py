import re
from dataclasses import replace
from typing import Any

import pytest

from cri_shim._pb.cri.v1.api_pb2 import (
    LinuxContainerSecurityContext,
    LinuxSandboxSecurityContext,
    SecurityProfile,
)
from cri_shim.errors import InvalidArgumentError, UnavailableError
from cri_shim.oci.spec.apparmor import (
    DEFAULT_PROFILE,
    apparmor_reference,
    container_apparmor,
    default_profile_text,
    sandbox_apparmor,
)
from tests.unit.oci.spec.cases import GOLDEN_CGROUP

NODE = replace(GOLDEN_CGROUP.node, apparmor_default_profile=DEFAULT_PROFILE)
WITH_APPARMOR = replace(NODE, apparmor_profiles=frozenset({DEFAULT_PROFILE, "mine"}))
WITHOUT_DEFAULT = replace(NODE, apparmor_profiles=frozenset({"mine"}))
DEFAULT, UNCONFINED, LOCALHOST = (
    SecurityProfile.RuntimeDefault,
    SecurityProfile.Unconfined,
    SecurityProfile.Localhost,
)


def context(**fields: Any) -> LinuxContainerSecurityContext:
    return LinuxContainerSecurityContext(**fields)


def profile(kind: Any, name: str = "") -> SecurityProfile:
    return SecurityProfile(profile_type=kind, localhost_ref=name)


@pytest.mark.parametrize(
    ("wanted", "name"),
    [
        (context(), DEFAULT_PROFILE),
        (context(apparmor=profile(DEFAULT)), DEFAULT_PROFILE),
        (context(apparmor=profile(UNCONFINED)), None),
        (context(apparmor=profile(LOCALHOST, "mine")), "mine"),
        (context(apparmor=profile(LOCALHOST, "localhost/mine")), "mine"),
        (context(apparmor_profile="runtime/default"), DEFAULT_PROFILE),
        (context(apparmor_profile="localhost/mine"), "mine"),
        (context(apparmor_profile="unconfined"), None),
        (context(privileged=True), None),
        (context(privileged=True, apparmor=profile(DEFAULT)), None),
        (context(privileged=True, apparmor=profile(LOCALHOST, "mine")), "mine"),
        (
            context(apparmor=profile(LOCALHOST, "mine"), apparmor_profile="localhost/other"),
            "mine",
        ),
        (context(apparmor=profile(DEFAULT), apparmor_profile="unconfined"), DEFAULT_PROFILE),
    ],
)
def test_profile_is_chosen(wanted: LinuxContainerSecurityContext, name: str | None) -> None:
    assert container_apparmor(wanted, WITH_APPARMOR) == name


def test_operator_may_want_no_default() -> None:
    node = replace(WITH_APPARMOR, apparmor_default_profile="unconfined")
    assert container_apparmor(context(), node) is None
    assert container_apparmor(context(apparmor=profile(DEFAULT)), node) is None
    assert container_apparmor(context(apparmor=profile(LOCALHOST, "mine")), node) == "mine"


def test_without_apparmor_a_default_is_passed_over_but_a_named_profile_is_refused() -> None:
    assert container_apparmor(context(), NODE) is None
    assert container_apparmor(context(apparmor=profile(DEFAULT)), NODE) is None
    with pytest.raises(InvalidArgumentError, match="no AppArmor"):
        container_apparmor(context(apparmor=profile(LOCALHOST, "mine")), NODE)


def test_profile_that_is_not_loaded_is_refused_by_its_name() -> None:
    with pytest.raises(InvalidArgumentError, match="'other': no profile with this name is loaded"):
        container_apparmor(context(apparmor=profile(LOCALHOST, "other")), WITH_APPARMOR)


def test_default_that_could_not_be_loaded_is_missed_only_by_who_asks_for_it() -> None:
    assert container_apparmor(context(), WITHOUT_DEFAULT) is None
    with pytest.raises(UnavailableError, match="RuntimeDefault"):
        container_apparmor(context(apparmor=profile(DEFAULT)), WITHOUT_DEFAULT)


@pytest.mark.parametrize(
    "wanted",
    [
        context(apparmor=profile(LOCALHOST)),
        context(apparmor=profile(LOCALHOST, "a\nb")),
        context(apparmor=profile(DEFAULT, "x")),
        context(apparmor_profile="mine"),
        context(apparmor_profile="localhost/"),
    ],
)
def test_malformed_profile_is_refused(wanted: LinuxContainerSecurityContext) -> None:
    with pytest.raises(InvalidArgumentError, match="apparmor"):
        apparmor_reference(wanted)


def test_pause_is_confined_like_a_container() -> None:
    named = LinuxSandboxSecurityContext(apparmor=profile(LOCALHOST, "mine"))
    assert sandbox_apparmor(named, WITH_APPARMOR) == "mine"
    assert sandbox_apparmor(LinuxSandboxSecurityContext(), WITH_APPARMOR) == DEFAULT_PROFILE
    assert sandbox_apparmor(LinuxSandboxSecurityContext(privileged=True), WITH_APPARMOR) is None
    assert sandbox_apparmor(LinuxSandboxSecurityContext(), NODE) is None
    with pytest.raises(InvalidArgumentError, match="no AppArmor"):
        sandbox_apparmor(named, NODE)


def test_own_profile_denies_mounts_and_the_nodes_settings() -> None:
    text = default_profile_text()
    assert text.count("{") == text.count("}")
    for rule in (
        f"profile {DEFAULT_PROFILE} flags=",
        "deny mount,",
        "deny /proc/* wkl,",
        "signal (receive) peer={unconfined,",
    ):
        assert rule in text


def denied(path: str, access: str) -> bool:
    """Whether a rule of our profile denies this access to a path, in AppArmor's globs."""
    rules = re.findall(r"^  deny (/\S+) ([rwklx]+),$", default_profile_text(), re.MULTILINE)
    assert len(rules) > 8
    return any(access in kinds and regular(glob).fullmatch(path) for glob, kinds in rules)


def regular(glob: str) -> re.Pattern[str]:
    found = re.sub(r"\*\*|\*|\{|\}|,|\[\^?[^]]*\]|\.", _element, glob)
    return re.compile(found)


def _element(match: re.Match[str]) -> str:
    known = {"**": ".*", "*": "[^/]*", "{": "(?:", "}": ")", ",": "|", ".": r"\."}
    return known.get(match[0], match[0])


@pytest.mark.parametrize(
    "path",
    [
        *("/proc/sysrq-trigger", "/proc/mtrr", "/proc/slabinfo", "/proc/swaps", "/proc/kcore"),
        *("/proc/acpi/wakeup", "/proc/irq/1/smp_affinity", "/proc/dynamic_debug/control"),
        *("/proc/scsi/scsi", "/proc/sysvipc/shm", "/proc/pressure/cpu", "/proc/fs/xfs/stat"),
        *("/proc/sys/kernel/core_pattern", "/proc/sys/vm/drop_caches", "/proc/sys/user/max_x"),
        *("/proc/sys/fs/binfmt_misc/register", "/proc/sys/xen/x", "/proc/sys/abi/vsyscall32"),
        *("/sys/kernel/uevent_helper", "/sys/module/x/parameters/y", "/sys/fs/bpf/map"),
        *("/sys/firmware/efi/efivars/x", "/sys/fs/selinux/enforce", "/sys/class/net/eth0/mtu"),
        "/sys/fs/ext4/sda1/trigger_fs_error",
    ],
)
def test_own_profile_lets_nobody_write_what_is_the_nodes(path: str) -> None:
    assert denied(path, "w")


@pytest.mark.parametrize(
    "path",
    [
        *("/proc/1/oom_score_adj", "/proc/42/task/43/comm", "/proc/9/net/xt_recent/x"),
        *("/proc/sys/net/ipv4/ip_forward", "/proc/sys/net/core/somaxconn"),
        *("/sys/fs/cgroup/cgroup.procs", "/sys/fs/cgroup/memory/pod/tasks", "/etc/proc", "/data/x"),
    ],
)
def test_own_profile_leaves_what_is_a_containers_own(path: str) -> None:
    assert not denied(path, "w")


@pytest.mark.parametrize("path", ["/proc/meminfo", "/proc/cpuinfo", "/sys/class/net/eth0/mtu"])
def test_own_profile_lets_everyone_read_what_says_no_more_than_what_the_node_is(path: str) -> None:
    assert not denied(path, "r")
