"""Host ports: parses those that a pod requests, finds conflicts, and builds the argument for plugins. Pure.

Rules:
- A mapping without a host port publishes nothing.
- A host port is a protocol, a number and an address. No address means every address of both families, an unspecified
  one (`0.0.0.0`, `::`) every address of its family. The two families do not conflict.
- Addresses are normalised, so that equal ones compare equal: an IPv4-mapped IPv6 address becomes an IPv4 address.
- The holder of a port is found in an index, so the cost does not grow with the number of ports or pods.

CNI conventions, capability `portMappings`.
"""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING, Final, Generic, NamedTuple, TypeVar

from cri_shim._pb.cri.v1 import api_pb2 as api
from cri_shim.errors import InvalidArgumentError
from cri_shim.quoting import quoted

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence

    from cri_shim.sandbox.store.store import Sandbox

MAX_HOST_PORTS: Final = 1024
"""Host ports of one pod. Plugins create several packet filter rules for each, in time that grows with the square of
their number: a thousand take the portmap plugin about as long as `cni.timeout` allows."""
HolderT = TypeVar("HolderT", bound="Hashable")
_EVERY: Final = ""
_PROTOCOLS = {api.TCP: "tcp", api.UDP: "udp", api.SCTP: "sctp"}


class HostPort(NamedTuple):
    """A port of the node that a pod requests."""

    protocol: str
    port: int
    host_ip: str
    """Empty for every address of the node, 0.0.0.0 or :: for those of one family."""

    def __str__(self) -> str:
        return f"{self.port}/{self.protocol}" + (f" on {self.host_ip}" if self.host_ip else "")

    @property
    def families(self) -> tuple[int, ...]:
        """The IP versions in which it occupies the port."""
        return (ipaddress.ip_address(self.host_ip).version,) if self.host_ip else (4, 6)

    @property
    def is_of_every_address(self) -> bool:
        """Whether it occupies the port on every address of its families."""
        return not self.host_ip or ipaddress.ip_address(self.host_ip).is_unspecified


class HeldPorts(Generic[HolderT]):
    """An index of held host ports and their holders. A lookup costs the same however many there are."""

    def __init__(self) -> None:
        self._held: dict[tuple[str, int, int], dict[str, list[HolderT]]] = {}
        """By protocol, number and family: the holders of each address, or of `_EVERY` address. Several may hold the
        same one after a change of the node's configuration."""
        self._ports_of: dict[HolderT, Sequence[HostPort]] = {}

    def __contains__(self, holder: object) -> bool:
        return holder in self._ports_of

    def __len__(self) -> int:
        """The number of held ports. Each protocol and address family counts."""
        return len(self._held)

    def holder(self, port: HostPort) -> HolderT | None:
        """The holder of a port that conflicts with this one, or None."""
        for family in port.families:
            held = self._held.get((port.protocol, port.port, family))
            if not held:
                continue
            for address in (_EVERY, next(iter(held)) if port.is_of_every_address else port.host_ip):
                if address in held:
                    return held[address][0]
        return None

    def hold(self, holder: HolderT, ports: Iterable[HostPort]) -> None:
        """Add the ports of a holder, also if others hold them. Call it once per holder."""
        self._ports_of[holder] = ports = tuple(ports)
        for port in ports:
            for key, address in _slots(port):
                self._held.setdefault(key, {}).setdefault(address, []).append(holder)

    def give_back(self, holder: HolderT) -> None:
        """Remove the ports of a holder, if it has any."""
        for port in self._ports_of.pop(holder, ()):
            for key, address in _slots(port):
                held = self._held[key]
                held[address].remove(holder)
                if not held[address]:
                    del held[address]
                if not held:
                    del self._held[key]


def _slots(port: HostPort) -> Iterator[tuple[tuple[str, int, int], str]]:
    address = _EVERY if port.is_of_every_address else port.host_ip
    for family in port.families:
        yield (port.protocol, port.port, family), address


def check_number(config: api.PodSandboxConfig) -> None:
    """Raises InvalidArgumentError for more than `MAX_HOST_PORTS` host ports."""
    count = sum(mapping.host_port != 0 for mapping in config.port_mappings)
    if count > MAX_HOST_PORTS:
        raise InvalidArgumentError(
            f"config.port_mappings: {count} host ports: the limit of a pod is {MAX_HOST_PORTS}"
        )


def ports_of(sandbox: Sandbox) -> Mapping[HostPort, int]:
    """The host ports of a sandbox, parsed once. Empty if an earlier version accepted a request that is invalid now."""
    if sandbox.host_ports is None:
        try:
            sandbox.host_ports = host_ports(sandbox.config)
        except InvalidArgumentError:
            sandbox.host_ports = {}  # no plugin publishes such ports
    return sandbox.host_ports


def host_ports(config: api.PodSandboxConfig) -> dict[HostPort, int]:
    """The container port of each host port.

    Raises InvalidArgumentError for an invalid port or address, and for two mappings of one host port.
    """
    wanted: dict[HostPort, int] = {}
    held: HeldPorts[int] = HeldPorts()
    for index, mapping in enumerate(config.port_mappings):
        if mapping.host_port == 0:
            continue
        for which, port in (
            ("host_port", mapping.host_port),
            ("container_port", mapping.container_port),
        ):
            if not 0 < port < 65536:
                raise InvalidArgumentError(
                    f"config.port_mappings: {which} {port}: must be between 1 and 65535"
                )
        if mapping.protocol not in _PROTOCOLS:
            raise InvalidArgumentError(f"config.port_mappings: unknown protocol {mapping.protocol}")
        host_port = HostPort(
            _PROTOCOLS[mapping.protocol], mapping.host_port, _host_ip(mapping.host_ip)
        )
        if held.holder(host_port) is not None:
            raise InvalidArgumentError(f"config.port_mappings: host_port {host_port} occurs twice")
        held.hold(index, (host_port,))
        wanted[host_port] = mapping.container_port
    return wanted


def _host_ip(text: str) -> str:
    if not text:
        return ""
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        address = None
    if address is None or "%" in text:  # packet filters do not support zones
        raise InvalidArgumentError(
            f"config.port_mappings: host_ip {quoted(text)} is not an IP address"
        ) from None
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    return str(address)


def port_mappings(ports: Mapping[HostPort, int]) -> list[dict[str, object]]:
    """The argument of the capability `portMappings`."""
    return [
        {
            "hostPort": host.port,
            "containerPort": container_port,
            "protocol": host.protocol,
            **({"hostIP": host.host_ip} if host.host_ip else {}),
        }
        for host, container_port in ports.items()
    ]
