"""The network of one pod: its namespace, its CNI attachments, and their undoing.

Rules:
- Which networks a sandbox joins is decided once, before its record is written; the status names them, so that DEL can
  be run for each of them after a crash, whether ADD had begun or not.
- The namespace, `lo` and the `net.*` sysctls are made by us before ADD; the plugins find them as the pod will.
- An attachment leaves the sandbox's status only after its DEL succeeded.
"""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from cri_shim._pb.cri.v1 import api_pb2 as api
from cri_shim.background import uninterrupted
from cri_shim.cni.attachment import Attachment
from cri_shim.cni.result import pod_ips
from cri_shim.errors import (
    AlreadyExistsError,
    CniPluginError,
    CriShimError,
    InvalidArgumentError,
    host_step,
)
from cri_shim.host.namespaces import create_netns, remove_netns
from cri_shim.paths import netns_file
from cri_shim.sandbox.model import NetworkAttachment, PodMetadata

if TYPE_CHECKING:
    from collections.abc import Mapping

    from cri_shim.cni.network import Cni
    from cri_shim.sandbox.store import Sandbox, Store

DEFAULT_INTERFACE = "eth0"
_PROTOCOLS = {api.TCP: "tcp", api.UDP: "udp", api.SCTP: "sctp"}


def has_host_network(config: api.PodSandboxConfig) -> bool:
    """Whether the pod shares the node's network."""
    return config.linux.security_context.namespace_options.network == api.NODE


class HostPort(NamedTuple):
    """A port of the node that a pod wants."""

    protocol: str
    port: int
    host_ip: str
    """Empty for every address of the node, 0.0.0.0 or :: for those of one family."""

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
    """The container port behind each host port; host port 0 means nothing.

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
            raise InvalidArgumentError(
                f"config.port_mappings: host_port {mapping.host_port}/{host_port.protocol}: given twice"
            )
        wanted[host_port] = mapping.container_port
    return wanted


def _host_ip(text: str) -> str:
    if not text:
        return ""
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        raise InvalidArgumentError(
            f"config.port_mappings: host_ip {text!r}: not an IP address"
        ) from None
    return str(address)


def _capability(ports: dict[HostPort, int]) -> list[dict[str, object]]:
    """The `portMappings` capability's value."""
    return [
        {
            "hostPort": host.port,
            "containerPort": container_port,
            "protocol": host.protocol,
            # "Every address" is what the plugin takes no address for.
            **({"hostIP": host.host_ip} if host.host_ip not in ("", "0.0.0.0", "::") else {}),
        }
        for host, container_port in ports.items()
    ]


class PodNetwork:
    """Attaches sandboxes to networks and takes them off again."""

    def __init__(self, cni: Cni, store: Store[Sandbox], *, publish_ports: bool) -> None:
        """Without `publish_ports` the pods' host ports are left to something else on the node."""
        self._cni = cni
        self._store = store
        self._publish_ports = publish_ports

    def plan(
        self, sandbox_id: str, metadata: PodMetadata, config: api.PodSandboxConfig
    ) -> tuple[NetworkAttachment, ...]:
        """The networks a new pod will join.

        Raises NotReadyError where the node has no usable CNI configuration, InvalidArgumentError for a pod that can't
        be described to a plugin: better now than in the middle of an undo; AlreadyExistsError for a host port that
        another pod has.
        """
        ports = host_ports(config)
        if has_host_network(config):
            return ()
        if self._publish_ports and ports:
            self._check_free(ports)
        planned = NetworkAttachment(self._cni.default_network().name, DEFAULT_INTERFACE)
        self._attachment(sandbox_id, metadata, config, planned)
        return (planned,)

    def _check_free(self, ports: dict[HostPort, int]) -> None:
        for sandbox in self._store:
            if not sandbox.status.attachments:
                continue
            for taken in host_ports(sandbox.config):
                for port in ports:
                    if port.collides(taken):
                        raise AlreadyExistsError(
                            f"config.port_mappings: host_port {port.port}/{port.protocol} is held by "
                            f"sandbox {sandbox.id} ({sandbox.record.metadata.namespace}/"
                            f"{sandbox.record.metadata.name}): remove that one or choose another port"
                        )

    async def create_namespace(self, sandbox_id: str, sysctls: Mapping[str, str]) -> None:
        """Make and pin the pod's network namespace with `lo` up and its `net.*` sysctls set.

        Raises InvalidArgumentError for a sysctl that the kernel refuses, ResourceExhaustedError when it has no room.
        """
        with host_step(f"sandbox {sandbox_id}: making its network namespace"):
            await uninterrupted(create_netns, netns_file(sandbox_id), sysctls)

    async def remove_namespace(self, sandbox_id: str) -> None:
        """Unpin the namespace; it ends with the last process in it."""
        await uninterrupted(remove_netns, netns_file(sandbox_id))

    async def attach(self, sandbox: Sandbox) -> tuple[str, ...]:
        """CNI ADD of every planned network, in order; the pod's addresses, those of the first network first."""
        ips: list[str] = []
        for planned in sandbox.status.attachments:
            try:
                result = await self._cni.add(self._of(sandbox, planned))
            except CniPluginError as error:
                error.name_object(f"sandbox {sandbox.id}: network {planned.network}")
                raise
            ips += [ip for ip in pod_ips(result, planned.ifname) if ip not in ips]
        return tuple(ips)

    async def detach(self, sandbox: Sandbox) -> None:
        """CNI DEL of every attachment still noted, last first; what succeeded is no longer noted.

        Raises the first failure after all were tried.
        """
        failure: CriShimError | None = None
        for planned in reversed(sandbox.status.attachments):
            try:
                await self._cni.delete(self._of(sandbox, planned))
            except CriShimError as error:
                if isinstance(error, CniPluginError):
                    error.name_object(f"sandbox {sandbox.id}: network {planned.network}")
                failure = failure or error
                continue
            left = tuple(a for a in sandbox.status.attachments if a != planned)
            self._store.update(sandbox, msgspec.structs.replace(sandbox.status, attachments=left))
        if failure is not None:
            raise failure

    async def release_by_id(self, sandbox_id: str) -> None:
        """Take away the network of a sandbox of which only the ID is known, by what the CNI result cache says."""
        for attachment in self._cni.attachments(sandbox_id):
            await self._cni.delete(attachment)
        await self.remove_namespace(sandbox_id)

    def _of(self, sandbox: Sandbox, planned: NetworkAttachment) -> Attachment:
        return self._attachment(sandbox.id, sandbox.record.metadata, sandbox.config, planned)

    def _attachment(
        self,
        sandbox_id: str,
        metadata: PodMetadata,
        config: api.PodSandboxConfig,
        planned: NetworkAttachment,
    ) -> Attachment:
        pin = netns_file(sandbox_id)
        mappings = _capability(host_ports(config)) if self._publish_ports else []
        return Attachment(
            container_id=sandbox_id,
            netns=str(pin) if pin.exists() else "",
            ifname=planned.ifname,
            network=planned.network,
            args={
                "IgnoreUnknown": "1",
                "K8S_POD_NAMESPACE": metadata.namespace,
                "K8S_POD_NAME": metadata.name,
                "K8S_POD_INFRA_CONTAINER_ID": sandbox_id,
                "K8S_POD_UID": metadata.uid,
            },
            capability_args={"portMappings": mappings},
        )
