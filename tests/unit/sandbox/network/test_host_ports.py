"""Host ports: which are asked for, which collide, how plugins are told."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import pytest

from cri_shim._pb.cri.v1 import api_pb2 as api
from cri_shim.errors import InvalidArgumentError
from cri_shim.sandbox.network.host_ports import (
    MAX_HOST_PORTS,
    HeldPorts,
    HostPort,
    check_number,
    host_ports,
    port_mappings,
)

if TYPE_CHECKING:
    from typing import Any


def with_ports(*mappings: dict[str, Any]) -> api.PodSandboxConfig:
    return api.PodSandboxConfig(port_mappings=[api.PortMapping(**m) for m in mappings])


def test_a_port_without_a_host_port_is_not_forwarded() -> None:
    assert host_ports(with_ports({"container_port": 80}, {"container_port": 80})) == {}


@pytest.mark.parametrize(
    ("one", "other", "collide"),
    [
        (("tcp", 80, ""), ("tcp", 80, ""), True),
        (("tcp", 80, ""), ("tcp", 80, "10.0.0.1"), True),
        (("tcp", 80, "10.0.0.1"), ("tcp", 80, "10.0.0.1"), True),
        (("tcp", 80, "10.0.0.1"), ("tcp", 80, "10.0.0.2"), False),
        (("tcp", 80, ""), ("udp", 80, ""), False),
        (("tcp", 80, ""), ("tcp", 81, ""), False),
        (("tcp", 80, ""), ("tcp", 80, "0.0.0.0"), True),
        (("tcp", 80, ""), ("tcp", 80, "::"), True),
        (("tcp", 80, "0.0.0.0"), ("tcp", 80, "::"), False),
        (("tcp", 80, "0.0.0.0"), ("tcp", 80, "10.0.0.1"), True),
        (("tcp", 80, "0.0.0.0"), ("tcp", 80, "fd00::1"), False),
        (("sctp", 80, "::"), ("sctp", 80, "fd00::1"), True),
        (("tcp", 80, "10.0.0.1"), ("tcp", 80, "fd00::1"), False),
    ],
    ids=str,
)
def test_a_port_is_one_of_a_protocol_on_an_address(
    one: tuple[str, int, str], other: tuple[str, int, str], *, collide: bool
) -> None:
    for first, second in ((one, other), (other, one)):
        held: HeldPorts[str] = HeldPorts()
        held.hold("pod", [HostPort(*first)])
        assert held.holder(HostPort(*second)) == ("pod" if collide else None)


def test_a_port_is_free_again_once_all_who_had_it_gave_it_back() -> None:
    held: HeldPorts[str] = HeldPorts()
    everywhere, here = HostPort("tcp", 80, ""), HostPort("tcp", 80, "127.0.0.1")
    held.hold("one", [everywhere, HostPort("udp", 53, "::")])
    held.hold("two", [here])
    assert "one" in held
    held.give_back("one")
    held.give_back("one")
    assert "one" not in held
    assert held.holder(everywhere) == "two"
    assert held.holder(HostPort("udp", 53, "fd00::1")) is None
    held.give_back("two")
    assert held.holder(everywhere) is None
    assert len(held) == 0


def test_more_ports_than_plugins_can_publish_are_refused_with_both_numbers() -> None:
    mappings = [{"host_port": port, "container_port": 80} for port in range(1, MAX_HOST_PORTS + 1)]
    undemanding = [{"container_port": 80}] * 5000
    check_number(with_ports(*mappings, *undemanding))
    with pytest.raises(
        InvalidArgumentError, match=r"port_mappings: 1025 host ports: the limit of a pod is 1024"
    ):
        check_number(with_ports(*mappings, {"host_port": 2000, "container_port": 80}))


@pytest.mark.parametrize("address", ["", "127.0.0.1"])
def test_asking_costs_the_same_however_many_ports_are_held(address: str) -> None:
    def lookups(count: int) -> int:
        """How many of Python's calls it takes to make a pod of `count` ports known and to check another one's."""
        config = with_ports(
            *(
                {
                    "host_port": 1 + n,
                    "container_port": 80,
                    "host_ip": address or f"10.0.{n >> 8}.{n & 255}",
                }
                for n in range(count)
            )
        )
        held: HeldPorts[str] = HeldPorts()
        calls = 0

        def count_call(_frame: object, event: str, _arg: object) -> None:
            nonlocal calls
            calls += event == "call"

        sys.setprofile(count_call)
        try:
            ports = host_ports(config)
            for pod in range(5):
                held.hold(f"pod-{pod}", ports)
            for port in ports:
                assert held.holder(port) == "pod-0"
        finally:
            sys.setprofile(None)
        return calls

    assert lookups(2000) < 4.5 * lookups(500)


def test_a_port_given_twice_is_refused() -> None:
    with pytest.raises(InvalidArgumentError, match=r"80/tcp on 127\.0\.0\.1 occurs twice"):
        host_ports(
            with_ports(
                {"host_port": 80, "container_port": 1},
                {"host_port": 80, "container_port": 2, "host_ip": "127.0.0.1"},
            )
        )


@pytest.mark.parametrize(
    "mapping",
    [
        {"host_port": -1, "container_port": 80},
        {"host_port": 65536, "container_port": 80},
        {"host_port": 80, "container_port": 0},
        {"host_port": 80, "container_port": 65536},
        {"host_port": 80, "container_port": 80, "protocol": 9},
        {"host_port": 80, "container_port": 80, "host_ip": "localhost"},
        {"host_port": 80, "container_port": 80, "host_ip": "fe80::1%eth0"},
    ],
    ids=str,
)
def test_ports_that_do_not_exist_are_refused(mapping: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgumentError, match=r"config\.port_mappings"):
        host_ports(with_ports(mapping))


@pytest.mark.parametrize(
    ("written", "kept"),
    [
        ("FD00:0:0::0001", "fd00::1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("0:0:0:0:0:0:0:0", "::"),
        ("192.0.2.1", "192.0.2.1"),
    ],
)
def test_an_address_has_one_form(written: str, kept: str) -> None:
    config = with_ports({"host_port": 80, "container_port": 8080, "host_ip": written})
    assert list(host_ports(config)) == [HostPort("tcp", 80, kept)]


def test_a_port_may_be_given_once_for_each_family() -> None:
    config = with_ports(
        {"host_port": 80, "container_port": 1, "host_ip": "0.0.0.0"},
        {"host_port": 80, "container_port": 2, "host_ip": "::"},
    )
    assert port_mappings(host_ports(config)) == [
        {"hostPort": 80, "containerPort": 1, "protocol": "tcp", "hostIP": "0.0.0.0"},
        {"hostPort": 80, "containerPort": 2, "protocol": "tcp", "hostIP": "::"},
    ]


def test_a_port_is_named_as_a_person_would() -> None:
    assert str(HostPort("udp", 53, "")) == "53/udp"
    assert str(HostPort("tcp", 80, "fd00::1")) == "80/tcp on fd00::1"
