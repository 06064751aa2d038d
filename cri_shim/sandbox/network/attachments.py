"""Builds the CNI attachments of a pod: the arguments for each network that a sandbox joins.

Rules:
- Host ports go to one network only, the first with the capability `portMappings`, since a port leads to one address.
- A network gets only the capability arguments that its plugins declare. Others would be stored in the result cache,
  and expose the pod's annotations to plugins that do not use them.
- A requested capability that no plugin declares is logged by name.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import structlog

from cri_shim.cni.attachment import Attachment
from cri_shim.paths import netns_file
from cri_shim.sandbox.network.host_ports import ports_of
from cri_shim.sandbox.network.plugin_args import PORT_MAPPINGS, build_args, build_capability_args

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from cri_shim._pb.cri.v1 import api_pb2 as api
    from cri_shim.cni.network import Cni
    from cri_shim.sandbox.network.host_ports import HostPort
    from cri_shim.sandbox.store.model import NetworkAttachment, PodMetadata
    from cri_shim.sandbox.store.store import Sandbox

log = structlog.get_logger()

_NOTICED: Final = (PORT_MAPPINGS, "bandwidth")
"""Capabilities whose absence is logged: without them the pod lacks a feature that it requests."""


class PodAttachments:
    """Builds attachments from a sandbox's record and the current network configurations."""

    def __init__(self, cni: Cni, *, publish_ports: bool) -> None:
        """Without `publish_ports` plugins get no host ports."""
        self._cni = cni
        self._publish_ports = publish_ports

    def check(
        self,
        sandbox_id: str,
        metadata: PodMetadata,
        config: api.PodSandboxConfig,
        ports: Mapping[HostPort, int],
        planned: Iterable[NetworkAttachment],
    ) -> None:
        """Raises InvalidArgumentError for a pod of which no CNI arguments can be built."""
        args = build_args(sandbox_id, metadata, config.annotations)
        build_capability_args(config, ports, cgroup_parent="")
        for each in planned:
            Attachment(sandbox_id, "", each.ifname, each.network, args=args)

    def of(self, sandbox: Sandbox, planned: NetworkAttachment) -> Attachment:
        """The attachment of a sandbox to one of its networks."""
        pin = netns_file(sandbox.id)
        said = self._said(sandbox)
        if PORT_MAPPINGS in said and planned != self._publisher(sandbox.status.attachments):
            del said[PORT_MAPPINGS]
        declared = self._declared(planned.network)
        return Attachment(
            container_id=sandbox.id,
            netns=str(pin) if pin.exists() else "",
            ifname=planned.ifname,
            network=planned.network,
            args=build_args(sandbox.id, sandbox.record.metadata, sandbox.config.annotations),
            capability_args={key: value for key, value in said.items() if key in declared},
        )

    def warn_of_deaf_networks(self, sandbox: Sandbox) -> None:
        """Log the requested capabilities that no network of the pod supports."""
        asked = [capability for capability in _NOTICED if capability in self._said(sandbox)]
        if not asked:
            return
        networks = [planned.network for planned in sandbox.status.attachments]
        declared = frozenset().union(*map(self._declared, networks))
        for capability in asked:
            if capability not in declared:
                log.warning(
                    "ignored: no plugin of the pod's networks declares the requested capability",
                    capability=capability,
                    sandbox_id=sandbox.id,
                    networks=networks,
                )

    def _said(self, sandbox: Sandbox) -> dict[str, object]:
        ports = ports_of(sandbox) if self._publish_ports else {}
        return build_capability_args(
            sandbox.config, ports, cgroup_parent=sandbox.record.cgroup_parent
        )

    def _publisher(self, attachments: Iterable[NetworkAttachment]) -> NetworkAttachment | None:
        return next((a for a in attachments if PORT_MAPPINGS in self._declared(a.network)), None)

    def _declared(self, name: str) -> frozenset[str]:
        """The capabilities that plugins of a network declare."""
        network = self._cni.networks.get(name)
        plugins = network.plugins if network is not None else ()
        return frozenset().union(*(plugin.capabilities for plugin in plugins))
