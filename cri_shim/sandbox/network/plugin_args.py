"""What CNI plugins are told of a pod: CNI_ARGS and the arguments of their capabilities. Pure.

Rules:
- A capability has a key only where there is something to say for it.
- All of it comes from the pod's request, which the record keeps: a DEL after a restart can say the same as the ADD.

CNI conventions, "Dynamic Plugin specific fields" and "CNI_ARGS"; the keys `cgroupPath` and
`io.kubernetes.cri.pod-annotations` are those of other CRI runtimes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from cri_shim.sandbox.network.annotations import cni_args
from cri_shim.sandbox.network.bandwidth import bandwidth
from cri_shim.sandbox.network.host_ports import HeldPorts, HostPort, port_mappings

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from typing import Any

    from cri_shim._pb.cri.v1 import api_pb2 as api
    from cri_shim.sandbox.store.model import PodMetadata

PORT_MAPPINGS: Final = "portMappings"


def build_args(
    sandbox_id: str, metadata: PodMetadata, annotations: Mapping[str, str]
) -> dict[str, str]:
    """CNI_ARGS: who the pod is, then what its annotations add. Raises InvalidArgumentError for the latter."""
    return {
        "IgnoreUnknown": "1",
        "K8S_POD_NAMESPACE": metadata.namespace,
        "K8S_POD_NAME": metadata.name,
        "K8S_POD_INFRA_CONTAINER_ID": sandbox_id,
        "K8S_POD_UID": metadata.uid,
        **cni_args(annotations),
    }


def build_capability_args(
    config: api.PodSandboxConfig, ports: Mapping[HostPort, int], *, cgroup_parent: str
) -> dict[str, object]:
    """Everything that the pod's request says, by capability. Raises InvalidArgumentError for an annotation."""
    dns = config.dns_config
    told: dict[str, object] = {
        PORT_MAPPINGS: port_mappings(ports),
        "bandwidth": bandwidth(config.annotations),
        "dns": {
            key: list(said)
            for key, said in (
                ("servers", dns.servers),
                ("searches", dns.searches),
                ("options", dns.options),
            )
            if said
        },
        "cgroupPath": cgroup_parent,
        "io.kubernetes.cri.pod-annotations": dict(config.annotations),
    }
    return {capability: said for capability, said in told.items() if said}


def maps_any(capability_args: Mapping[str, Any], ports: Iterable[HostPort]) -> bool:
    """Whether an earlier pod's arguments map a host port that collides with one of `ports`."""
    wanted: HeldPorts[str] = HeldPorts()
    wanted.hold("", ports)
    return any(
        wanted.holder(HostPort(mapping["protocol"], mapping["hostPort"], mapping.get("hostIP", "")))
        is not None
        for mapping in capability_args.get(PORT_MAPPINGS, ())
    )
