from dataclasses import replace
from typing import Any

import pytest

from cri_shim._pb.cri.v1.api_pb2 import (
    LinuxContainerSecurityContext,
    LinuxSandboxSecurityContext,
    SecurityProfile,
    SELinuxOption,
)
from cri_shim.errors import InvalidArgumentError, UnsupportedError
from cri_shim.oci.spec.seccomp import parse_profile
from cri_shim.oci.spec.security import (
    MASKED_PATHS,
    READONLY_PATHS,
    Choice,
    ProfileReference,
    apparmor_reference,
    check_selinux,
    container_apparmor,
    container_paths,
    container_seccomp,
    sandbox_apparmor,
    sandbox_seccomp,
    seccomp_reference,
)
from tests.unit.oci.spec.cases import GOLDEN_PLACE

NODE = GOLDEN_PLACE.node
WITH_APPARMOR = replace(NODE, apparmor_default_profile="cri-shim-default")
DEFAULT, UNCONFINED, LOCALHOST = (
    SecurityProfile.RuntimeDefault,
    SecurityProfile.Unconfined,
    SecurityProfile.Localhost,
)
LOG_ALL = parse_profile(b'{"defaultAction": "SCMP_ACT_LOG"}', name="log-all")


def context(**fields: Any) -> LinuxContainerSecurityContext:
    return LinuxContainerSecurityContext(**fields)


def profile(kind: Any, name: str = "") -> SecurityProfile:
    return SecurityProfile(profile_type=kind, localhost_ref=name)


def seccomp(wanted: LinuxContainerSecurityContext, node: Any = NODE, **given: Any) -> Any:
    return container_seccomp(wanted, node, capabilities=(), localhost=given.get("localhost"))


@pytest.mark.parametrize(
    ("wanted", "reference"),
    [
        (context(), ProfileReference(Choice.UNSET)),
        (context(seccomp=profile(DEFAULT)), ProfileReference(Choice.RUNTIME_DEFAULT)),
        (context(seccomp=profile(UNCONFINED)), ProfileReference(Choice.UNCONFINED)),
        (context(seccomp=profile(LOCALHOST, "/p")), ProfileReference(Choice.LOCALHOST, "/p")),
        (context(seccomp_profile_path="unconfined"), ProfileReference(Choice.UNCONFINED)),
        (context(seccomp_profile_path="runtime/default"), ProfileReference(Choice.RUNTIME_DEFAULT)),
        (context(seccomp_profile_path="docker/default"), ProfileReference(Choice.RUNTIME_DEFAULT)),
        (
            context(seccomp_profile_path="localhost//etc/p.json"),
            ProfileReference(Choice.LOCALHOST, "/etc/p.json"),
        ),
        (
            context(seccomp=profile(DEFAULT), seccomp_profile_path="unconfined"),
            ProfileReference(Choice.RUNTIME_DEFAULT),
        ),
    ],
)
def test_seccomp_profile_is_read_from_either_field_and_the_new_one_counts(
    wanted: LinuxContainerSecurityContext, reference: ProfileReference
) -> None:
    assert seccomp_reference(wanted) == reference


@pytest.mark.parametrize(
    "wanted",
    [
        context(seccomp=profile(LOCALHOST, "relative.json")),
        context(seccomp=profile(LOCALHOST)),
        context(seccomp=profile(DEFAULT, "/p")),
        context(seccomp=SecurityProfile.FromString(b"\x08\x09")),
        context(seccomp_profile_path="default"),
        context(seccomp_profile_path="localhost/relative.json"),
    ],
)
def test_malformed_seccomp_profile_is_refused(wanted: LinuxContainerSecurityContext) -> None:
    with pytest.raises(InvalidArgumentError, match="seccomp"):
        seccomp_reference(wanted)


def test_no_seccomp_profile_means_unconfined_as_cri_says() -> None:
    assert seccomp(context()) is None
    assert seccomp(context(seccomp=profile(UNCONFINED))) is None


def test_privileged_container_has_no_filter_even_if_it_asks() -> None:
    assert seccomp(context(privileged=True, seccomp=profile(LOCALHOST, "/p"))) is None


def test_runtime_default_is_the_operators_own_where_there_is_one() -> None:
    built_in = seccomp(context(seccomp=profile(DEFAULT)))
    assert built_in["defaultAction"] == "SCMP_ACT_ERRNO"
    own = seccomp(context(seccomp=profile(DEFAULT)), replace(NODE, default_seccomp=LOG_ALL))
    assert own == {"defaultAction": "SCMP_ACT_LOG", "syscalls": []}


def test_localhost_profile_is_the_one_the_caller_read() -> None:
    wanted = context(seccomp=profile(LOCALHOST, "/p"))
    assert seccomp(wanted, localhost=LOG_ALL)["defaultAction"] == "SCMP_ACT_LOG"
    with pytest.raises(InvalidArgumentError, match="no such profile"):
        seccomp(wanted)


def test_filter_is_never_silently_left_out_where_the_kernel_has_none() -> None:
    with pytest.raises(UnsupportedError, match="seccomp"):
        seccomp(context(seccomp=profile(DEFAULT)), replace(NODE, seccomp_available=False))


def test_pause_is_filtered_unless_unconfined_is_asked() -> None:
    def of(**fields: Any) -> Any:
        node = fields.pop("node", NODE)
        wanted = LinuxSandboxSecurityContext(**fields)
        return sandbox_seccomp(wanted, node, localhost=LOG_ALL)

    assert of()["defaultAction"] == "SCMP_ACT_ERRNO"
    assert of(seccomp=profile(DEFAULT)) == of()
    assert of(seccomp=profile(LOCALHOST, "/p"))["defaultAction"] == "SCMP_ACT_LOG"
    assert of(seccomp=profile(UNCONFINED)) is None
    assert of(node=replace(NODE, seccomp_available=False)) is None


@pytest.mark.parametrize(
    ("wanted", "name"),
    [
        (context(), "cri-shim-default"),
        (context(apparmor=profile(DEFAULT)), "cri-shim-default"),
        (context(apparmor=profile(UNCONFINED)), None),
        (context(apparmor=profile(LOCALHOST, "mine")), "mine"),
        (context(apparmor=profile(LOCALHOST, "localhost/mine")), "mine"),
        (context(apparmor_profile="runtime/default"), "cri-shim-default"),
        (context(apparmor_profile="localhost/mine"), "mine"),
        (context(apparmor_profile="unconfined"), None),
        (context(privileged=True), None),
        (context(privileged=True, apparmor=profile(LOCALHOST, "mine")), "mine"),
    ],
)
def test_apparmor_profile_is_chosen(
    wanted: LinuxContainerSecurityContext, name: str | None
) -> None:
    assert container_apparmor(wanted, WITH_APPARMOR) == name


def test_without_apparmor_a_default_is_passed_over_but_a_named_profile_is_refused() -> None:
    assert container_apparmor(context(), NODE) is None
    assert container_apparmor(context(apparmor=profile(DEFAULT)), NODE) is None
    with pytest.raises(InvalidArgumentError, match="no AppArmor"):
        container_apparmor(context(apparmor=profile(LOCALHOST, "mine")), NODE)


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
def test_malformed_apparmor_profile_is_refused(wanted: LinuxContainerSecurityContext) -> None:
    with pytest.raises(InvalidArgumentError, match="apparmor"):
        apparmor_reference(wanted)


def test_pause_is_confined_only_by_a_profile_asked_for_by_name() -> None:
    named = LinuxSandboxSecurityContext(apparmor=profile(LOCALHOST, "mine"))
    assert sandbox_apparmor(named, WITH_APPARMOR) == "mine"
    assert sandbox_apparmor(LinuxSandboxSecurityContext(), WITH_APPARMOR) is None
    with pytest.raises(InvalidArgumentError, match="no AppArmor"):
        sandbox_apparmor(named, NODE)


def test_ghsa_7ww5_4wqc_m92c_power_readings_are_masked_by_default() -> None:
    masked, readonly = container_paths(context(), NODE)
    assert "/sys/devices/virtual/powercap" in masked
    assert masked == list(MASKED_PATHS)
    assert readonly == list(READONLY_PATHS)


def test_nodes_own_paths_are_masked_as_well() -> None:
    path = "/sys/devices/system/cpu/cpu0/thermal_throttle"
    masked, _ = container_paths(context(), replace(NODE, extra_masked_paths=(path,)))
    assert masked[-1] == path


def test_given_paths_replace_the_defaults_each_list_for_itself() -> None:
    masked, readonly = container_paths(context(masked_paths=["/bin/ls/"]), NODE)
    assert masked == ["/bin/ls"]
    assert readonly == list(READONLY_PATHS)
    with pytest.raises(InvalidArgumentError, match=r"readonly_paths\[0\]"):
        container_paths(context(readonly_paths=["tmp"]), NODE)


def test_privileged_container_has_no_masks() -> None:
    assert container_paths(context(privileged=True, masked_paths=["/x"]), NODE) == ([], [])


def test_selinux_labels_are_refused_only_where_they_would_count() -> None:
    check_selinux(SELinuxOption(level="s0:c1,c2"), NODE)
    enforcing = replace(NODE, selinux_enabled=True)
    check_selinux(SELinuxOption(), enforcing)
    with pytest.raises(UnsupportedError, match="selinux"):
        check_selinux(SELinuxOption(level="s0:c1,c2"), enforcing)
