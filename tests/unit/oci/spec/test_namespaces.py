from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from cri_shim._pb.cri.v1 import api_pb2
from cri_shim._pb.cri.v1.api_pb2 import IDMapping, NamespaceOption, UserNamespace
from cri_shim.config.model import HandlerKind
from cri_shim.errors import InvalidArgumentError
from cri_shim.oci.spec.inputs import (
    HandlerFacts,
    IdRange,
    ResolvedUser,
    SandboxFacts,
    UserMappings,
)
from cri_shim.oci.spec.namespaces import (
    build_container_namespaces,
    build_sandbox_namespaces,
    check_mapped,
    check_namespace_options,
    user_mappings,
)
from tests.unit.oci.spec.cases import (
    GOLDEN_CGROUP,
    MAPPING_RUNC,
    RUNC,
    V2_NODE,
    container_facts,
    sandbox_facts,
)

NODE_MODE, TARGET, CONTAINER = api_pb2.NODE, api_pb2.TARGET, api_pb2.CONTAINER
KATA = HandlerFacts("kata", HandlerKind.VM)
SANDBOX = sandbox_facts(GOLDEN_CGROUP)


def of_container(options: NamespaceOption, **changes: Any) -> dict[str, str | None]:
    namespaces = build_container_namespaces(
        options,
        sandbox=changes.get("sandbox", SANDBOX),
        container=container_facts(GOLDEN_CGROUP, target_pid=99),
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
    sharing = replace(SANDBOX, netns_path=None, host_ipc=True)
    assert set(of_container(options, sandbox=sharing)) == {"mount", "cgroup"}
    assert of_sandbox(options, host_network=True) == {"mount", "cgroup"}


@pytest.mark.parametrize("field", ["network", "ipc"])
def test_container_can_not_leave_its_pods_network_or_ipc(field: str) -> None:
    options = NamespaceOption()
    setattr(options, field, NODE_MODE)
    with pytest.raises(
        InvalidArgumentError, match=rf"namespace_options\.{field}: NODE: the sandbox"
    ):
        of_container(options)


def test_container_of_a_pod_on_the_node_need_not_say_so() -> None:
    sharing = replace(SANDBOX, netns_path=None, host_ipc=True)
    assert "network" not in of_container(NamespaceOption(), sandbox=sharing)


def test_privileged_container_sees_the_nodes_cgroups() -> None:
    assert "cgroup" not in of_container(NamespaceOption(), privileged=True)


def test_sandbox_makes_what_it_does_not_share() -> None:
    assert of_sandbox(NamespaceOption()) == {"mount", "pid", "ipc", "uts", "network", "cgroup"}


def test_cgroup_namespace_is_the_nodes_choice() -> None:
    namespaces = build_sandbox_namespaces(
        NamespaceOption(), sandbox=SANDBOX, node=GOLDEN_CGROUP.node
    )
    assert {"type": "cgroup"} not in namespaces


def test_target_that_does_not_run_is_refused() -> None:
    with pytest.raises(InvalidArgumentError, match="target_id: 'ab'"):
        build_container_namespaces(
            NamespaceOption(pid=TARGET, target_id="ab"),
            sandbox=SANDBOX,
            container=container_facts(GOLDEN_CGROUP),
            node=V2_NODE,
            privileged=False,
        )


def test_container_of_a_sandbox_without_a_pause_process_is_refused() -> None:
    with pytest.raises(InvalidArgumentError, match="pause container"):
        build_container_namespaces(
            NamespaceOption(),
            sandbox=replace(SANDBOX, pause_pid=None),
            container=container_facts(GOLDEN_CGROUP),
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


# --- user namespaces ---------------------------------------------------------------------------------------------

POD_MODE = api_pb2.POD
MAPPING = IDMapping(host_id=1000, container_id=0, length=100_000)
OTHER = IDMapping(host_id=500_000, container_id=0, length=100)
USERS = UserMappings(IdRange(1000, 100_000), IdRange(500_000, 100))
IN_USERS = replace(SANDBOX, users=USERS)


def users(
    mode: int = POD_MODE, uids: Sequence[IDMapping] = (), gids: Sequence[IDMapping] = ()
) -> NamespaceOption:
    wanted = UserNamespace(mode=mode, uids=uids, gids=gids)  # type: ignore[arg-type]
    return NamespaceOption(userns_options=wanted)


def test_mappings_are_those_asked_for_and_none_means_the_nodes() -> None:
    assert user_mappings(users(uids=[MAPPING], gids=[OTHER])) == USERS
    assert user_mappings(users(NODE_MODE)) is None
    assert user_mappings(NamespaceOption()) is None
    assert USERS.gids.proc_text == "0 500000 100"


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (users(CONTAINER), r"userns_options\.mode: 'CONTAINER'"),
        (users(TARGET), r"userns_options\.mode: 'TARGET'"),
        (users(NODE_MODE, [MAPPING], [MAPPING]), "with the mode NODE"),
        (users(), r"userns_options\.uids: 0 mappings"),
        (users(uids=[MAPPING]), r"userns_options\.gids: 0 mappings"),
        (users(uids=[MAPPING, OTHER], gids=[MAPPING]), r"uids: 2 mappings"),
        (users(uids=[MAPPING], gids=[MAPPING, MAPPING]), r"gids: 2 mappings"),
        (
            users(uids=[IDMapping(host_id=1, container_id=1, length=9)], gids=[MAPPING]),
            r"uids\.container_id: 1",
        ),
        (users(uids=[IDMapping(host_id=1)], gids=[MAPPING]), r"uids\.length: 0"),
        (
            users(uids=[MAPPING], gids=[IDMapping(host_id=2**32 - 2, length=2)]),
            r"gids\.host_id \+ length - 1: 4294967295",
        ),
    ],
)
def test_mappings_that_can_not_be_are_refused(options: NamespaceOption, says: str) -> None:
    with pytest.raises(InvalidArgumentError, match=says):
        check_namespace_options(options, MAPPING_RUNC, is_sandbox=True)


def test_last_id_that_there_is_can_be_mapped() -> None:
    last = [IDMapping(host_id=2**32 - 2, length=1)]
    check_namespace_options(users(uids=last, gids=last), MAPPING_RUNC, is_sandbox=True)


def test_handler_that_can_not_map_ids_has_no_user_namespaces_but_the_nodes() -> None:
    with pytest.raises(InvalidArgumentError, match=r"userns_options: .*'runc'"):
        check_namespace_options(users(uids=[MAPPING], gids=[MAPPING]), RUNC, is_sandbox=True)
    check_namespace_options(users(NODE_MODE), RUNC, is_sandbox=True)


@pytest.mark.parametrize("field", ["pid", "ipc"])
def test_nodes_namespaces_belong_to_no_user_namespace_of_a_pod(field: str) -> None:
    options = users(uids=[MAPPING], gids=[MAPPING])
    setattr(options, field, NODE_MODE)
    with pytest.raises(InvalidArgumentError, match=rf"namespace_options\.{field}: NODE"):
        check_namespace_options(options, MAPPING_RUNC, is_sandbox=True)


def test_pause_container_joins_the_users_and_containers_find_them_there() -> None:
    sandbox = replace(IN_USERS, userns_path="/proc/1/fd/9")
    assert {"type": "user", "path": "/proc/1/fd/9"} in build_sandbox_namespaces(
        NamespaceOption(), sandbox=sandbox, node=V2_NODE
    )
    for options in (NamespaceOption(), users(uids=[MAPPING], gids=[OTHER])):
        assert of_container(options, sandbox=IN_USERS)["user"] == "/proc/4711/ns/user"


@pytest.mark.parametrize(
    ("options", "sandbox", "says"),
    [
        (users(NODE_MODE), IN_USERS, "differs from the sandbox's"),
        (users(uids=[MAPPING], gids=[MAPPING]), IN_USERS, "differs from the sandbox's"),
        (users(uids=[MAPPING], gids=[MAPPING]), SANDBOX, "differs from the sandbox's"),
        (NamespaceOption(pid=NODE_MODE), IN_USERS, "its own user namespace"),
    ],
)
def test_container_can_not_have_users_other_than_its_pods(
    options: NamespaceOption, sandbox: SandboxFacts, says: str
) -> None:
    with pytest.raises(InvalidArgumentError, match=says):
        of_container(options, sandbox=sandbox)


def test_users_and_groups_must_be_mapped() -> None:
    check_mapped(ResolvedUser(99_999, 0, (0, 99)), USERS)
    check_mapped(ResolvedUser(2**31, 0, (0,)), None)
    with pytest.raises(InvalidArgumentError, match="run_as_user: 100000: is not mapped"):
        check_mapped(ResolvedUser(100_000), USERS)
    with pytest.raises(InvalidArgumentError, match="supplemental_groups: 100: is not mapped"):
        check_mapped(ResolvedUser(0, 0, (0, 100)), USERS)


def test_target_without_its_mode_is_refused() -> None:
    with pytest.raises(InvalidArgumentError, match="target_id: 'ab'"):
        check_namespace_options(NamespaceOption(target_id="ab"), RUNC, is_sandbox=False)
