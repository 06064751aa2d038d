"""The network of one pod: its namespace, its CNI attachments, and their undoing.

Rules:
- Which networks a sandbox joins is decided once, before its record is written; the status names them, so that DEL can
  be run for each of them after a crash, whether ADD had begun or not.
- The namespace, `lo` and the `net.*` sysctls are made by us before ADD; the plugins find them as the pod will. Only
  those of interfaces that plugins make are set after ADD.
- A DEL is waited for a few seconds, and a plugin that a former daemon called not at all: then the DEL is pending.
- An attachment leaves the sandbox's status only after its DEL succeeded, or stands among the pending deletes.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, NamedTuple

import msgspec
import structlog

from cri_shim._pb.cri.v1 import api_pb2 as api
from cri_shim.cni.result import pod_ips
from cri_shim.errors import (
    AlreadyExistsError,
    CniPluginError,
    CriShimError,
    NotReadyError,
    host_step,
)
from cri_shim.kernel_call import in_time
from cri_shim.paths import netns_file
from cri_shim.sandbox.network.annotations import (
    NETWORKS,
    additional_networks,
    joins_default_network,
)
from cri_shim.sandbox.network.attachments import PodAttachments
from cri_shim.sandbox.network.details import network_details
from cri_shim.sandbox.network.host_ports import (
    HeldPorts,
    HostPort,
    check_number,
    host_ports,
    ports_of,
)
from cri_shim.sandbox.network.plugin_args import maps_any
from cri_shim.sandbox.store.model import NetworkAttachment, PodMetadata

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Mapping

    from cri_shim.background import Background
    from cri_shim.cni.attachment import Attachment
    from cri_shim.cni.leftover import LeftoverPlugins
    from cri_shim.cni.network import Cni
    from cri_shim.host.port import Host
    from cri_shim.sandbox.network.pending_deletes import PendingDeletes
    from cri_shim.sandbox.store.store import Sandbox, Store

DEFAULT_INTERFACE = "eth0"
LOOPBACK = "lo"
DEL_PATIENCE_S = 10.0
"""How long a Stop waits for one plugin's DEL. The plugin goes on, and is called again when it has ended."""
SLOW_PLUGIN = f"no answer of a plugin within {DEL_PATIENCE_S:g} s"
FORMER_PLUGIN = "a plugin that a former daemon called still works on it"

log = structlog.get_logger()


def has_host_network(config: api.PodSandboxConfig) -> bool:
    """Whether the pod shares the node's network."""
    return config.linux.security_context.namespace_options.network == api.NODE


class NetworkPlan(NamedTuple):
    """What a pod will have of networks."""

    attachments: tuple[NetworkAttachment, ...]
    """The primary network's first."""
    ports: Mapping[HostPort, int]
    """The host ports that it asks for."""


class PodNetwork:
    """Attaches sandboxes to networks and takes them off again."""

    def __init__(
        self,
        cni: Cni,
        store: Store[Sandbox],
        pending_deletes: PendingDeletes,
        *,
        leftovers: LeftoverPlugins,
        host: Host,
        background: Background,
        publish_ports: bool,
    ) -> None:
        """Without `publish_ports` the pods' host ports are left to something else on the node."""
        self._host = host
        self._background = background
        self._slow: set[str] = set()
        """Pods whose DEL is still under way, though nobody waits for it any more."""
        self.plugin_ended: Callable[[], None] = lambda: None
        """Called when one of those has ended."""
        self._cni = cni
        self._leftovers = leftovers
        self._store = store
        self._pending_deletes = pending_deletes
        self._attachments = PodAttachments(cni, publish_ports=publish_ports)
        self._publish_ports = publish_ports
        self._held_ports: HeldPorts[str] = HeldPorts()
        store.changed = self._note_ports
        for sandbox in store:
            self._note_ports(sandbox)

    def _note_ports(self, sandbox: Sandbox) -> None:
        """Keep the index of held host ports: a sandbox holds its own for as long as it is attached to a network."""
        holds = bool(sandbox.status.attachments) and self._store.get(sandbox.id) is sandbox
        if holds == (sandbox.id in self._held_ports):
            return
        if holds:
            self._held_ports.hold(sandbox.id, ports_of(sandbox))
        else:
            self._held_ports.give_back(sandbox.id)

    def plan(
        self, sandbox_id: str, metadata: PodMetadata, config: api.PodSandboxConfig
    ) -> NetworkPlan:
        """What a new pod will have of networks, parsed and checked once.

        Raises NotReadyError where the node has no usable CNI configuration for one of them, InvalidArgumentError for a
        pod that can't be described to a plugin: better now than in the middle of an undo; AlreadyExistsError for a host
        port that another pod has.
        """
        check_number(config)
        ports = host_ports(config)
        if has_host_network(config):
            return NetworkPlan((), ports)
        if self._publish_ports and ports:
            self._check_free(ports)
        planned = tuple(self._chosen(config.annotations))
        self._attachments.check(sandbox_id, metadata, config, ports, planned)
        return NetworkPlan(planned, ports)

    def _chosen(self, annotations: Mapping[str, str]) -> Iterator[NetworkAttachment]:
        default = joins_default_network(annotations)
        additional = additional_networks(annotations, taken=DEFAULT_INTERFACE if default else "")
        if (loopback := self._cni.loopback) is not None:
            yield NetworkAttachment(loopback.name, LOOPBACK)
        if default:
            yield NetworkAttachment(self._cni.default_network().name, DEFAULT_INTERFACE)
        for named in additional:
            try:
                self._cni.network(named.network)
            except NotReadyError as error:
                raise NotReadyError(f"annotation {NETWORKS}: {error}") from error
            yield named

    def _check_free(self, ports: Iterable[HostPort]) -> None:
        for port in ports:
            holder = self._held_ports.holder(port)
            if holder is None:
                continue
            sandbox = self._store.find(holder)
            raise AlreadyExistsError(
                f"config.port_mappings: host_port {port} is held by sandbox {sandbox.id} "
                f"({sandbox.record.metadata.namespace}/{sandbox.record.metadata.name}): "
                "remove that one or choose another port"
            )

    async def create_namespace(
        self, sandbox_id: str, sysctls: Mapping[str, str], netns_fd: int | None = None
    ) -> None:
        """Make and pin the pod's network namespace with `lo` up and its `net.*` sysctls set.

        `netns_fd` is the one that was made with the pod's user namespace, for a pod that has its own.

        Raises InvalidArgumentError for a sysctl that the kernel refuses, ResourceExhaustedError when it has no room.
        """
        with host_step(f"sandbox {sandbox_id}: making its network namespace"):
            await in_time(
                "making the network namespace",
                self._host.create_netns,
                netns_file(sandbox_id),
                sysctls,
                netns_fd,
            )

    async def set_sysctls(
        self, sandbox_id: str, sysctls: Mapping[str, str], optional: Collection[str]
    ) -> None:
        """Set sysctls of the interfaces that the plugins made; the `optional` ones where there is that interface.

        Raises InvalidArgumentError for an interface that isn't there, and for what the kernel refuses.
        """
        with host_step(f"sandbox {sandbox_id}: setting the sysctls of its interfaces"):
            await in_time(
                "setting sysctls of interfaces",
                self._host.set_netns_sysctls,
                netns_file(sandbox_id),
                sysctls,
                optional,
            )

    async def remove_namespace(self, sandbox_id: str) -> None:
        """Unpin the namespace, unless a DEL is still pending: plugins find what to take away through it."""
        if not self._pending_deletes.holds(sandbox_id):
            await self.unpin_namespace(sandbox_id)

    async def unpin_namespace(self, sandbox_id: str) -> None:
        """Unpin the namespace; it ends with the last process in it."""
        await in_time(
            "removing the network namespace", self._host.remove_netns, netns_file(sandbox_id)
        )

    async def attach(self, sandbox: Sandbox) -> tuple[str, ...]:
        """CNI ADD of every planned network, in order; the addresses of the primary one, in its plugins' order.

        The other networks' addresses are no addresses of the pod as Kubernetes knows it: services don't lead there.
        """
        ips: tuple[str, ...] | None = None
        self._attachments.warn_of_deaf_networks(sandbox)
        self._warn_of_former_holders(sandbox)
        for planned in sandbox.status.attachments:
            try:
                result = await self._cni.add(self._attachments.of(sandbox, planned))
            except CniPluginError as error:
                error.name_object(f"sandbox {sandbox.id}: network {planned.network}")
                raise
            if ips is None and planned.ifname != LOOPBACK:
                ips = pod_ips(result, planned.ifname)
        return ips or ()

    def _warn_of_former_holders(self, sandbox: Sandbox) -> None:
        ports = ports_of(sandbox) if self._publish_ports else {}
        if not ports:
            return
        # Nobody knows how much of a failed DEL was done; mostly the ports were. So a pending delete holds no port back.
        former_pods = {
            pending.pod
            for pending in self._pending_deletes
            if maps_any(pending.capability_args, ports)
        }
        if former_pods:
            log.warning(
                "host ports may lead to a former pod until its network is given back",
                sandbox_id=sandbox.id,
                former=sorted(former_pods),
            )

    async def detach(self, sandbox: Sandbox) -> None:
        """CNI DEL of every attachment still noted, last first; what failed is pending from now on, and no longer noted.

        So is what a former daemon's plugin still works on, which may take as long as it likes. That all DELs have
        succeeded is for the caller to save: should it not come to that, a further DEL finds nothing to do.
        Raises CriShimError only where a pending delete can't be written down.
        """
        metadata = sandbox.record.metadata
        for planned in reversed(sandbox.status.attachments):
            done = await self._delete(
                self._attachments.of(sandbox, planned), pod=f"{metadata.namespace}/{metadata.name}"
            )
            left = tuple(a for a in sandbox.status.attachments if a != planned)
            status = msgspec.structs.replace(sandbox.status, attachments=left)
            (self._store.note if done else self._store.update)(sandbox, status)

    def is_busy(self, sandbox_id: str) -> bool:
        """Whether a plugin works on this pod that nobody waits for: its pending deletes must wait."""
        return sandbox_id in self._slow or self._leftovers.at_work(sandbox_id)

    async def _delete(self, attachment: Attachment, *, pod: str) -> bool:
        """Whether the DEL succeeded; else it is pending."""
        if self._leftovers.at_work(attachment.container_id):
            self._pending_deletes.add(attachment, pod=pod, error=FORMER_PLUGIN)
            return False
        if attachment.container_id in self._slow:
            self._pending_deletes.add(attachment, pod=pod, error=SLOW_PLUGIN)
            return False
        try:
            async with asyncio.timeout(DEL_PATIENCE_S):
                await self._background.owned(f"cni DEL of {attachment}", self._call_del(attachment))
        except TimeoutError:
            self._slow.add(attachment.container_id)
            self._pending_deletes.add(attachment, pod=pod, error=SLOW_PLUGIN)
        except CriShimError as error:
            self._pending_deletes.add(attachment, pod=pod, error=str(error))
        else:
            return True
        return False

    async def _call_del(self, attachment: Attachment) -> None:
        try:
            await self._cni.delete(attachment)
        finally:
            if attachment.container_id in self._slow:
                self._slow.remove(attachment.container_id)
                self.plugin_ended()

    async def check(self, sandbox: Sandbox) -> None:
        """CNI CHECK of every attachment. Raises CniPluginError with the words of the first plugin that complains."""
        for planned in sandbox.status.attachments:
            await self._cni.check(self._attachments.of(sandbox, planned))

    async def tear_down_by_id(self, sandbox_id: str) -> None:
        """Take away the network of a sandbox of which only the ID is known, by what the CNI result cache says."""
        for attachment in self._cni.attachments(sandbox_id):
            await self._delete(attachment, pod="")
        await self.remove_namespace(sandbox_id)

    def describe(self, sandbox: Sandbox) -> list[dict[str, object]]:
        """What the plugins of each network made for the pod, for a person; read from the result cache."""
        return [
            network_details(
                planned, self._cni.cached_result(self._attachments.of(sandbox, planned))
            )
            for planned in sandbox.status.attachments
        ]
