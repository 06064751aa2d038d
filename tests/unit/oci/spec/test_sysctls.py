import pytest

from cri_shim.config.model import HandlerKind
from cri_shim.errors import InvalidArgumentError
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
    parts = divide({given: "1"})
    assert parts.network | parts.interfaces == {name: "1"}


@pytest.mark.parametrize(
    "name",
    [
        *(
            "net.ipv4.conf.eth0.forwarding",
            "net.ipv6.conf.eth0/7.accept_ra",
            "net.mpls.conf.x.input",
        ),
        *("net.ipv4.neigh.eth0.ucast_solicit", "net.ipv6.neigh.net1.ucast_solicit"),
        *("net.ipv4.conf.all1.forwarding", "net.ipv4.conf.lo1.forwarding"),
    ],
)
def test_parameter_of_an_interface_waits_for_the_interface(name: str) -> None:
    assert divide({name: "1"}) == PodSysctls({}, {}, {name: "1"})
    assert divide({name: "1"}, kind=HandlerKind.VM) == PodSysctls({}, {name: "1"})
    with pytest.raises(InvalidArgumentError, match="shares the node's network"):
        divide({name: "1"}, host_network=True)


@pytest.mark.parametrize(
    "name",
    [
        *("net.ipv4.conf.all.forwarding", "net.ipv6.conf.default.accept_ra"),
        *("net.ipv4.neigh.lo.ucast_solicit", "net.ipv4.conf.eth0", "net.ipv4.ip_forward"),
    ],
)
def test_parameter_that_is_there_from_the_start_is_set_at_the_start(name: str) -> None:
    assert divide({name: "1"}) == PodSysctls({name: "1"}, {})


def test_default_for_an_interface_is_not_meant_for_pods_without_it() -> None:
    ours, both = "net.ipv4.conf.eth0.forwarding", "net.ipv4.conf.net1.forwarding"
    parts = divide({both: "1"}, {ours: "0", both: "0"})
    assert parts == PodSysctls({}, {}, {ours: "0", both: "1"}, frozenset({ours}))


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
