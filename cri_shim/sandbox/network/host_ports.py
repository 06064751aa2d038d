"""Host ports: which ports of the node a pod asks for, who has one already, and how plugins are told. Pure.

Rules:
- A mapping without a host port publishes nothing.
- A host port is a protocol, a number and an address. No address means every address of both families, an unspecified
  one (`0.0.0.0`, `::`) every address of its family; the two families have nothing to do with each other.
- An address is kept in one form (an IPv4 address written as IPv6 is an IPv4 address), so that equal ones are equal.
- Who has a port is looked up, never searched for: neither a pod with many ports nor many pods make a new one wait.

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
"""Of one pod. Plugins make several packet filter rules of each, in time that grows with the square of their number: a
thousand take the portmap plugin about as long as `cni.timeout` allows it."""
HolderT = TypeVar("HolderT", bound="Hashable")
_EVERY: Final = ""
_PROTOCOLS = {api.TCP: "tcp", api.UDP: "udp", api.SCTP: "sctp"}


class HostPort(NamedTuple):
    """A port of the node that a pod wants."""

    protocol: str
    port: int
    host_ip: str
    """Empty for every address of the node, 0.0.0.0 or :: for those of one family."""

    def __str__(self) -> str:
        return f"{self.port}/{self.protocol}" + (f" on {self.host_ip}" if self.host_ip else "")

    @property
    def families(self) -> tuple[int, ...]:
        """The families of addresses in which it takes something."""
        return (ipaddress.ip_address(self.host_ip).version,) if self.host_ip else (4, 6)

    @property
    def is_of_every_address(self) -> bool:
        """Whether it takes every address of its families."""
        return not self.host_ip or ipaddress.ip_address(self.host_ip).is_unspecified


class HeldPorts(Generic[HolderT]):
    """Which host ports are held, and by whom; what it is asked costs the same however many there are."""

    def __init__(self) -> None:
        self._held: dict[tuple[str, int, int], dict[str, list[HolderT]]] = {}
        """By protocol, number and family: who holds an address, or `_EVERY` one. Several can after a change of the
        node's configuration."""
        self._ports_of: dict[HolderT, Sequence[HostPort]] = {}

    def __contains__(self, holder: object) -> bool:
        return holder in self._ports_of

    def __len__(self) -> int:
        """How many ports are held, each protocol and address family counted."""
        return len(self._held)

    def holder(self, port: HostPort) -> HolderT | None:
        """Who has a port with which this one collides: both can't be had at once."""
        for family in port.families:
            held = self._held.get((port.protocol, port.port, family))
            if not held:
                continue
            for address in (_EVERY, next(iter(held)) if port.is_of_every_address else port.host_ip):
                if address in held:
                    return held[address][0]
        return None

    def hold(self, holder: HolderT, ports: Iterable[HostPort]) -> None:
        """Note them as held, whoever else has them; once per holder."""
        self._ports_of[holder] = ports = tuple(ports)
        for port in ports:
            for key, address in _slots(port):
                self._held.setdefault(key, {}).setdefault(address, []).append(holder)

    def give_back(self, holder: HolderT) -> None:
        """Forget what this one holds, if anything."""
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
    """Raises InvalidArgumentError for more host ports than plugins can publish."""
    count = sum(mapping.host_port != 0 for mapping in config.port_mappings)
    if count > MAX_HOST_PORTS:
        raise InvalidArgumentError(
            f"config.port_mappings: {count} host ports: at most {MAX_HOST_PORTS} of a pod can be published"
        )


def ports_of(sandbox: Sandbox) -> Mapping[HostPort, int]:
    """The host ports of a sandbox, parsed once. None of a request that a version before this one took for good."""
    if sandbox.host_ports is None:
        try:
            sandbox.host_ports = host_ports(sandbox.config)
        except InvalidArgumentError:
            sandbox.host_ports = {}  # then it was published by nobody
    return sandbox.host_ports


def host_ports(config: api.PodSandboxConfig) -> dict[HostPort, int]:
    """The container port behind each host port.

    Raises InvalidArgumentError for what is no port or address, and for one host port twice.
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
                raise InvalidArgumentError(f"config.port_mappings: {which} {port}: 1 to 65535")
        if mapping.protocol not in _PROTOCOLS:
            raise InvalidArgumentError(
                f"config.port_mappings: protocol {mapping.protocol}: unknown"
            )
        host_port = HostPort(
            _PROTOCOLS[mapping.protocol], mapping.host_port, _host_ip(mapping.host_ip)
        )
        if held.holder(host_port) is not None:
            raise InvalidArgumentError(f"config.port_mappings: host_port {host_port}: given twice")
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
