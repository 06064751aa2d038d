"""The network of a pod: creates and removes its namespace, and attaches it to networks through CNI.

Rules:
- The networks of a sandbox are chosen once, before its record is written. The status names them, so that DEL can be
  called for each after a crash, whether ADD was called or not.
- The daemon creates the namespace, brings `lo` up and sets `net.*` sysctls before ADD, so that plugins see what the
  pod sees. Only sysctls of interfaces that plugins create are set after ADD.
- A Stop waits a few seconds for a DEL, and not at all for a plugin of a former daemon. Then the DEL is pending.
- An attachment leaves the sandbox's status only when its DEL has succeeded or is recorded as pending.
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
from cri_shim.sandbox.store.processes import own_kernel_runtime

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Mapping

    from cri_shim.background import Background
    from cri_shim.cni.attachment import Attachment
    from cri_shim.cni.leftover import LeftoverPlugins
    from cri_shim.cni.network import Cni
    from cri_shim.host.port import Host
    from cri_shim.oci.runtime import Runtime
    from cri_shim.sandbox.network.attachments import PodAttachments
    from cri_shim.sandbox.network.pending_deletes import PendingDeletes
    from cri_shim.sandbox.store.store import Sandbox, Store

DEFAULT_INTERFACE = "eth0"
LOOPBACK = "lo"
DEL_PATIENCE_S = 10.0
"""How long a Stop waits for the DEL of an attachment. The plugin runs on, and the DEL is retried when it has ended."""
SLOW_PLUGIN = f"a plugin did not answer within {DEL_PATIENCE_S:g} s"
FORMER_PLUGIN = "a plugin that a former daemon called for this pod still runs"

log = structlog.get_logger()


def has_host_network(config: api.PodSandboxConfig) -> bool:
    """Whether the pod uses the node's network."""
    return config.linux.security_context.namespace_options.network == api.NODE


class NetworkPlan(NamedTuple):
    """The networks and host ports of a new pod."""

    attachments: tuple[NetworkAttachment, ...]
    """In the order of ADD: loopback if a network is configured for it, the default network, additional networks."""
    ports: Mapping[HostPort, int]
    """The container port of each requested host port."""


class PodNetwork:
    """Attaches sandboxes to networks, and detaches them."""

    def __init__(
        self,
        cni: Cni,
        store: Store[Sandbox],
        pending_deletes: PendingDeletes,
        *,
        leftovers: LeftoverPlugins,
        host: Host,
        background: Background,
        attachments: PodAttachments,
        publish_ports: bool,
        runtime_of: Callable[[str], Runtime],
    ) -> None:
        """Without `publish_ports` host ports are neither checked nor given to plugins: another program serves them."""
        self._host = host
        self._runtime_of = runtime_of
        self._background = background
        self._slow: set[str] = set()
        """Sandboxes whose DEL became pending while its plugin still runs."""
        self.plugin_ended: Callable[[], None] = lambda: None
        """Called when such a plugin has ended."""
        self._cni = cni
        self._leftovers = leftovers
        self._store = store
        self._pending_deletes = pending_deletes
        self._attachments = attachments
        self._publish_ports = publish_ports
        self._held_ports: HeldPorts[str] = HeldPorts()
        store.changed = self._note_ports
        for sandbox in store:
            self._note_ports(sandbox)

    def _note_ports(self, sandbox: Sandbox) -> None:
        """Update the index of host ports. A sandbox holds its host ports while it is attached to a network."""
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
        """Parse and check the networks and host ports of a new pod.

        Raises NotReadyError if a network has no usable CNI configuration; InvalidArgumentError if arguments for plugins
        cannot be built from the request; AlreadyExistsError if another pod holds a host port.
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
                "remove that pod or choose another port"
            )

    async def create_namespace(
        self, sandbox_id: str, sysctls: Mapping[str, str], netns_fd: int | None = None
    ) -> None:
        """Create and pin the pod's network namespace, bring `lo` up and set `net.*` sysctls.

        `netns_fd` is the namespace that was created with the pod's user namespace, if it has one.

        Raises InvalidArgumentError for a sysctl that the kernel rejects, ResourceExhaustedError without resources.
        """
        with host_step(f"sandbox {sandbox_id}: creating the network namespace"):
            await in_time(
                "creating the network namespace",
                self._host.create_netns,
                netns_file(sandbox_id),
                sysctls,
                netns_fd,
            )

    async def set_sysctls(
        self, sandbox_id: str, sysctls: Mapping[str, str], optional: Collection[str]
    ) -> None:
        """Set sysctls of interfaces that the plugins created. `optional` ones are skipped if the interface is missing.

        Raises InvalidArgumentError for a missing interface, and for a value that the kernel rejects.
        """
        with host_step(f"sandbox {sandbox_id}: setting sysctls of interfaces"):
            await in_time(
                "setting sysctls of interfaces",
                self._host.set_netns_sysctls,
                netns_file(sandbox_id),
                sysctls,
                optional,
            )

    async def remove_namespace(self, sandbox_id: str) -> None:
        """Unpin the namespace, unless a DEL is pending, whose plugins need it."""
        if not self._pending_deletes.holds(sandbox_id):
            await self.unpin_namespace(sandbox_id)

    async def unpin_namespace(self, sandbox_id: str) -> None:
        """Unpin the namespace. It ends with the last process in it."""
        await in_time(
            "removing the network namespace", self._host.remove_netns, netns_file(sandbox_id)
        )

    async def attach(self, sandbox: Sandbox) -> tuple[str, ...]:
        """Call ADD for every planned network, in order. Returns the addresses on the primary one.

        Addresses of other networks are not pod addresses for Kubernetes: services do not lead there. Raises
        CniPluginError.
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
        # A failed DEL has mostly removed the port mappings already, so a pending delete does not reserve its ports.
        former_pods = {
            pending.pod
            for pending in self._pending_deletes
            if maps_any(pending.capability_args, ports)
        }
        if former_pods:
            log.warning(
                "host ports may lead to a former pod while its DEL is pending",
                sandbox_id=sandbox.id,
                former=sorted(former_pods),
            )

    async def _restore_addresses(self, sandbox: Sandbox) -> None:
        """Restore the addresses of a sandbox's interfaces, which a pod with its own kernel may have removed.

        Plugins use them to find what they created on the node. An error is only logged, since DEL reports its own.
        """
        for planned in sandbox.status.attachments:
            attachment = self._attachments.of(sandbox, planned)
            result = self._cni.cached_result(attachment)
            if result is None or not attachment.netns:
                continue
            addresses = [ip.address for ip in result.ips]
            try:
                await in_time(
                    "restoring addresses of interfaces",
                    self._host.restore_addresses,
                    netns_file(sandbox.id),
                    planned.ifname,
                    addresses,
                )
            except (OSError, CriShimError) as error:
                log.warning(
                    "cannot restore addresses of interfaces",
                    sandbox_id=sandbox.id,
                    error=str(error),
                )

    async def detach(self, sandbox: Sandbox) -> None:
        """Call DEL for every attachment in the status, the last first. Each leaves the status.

        A DEL that fails or takes long becomes pending, and so does one of a pod on which a former daemon's plugin still
        works. The caller saves a status without attachments: if a crash comes first, DEL is called again, which is
        harmless. Raises CriShimError only if a pending delete cannot be written.
        """
        metadata = sandbox.record.metadata
        if own_kernel_runtime(self._runtime_of, sandbox.record.handler) is not None:
            await self._restore_addresses(sandbox)
        for planned in reversed(sandbox.status.attachments):
            done = await self._delete(
                self._attachments.of(sandbox, planned), pod=f"{metadata.namespace}/{metadata.name}"
            )
            left = tuple(a for a in sandbox.status.attachments if a != planned)
            status = msgspec.structs.replace(sandbox.status, attachments=left)
            (self._store.note if done else self._store.update)(sandbox, status)

    def is_busy(self, sandbox_id: str) -> bool:
        """Whether a plugin still works on this pod, after which its pending deletes must be retried."""
        return sandbox_id in self._slow or self._leftovers.at_work(sandbox_id)

    async def _delete(self, attachment: Attachment, *, pod: str) -> bool:
        """Call DEL. Returns whether it succeeded; if not, it is pending."""
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
        """Call CHECK for every attachment. Raises the CniPluginError of the first one that fails."""
        for planned in sandbox.status.attachments:
            await self._cni.check(self._attachments.of(sandbox, planned))

    async def tear_down_by_id(self, sandbox_id: str) -> None:
        """Remove the network of a sandbox of which only the ID is known. The CNI result cache has its attachments."""
        for attachment in self._cni.attachments(sandbox_id):
            await self._delete(attachment, pod="")
        await self.remove_namespace(sandbox_id)

    def describe(self, sandbox: Sandbox) -> list[dict[str, object]]:
        """Describe each network of the pod for its verbose status, from the result cache."""
        return [
            network_details(
                planned, self._cni.cached_result(self._attachments.of(sandbox, planned))
            )
            for planned in sandbox.status.attachments
        ]
