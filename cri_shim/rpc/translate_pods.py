"""Builds CRI messages of sandboxes. Pure, except that a sandbox keeps its encoded entry: kubelet lists every second."""

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
    # Lists and find leave out a sandbox that is being created. The row keeps the mapping total.
    SandboxState.CREATING: api.SANDBOX_NOTREADY,
    SandboxState.READY: api.SANDBOX_READY,
    SandboxState.NOT_READY: api.SANDBOX_NOTREADY,
}


def list_entry(sandbox: Sandbox) -> bytes:
    """An encoded ListPodSandboxResponse with this sandbox alone; StreamPodSandboxesResponse has the same encoding."""
    return kept(sandbox, _encoded_entry)


def _encoded_entry(sandbox: Sandbox) -> bytes:
    return api.ListPodSandboxResponse(items=[pod_sandbox(sandbox)]).SerializeToString()


def pod_sandbox(sandbox: Sandbox) -> api.PodSandbox:
    """The entry of a sandbox in ListPodSandboxResponse."""
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
    """The status of a sandbox in PodSandboxStatusResponse."""
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
    """A pod's metadata as a CRI message."""
    return api.PodSandboxMetadata(
        name=of.name, uid=of.uid, namespace=of.namespace, attempt=of.attempt
    )


def selected(
    sandboxes: Sequence[Sandbox], filter_: api.PodSandboxFilter | api.PodSandboxStatsFilter
) -> Sequence[Sandbox]:
    """The sandboxes that match every condition of the filter. Its `id` may be a prefix."""
    chosen = sandboxes
    if prefix := filter_.id:
        chosen = [each for each in chosen if each.record.id.startswith(prefix)]
    if isinstance(filter_, api.PodSandboxFilter) and filter_.HasField("state"):
        state = filter_.state.state
        chosen = [each for each in chosen if STATES[each.status.state] == state]
    if labels := dict(filter_.label_selector):
        chosen = [each for each in chosen if has_labels(each.config.labels, labels)]
    return chosen


def has_labels(labels: Mapping[str, str], selector: Mapping[str, str]) -> bool:
    """Whether `labels` has each label of the selector with the same value."""
    return all(labels.get(key) == value for key, value in selector.items())


def _network(status: SandboxStatus) -> api.PodSandboxNetworkStatus:
    """The pod's addresses; none once its network is torn down, since IPAM may have given them to another pod."""
    if not status.ips or status.torn_down:
        return api.PodSandboxNetworkStatus()
    first, *others = status.ips
    return api.PodSandboxNetworkStatus(ip=first, additional_ips=[api.PodIP(ip=ip) for ip in others])
