"""Builds the arguments of CNI plugins for a pod: CNI_ARGS and capability arguments. Pure.

Rules:
- A capability without an argument is left out.
- All arguments come from the pod's request, which is in the record. So a DEL after a restart has those of the ADD.

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
    """CNI_ARGS: the pod's identity, then the arguments in its annotations. Raises InvalidArgumentError for these."""
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
    """The arguments of all capabilities that the pod's request sets. Raises InvalidArgumentError for an annotation."""
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
    """Whether an earlier pod's arguments map a host port that conflicts with one of `ports`."""
    wanted: HeldPorts[str] = HeldPorts()
    wanted.hold("", ports)
    return any(
        wanted.holder(HostPort(mapping["protocol"], mapping["hostPort"], mapping.get("hostIP", "")))
        is not None
        for mapping in capability_args.get(PORT_MAPPINGS, ())
    )
