from typing import Any

import pytest

from cri_shim._pb.cri.v1.api_pb2 import SELinuxOption
from cri_shim.errors import ConfigError, InvalidArgumentError, ResourceExhaustedError
from cri_shim.oci.spec import selinux
from cri_shim.oci.spec.selinux import (
    UNTOUCHABLE,
    Labels,
    check_options,
    check_relabel,
    container_labels,
    free_level,
    level_of,
    parse_contexts,
    pod_labels,
)

CONTEXTS = parse_contexts(
    'process = "system_u:system_r:container_t:s0"\n'
    "# of virtual machines\n"
    'file = "system_u:object_r:container_file_t:s0"  # and volumes\n'
    'ro_file="system_u:object_r:container_ro_file_t:s0"\n',
    "lxc_contexts",
)
PROCESS, FILES = "system_u:system_r:container_t", "system_u:object_r:container_file_t"


def pod(*, shares_with_node: bool = False, **options: Any) -> Labels:
    return pod_labels(
        SELinuxOption(**options),
        CONTEXTS,
        free_level="s0:c1,c2",
        shares_with_node=shares_with_node,
    )


def container(of: Labels, *, privileged: bool = False, **options: Any) -> Labels:
    return container_labels(SELinuxOption(**options), of, CONTEXTS, privileged=privileged)


def test_pod_has_the_policys_labels_with_a_level_of_its_own() -> None:
    assert pod() == Labels(f"{PROCESS}:s0:c1,c2", f"{FILES}:s0:c1,c2")
    assert level_of(pod()) == "s0:c1,c2"


def test_level_asked_for_counts_for_processes_and_files() -> None:
    assert pod(level="s0:c7") == Labels(f"{PROCESS}:s0:c7", f"{FILES}:s0:c7")


def test_type_and_role_are_for_processes_only() -> None:
    made = pod(type="my_t", role="my_r", user="me_u")
    assert made == Labels("me_u:my_r:my_t:s0:c1,c2", "me_u:object_r:container_file_t:s0:c1,c2")


def test_pod_that_shares_with_the_node_is_not_confined_unless_it_asks() -> None:
    assert pod(shares_with_node=True) == Labels("", f"{FILES}:s0:c1,c2")
    assert pod(shares_with_node=True, type="my_t").process == "system_u:system_r:my_t:s0:c1,c2"


def test_container_is_labelled_like_its_pod() -> None:
    assert container(pod()) == pod()


def test_container_with_a_type_of_its_own_keeps_the_pods_level() -> None:
    assert container(pod(), type="my_t") == Labels(
        "system_u:system_r:my_t:s0:c1,c2", f"{FILES}:s0:c1,c2"
    )
    unconfined = pod(shares_with_node=True)
    assert container(unconfined, type="my_t").process == "system_u:system_r:my_t:s0:c1,c2"


def test_privileged_container_has_no_process_label() -> None:
    assert container(pod(), privileged=True, type="my_t") == Labels("", f"{FILES}:s0:c1,c2")


@pytest.mark.parametrize(
    "options",
    [
        {"user": "a:b"},
        {"role": "a b"},
        {"type": "t\nx"},
        {"type": 't",defcontext="x'},
        {"level": "s0:c1,c2,"},
        {"level": "c1"},
        {"level": "s0:c1:c2"},
    ],
)
def test_what_is_no_part_of_a_label_is_refused_by_its_field(options: dict[str, str]) -> None:
    [field] = options
    with pytest.raises(InvalidArgumentError, match=f"selinux_options.{field}"):
        check_options(SELinuxOption(**options))


@pytest.mark.parametrize("level", ["s0", "s0:c1", "s0:c1,c2", "s0:c0.c1023", "s0-s0:c0.c1023"])
def test_levels_of_policies_are_taken(level: str) -> None:
    check_options(SELinuxOption(level=level))


@pytest.mark.parametrize(
    "text", ["", 'process = "a:b:c:s0"', 'process="x"\nfile="y"', 'process="a:b:c:z"\nfile="a:b:c"']
)
def test_policy_without_containers_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="lxc"):
        parse_contexts(text, "lxc")


def test_levels_are_pairs_and_none_is_given_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    assert free_level((), 0) == "s0:c0,c1"
    assert free_level((), 1022) == "s0:c0,c1023"
    assert free_level((), 1023) == "s0:c1,c2"
    assert free_level((), selinux.PAIRS - 1) == "s0:c1022,c1023"
    assert free_level({"s0:c1022,c1023"}, selinux.PAIRS - 1) == "s0:c0,c1"
    monkeypatch.setattr(selinux, "CATEGORIES", 4)
    monkeypatch.setattr(selinux, "PAIRS", 6)
    taken: set[str] = set()
    for _ in range(6):
        taken.add(free_level(taken, 4))
    assert len(taken) == 6
    with pytest.raises(ResourceExhaustedError):
        free_level(taken, 4)


@pytest.mark.parametrize("path", [*UNTOUCHABLE, "//etc/", "/var/.", "/./usr"])
def test_directories_of_the_node_are_never_relabelled(path: str) -> None:
    with pytest.raises(InvalidArgumentError, match=r"mounts\[0\].selinux_relabel"):
        check_relabel(path, "mounts[0].selinux_relabel")


def test_directories_below_them_may_be() -> None:
    check_relabel("/var/lib/data", "f")
