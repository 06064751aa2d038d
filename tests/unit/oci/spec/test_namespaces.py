from dataclasses import replace

import pytest

from cri_shim._pb.cri.v1 import api_pb2
from cri_shim._pb.cri.v1.api_pb2 import IDMapping, NamespaceOption, UserNamespace
from cri_shim.errors import InvalidArgumentError, UnsupportedError
from cri_shim.oci.spec.inputs import HandlerFacts, HandlerKind
from cri_shim.oci.spec.namespaces import (
    build_container_namespaces,
    build_sandbox_namespaces,
    check_namespace_options,
)
from tests.unit.oci.spec.cases import (
    GOLDEN_PLACE,
    RUNC,
    V2_NODE,
    container_facts,
    sandbox_facts,
)

NODE_MODE, TARGET, CONTAINER = api_pb2.NODE, api_pb2.TARGET, api_pb2.CONTAINER
KATA = HandlerFacts("kata", HandlerKind.VM)
SANDBOX = sandbox_facts(GOLDEN_PLACE)


def of_container(options: NamespaceOption, **changes: bool) -> dict[str, str | None]:
    namespaces = build_container_namespaces(
        options,
        sandbox=SANDBOX,
        container=container_facts(GOLDEN_PLACE, target_pid=99),
        node=V2_NODE,
        privileged=changes.get("privileged", False),
    )
    return {namespace["type"]: namespace.get("path") for namespace in namespaces}


def of_sandbox(options: NamespaceOption, *, host_network: bool = False) -> set[str]:
    sandbox = replace(SANDBOX, netns_path=None) if host_network else SANDBOX
    return {
        namespace["type"]
        for namespace in build_sandbox_namespaces(options, sandbox=sandbox, node=V2_NODE)
    }


def test_container_joins_its_pod_by_default() -> None:
    assert of_container(NamespaceOption()) == {
        "mount": None,
        "pid": "/proc/4711/ns/pid",
        "ipc": "/proc/4711/ns/ipc",
        "uts": "/proc/4711/ns/uts",
        "network": "/run/netns/cri-5a5a5a5a",
        "cgroup": None,
    }


def test_container_may_have_its_own_or_anothers_pids() -> None:
    assert of_container(NamespaceOption(pid=CONTAINER))["pid"] is None
    assert of_container(NamespaceOption(pid=TARGET))["pid"] == "/proc/99/ns/pid"


def test_node_means_no_namespace() -> None:
    options = NamespaceOption(pid=NODE_MODE, ipc=NODE_MODE, network=NODE_MODE)
    assert set(of_container(options)) == {"mount", "cgroup"}
    assert of_sandbox(options, host_network=True) == {"mount", "cgroup"}


def test_privileged_container_sees_the_nodes_cgroups() -> None:
    assert "cgroup" not in of_container(NamespaceOption(), privileged=True)


def test_sandbox_makes_what_it_does_not_share() -> None:
    assert of_sandbox(NamespaceOption()) == {"mount", "pid", "ipc", "uts", "network", "cgroup"}


def test_cgroup_namespace_is_the_nodes_choice() -> None:
    namespaces = build_sandbox_namespaces(
        NamespaceOption(), sandbox=SANDBOX, node=GOLDEN_PLACE.node
    )
    assert {"type": "cgroup"} not in namespaces


def test_target_that_does_not_run_is_refused() -> None:
    with pytest.raises(InvalidArgumentError, match="target_id: 'ab'"):
        build_container_namespaces(
            NamespaceOption(pid=TARGET, target_id="ab"),
            sandbox=SANDBOX,
            container=container_facts(GOLDEN_PLACE),
            node=V2_NODE,
            privileged=False,
        )


def test_container_of_a_sandbox_without_a_pause_process_is_refused() -> None:
    with pytest.raises(InvalidArgumentError, match="pause container"):
        build_container_namespaces(
            NamespaceOption(),
            sandbox=replace(SANDBOX, pause_pid=None),
            container=container_facts(GOLDEN_PLACE),
            node=V2_NODE,
            privileged=False,
        )


@pytest.mark.parametrize("is_sandbox", [True, False])
@pytest.mark.parametrize(
    ("options", "field"),
    [
        (NamespaceOption(network=CONTAINER), "network"),
        (NamespaceOption(network=TARGET), "network"),
        (NamespaceOption(ipc=CONTAINER), "ipc"),
        (NamespaceOption.FromString(bytes.fromhex("1009")), "pid: '9'"),
    ],
)
def test_mode_that_cri_does_not_define_is_refused(
    options: NamespaceOption, field: str, is_sandbox: bool
) -> None:
    with pytest.raises(InvalidArgumentError, match=f"namespace_options.{field}"):
        check_namespace_options(options, RUNC, is_sandbox=is_sandbox)


def test_sandbox_has_no_target() -> None:
    with pytest.raises(InvalidArgumentError, match="TARGET"):
        check_namespace_options(NamespaceOption(pid=TARGET), RUNC, is_sandbox=True)
    check_namespace_options(NamespaceOption(pid=TARGET), RUNC, is_sandbox=False)


@pytest.mark.parametrize("field", ["network", "pid", "ipc"])
def test_pod_with_its_own_kernel_can_not_share_the_nodes(field: str) -> None:
    options = NamespaceOption()
    setattr(options, field, NODE_MODE)
    with pytest.raises(InvalidArgumentError, match=f"{field}: NODE.*'kata'"):
        check_namespace_options(options, KATA, is_sandbox=True)
    check_namespace_options(NamespaceOption(), KATA, is_sandbox=True)


def test_user_namespace_is_refused_unless_it_is_the_nodes() -> None:
    def check(**fields: object) -> None:
        wanted = UserNamespace(**fields)  # type: ignore[arg-type]
        check_namespace_options(NamespaceOption(userns_options=wanted), RUNC, is_sandbox=True)

    check(mode=NODE_MODE)
    with pytest.raises(UnsupportedError):
        check(mode=api_pb2.POD)
    for mode in (CONTAINER, TARGET):
        with pytest.raises(InvalidArgumentError, match=r"userns_options\.mode"):
            check(mode=mode)
    with pytest.raises(InvalidArgumentError, match="mappings"):
        check(mode=NODE_MODE, uids=[IDMapping(length=1)])
