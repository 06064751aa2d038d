from dataclasses import replace
from typing import Any

import pytest

from cri_shim._pb.cri.v1.api_pb2 import Capability, LinuxContainerSecurityContext
from cri_shim.config.model import HandlerKind
from cri_shim.config.values import CAPABILITIES
from cri_shim.errors import InvalidArgumentError, PermissionRefusedError
from cri_shim.oci.spec.capabilities import (
    build_capabilities,
    container_capabilities,
)
from cri_shim.oci.spec.inputs import HandlerFacts
from tests.unit.oci.spec.cases import DEFAULT_CAPABILITIES, GOLDEN_CGROUP, RUNC

NODE = GOLDEN_CGROUP.node
POOR_NODE = replace(NODE, capabilities=("CHOWN", "KILL", "NET_RAW"))


def held(
    node: Any = NODE, *, privileged: bool = False, handler: HandlerFacts = RUNC, **lists: Any
) -> set[str]:
    context = LinuxContainerSecurityContext(privileged=privileged, capabilities=Capability(**lists))
    bounding, ambient = container_capabilities(context, node, handler)
    assert set(ambient) <= set(bounding)
    return set(bounding)


def test_numbers_are_the_kernels() -> None:
    assert len(CAPABILITIES) == 41
    assert CAPABILITIES.index("SYS_ADMIN") == 21
    assert CAPABILITIES.index("CHECKPOINT_RESTORE") == 40


def test_default_set_when_nothing_is_asked() -> None:
    assert held() == set(DEFAULT_CAPABILITIES)


@pytest.mark.parametrize("spelling", ["NET_ADMIN", "net_admin", "CAP_NET_ADMIN", "cap_net_admin"])
def test_name_is_taken_in_any_case_and_with_or_without_prefix(spelling: str) -> None:
    assert held(add_capabilities=[spelling]) == {*DEFAULT_CAPABILITIES, "NET_ADMIN"}
    assert held(drop_capabilities=[spelling.replace("ADMIN", "RAW").replace("admin", "raw")]) == {
        *DEFAULT_CAPABILITIES
    } - {"NET_RAW"}


def test_dropping_all_and_adding_one_leaves_that_one() -> None:
    assert held(drop_capabilities=["ALL"], add_capabilities=["KILL"]) == {"KILL"}
    assert held(drop_capabilities=["all"]) == set()


def test_adding_all_and_dropping_one_leaves_the_rest() -> None:
    assert held(add_capabilities=["ALL"], drop_capabilities=["SYS_ADMIN"]) == {*CAPABILITIES} - {
        "SYS_ADMIN"
    }


def test_all_and_the_defaults_and_privileged_mean_what_the_node_has() -> None:
    assert held(POOR_NODE) == {"CHOWN", "KILL", "NET_RAW"}
    assert held(POOR_NODE, add_capabilities=["ALL"]) == {"CHOWN", "KILL", "NET_RAW"}
    assert held(POOR_NODE, privileged=True) == {"CHOWN", "KILL", "NET_RAW"}


def test_capability_the_server_lacks_is_refused_when_asked_for_by_name() -> None:
    with pytest.raises(PermissionRefusedError, match="SYS_TIME"):
        held(POOR_NODE, add_capabilities=["SYS_TIME"])
    assert "SYS_TIME" not in held(
        POOR_NODE, add_capabilities=["SYS_TIME"], drop_capabilities=["SYS_TIME"]
    )


@pytest.mark.parametrize(
    "field", ["add_capabilities", "drop_capabilities", "add_ambient_capabilities"]
)
def test_unknown_name_is_refused_with_its_field(field: str) -> None:
    with pytest.raises(InvalidArgumentError, match=f"{field}: 'CAP_FLY'"):
        held(**dict[str, Any]({field: ["CAP_FLY"]}))


def test_cve_2022_27652_inheritable_is_empty_unless_ambient_is_asked() -> None:
    assert set(build_capabilities(("KILL",))) == {"bounding", "effective", "permitted"}
    made = build_capabilities(("KILL", "CHOWN"), ("KILL",))
    assert made["inheritable"] == made["ambient"] == ["CAP_KILL"]
    assert made["bounding"] == ["CAP_KILL", "CAP_CHOWN"]


def test_ambient_capabilities_are_held_too_and_dropping_wins() -> None:
    context = LinuxContainerSecurityContext(
        capabilities=Capability(
            add_ambient_capabilities=["ALL"], drop_capabilities=["SYS_ADMIN", "ALL"]
        )
    )
    bounding, ambient = container_capabilities(context, NODE, RUNC)
    assert bounding == ambient
    assert set(ambient) == {*CAPABILITIES} - {"SYS_ADMIN"}


def test_privileged_overrules_the_lists() -> None:
    assert held(privileged=True, drop_capabilities=["ALL"]) == set(CAPABILITIES)


def test_capabilities_that_guests_do_not_know_are_not_there_in_a_kernel_of_ones_own() -> None:
    handler = HandlerFacts("runsc", HandlerKind.VM)
    newer = {"PERFMON", "BPF", "CHECKPOINT_RESTORE"}
    assert held(handler=handler, privileged=True) == held(privileged=True) - newer
    assert held(handler=handler, add_capabilities=["ALL"]) == held(add_capabilities=["ALL"]) - newer
    with pytest.raises(PermissionRefusedError, match="BPF"):
        held(handler=handler, add_capabilities=["BPF"])
