"""Builds what attaches pods to their networks."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from cri_shim.config.model import GcMode
from cri_shim.sandbox.network.attachments import PodAttachments
from cri_shim.sandbox.network.pending_deletes import PendingDeletes
from cri_shim.sandbox.network.pod_network import PodNetwork
from cri_shim.sandbox.network.reconciler import NetworkReconciler

if TYPE_CHECKING:
    from cri_shim.config import Config
    from cri_shim.daemon.mechanisms import Mechanisms


class Networks(NamedTuple):
    """The objects of the pods' networks, not yet started."""

    pending_deletes: PendingDeletes
    network: PodNetwork
    reconciler: NetworkReconciler


def build_networks(config: Config, on: Mechanisms) -> Networks:
    """Build the objects. Nothing is started, and no file is read."""
    pending_deletes = PendingDeletes(on.paths.pending_deletes_dir)
    network = PodNetwork(
        on.cni,
        on.sandboxes,
        pending_deletes,
        leftovers=on.leftover_plugins,
        host=on.host,
        runtime_of=on.handlers.get,
        background=on.background,
        attachments=PodAttachments(on.cni, publish_ports=config.sandbox.hostport),
        publish_ports=config.sandbox.hostport,
    )
    reconciler = NetworkReconciler(
        cni=on.cni,
        leftovers=on.leftover_plugins,
        network=network,
        sandboxes=on.sandboxes,
        pending_deletes=pending_deletes,
        operations=on.operations,
        background=on.background,
        collects_garbage=config.cni.gc is GcMode.AUTO,
    )
    return Networks(pending_deletes, network, reconciler)
