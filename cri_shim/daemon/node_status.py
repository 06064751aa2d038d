"""The status of this node for RuntimeService.Status."""

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
        """The conditions and handlers at this moment."""
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
        """Whether conmon and the default runtime are installed. Looked up at each call, so no restart is needed."""
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
        """Note the pod address ranges that the kubelet sends. Raises as `PodCidr.update`."""
        self._pod_cidr.update(pod_cidr)

    def uses_systemd_cgroups(self) -> bool:
        """Whether the cgroup driver is systemd."""
        return self._systemd
