"""Sandboxes as CRI messages. Pure, but that a sandbox keeps its encoded entry: kubelet lists them every second."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from cri_shim._pb.cri.v1 import api_pb2 as api
from cri_shim.rpc.encoded import kept
from cri_shim.sandbox.store.model import SandboxState

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from cri_shim.sandbox.store.model import PodMetadata, SandboxStatus
    from cri_shim.sandbox.store.store import Sandbox

STATES: Final = {
    # A sandbox that is still being created is not shown; should it be, it is not ready.
    SandboxState.CREATING: api.SANDBOX_NOTREADY,
    SandboxState.READY: api.SANDBOX_READY,
    SandboxState.NOT_READY: api.SANDBOX_NOTREADY,
}


def list_entry(sandbox: Sandbox) -> bytes:
    """A ListPodSandboxResponse of this sandbox alone, encoded; a StreamPodSandboxesResponse is the same on the wire."""
    return kept(sandbox, _encoded_entry)


def _encoded_entry(sandbox: Sandbox) -> bytes:
    return api.ListPodSandboxResponse(items=[pod_sandbox(sandbox)]).SerializeToString()


def pod_sandbox(sandbox: Sandbox) -> api.PodSandbox:
    """What ListPodSandbox tells about a sandbox."""
    record, config = sandbox.record, sandbox.config
    return api.PodSandbox(
        id=record.id,
        metadata=metadata(record.metadata),
        state=STATES[sandbox.status.state],
        created_at=record.created_at_ns,
        labels=config.labels,
        annotations=config.annotations,
        runtime_handler=record.handler,
    )


def pod_sandbox_status(sandbox: Sandbox) -> api.PodSandboxStatus:
    """What PodSandboxStatus tells about a sandbox."""
    record, config, status = sandbox.record, sandbox.config, sandbox.status
    return api.PodSandboxStatus(
        id=record.id,
        metadata=metadata(record.metadata),
        state=STATES[status.state],
        created_at=record.created_at_ns,
        network=_network(status),
        linux=api.LinuxPodSandboxStatus(
            namespaces=api.Namespace(options=config.linux.security_context.namespace_options)
        ),
        labels=config.labels,
        annotations=config.annotations,
        runtime_handler=record.handler,
    )


def metadata(of: PodMetadata) -> api.PodSandboxMetadata:
    """CRI's form of a pod's metadata."""
    return api.PodSandboxMetadata(
        name=of.name, uid=of.uid, namespace=of.namespace, attempt=of.attempt
    )


def selected(sandboxes: Sequence[Sandbox], filter_: api.PodSandboxFilter) -> Sequence[Sandbox]:
    """Those that meet every condition of the filter; `id` may be the beginning of one."""
    chosen = sandboxes
    if prefix := filter_.id:
        chosen = [each for each in chosen if each.record.id.startswith(prefix)]
    if filter_.HasField("state"):
        state = filter_.state.state
        chosen = [each for each in chosen if STATES[each.status.state] == state]
    if labels := dict(filter_.label_selector):
        chosen = [each for each in chosen if has_labels(each.config.labels, labels)]
    return chosen


def has_labels(labels: Mapping[str, str], selector: Mapping[str, str]) -> bool:
    """Whether each label of the selector is there with the same value."""
    return all(labels.get(key) == value for key, value in selector.items())


def _network(status: SandboxStatus) -> api.PodSandboxNetworkStatus:
    """No address once the network is taken down: it may belong to another pod by now."""
    if not status.ips or status.torn_down:
        return api.PodSandboxNetworkStatus()
    first, *others = status.ips
    return api.PodSandboxNetworkStatus(ip=first, additional_ips=[api.PodIP(ip=ip) for ip in others])
