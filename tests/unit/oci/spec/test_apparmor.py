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
from tests.unit.oci.spec.cases import GOLDEN_PLACE

NODE = replace(GOLDEN_PLACE.node, apparmor_default_profile=DEFAULT_PROFILE)
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
    with pytest.raises(InvalidArgumentError, match="'other': no profile of this name is loaded"):
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
        "deny /sys/fs/[^c]** wklx,",
        "deny /proc/sys/{abi,",
        "signal (receive) peer={unconfined,",
    ):
        assert rule in text
