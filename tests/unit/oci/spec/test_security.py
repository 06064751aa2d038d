from dataclasses import replace
from typing import Any

import pytest

from cri_shim._pb.cri.v1.api_pb2 import (
    LinuxContainerSecurityContext,
    LinuxSandboxSecurityContext,
    SecurityProfile,
)
from cri_shim.errors import InvalidArgumentError, UnsupportedError
from cri_shim.oci.spec.profiles import Choice, ProfileReference
from cri_shim.oci.spec.seccomp import parse_profile
from cri_shim.oci.spec.security import (
    MASKED_PATHS,
    READONLY_PATHS,
    container_paths,
    container_seccomp,
    sandbox_seccomp,
    seccomp_reference,
)
from tests.unit.oci.spec.cases import GOLDEN_CGROUP

NODE = GOLDEN_CGROUP.node
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


def paths(
    wanted: LinuxContainerSecurityContext, node: Any = NODE, *, own_users: bool = False
) -> tuple[list[str], list[str]]:
    return container_paths(wanted, node, own_users=own_users)


@pytest.mark.parametrize(
    ("wanted", "reference"),
    [
        (context(), ProfileReference(Choice.UNSET)),
        (context(seccomp=profile(DEFAULT)), ProfileReference(Choice.RUNTIME_DEFAULT)),
        (context(seccomp=profile(UNCONFINED)), ProfileReference(Choice.UNCONFINED)),
        (context(seccomp=profile(LOCALHOST, "/p")), ProfileReference(Choice.LOCALHOST, "/p")),
        (
            context(seccomp=profile(LOCALHOST, "localhost//p")),
            ProfileReference(Choice.LOCALHOST, "/p"),
        ),
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


def test_ghsa_7ww5_4wqc_m92c_power_readings_are_masked_by_default() -> None:
    masked, readonly = paths(context())
    assert "/sys/devices/virtual/powercap" in masked
    assert masked == list(MASKED_PATHS)
    assert readonly == list(READONLY_PATHS)


def test_nodes_own_paths_are_masked_as_well() -> None:
    path = "/sys/devices/system/cpu/cpu0/thermal_throttle"
    masked, _ = paths(context(), node=replace(NODE, extra_masked_paths=(path,)))
    assert masked[-1] == path


def test_given_paths_replace_the_defaults_each_list_for_itself() -> None:
    masked, readonly = paths(context(masked_paths=["/bin/ls/"]))
    assert masked == ["/bin/ls"]
    assert readonly == list(READONLY_PATHS)
    with pytest.raises(InvalidArgumentError, match=r"readonly_paths\[0\]"):
        paths(context(readonly_paths=["tmp"]))


def test_privileged_container_has_no_masks() -> None:
    assert paths(context(privileged=True, masked_paths=["/x"])) == ([], [])


def test_unmasked_proc_is_for_pods_with_users_of_their_own() -> None:
    assert paths(context(), own_users=True) == ([], [])
    assert paths(context(masked_paths=["/proc/kcore"]), own_users=True)[0] == ["/proc/kcore"]
    assert paths(context(masked_paths=["/proc/kcore"]), own_users=True)[1] == list(READONLY_PATHS)
