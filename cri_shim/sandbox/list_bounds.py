"""Bounds the labels and annotations of objects, so that List responses fit into one message.

ListPodSandbox and ListContainers repeat labels and annotations, which the authors of pods write. A kubelet accepts
responses of 16 MiB: with a longer list it would see no pod of the node at all.

Rules:
- An entry of ordinary size is always accepted.
- The excess of larger entries comes from a common pool. A namespace may use half of what the others leave, so that no
  tenant can use up the pool.
- The Stream* calls need no such bound, but kubelets use them only with the alpha feature `CRIListStreaming`.

500 ordinary sandboxes, of 250 pods, take 4 MiB, and 1250 ordinary containers 2.5 MiB. With both pools, and some hundred
bytes of statistics for each, even ListPodSandboxStats, which has both kinds, stays below 16 MiB.
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
"""Kubelets set it on every container. Containers without it share one part of the pool."""
_FRAMING_BYTES: Final = 8
"""Protobuf's overhead for a string of a map entry."""


def check_sandbox_entry(config: api.PodSandboxConfig, others: Iterable[Sandbox]) -> None:
    """Check a new sandbox. Raises ResourceExhaustedError if its labels and annotations exceed the pool."""
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
    """Check a new container. Raises ResourceExhaustedError if its labels and annotations exceed the pool."""
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
    """The bytes by which the object's list entry exceeds the ordinary size."""
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
            f"labels, annotations: {beyond + ordinary_bytes} bytes are too many, since List responses repeat them and "
            f"must fit into a message: beyond {ordinary_bytes} bytes each, the objects of the namespace may have "
            f"{max(most, 0)} bytes together, and have {own}: make them smaller, or remove other objects"
        )
