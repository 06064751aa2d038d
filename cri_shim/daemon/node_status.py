"""How this node stands, as RuntimeService.Status tells it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cri_shim.config.render import to_tree
from cri_shim.errors import CriShimError
from cri_shim.rpc.runtime_service import Condition, NodeStatus
from cri_shim.rpc.runtime_service import HandlerFacts as ShownHandler

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from cri_shim.cni.network import Cni
    from cri_shim.cni.pod_cidr import PodCidr
    from cri_shim.config import Config
    from cri_shim.daemon.handlers import Handlers
    from cri_shim.oci.conmon import Monitors
    from cri_shim.sandbox.network.pending_deletes import PendingDeletes


class NodeState:
    """Conditions, handlers and the documents of a verbose Status."""

    def __init__(
        self,
        *,
        cni: Cni,
        pending_deletes: PendingDeletes,
        pod_cidr: PodCidr,
        handlers: Handlers,
        monitors: Monitors,
        config: Callable[[], Config],
        systemd: bool,
    ) -> None:
        self._monitors = monitors
        self._cni = cni
        self._pending_deletes = pending_deletes
        self._pod_cidr = pod_cidr
        self._handlers = handlers
        self._config = config
        self._systemd = systemd

    def status(self) -> NodeStatus:
        """The conditions now."""
        cni = self._cni.status
        names = self._handlers.usable()
        return NodeStatus(
            runtime=self._runtime(),
            network=Condition(ok=cni.ready, reason=cni.reason, message=cni.message),
            handlers=[
                ShownHandler(
                    name=name,
                    recursive_read_only_mounts=facts.recursive_read_only_mounts,
                    user_namespaces=facts.user_namespaces,
                )
                for name, facts in ((name, self._handlers.facts(name)) for name in names)
            ],
            supplemental_groups_policy=True,
            user_namespaces_host_network=any(
                self._handlers.facts(name).user_namespaces for name in names
            ),
            mount_options=True,
        )

    def _runtime(self) -> Condition:
        """Whether a pod could be started: looked up each time, so that installing what is missing is enough."""
        try:
            self._monitors.executable()
            self._handlers.get("").command_prefix()
        except CriShimError as error:
            return Condition(ok=False, reason="RuntimeMissing", message=str(error))
        return Condition(ok=True)

    def info(self) -> Mapping[str, object]:
        """The effective configuration, the last CNI load, and the pending deletes."""
        cni = self._cni.status
        return {
            "config": to_tree(self._config()),
            "cni": {
                "ready": cni.ready,
                "reason": cni.reason,
                "message": cni.message,
                "networks": list(self._cni.networks),
                "pendingDeletes": [
                    {
                        "pod": pending.pod,
                        "sandbox": pending.container_id,
                        "network": pending.network,
                        "interface": pending.ifname,
                        "sinceNs": pending.since_ns,
                        "error": pending.error,
                    }
                    for pending in self._pending_deletes
                ],
            },
        }

    def update_pod_cidr(self, pod_cidr: str) -> None:
        """The kubelet says which addresses the node's pods shall have. Raises as `PodCidr.update`."""
        self._pod_cidr.update(pod_cidr)

    def uses_systemd_cgroups(self) -> bool:
        """Who makes the pods' cgroups: systemd, or we."""
        return self._systemd
