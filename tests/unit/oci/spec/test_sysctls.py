import pytest

from cri_shim.errors import InvalidArgumentError
from cri_shim.oci.spec.inputs import HandlerKind
from cri_shim.oci.spec.sysctls import PodSysctls, pod_sysctls


def divide(
    requested: dict[str, str],
    defaults: dict[str, str] | None = None,
    *,
    kind: HandlerKind = HandlerKind.OCI,
    host_network: bool = False,
    host_ipc: bool = False,
) -> PodSysctls:
    return pod_sysctls(
        requested,
        defaults=defaults or {},
        kind=kind,
        host_network=host_network,
        host_ipc=host_ipc,
    )


def test_net_goes_to_the_namespace_and_ipc_to_the_runtime() -> None:
    parts = divide(
        {
            "net.ipv4.ip_local_port_range": "1024\t65535",
            "kernel.shm_rmid_forced": "1",
            "fs.mqueue.msg_max": "100",
        }
    )
    assert parts.network == {"net.ipv4.ip_local_port_range": "1024\t65535"}
    assert parts.spec == {"kernel.shm_rmid_forced": "1", "fs.mqueue.msg_max": "100"}


def test_kernel_of_its_own_gets_all_of_them() -> None:
    parts = divide({"net.core.somaxconn": "1", "kernel.sem": "1 2 3 4"}, kind=HandlerKind.VM)
    assert parts == PodSysctls({}, {"net.core.somaxconn": "1", "kernel.sem": "1 2 3 4"})


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ("net/ipv4/ip_forward", "net.ipv4.ip_forward"),
        ("net/ipv4/conf/eth0.100/forwarding", "net.ipv4.conf.eth0/100.forwarding"),
        ("net.ipv4.conf.eth0/100.forwarding", "net.ipv4.conf.eth0/100.forwarding"),
    ],
)
def test_first_separator_says_which_one_separates(given: str, name: str) -> None:
    assert divide({given: "1"}).network == {name: "1"}


@pytest.mark.parametrize(
    "name",
    [
        *("kernel.core_pattern", "kernel.msg", "kernel.shmall.x", "vm.swappiness"),
        *("fs.file-max", "fs.mqueue", "kernel.domainname", "kernel/core_pattern", "netx.y"),
    ],
)
def test_cve_2022_0811_parameter_of_the_node_is_refused(name: str) -> None:
    with pytest.raises(InvalidArgumentError, match="of the node"):
        divide({name: "1"})


@pytest.mark.parametrize(
    "name",
    [
        *("", "net", "net.", ".net.a", "net..a", "net./a", "net.a/", "net.../../x", "net.a b"),
        *("net.a\n", "net.a+kernel.core_pattern", "net.ä.b", "net/../kernel/core_pattern"),
        "net." + "a" * 300,
    ],
)
def test_name_that_could_smuggle_a_path_is_refused(name: str) -> None:
    with pytest.raises(InvalidArgumentError, match="sysctls"):
        divide({name: "1"})


@pytest.mark.parametrize(
    "value", ["", "1\nkernel.core_pattern=|/evil", "1\r", "1\0", "ä", "1" * 4097]
)
def test_value_with_other_than_printable_characters_is_refused(value: str) -> None:
    with pytest.raises(InvalidArgumentError, match="printable"):
        divide({"net.ipv4.ip_forward": value})


def test_cve_2022_0532_parameter_of_a_shared_namespace_is_refused() -> None:
    with pytest.raises(InvalidArgumentError, match="node's network"):
        divide({"net.ipv4.ip_forward": "1"}, host_network=True)
    for name in ("kernel.shmmax", "fs.mqueue.msg_max"):
        with pytest.raises(InvalidArgumentError, match="node's IPC"):
            divide({name: "1"}, host_ipc=True)


def test_defaults_give_way_and_are_dropped_where_they_do_not_apply() -> None:
    defaults = {"net.core.somaxconn": "1", "kernel.shmmax": "2"}
    parts = divide({"net.core.somaxconn": "9"}, defaults)
    assert parts == PodSysctls({"net.core.somaxconn": "9"}, {"kernel.shmmax": "2"})
    assert divide({}, defaults, host_network=True, host_ipc=True) == PodSysctls({}, {})
