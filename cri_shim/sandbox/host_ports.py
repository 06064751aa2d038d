"""Host ports: which ports of the node a pod asks for, which of them collide, and how plugins are told. Pure.

Rules:
- A mapping without a host port publishes nothing.
- A host port is a protocol, a number and an address. No address means every address of both families, an unspecified
  one (`0.0.0.0`, `::`) every address of its family; the two families have nothing to do with each other.
- An address is kept in one form (an IPv4 address written as IPv6 is an IPv4 address), so that equal ones are equal.

CNI conventions, capability `portMappings`.
"""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING, NamedTuple

from cri_shim._pb.cri.v1 import api_pb2 as api
from cri_shim.errors import InvalidArgumentError
from cri_shim.quoting import quoted

if TYPE_CHECKING:
    from collections.abc import Mapping

_PROTOCOLS = {api.TCP: "tcp", api.UDP: "udp", api.SCTP: "sctp"}


class HostPort(NamedTuple):
    """A port of the node that a pod wants."""

    protocol: str
    port: int
    host_ip: str
    """Empty for every address of the node, 0.0.0.0 or :: for those of one family."""

    def __str__(self) -> str:
        return f"{self.port}/{self.protocol}" + (f" on {self.host_ip}" if self.host_ip else "")

    def collides(self, other: HostPort) -> bool:
        """Whether both can't be had at once."""
        return (
            self.protocol == other.protocol
            and self.port == other.port
            and _overlap(self.host_ip, other.host_ip)
        )


def _overlap(one: str, other: str) -> bool:
    if not one or not other or one == other:
        return True
    first, second = ipaddress.ip_address(one), ipaddress.ip_address(other)
    return first.version == second.version and (first.is_unspecified or second.is_unspecified)


def host_ports(config: api.PodSandboxConfig) -> dict[HostPort, int]:
    """The container port behind each host port.

    Raises InvalidArgumentError for what is no port or address, and for one host port twice.
    """
    wanted: dict[HostPort, int] = {}
    for mapping in config.port_mappings:
        if mapping.host_port == 0:
            continue
        for which, port in (
            ("host_port", mapping.host_port),
            ("container_port", mapping.container_port),
        ):
            if not 0 < port < 65536:
                raise InvalidArgumentError(f"config.port_mappings: {which} {port}: 1 to 65535")
        if mapping.protocol not in _PROTOCOLS:
            raise InvalidArgumentError(
                f"config.port_mappings: protocol {mapping.protocol}: unknown"
            )
        host_port = HostPort(
            _PROTOCOLS[mapping.protocol], mapping.host_port, _host_ip(mapping.host_ip)
        )
        if any(host_port.collides(other) for other in wanted):
            raise InvalidArgumentError(f"config.port_mappings: host_port {host_port}: given twice")
        wanted[host_port] = mapping.container_port
    return wanted


def _host_ip(text: str) -> str:
    if not text:
        return ""
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        address = None
    if address is None or "%" in text:  # a zone means nothing to a packet filter
        raise InvalidArgumentError(
            f"config.port_mappings: host_ip {quoted(text)}: not an IP address"
        ) from None
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    return str(address)


def port_mappings(ports: Mapping[HostPort, int]) -> list[dict[str, object]]:
    """The value of the capability `portMappings`."""
    return [
        {
            "hostPort": host.port,
            "containerPort": container_port,
            "protocol": host.protocol,
            **({"hostIP": host.host_ip} if host.host_ip else {}),
        }
        for host, container_port in ports.items()
    ]
