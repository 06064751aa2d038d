"""How much of a list one object may fill: a list has to fit into the one message that clients take.

ListPodSandbox and ListContainers repeat labels and annotations, which pods' authors write, and a kubelet takes 16 MiB:
of a longer list it sees nothing, and with it no pod of the node. Rules:
- An entry of ordinary size is always taken.
- What entries have beyond that comes out of a common pool, of which a namespace may take half of what the others leave:
  so many large ones of one tenant leave something for everybody else.
- Lists that come in pieces (`StreamPodSandboxes`) would need no such bound, but kubelets ask for them only where an
  alpha feature (`CRIListStreaming`) is on.

The sums: 500 ordinary sandboxes, of 250 pods, are 4 MiB, 1250 ordinary containers 2.5 MiB. With both pools and some
hundred bytes of statistics each, also ListPodSandboxStats, which has both, stays below 16 MiB.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from cri_shim._pb.cri.v1 import api_pb2 as api
from cri_shim.errors import ResourceExhaustedError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from cri_shim.sandbox.store.store import Container, Sandbox

ORDINARY_SANDBOX_BYTES: Final = 8 << 10
ORDINARY_CONTAINER_BYTES: Final = 2 << 10
SANDBOX_POOL_BYTES: Final = 6 << 20
CONTAINER_POOL_BYTES: Final = 2 << 20
_NAMESPACE_LABEL: Final = "io.kubernetes.pod.namespace"
"""Kubelets give it to every container; what has none shares one part of the pool."""
_FRAMING_BYTES: Final = 8
"""Of a string in a message, with its part of the map's entry."""


def check_sandbox_entry(config: api.PodSandboxConfig, others: Iterable[Sandbox]) -> None:
    """Raises ResourceExhaustedError for a sandbox whose labels and annotations no longer fit beside the others'."""
    beyond = _beyond(config, ORDINARY_SANDBOX_BYTES)
    if beyond:
        _check(
            beyond,
            SANDBOX_POOL_BYTES,
            ORDINARY_SANDBOX_BYTES,
            config.metadata.namespace,
            (
                (each.record.metadata.namespace, _beyond(each.config, ORDINARY_SANDBOX_BYTES))
                for each in others
            ),
        )


def check_container_entry(config: api.ContainerConfig, others: Iterable[Container]) -> None:
    """Raises ResourceExhaustedError for a container whose labels and annotations no longer fit beside the others'."""
    beyond = _beyond(config, ORDINARY_CONTAINER_BYTES)
    if beyond:
        _check(
            beyond,
            CONTAINER_POOL_BYTES,
            ORDINARY_CONTAINER_BYTES,
            config.labels.get(_NAMESPACE_LABEL, ""),
            (
                (
                    each.config.labels.get(_NAMESPACE_LABEL, ""),
                    _beyond(each.config, ORDINARY_CONTAINER_BYTES),
                )
                for each in others
            ),
        )


def _beyond(config: api.PodSandboxConfig | api.ContainerConfig, ordinary_bytes: int) -> int:
    """What the request puts into the object's entry, as far as it is more than ordinary."""
    if config.ByteSize() <= ordinary_bytes:
        return 0
    maps = [config.labels, config.annotations]
    if isinstance(config, api.ContainerConfig):
        maps.append(config.image.annotations)
    total = sum(
        len(text.encode()) + _FRAMING_BYTES
        for texts in maps
        for pair in texts.items()
        for text in pair
    )
    return max(0, total - ordinary_bytes)


def _check(
    beyond: int, pool: int, ordinary_bytes: int, namespace: str, others: Iterable[tuple[str, int]]
) -> None:
    taken = own = 0
    for whose, size in others:
        taken += size
        own += size if whose == namespace else 0
    most = (pool - (taken - own)) // 2
    if own + beyond > most:
        raise ResourceExhaustedError(
            f"labels, annotations: {beyond + ordinary_bytes} bytes: lists repeat them, and would no longer fit into "
            f"the message that kubelets take: beyond {ordinary_bytes} bytes each, the namespace's objects may have "
            f"{max(most, 0)} more together, and have {own}: make them smaller, or remove others"
        )
