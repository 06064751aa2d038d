"""Builds CRI's container events. Pure, except that it counts the events that are too large to be sent.

Rules:
- Containers are the newest first, as in PodSandboxStatus: kubelet takes the first one of a name for the current one.
- The sandbox is always named, also once it was removed: kubelet ignores events without the pod's UID.
- An event is whole or not sent at all. Kubelets up to 1.36 take its statuses for all that the pod has, and would start
  a container again that is left out; they find the step in their next list.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import structlog

from cri_shim import metrics
from cri_shim._pb.cri.v1 import api_pb2 as api
from cri_shim.rpc.encoded import Encoded
from cri_shim.rpc.translate_containers import container_status
from cri_shim.rpc.translate_pods import metadata, pod_sandbox_status
from cri_shim.sandbox.container_events import EventType

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cri_shim.sandbox.container_events import ContainerEvent
    from cri_shim.sandbox.store.store import Container, Sandbox

log = structlog.get_logger()
MAX_EVENT_BYTES: Final = 1 << 20
"""The lowest `limits.grpc_message`: some 600 containers of ordinary size, for which the loop encodes 15 ms."""
TYPES: Final = {
    EventType.CREATED: api.CONTAINER_CREATED_EVENT,
    EventType.STARTED: api.CONTAINER_STARTED_EVENT,
    EventType.STOPPED: api.CONTAINER_STOPPED_EVENT,
    EventType.DELETED: api.CONTAINER_DELETED_EVENT,
}


def container_event(
    event: ContainerEvent, sandbox: Sandbox | None, containers: Sequence[Container]
) -> Encoded | None:
    """An encoded ContainerEventResponse with the statuses of the sandbox and its `containers`, the oldest first.

    None if it would be larger than `MAX_EVENT_BYTES`.
    """
    message = api.ContainerEventResponse(
        container_id=event.object_id,
        container_event_type=TYPES[event.type],
        created_at=event.at_ns,
    )
    if sandbox is not None:
        message.pod_sandbox_status.CopyFrom(pod_sandbox_status(sandbox))
    elif event.pod is not None:
        message.pod_sandbox_status.id = event.sandbox_id
        message.pod_sandbox_status.metadata.CopyFrom(metadata(event.pod))
        message.pod_sandbox_status.state = api.SANDBOX_NOTREADY
    # Encoded one by one, so that no more is done than fits.
    parts = [message.SerializeToString()]
    size = len(parts[0])
    for container in reversed(containers):
        if size > MAX_EVENT_BYTES:
            break
        part = api.ContainerEventResponse(containers_statuses=[container_status(container)])
        parts.append(part.SerializeToString())
        size += len(parts[-1])
    if size > MAX_EVENT_BYTES:
        metrics.CONTAINER_EVENTS_TOO_LARGE.inc()
        log.warning(
            "container event not sent: the pod's statuses don't fit into it",
            sandbox_id=event.sandbox_id,
            max_bytes=MAX_EVENT_BYTES,
        )
        return None
    return Encoded(b"".join(parts))
